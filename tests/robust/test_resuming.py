"""--resume: identical bytes wherever a run was killed, and finished work is not done again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.io.tensors import FileBlob
from taskbasis.io.writer import Staged

Contents = Callable[[Path], dict[str, bytes]]

RECIPE = """
name: first
merge_method: task_arithmetic
base_model: base
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0.5}}]
---
merge_method: ties
base_model: base
models: [{model: first, parameters: {weight: 1}}, {model: c, parameters: {weight: 1}}]
"""

VERBS = {
    "extract": "extract base a -o OUT --dtype bfloat16",
    "add": "add base a b -o OUT --scale 0.3 --out-shard-size 300KB",
    "ties": "merge base a b --method ties -o OUT",
    "sta": "merge base a b --method sta -o OUT",
    "recipe": "merge recipe.yml OUT",
    "fit": "basis fit a b --base base -k 1 -o OUT",
    "inner": "basis fit a b c --base base -k 2 --method cluster --set inner=ties -o OUT",
}


class Killed(BaseException):
    """What ends a run here, as a signal does."""


class Counter:
    """Counts what is written and read, and ends the run before a write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.read, self.last = 0, 0, -1
        write, read = Staged.write, FileBlob.read_into

        def counted(staged: Staged, name: str, start: int, words: Any) -> None:
            if self.writes == self.last:
                raise Killed
            self.writes += 1
            write(staged, name, start, words)

        def seen(blob: FileBlob, offset: int, buffer: memoryview) -> None:
            self.read += buffer.nbytes
            read(blob, offset, buffer)

        monkeypatch.setattr(Staged, "write", counted)
        monkeypatch.setattr(FileBlob, "read_into", seen)

    def reset(self, last: int = -1) -> None:
        self.writes, self.read, self.last = 0, 0, last


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.promise("A run that is killed and resumed gives the same bytes as one that was not.")
def test_same_bytes_wherever_it_was_killed(
    desk: Path, run_here: Any, counter: Counter, contents: Contents, verb: str
) -> None:
    (desk / "recipe.yml").write_text(RECIPE)
    words = VERBS[verb] + " -j 1"
    assert run_here(words.replace("OUT", "whole"))[0] == 0
    total, read = counter.writes, counter.read
    for last in range(total):
        out = words.replace("OUT", f"out{last}") + " --resume"
        counter.reset(last)
        with pytest.raises(Killed):
            run_here(out)
        counter.reset()
        assert run_here(out) == (0, "")
        assert contents(desk / f"out{last}") == contents(desk / "whole")
        # Codes are written again, and all atoms of a stretch.
        slack = 5 if verb in ("fit", "inner") else 0
        assert total - last <= counter.writes <= min(total - last + slack, total)
    assert counter.read < read  # the last time nearly nothing was left to do
    assert not [name for name in os.listdir(desk) if name.startswith(".")]


def test_what_a_selection_kept_is_told_the_same(
    desk: Path, run_here: Any, counter: Counter, capsys: pytest.CaptureFixture[str]
) -> None:
    from taskbasis.cli import run

    words = ["merge", "base", "a", "b", "--method", "sta", "-o", "out", "-j", "1"]
    run(words)
    whole = capsys.readouterr().out
    counter.reset(3)
    with pytest.raises(Killed):
        run([*words, "--resume", "--replace"])
    counter.reset()
    capsys.readouterr()
    run([*words, "--resume", "--replace"])
    assert capsys.readouterr().out == whole


def test_a_killed_run_that_had_not_asked_is_gone_on_from(
    desk: Path, start: Any, run_here: Any, counter: Counter, contents: Contents
) -> None:
    process = start("merge base a b --method ties -o out -j 1")
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_here("merge base a b --method ties -o whole -j 1")
    total = counter.writes
    counter.reset()
    assert run_here("merge base a b --method ties -o out -j 2 --resume") == (0, "")
    assert counter.writes < total
    assert contents(desk / "out") == contents(desk / "whole")


@pytest.mark.parametrize("again", ["the same", "another", ""])
def test_without_digests_the_machine_must_be_running_still(
    desk: Path, run_here: Any, counter: Counter, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """A run that had not asked noted no digests, and a machine that died may have lost bytes."""
    from taskbasis.io import hidden, writer

    words = "add base a b -o out -j 1"
    run_here("add base a b -o whole -j 1")
    total = counter.writes
    monkeypatch.setattr(writer, "machine_run", lambda: "the same" if again else "")
    with monkeypatch.context() as killed:  # nothing is tidied, as after SIGKILL
        killed.setattr(hidden.HiddenFolder, "release", hidden.HiddenFolder._let_go)
        kept(run_here, counter, words)
    monkeypatch.setattr(writer, "machine_run", lambda: again)
    assert run_here(f"{words} --resume") == (0, "")
    assert counter.writes == (total - 3 if again == "the same" else total)


def kept(run_here: Any, counter: Counter, words: str, last: int = 3) -> None:
    counter.reset(last)
    with pytest.raises(Killed):
        run_here(words)
    counter.reset()


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ("--scale 0.5", "options"),
        ("--dtype bfloat16", "options and tensors"),
        ("--out-shard-size 300KB", "tensors"),
        ("--rounding stochastic", "options"),
        ("touch", "inputs"),
    ],
)
@pytest.mark.promise("What another recipe left behind is never resumed.")
def test_what_another_run_left_is_refused(
    desk: Path, run_here: Any, counter: Counter, contents: Contents, change: str, differ: str
) -> None:
    words = "add base a b -o out -j 1"
    kept(run_here, counter, f"{words} --resume")
    before = contents(desk / ".out.partial")
    other = words
    if change == "touch":
        os.utime(desk / "a" / "model.safetensors", (1, 1))
    else:
        other = f"{words} {change}"
    code, said = run_here(f"{other} --resume")
    assert (code, said) == (
        1,
        f"Error: out: what is kept in .out.partial is of another run, whose {differ} differ; leave "
        "--resume out to start afresh\n",
    )
    assert contents(desk / ".out.partial").keys() == before.keys()
    code, said = run_here(other)
    assert (code, said) == (0, "out: removed what a run that was killed had left of it\n")
    assert (desk / "out").is_dir()
    assert not (desk / ".out.partial").exists()


def test_bytes_that_were_lost_are_written_again(
    desk: Path, run_here: Any, counter: Counter, contents: Contents
) -> None:
    """As after the machine itself died: the journal is there, some of the bytes are not."""
    words = "add base a b -o out -j 1 --resume"
    run_here("add base a b -o whole -j 1")
    total = counter.writes
    kept(run_here, counter, words, total - 1)
    file = desk / ".out.partial" / "made" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-40:] = bytes(40)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    assert run_here(words) == (0, "")
    assert 1 < counter.writes < total
    assert contents(desk / "out") == contents(desk / "whole")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_a_journal_cut_short(
    desk: Path, run_here: Any, counter: Counter, contents: Contents, share: float
) -> None:
    words = "add base a b -o out -j 1 --resume"
    run_here("add base a b -o whole -j 1")
    kept(run_here, counter, words)
    journal = desk / ".out.partial" / "journal"
    os.truncate(journal, int(journal.stat().st_size * share))
    assert run_here(words) == (0, "")
    assert contents(desk / "out") == contents(desk / "whole")


def test_nothing_to_go_on_from_is_a_run_like_any_other(
    desk: Path, run_here: Any, contents: Contents
) -> None:
    run_here("add base a -o whole")
    assert run_here("add base a -o out --resume") == (0, "")
    assert contents(desk / "out") == contents(desk / "whole")


def test_a_failure_keeps_what_is_finished_only_where_that_was_asked(
    desk: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    run_here("add base a b -o whole -j 1")
    with monkeypatch.context() as patch:
        write, calls = Staged.write, []

        def failing(staged: Staged, name: str, start: int, words: Any) -> None:
            calls.append(name)
            if len(calls) % 3 == 0:
                raise OSError(5, "Input/output error", "disk")
            write(staged, name, start, words)

        patch.setattr(Staged, "write", failing)
        code, said = run_here("add base a b -o out -j 1")
        assert (code, said) == (1, "Error: disk: Input/output error\n")
        assert ".out.partial" not in os.listdir(desk)
        code, said = run_here("add base a b -o out -j 1 --resume")
        assert code == 1
        assert ".out.partial: keeps what is finished" in said
    assert run_here("add base a b -o out -j 1 --resume") == (0, "")
    assert contents(desk / "out") == contents(desk / "whole")


def test_the_gram_pass_and_codes_are_the_same_after_all(desk: Path, run_here: Any) -> None:
    """A basis that was gone on with recovers as well as it says."""
    from taskbasis.library import Basis

    run_here("basis fit a b --base base -k 2 --method pca -o lib --resume -q")
    assert np.all(np.asarray(list(Basis.open("lib").errors.values())) < 1e-3)
