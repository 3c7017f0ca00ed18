"""Signals, sent to real processes at work: tidy, truthful, and at once when sent again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Contents = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.promise("Ctrl-C and signals to end clean up and say what remains.")
def test_one_signal_cleans_up(
    desk: Path, start: Any, number: signal.Signals, code: int, workers: int
) -> None:
    before = sorted(os.listdir(desk))
    process = start(f"add base a b -o out -j {workers}")
    assert ".out.partial" in os.listdir(desk)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.strip() == "stopped; nothing was written"
    assert sorted(os.listdir(desk)) == before


def test_a_second_signal_does_not_wait(desk: Path, start: Any) -> None:
    """The first one waits for the worker, which sleeps for a minute; the second does not."""
    before = sorted(os.listdir(desk))
    process = start("add base a b -o out -j 2", pause=60)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert sorted(os.listdir(desk)) == before


@pytest.mark.parametrize("signals", [1, 2])
def test_with_resume_what_is_finished_is_kept(
    desk: Path, start: Any, run_here: Any, contents: Contents, signals: int
) -> None:
    run_here("add base a b -o whole")
    process = start("add base a b -o out -j 1 --resume", pause=0.5)
    process.stdout.readline()  # the second stretch, so that the first is noted
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    # The second may find that all is done and the program on its way out: it ends there and then.
    assert process.returncode in (143, -signal.SIGTERM)
    if signals == 1:
        assert process.returncode == 143
        assert "stopped; nothing was written" in err
        assert ".out.partial: keeps what is finished; the same again with --resume goes on" in err
    assert run_here("add base a b -o out --resume") == (0, "")
    assert contents(desk / "out") == contents(desk / "whole")
    assert not [name for name in os.listdir(desk) if name.startswith(".")]


def test_what_is_written_is_not_denied(desk: Path) -> None:
    """Stopped after the output is shown: it says that it is written."""
    code = """
import os, signal, sys
from taskbasis.cli import main
from taskbasis.io import hidden, writer
signal.signal(signal.SIGINT, signal.default_int_handler)
def sync(path, real=hidden.sync):
    real(path)
    if os.path.exists("out"):
        os.kill(os.getpid(), signal.SIGTERM)
writer.sync = sync
main(["add", "base", "a", "-o", "out", "-j", "1"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (143, "stopped; out is written, whole")
    assert (desk / "out" / "model.safetensors").exists()
    assert not [name for name in os.listdir(desk) if name.startswith(".")]


def test_ignored_signals_stay_ignored(desk: Path, start: Any) -> None:
    """As under nohup: the terminal goes, the work goes on."""
    code = """
import os, signal, sys
from taskbasis.cli import main
from taskbasis.io.writer import Staged
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def commit(self, real=Staged.commit):
    os.kill(os.getpid(), signal.SIGHUP)
    real(self)
Staged.commit = commit
main(["add", "base", "a", "-o", "out", "-j", "1", "-q"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (desk / "out").is_dir()
