"""Folders that are whole or not there, and markers that keep differently made things apart."""

from pathlib import Path

import pytest

from taskbasis.errors import FileError
from taskbasis.suites.folders import claim, digest_of, made_beside, read_marker


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"

    def failing() -> None:
        with made_beside(out) as draft:
            draft.mkdir()
            (draft / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert list(out.parent.iterdir()) == []


def test_a_folder_appears_whole_and_readable(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with made_beside(out) as draft:
        draft.mkdir(mode=0o700)
        (draft / "file").write_text("x")
        (draft / "file").chmod(0o600)
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert oct((out / "file").stat().st_mode & 0o777) == "0o644"


def test_a_file_replaces_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "facts.json"
    for text in ("1", "2"):
        with made_beside(out) as draft:
            draft.write_text(text)
    assert out.read_text() == "2"
    assert oct(out.stat().st_mode & 0o777) == "0o644"


def test_a_claim_is_renewed_by_equal_facts_only(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    claim(folder, "m.json", {"seed": 1, "tasks": ("a", "b")})
    claim(folder, "m.json", {"seed": 1, "tasks": ["a", "b"]})
    assert read_marker(folder, "m.json") == {"seed": 1, "tasks": ["a", "b"]}
    with pytest.raises(FileError, match="its seed is 1, not 2"):
        claim(folder, "m.json", {"seed": 2, "tasks": ["a", "b"]})
    with pytest.raises(FileError, match="its more is null, not 3"):
        claim(folder, "m.json", {"seed": 1, "tasks": ["a", "b"], "more": 3})
    with pytest.raises(FileError, match=r"its tasks is .*, not null"):
        claim(folder, "m.json", {"seed": 1})


def test_a_folder_in_use_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(FileError, match=r"in use and holds no m\.json"):
        claim(tmp_path, "m.json", {})
    with pytest.raises(FileError, match="in use"):
        claim(tmp_path / "thesis.txt", "m.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_markers_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        read_marker(tmp_path, "m.json")
    for damaged in ("{", "[1]"):
        (tmp_path / "m.json").write_text(damaged)
        with pytest.raises(FileError, match="is damaged"):
            read_marker(tmp_path, "m.json")


def test_a_digest_names_the_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"ab")
    two.write_bytes(b"cd")
    assert digest_of(one, two) == digest_of(one, two) != digest_of(two, one)
    assert len(digest_of(one)) == 32
