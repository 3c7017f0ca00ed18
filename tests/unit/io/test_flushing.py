"""Writing behind: when a file is flushed, by whom, and what happens to errors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from taskbasis.io import flushing
from taskbasis.io.flushing import Flusher


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What was flushed, and by which thread."""
    calls: list[tuple[int, str]] = []

    def note(descriptor: int) -> None:
        calls.append((descriptor, threading.current_thread().name))

    monkeypatch.setattr(os, "fdatasync", note)
    return calls


def test_it_is_flushed_whenever_enough_was_written(flushed: list[tuple[int, str]]) -> None:
    flusher = Flusher(every=100)
    for _ in range(5):
        flusher.wrote(7, 50)
        flusher.finish()
    assert [descriptor for descriptor, _ in flushed] == [7, 7]


def test_who_writes_does_not_wait(flushed: list[tuple[int, str]]) -> None:
    flusher = Flusher(every=1)
    flusher.wrote(7, 1)
    flusher.finish()
    assert flushed[0][1] != threading.current_thread().name


def test_where_no_thread_is_granted_nothing_is_flushed_ahead(
    flushed: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    flusher = Flusher(every=1)
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", refused)
        flusher.wrote(7, 1)
    flusher.finish()
    assert flushed == []
    flusher.wrote(8, 1)
    flusher.finish()
    assert [descriptor for descriptor, _ in flushed] == [8]


def test_one_flush_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    running: list[int] = []

    def slow(descriptor: int) -> None:
        running.append(descriptor)
        begun.release()
        go_on.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    flusher = Flusher(every=1)
    flusher.wrote(7, 1)
    assert begun.acquire(timeout=10)
    flusher.wrote(8, 1)
    assert running == [7]
    go_on.set()
    flusher.finish()
    flusher.wrote(9, 1)
    flusher.finish()
    assert running == [7, 9], "what had to wait is flushed with what comes next"


def test_finish_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, done = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        go_on.wait(10)
        done.set()

    monkeypatch.setattr(os, "fdatasync", slow)
    flusher = Flusher(every=1)
    flusher.wrote(7, 1)
    threading.Timer(0.05, go_on.set).start()
    flusher.finish()
    assert done.is_set()


def test_an_error_is_left_to_the_final_flush(tmp_path: Path) -> None:
    """A closed descriptor, on the real system."""
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)
    flusher = Flusher(every=1)
    flusher.wrote(descriptor, 1)
    flusher.finish()


def test_without_fdatasync_it_is_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(os, "fsync", calls.append)
    flusher = Flusher(every=1)
    flusher.wrote(5, 1)
    flusher.finish()
    assert calls == [5]


def test_nothing_written_nothing_flushed() -> None:
    Flusher().finish()
    assert flushing.EVERY > 1 << 20
