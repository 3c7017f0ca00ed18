"""Several processes at once: one wins, the others say so, and readers never see half a file."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.errors import FileError
from taskbasis.io.folder import open_tensors
from taskbasis.io.writer import Staged
from taskbasis.library import Basis

Contents = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize(
    "words",
    [
        "add base a b -o out",
        "extract base a -o out.safetensors",
        "basis update lib c --base base -o out",
        "disentangle base a b -o out",
    ],
)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.promise("Of two runs that write the same output one wins, and the other says so.")
def test_two_that_write_the_same(
    desk: Path, start: Any, run_here: Any, contents: Contents, words: str, replace: bool
) -> None:
    """The one that came first wins; the other touches nothing and names the process."""
    run_here("basis fit a b --base base -k 2 --method svd -o lib -q")
    out = words.split()[-1]
    assert run_here(words.replace(out, "alone"))[0] == 0 or out.endswith("s")
    words += " --replace" if replace else ""
    first = start(f"{words} -j 1")
    code, said = run_here(words)
    assert (code, said) == (
        1,
        f"Error: {out}: another process ({first.pid}) is writing it; wait until it is done, or "
        "name another\n",
    )
    assert first.wait(timeout=60) == 0
    if not out.endswith("s"):
        assert contents(desk / out) == contents(desk / "alone")
    assert not [path for path in desk.iterdir() if path.name.startswith(".")]


def test_many_at_once(desk: Path, run_here: Any, contents: Contents) -> None:
    """Four that begin together: the output is one of theirs, whole, and all others say why."""
    run_here("add base a -o alone")
    command = [sys.executable, "-m", "taskbasis", "add", "base", "a", "-o", "out", "-q"]
    running = [
        subprocess.Popen(command, cwd=desk, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    codes = sorted(process.returncode for process in running)
    assert codes == [0] + [1] * 3
    for sentence in filter(None, said):
        assert "is writing it; wait until it is done" in sentence or "already exists" in sentence
        assert sentence.count("\n") == 1
    assert contents(desk / "out") == contents(desk / "alone")
    assert not [path for path in desk.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_somebody_else_writes_it_by_another_way(
    desk: Path, monkeypatch: pytest.MonkeyPatch, run_here: Any, out: str
) -> None:
    """Another program that knows nothing of our lock: what it wrote is left as it is."""
    commit = Staged.commit

    def late(staged: Staged) -> None:
        if out == "out":
            (desk / out).mkdir()
            (desk / out / "precious").write_text("theirs")
        else:
            (desk / out).write_text("theirs")
        commit(staged)

    monkeypatch.setattr(Staged, "commit", late)
    code, said = run_here(f"add base a -o {out}")
    assert (code, said) == (
        1,
        f"Error: {out}: somebody else wrote it in the meantime; it was left as it is\n",
    )
    path = desk / out / "precious" if out == "out" else desk / out
    assert path.read_text() == "theirs"
    assert not [path for path in desk.iterdir() if path.name.startswith(".")]


WRITER = """
    import sys
    from taskbasis.cli import run
    for turn in range(50):
        changing = ["--scale" if sys.argv[2] == "add" else "-k", str(1 + turn % 2)]
        words = [*sys.argv[2:], "-o", sys.argv[1], "--replace", "-q", "-j", "1", *changing]
        assert run(words) == 0
"""


def rewriting(desk: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), *words], cwd=desk)


@pytest.mark.parametrize("shards", ["5GB", "300KB"])
@pytest.mark.promise(
    "Who reads while an output is replaced sees the old one or the new one, whole."
)
def test_readers_see_one_state(desk: Path, run_here: Any, shards: str) -> None:
    """Fifty times a model is replaced by another; every one that is read is one of the two."""
    for scale in (1, 2):
        run_here(f"add base a -o scale{scale} --scale {scale} --out-shard-size {shards}")
    run_here(f"add base a -o out --out-shard-size {shards}")
    states = [
        {name: info.load() for name, info in open_tensors(desk / f"scale{scale}").items()}
        for scale in (1, 2)
    ]
    writer = rewriting(desk, "out", "add", "base", "a", "--out-shard-size", shards)
    whole, said = 0, list[str]()
    while writer.poll() is None:
        try:
            store = open_tensors(desk / "out")
            found = {name: info.load() for name, info in store.items()}
        except FileError as error:  # replaced between its opening and its reading
            said.append(str(error))
            continue
        assert any(
            all(np.array_equal(found[name], value) for name, value in state.items())
            for state in states
        )
        whole += 1
    assert writer.returncode == 0
    assert all("was changed since it was opened" in one or "cannot be" in one for one in said)
    assert whole >= 20


def test_a_basis_that_is_fitted_again_and_again(desk: Path, run_here: Any) -> None:
    for name in "ab":
        run_here(f"extract base {name} -o {name}.safetensors")
    run_here("basis fit a.safetensors b.safetensors -k 1 -o lib -q")
    writer = rewriting(desk, "lib", "basis", "fit", "a.safetensors", "b.safetensors")
    seen, said = list[int](), list[str]()
    while writer.poll() is None:
        try:
            opened = Basis.open(desk / "lib")
        except FileError as error:
            said.append(str(error))
            continue
        assert opened.names == ("a", "b")
        seen.append(opened.contents.atoms)
    assert writer.returncode == 0
    assert all("was changed since it was opened" in one or "cannot be" in one for one in said)
    assert set(seen) <= {1, 2}
    assert len(seen) >= 20
