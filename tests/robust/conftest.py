"""A desk of models, and real processes on it that are slow enough to be met at work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

SHAPES = {
    "embed.weight": (40, 64),
    "layers.0.q.weight": (530, 512),
    "layers.1.q.weight": (64, 64),
    "norm": (64,),
}
SLOW = """
    import signal, sys, time
    from taskbasis.io.writer import Staged
    # What a shell starts in the background ignores Ctrl-C, and its children do, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    real, pause = Staged.write, float(sys.argv.pop(1))

    def slow(self, name, start, words):
        real(self, name, start, words)
        print("writing", flush=True)
        time.sleep(pause)

    Staged.write = slow
    from taskbasis.cli import main
    main(sys.argv[1:])
"""

Start = Callable[..., subprocess.Popen[str]]

COMPILING = "compiling the kernels for this machine, once\n"
"""What is said where no kernel was compiled before."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``base``, the fine-tunes ``a`` to ``c`` and a recipe."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    for number, name in enumerate(("base", "a", "b", "c")):
        moved = {k: v + number * 0.02 * random.standard_normal(v.shape) for k, v in base.items()}
        tensors: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in moved.items()}
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        config = {"model_type": "tiny", "dtype": "float32"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def start(desk: Path, run_here: Callable[[str], tuple[int, str]]) -> Iterator[Start]:
    """``start(words, pause=0.3)``: the program at work, met after its first stretch is written."""
    running: list[subprocess.Popen[str]] = []
    assert run_here("add base a b -o warm -q") == (0, "")  # so that the kernels are compiled
    shutil.rmtree(desk / "warm")

    def begin(words: str, pause: float = 0.3) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(SLOW), str(pause), *words.split()]
        process = subprocess.Popen(
            command,
            cwd=desk,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_signals,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("writing")
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def _heed_signals() -> None:
    """Whoever runs the tests may ignore them, as nohup does, which children inherit."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """``contents(path)``: every file of a folder by its name, or the file."""

    def read(path: Path) -> dict[str, bytes]:
        if path.is_file():
            return {"": path.read_bytes()}
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    return read


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """``run_here(words)``: the command line in this process: its exit code and errors."""
    from taskbasis.cli import run

    def called(words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run(words.split())
        return code, capsys.readouterr().err.replace(COMPILING, "")

    return called
