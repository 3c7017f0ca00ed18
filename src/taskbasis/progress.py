"""What long work tells the person who waits: bytes done, rate and time left."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from taskbasis.terminal import raw


class Progress(Protocol):
    """Something that shows how far the work is."""

    def task(self, title: str, total: int) -> AbstractContextManager[Tick]:
        """Begin a piece of work of ``total`` bytes."""


class Tick(Protocol):
    """Called with the number of bytes that were just done."""

    def __call__(self, done: int) -> None: ...


def _nothing(done: int) -> None:
    del done


class Silent:
    """Shows nothing: what a library does unless asked."""

    def task(self, title: str, total: int) -> AbstractContextManager[Tick]:
        del title, total
        return nullcontext(_nothing)


class Bar:
    """A bar on the standard error stream with bytes, rate and time left (uses rich)."""

    def task(self, title: str, total: int) -> AbstractContextManager[Tick]:
        """A bar for a piece of work of ``total`` bytes, shown while the context is open."""
        return _BarTask(title, total)


class _BarTask(AbstractContextManager[Tick]):
    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=raw(sys.stderr)),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Tick:
        self._progress.start()
        return self._tick

    def _tick(self, done: int) -> None:
        self._progress.advance(self._task, done)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
