"""The memory cap, enforced by the system: a run is granted no more than what its cap leaves."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.recipe import Binding
from taskbasis.scores import ImportanceWriter, Origin
from taskbasis.vectors import Checkpoint

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="only Linux limits private memory alone, only glibc 2.33 or newer tells what lies free",
)

MATRICES, SIDE = 60, 528  # 67 MB a model; wider than what an SVD takes whole
WORKERS = 8

LIMIT = """
import ctypes, os, resource

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Malloc(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

def held(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

def grant(room):
    "Leave so many bytes, no more: what was freed before is not given on top of them."
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Malloc
    most = held("VmData:") - ask().fordblks + room
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
"""

CHILD = (
    LIMIT
    + """
import contextlib, gc, io, json, re, signal, sys, threading
import numpy as np
from taskbasis.blas import limit_this_thread
from taskbasis.cli import run
from taskbasis.engine import give_back_memory

words, workers, fitting, out = json.loads(sys.argv[1])
threading.stack_size(256 << 10)
together = threading.Barrier(workers)

def call(*more):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run([*words, "-j", str(workers), "-q", *more])
    return code, said.getvalue()

def multiply():
    limit_this_thread()
    square = np.ones((256, 256))
    together.wait()
    for _ in range(8):
        square @ square

def limited(room, work):
    "What the work returns, in a process that is granted so many bytes, or the signal it dies of."
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # OpenBLAS, for one, tries for ever to get a buffer
        grant(room)
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        found = file.read()
    status = os.waitpid(pid, 0)[1]
    return json.loads(found) if status == 0 else f"status {status}"

def capped():
    signal.alarm(20)
    grant(room)
    cap = held("VmRSS:") + room
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is measured from here on
    return *call("-o", f"{out}/kept", "--memory", str(cap)), held("VmHWM:") - cap

def dense():
    try:
        return len([np.fromfile(f"{name}/model.safetensors", np.uint8) for name in ("base", "a")])
    except MemoryError:
        return "MemoryError"

# The program is loaded by the same work on a toy, and OpenBLAS has a buffer for every worker.
os.chdir("toy")
assert call("-o", f"{out}/toy", "--memory", "1TB") == (0, "")
threads = [threading.Thread(target=multiply) for _ in range(workers)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.chdir("../large")
code, said = call("-o", f"{out}/refused", "--memory", "1MB")
needs = re.search(r"needs ([0-9.]+) MB, of which the program itself is ([0-9.]+) MB", said)
room = int((float(needs[1]) - float(needs[2]) + 3) * 1e6) * fitting  # both are rounded to 1 MB
gc.collect()
give_back_memory()
found = {"room": room}
if fitting == 1:  # eight workers may do where three are said to
    found["uncapped"] = limited(room, lambda: call("-o", f"{out}/uncapped"))
    found["dense"] = limited(room, dense)
print(json.dumps({**found, "capped": capped()}))
"""
)


def alone(code: str, *arguments: str, where: Path) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_models(folder: Path, matrices: int) -> None:
    """A base and three fine-tunes, and scores of what was learnt."""
    random = np.random.default_rng(0)
    base = [random.standard_normal((SIDE, SIDE), np.float32) for _ in range(matrices)]
    for number, name in enumerate(("base", "a", "b", "c")):
        tensors: dict[str, Any] = {"norm": np.full(64, number, np.float32)}
        for at, value in enumerate(base):
            column, row = random.standard_normal((2, SIDE), np.float32)
            tensors[f"layers.{at}.q.weight"] = (
                value + np.float32(number * 0.01) * column[:, None] * row
            )
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"model_type": "tiny"}))
        origin = Origin(Binding(name, None, Checkpoint(folder / name).fingerprint))
        shapes = {tensor: value.shape for tensor, value in tensors.items()}
        with ImportanceWriter(folder / f"{name}-scores.safetensors", shapes, origin) as writer:
            for tensor, value in tensors.items():
                writer.write(tensor, np.abs(value))
            writer.commit()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``large`` models, two of which are larger than the room of any work, and ``toy`` ones."""
    root = tmp_path_factory.mktemp("models")
    write_models(root / "toy", 2)
    write_models(root / "large", MATRICES)
    yield root
    shutil.rmtree(root)


VERBS = (
    "extract base a",
    "add base a b c",
    "merge base a b c --method ties",
    "merge base a b c --method sta --scores a-scores.safetensors --scores b-scores.safetensors "
    "--scores c-scores.safetensors",
    "merge base a b --method slerp",
    "merge base a b c --method model_stock",
    "basis fit a b c --base base -k 2",
    "lora extract base a --rank 4",
)


CASES = [*((words, 1) for words in VERBS), (VERBS[2], 3), (VERBS[-1], 3)]


@pytest.mark.parametrize(("words", "fitting"), CASES)
@pytest.mark.promise(
    "Under a limit of the system that leaves no more room than one worker is said to need, or "
    "three, a run with that memory cap writes the bytes of a run without limits; one without the "
    "cap is told in one sentence that memory is out, and leaves nothing."
)
def test_the_system_holds_a_run_to_its_cap(
    models: Path,
    tmp_path: Path,
    words: str,
    fitting: int,
    monkeypatch: pytest.MonkeyPatch,
    run_here: Callable[[str], tuple[int, str]],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    monkeypatch.chdir(models / "large")
    assert run_here(f"{words} -o {tmp_path}/free -q -j 2") == (0, "")
    given = json.dumps([words.split(), WORKERS, fitting, str(tmp_path)])
    found = json.loads(alone(CHILD, given, where=models))
    assert found["room"] < fitting * 2 * MATRICES * SIDE * SIDE * 4
    code, said, above = found["capped"]
    assert (code, said) == (0, ""), (said, found)
    assert above <= 0
    ends = ".safetensors" if (tmp_path / "free.safetensors").exists() else ""
    assert contents(tmp_path / f"kept{ends}") == contents(tmp_path / f"free{ends}")
    assert {name.removesuffix(ends) for name in os.listdir(tmp_path)} == {"free", "kept", "toy"}
    if fitting == 1:  # the limit bites: neither more workers fit, nor two models
        out = [1, "Error: out of memory; use fewer --workers, or a --memory cap\n"]
        assert found["uncapped"] == out
        assert found["dense"] == "MemoryError"
    shutil.rmtree(tmp_path)


STARTING = (
    LIMIT
    + """
import signal, sys, threading
from taskbasis.engine import Engine

signal.alarm(20)
room, stack = map(int, sys.argv[1:])
list(Engine(8).map(lambda item, scratch: item, range(8), lambda item: 1, ""))
threading.stack_size(stack)
grant(room)
try:
    list(Engine(8).map(lambda item, scratch: item, range(8), lambda item: 1, ""))
except MemoryError as error:
    print(error)
"""
)


@pytest.mark.parametrize(
    ("room", "stack", "sentence"),
    [
        (1 << 20, 256 << 10, "no memory is left for 8 threads"),
        (64 << 20, 256 << 20, "8 threads cannot be started: can't start new thread"),
    ],
)
def test_threads_that_cannot_start_are_no_endless_wait(
    tmp_path: Path, room: int, stack: int, sentence: str
) -> None:
    assert alone(STARTING, str(room), str(stack), where=tmp_path).strip() == sentence
