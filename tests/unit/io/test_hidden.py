"""The hidden folder: held, taken over, kept, and shown in one step."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from taskbasis.errors import FileError
from taskbasis.io import hidden
from taskbasis.io.hidden import HiddenFolder, on_remark, shown, whole_file

KEY = {"options": "1", "inputs": "2"}


@pytest.fixture
def remarks() -> list[str]:
    found: list[str] = []
    on_remark(found.append)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def died(out: Path, key: dict[str, str] | None = None) -> Path:
    """What a process that was killed leaves: a folder without a holder."""
    folder = HiddenFolder(out)
    folder.take(key)
    (folder.path / "made").mkdir()
    (folder.path / "made" / "half").write_text("half")
    folder._let_go()
    return folder.path


def test_held_and_removed(out: Path, remarks: list[str]) -> None:
    with HiddenFolder(out) as folder:
        assert not folder.take()
        assert folder.path == out.parent / ".out.partial"
        assert (folder.path / "lock").read_text() == f"{os.getpid()}\n"
        (folder.path / "made").write_text("x")
    assert list(out.parent.iterdir()) == []
    assert remarks == []
    folder.release()  # a second time is no harm


def test_who_holds_it_is_named(out: Path) -> None:
    with HiddenFolder(out) as folder:
        folder.take()
        other = HiddenFolder(out)
        with pytest.raises(FileError, match=rf"another process \({os.getpid()}\) is writing it"):
            other.take()
        other.release()
        assert folder.path.is_dir(), "who does not hold it removes nothing"


def test_what_the_dead_left_is_removed_and_said(out: Path, remarks: list[str]) -> None:
    died(out)
    with HiddenFolder(out) as folder:
        folder.take()
        assert sorted(path.name for path in folder.path.iterdir()) == ["lock"]
    assert remarks == [f"{out}: removed what a run that was killed had left of it"]


def test_what_the_dead_left_is_gone_on_from(out: Path, remarks: list[str]) -> None:
    died(out, KEY)
    with HiddenFolder(out) as folder:
        assert folder.take(KEY, resume=True)
        assert (folder.path / "made" / "half").read_text() == "half"
        folder.keep = True
    assert remarks == [
        f"{folder.path}: keeps what is finished; the same again with --resume goes on"
    ]
    other = HiddenFolder(out)
    with pytest.raises(FileError, match="whose inputs differ; leave --resume out"):
        other.take({**KEY, "inputs": "3"}, resume=True)
    assert (folder.path / "made" / "half").exists()
    with HiddenFolder(out) as again:
        assert again.take(KEY, resume=True)
    assert not again.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null"])
def test_a_key_that_was_cut_short(out: Path, text: str) -> None:
    path = died(out, KEY)
    (path / "key.json").write_text(text)
    with HiddenFolder(out) as folder:
        if text in ("", "{"):
            assert not folder.take(KEY, resume=True)
            assert not (path / "made").exists()
        else:
            with pytest.raises(FileError, match="whose options and inputs differ"):
                folder.take(KEY, resume=True)


def test_nothing_is_kept_of_nothing(out: Path, remarks: list[str]) -> None:
    with HiddenFolder(out) as folder:
        folder.take(KEY)
        folder.keep = True
    assert not folder.path.exists()
    assert remarks == []


def test_between_two_renames(out: Path) -> None:
    """Where names cannot be exchanged, and a kill came between: what stood there comes back."""
    path = died(out)
    (path / "replaced").write_text("old")
    with HiddenFolder(out) as folder:
        folder.take()
        assert out.read_text() == "old"
    assert out.read_text() == "old"


def test_without_locks_a_name_of_its_own(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unable)
    with HiddenFolder(out) as one, HiddenFolder(out) as other:
        one.take()
        other.take()
        assert one.path != other.path
        assert one.path.name.startswith(".out.partial.")
        with pytest.raises(FileError, match="has no locks; leave --resume out"):
            HiddenFolder(out).take(KEY, resume=True)
        hidden.abandon()
    assert list(out.parent.iterdir()) == []


def test_a_lock_that_fails_otherwise(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(FileError, match="cannot be written: Input/output error"):
        HiddenFolder(out).take()


def test_taken_by_many_one_after_the_other(out: Path) -> None:
    """Forty threads want it; each that has it is alone, and nothing is left."""
    inside, most, had = [0], [0], [0]

    def work() -> None:
        while True:
            try:
                with HiddenFolder(out) as folder:
                    folder.take()
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    (folder.path / "made").write_text("x")
                    inside[0] -= 1
                    had[0] += 1
                return
            except FileError as error:
                assert "is writing it" in str(error)  # noqa: PT017

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, had) == ([1], [40])
    assert list(out.parent.iterdir()) == []


def test_abandoned_at_once(out: Path) -> None:
    folder = HiddenFolder(out)
    folder.take()
    (folder.path / "made").mkdir()
    hidden.abandon()
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("made", ["file", "folder"])
@pytest.mark.parametrize("stands", ["file", "folder"])
def test_what_stands_there_is_left(out: Path, made: str, stands: str) -> None:
    with HiddenFolder(out) as folder:
        folder.take()
        draft = folder.path / "made"
        for path, kind in ((draft, made), (out, stands)):
            if kind == "folder":
                path.mkdir()
                (path / "x").write_text(str(path))
            else:
                path.write_text(str(path))
        with pytest.raises(FileError, match="somebody else wrote it in the meantime"):
            folder.show(draft, replace=False)
    assert (out / "x" if stands == "folder" else out).read_text() == str(out)
    assert shown() == []


def test_a_file_system_without_links(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unable)
    with HiddenFolder(out) as folder:
        folder.take()
        (folder.path / "made").write_text("x")
        folder.show(folder.path / "made", replace=False)
    assert out.read_text() == "x"


def test_what_was_shown_is_known_while_it_stands(out: Path, remarks: list[str]) -> None:
    with whole_file(out) as draft:
        draft.write_text("x")
        assert shown() == []
    assert shown() == [out]
    assert out.stat().st_nlink == 1
    out.unlink()
    assert shown() == []
    on_remark(remarks.append)


def broken(out: Path, error: BaseException) -> None:
    with HiddenFolder(out) as folder:
        folder.take()
        raise error


def test_a_message_names_the_output(out: Path) -> None:
    hidden_file = out.parent / ".out.partial" / "made" / "x"
    with pytest.raises(FileError, match=rf"^{out}/x: is broken$"):
        broken(out, FileError(f"{hidden_file}: is broken"))
    with pytest.raises(FileError, match=rf"^{out}: cannot be written: File too large$"):
        broken(out, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    with pytest.raises(FileError, match=rf"^{out}: cannot be written: bad$"):
        broken(out, OSError(errno.EIO, "bad", str(hidden_file)))
    with pytest.raises(OSError, match="elsewhere"):
        broken(out, OSError(errno.EIO, "bad", "/elsewhere"))
    assert list(out.parent.iterdir()) == []
