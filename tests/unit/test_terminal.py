"""What strangers wrote cannot steer the terminal of who reads it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.cli.options import print_table
from taskbasis.terminal import Plain, plain_streams, raw, sentence, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 重み 🙂", "größe 重み 🙂"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb", r"a\rb"),
        ("\x07\x08\x00\x7f\x9b", r"\x07\x08\x00\x7f\x9b"),
        ("a\u202eb\u2066c\u200f", r"a\u202eb\u2066c\u200f"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters()))
def test_nothing_that_steers_is_left(text: str) -> None:
    shown = visible(text)
    assert all(ord(c) >= 32 or c in "\n\t" for c in shown)
    assert not set(shown) & {chr(c) for c in (*range(0x7F, 0xA0), *range(0x202A, 0x202F))}
    shown.encode()
    assert visible(shown) == shown


def test_a_sentence_has_one_line_and_an_end() -> None:
    assert sentence(ValueError("a\nError: b")) == r"a\nError: b"
    assert sentence(ValueError("2 things\n  one\n  two")) == "2 things\n  one\n  two"
    long = sentence(ValueError("x" * 100_000))
    assert len(long) < 20_100
    assert long.endswith("x ... (100,000 characters)")


def test_a_stream_keeps_what_its_encoding_lacks_and_how_bars_begin() -> None:
    raw_bytes = io.BytesIO()
    stream = Plain(io.TextIOWrapper(raw_bytes, "ascii"))
    assert stream.write("\r50% \x1b[31m\rτ \udcff\n") == 15
    stream.writelines(["a\n", "\x1b"])
    stream.flush()
    assert raw_bytes.getvalue() == b"\r50% \\x1b[31m\\r\\u03c4 \\udcff\na\n\\x1b"
    assert stream.encoding == "ascii"
    assert not stream.isatty()


def test_streams_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with plain_streams():
        sys.stdout.write("\x1b[1m\n")
        sys.stderr.write("\x1b[1m\n")
        assert raw(sys.stdout) is before[0]
        with plain_streams():  # not twice
            sys.stdout.write("\x07\n")
    assert (sys.stdout, sys.stderr) == before
    assert raw(sys.stdout) is sys.stdout
    said = capsys.readouterr()
    assert (said.out, said.err) == ("\\x1b[1m\n\\x07\n", "\\x1b[1m\n")


def test_tables_are_plain_whoever_named_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t\x1b[2J [red]", ["a\x1b]0;x\x07", "[b]"], [["\r\x1b[8m", "[bold]"]])
    said = capsys.readouterr().out
    assert not any(c in said for c in "\x1b\x07\r")
    for part in (r"t\x1b[2J [red]", r"a\x1b]0;x\x07", "[b]", r"\r\x1b[8m", "[bold]"):
        assert part in said


def test_a_real_terminal_gets_none_of_it(tmp_path: Path) -> None:
    """Where the streams are a terminal, nothing else takes escape sequences away."""
    folder = tmp_path / "m\x1b]0;owned\x07"
    folder.mkdir()
    (folder / "x\x1b[2J").write_text("")
    master, terminal = pty.openpty()
    words = [sys.executable, "-m", "taskbasis", "show", str(folder)]
    done = subprocess.run(words, stdout=terminal, stderr=terminal, check=False, timeout=60)
    os.close(terminal)
    said = os.read(master, 65536)
    os.close(master)
    assert done.returncode == 1
    assert rb"holds no weights" in said
    assert rb"\x1b]0;owned\x07" in said
    assert b"\x1b" not in said
    assert b"\x07" not in said
