"""Regular files alone, bounded, and JSON in which no key stands twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import FileError, HeaderError
from taskbasis.io.regular import (
    check_inside,
    open_regular,
    parse_json,
    read_json,
    read_regular,
)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("x")
    descriptor, seen = open_regular(tmp_path / "link")
    assert os.read(descriptor, 9) == b"12345"
    assert seen.st_ino == path.stat().st_ino
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    assert read_regular(path) == read_regular(path, 5) == b"12345"


@pytest.mark.parametrize("content", [b"123", b"1234567"])
def test_a_file_that_changes_while_it_is_read(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a longer file would pass for all of it."""
    path = tmp_path / "x"
    path.write_bytes(b"12345")

    def opened(one: Path) -> tuple[int, os.stat_result]:
        found = open_regular(one)
        path.write_bytes(content)
        return found

    monkeypatch.setattr("taskbasis.io.regular.open_regular", opened)
    with pytest.raises(FileError, match=r"x: was changed while it was being read; start again"):
        read_regular(path)


def test_a_file_that_does_not_say_how_long_it_is() -> None:
    path = Path("/proc/self/limits")
    if not path.is_file():
        pytest.skip("this system has no /proc")
    assert path.stat().st_size == 0
    assert read_regular(path) == path.read_bytes() != b""
    with pytest.raises(FileError, match="is larger than the 9 bytes"):
        read_regular(path, 9)


def test_a_file_beyond_the_bound_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with pytest.raises(FileError, match=r"x: is larger than the 4 bytes"):
        read_regular(path, 4)
    os.truncate(path, 2**40)
    with pytest.raises(FileError, match=r"larger than the 100,000,000 bytes"):
        read_regular(path)


def test_a_file_that_says_it_is_empty_and_is_not() -> None:
    """As those of /proc do."""
    with pytest.raises(FileError, match="larger than the 0 bytes"):
        read_regular(Path("/proc/self/cmdline"), 0)


@pytest.mark.parametrize("name", ["folder", "pipe", "/dev/null", "/dev/zero", "to pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to("pipe")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match="is not a file"):
        read_regular(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone", "cannot be opened: No such file"),
        ("gone/x", "cannot be opened: No such file"),
        ("x" * 300, "cannot be opened: File name too long"),
        ("a\0b", "cannot be the name of a file"),
    ],
)
def test_what_is_not_there(tmp_path: Path, name: str, match: str) -> None:
    with pytest.raises(FileError, match=match):
        open_regular(tmp_path / name)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_json_is_read_as_python_reads_it(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "x: is not valid JSON"),
        (b"{", "x: is not valid JSON"),
        (b"\xff", "x: is not valid JSON"),
        (b"[" * 100_000, "x: is not valid JSON"),
        (b"9" * 5000, "x: is not valid JSON"),
        (b'{"a":{"b":1,"c":2,"b":3}}', "x: names 'b' twice"),
        (b'{"a":1,"b":2,"c":3,"b":4,"a":5}', "x: names 'b' twice"),
        (b'{"%s":1,"%s":2}' % ((b"k" * 9999,) * 2), r"x: names 'kkkk.*\.\.\..*' twice"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: bytes, match: str) -> None:
    with pytest.raises(HeaderError, match=match) as caught:
        parse_json(text, "x:")
    assert len(str(caught.value)) < 200
    path = tmp_path / "x"
    path.write_bytes(text)
    with pytest.raises(HeaderError, match=match):
        read_json(path)


def test_links_are_followed_within_a_folder_and_within_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "models--o--n"
    home = cache / "snapshots" / "abc"
    (home / "sub").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in (home / "own", cache / "blobs" / "1", tmp_path / "secret"):
        path.write_text("x")
    links = {
        "inner": "own",
        "sub/up": "../own",
        "cached": "../../blobs/1",
        "out": "../../../secret",
        "absolute": str(tmp_path / "secret"),
        "folder": "..",
    }
    for name, target in links.items():
        (home / name).symlink_to(target)
    for name in ("own", "inner", "sub/up", "cached"):
        check_inside(home / name, home)
    for name in ("out", "absolute"):
        with pytest.raises(FileError, match=r"is a link out of its folder, to .*secret"):
            check_inside(home / name, home)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "x").symlink_to(cache / "blobs" / "1")
    with pytest.raises(FileError, match="is a link out of its folder"):
        check_inside(plain / "x", plain)
    (tmp_path / "linked").symlink_to(home)
    check_inside(tmp_path / "linked" / "own", tmp_path / "linked")
