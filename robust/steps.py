"""A process that kills itself at a chosen step of what it does to the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

CALLS = (
    "write",
    "pwrite",
    "fsync",
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "replace",
    "link",
    "ftruncate",
    "posix_fallocate",
)
"""The calls that change a disk; each one is two moments: before it and after it."""

Phase = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Step:
    """A moment: the number of a call, and whether before it, half done, or after it."""

    number: int
    phase: Phase


class Steps:
    """Counts the calls that change the disk, and kills the whole process group at one of them."""

    def __init__(self, last: Step | None = None) -> None:
        self.count = 0
        self._last = last

    def install(self) -> None:
        """Count from now on, in this process."""
        from taskbasis.io import hidden

        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name), name))
        hidden.exchange = self._counted(hidden.exchange, "exchange")

    def _counted(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if self._last is None or number != self._last.number:
                return real(*args, **more)
            if self._last.phase == "half" and name in ("write", "pwrite"):
                descriptor, content, *where = args
                real(descriptor, memoryview(content).cast("B")[: len(content) // 2], *where)
            elif self._last.phase == "after":
                real(*args, **more)
            os.killpg(0, signal.SIGKILL)
            raise AssertionError("killed")

        return call
