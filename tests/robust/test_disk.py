"""Full disks, quotas, files that vanish or change: one sentence, exit 1, no debris."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskbasis.engine import Engine
from taskbasis.errors import FileError
from taskbasis.io import hidden
from taskbasis.io.tensors import FileBlob
from taskbasis.vectors import Checkpoint, TaskVector

VERBS = {
    "extract": "extract base a -o OUT.safetensors",
    "add": "add base a b -o OUT",
    "merge": "merge base a b --method ties -o OUT --out-shard-size 300KB",
    "lora": "lora extract base a -o OUT --rank 4",
    "select": "select a b --base base -o OUT.safetensors",
    "disentangle": "disentangle base a b -o OUT",
    "fit": "basis fit a b --base base -k 1 -o OUT",
}


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith((".", "out")))


@pytest.fixture
def small_disk(desk: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = desk / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command, so no small file system")
    if done.returncode:
        pytest.skip(f"this user cannot mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_is_full(small_disk: Path, run_here: Any, verb: str) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(230 << 10))
    code, said = run_here(VERBS[verb].replace("OUT", "small/out"))
    assert code == 1
    assert said.startswith("Error: small/out")
    assert said.count("\n") == 1
    assert "but the disk has" in said or "cannot be written: No space left on device" in said
    assert left(small_disk) == []


@pytest.mark.promise(
    "A disk that fills up on the way is one sentence and exit code 1, and nothing "
    "half-written stays."
)
def test_a_disk_that_fills_up_on_the_way(
    small_disk: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space is claimed at the start, so only files beside the weights can meet it."""
    from taskbasis.io.writer import Staged

    add_file = Staged.add_file

    def filling(staged: Staged, name: str, content: bytes) -> None:
        add_file(staged, name, content + bytes(1 << 20))

    monkeypatch.setattr(Staged, "add_file", filling)
    code, said = run_here("lora extract base a -o small/out --rank 1")
    assert (code, said) == (1, "Error: small/out: cannot be written: No space left on device\n")
    assert left(small_disk) == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "mkdir", "posix_fallocate"])
def test_any_call_may_find_no_space(
    desk: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch, verb: str, call: str
) -> None:
    """Injected at the second call, so that something has been written."""
    real, calls = getattr(os, call), []

    def full(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **more)

    monkeypatch.setattr(os, call, full)
    code, said = run_here(VERBS[verb].replace("OUT", "out"))
    monkeypatch.undo()
    os.chdir(desk)
    if len(calls) < 2:  # a call that the verb makes but once
        assert code == 0
        return
    assert code == 1
    assert said.startswith("Error: ")
    assert said.endswith("cannot be written: No space left on device\n")
    assert said.count("\n") == 1
    assert left(desk) == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.promise("A quota that is reached is one sentence and exit code 1, too.")
def test_a_quota(desk: Path, verb: str) -> None:
    """A limit on the size of files, in a real process."""
    words = VERBS[verb].replace("OUT", "out").split()
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from taskbasis.cli import main
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=desk, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: out")
    assert done.stderr.endswith("cannot be written: File too large\n")
    assert left(desk) == []


def test_a_folder_that_cannot_be_written(desk: Path, run_here: Any) -> None:
    """For everybody, root too: the folder of processes takes no files."""
    code, said = run_here("add base a -o /proc/out")
    assert code == 1
    assert said.startswith("Error: /proc/out: cannot be written: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "disentangle"])
@pytest.mark.promise("An input that vanishes is named in one sentence.")
def test_an_input_that_vanishes(desk: Path, run_here: Any, verb: str) -> None:
    (desk / "a" / "model.safetensors").unlink()
    code, said = run_here(VERBS[verb].replace("OUT", "out"))
    assert code == 1
    assert said.startswith("Error: a")
    assert said.count("\n") == 1
    assert left(desk) == []


def changed(desk: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``a`` changed once its first piece has been read."""
    file, read = desk / "a" / "model.safetensors", FileBlob.read_into
    done: list[bool] = []

    def reading(blob: FileBlob, offset: int, buffer: memoryview) -> None:
        read(blob, offset, buffer)
        if blob.path.resolve() == file and not done:
            done.append(True)
            change(file)

    monkeypatch.setattr(FileBlob, "read_into", reading)


def _touched(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\0\0\0\0")


def _shorter(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 400_000)


@pytest.mark.parametrize("verb", ["extract", "add", "merge", "fit", "select"])
@pytest.mark.parametrize("change", [_touched, _shorter])
@pytest.mark.promise("An input that changes during a run is refused, not mixed.")
def test_an_input_that_changes_while_it_is_read(
    desk: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch, verb: str, change: Any
) -> None:
    changed(desk, change, monkeypatch)
    code, said = run_here(VERBS[verb].replace("OUT", "out") + " -j 1")
    assert code == 1
    assert said.startswith("Error: a/model.safetensors: ")
    assert "was changed" in said or "early while it was being read" in said
    assert said.count("\n") == 1
    assert left(desk) == []


def test_an_input_that_is_replaced_is_read_as_it_was(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened stays what it is under a name that now stands for another file."""
    base = Checkpoint(desk / "base")
    whole = TaskVector(base, desk / "a").tensors()

    def swap(file: Path) -> None:
        new = file.with_name("new")
        new.write_bytes((desk / "b" / "model.safetensors").read_bytes())
        os.replace(new, file)

    vector = TaskVector(base, desk / "a")
    changed(desk, swap, monkeypatch)
    found = vector.tensors(Engine(workers=1))
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert (found[name] == value).all()


def test_a_base_with_other_bytes_is_told_by_its_digest(desk: Path, run_here: Any) -> None:
    """Same size, same time of change: the fingerprint in the vector finds it."""
    run_here("extract base a -o a.safetensors")
    file = desk / "base" / "model.safetensors"
    before = file.stat()
    _touched(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, said = run_here("add base a.safetensors -o out")
    assert code == 1
    assert "was taken from" in said or "not the base" in said or "differ" in said
    assert left(desk) == []


def test_what_is_left_cannot_be_removed(
    desk: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, since the output is whole all the same."""
    monkeypatch.setattr(hidden, "_remove", lambda path: None)
    assert run_here("add base a -o out") == (0, ".out.partial: could not be removed\n")
    monkeypatch.undo()
    os.chdir(desk)
    code, said = run_here("add base a -o out --replace")
    assert (code, said) == (0, "out: removed what a run that was killed had left of it\n")
    assert left(desk) == ["out"]


def test_something_of_somebody_else_is_in_the_way(desk: Path, run_here: Any) -> None:
    (desk / ".out.partial").mkdir()
    (desk / ".out.partial" / "precious").write_text("mine")
    code, said = run_here("add base a -o out")
    assert (code, said) == (
        1,
        "Error: .out.partial: is in the way, not made by taskbasis; move it\n",
    )
    assert (desk / ".out.partial" / "precious").read_text() == "mine"
    (desk / ".b.partial").symlink_to(desk / "base")
    assert run_here("add base a -o b2")[0] == 0
    (desk / ".c2.partial").symlink_to(desk / "base")
    assert "is in the way" in run_here("add base a -o c2")[1]
    (desk / ".d2.partial").write_text("a file")
    assert "is in the way" in run_here("add base a -o d2")[1]
    assert sorted(p.name for p in (desk / "base").iterdir()) == ["config.json", "model.safetensors"]


def test_a_file_that_a_folder_stands_for(desk: Path) -> None:
    with pytest.raises(FileError, match="is a folder; name a file"), hidden.whole_file(desk):
        pass
