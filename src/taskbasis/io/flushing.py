"""Writing behind: the disk takes up what is written while the rest is still being made."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

EVERY = 256 << 20
"""Bytes that are written before the disk is asked to take them up."""


class Flusher:
    """Flushes a file in the background whenever much of it was written since the last time.

    What is on the disk need not be waited for at the end. Whether all of it is there is for the
    final ``fsync`` to say; errors show there.
    """

    def __init__(self, every: int = EVERY) -> None:
        self._every, self._waiting = every, 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wrote(self, descriptor: int, nbytes: int) -> None:
        """Take note of bytes that were just written; any thread may call."""
        with self._lock:
            self._waiting += nbytes
            busy = self._thread is not None and self._thread.is_alive()
            if self._waiting < self._every or busy:
                return
            self._waiting = 0
            thread = threading.Thread(target=_flush, args=(descriptor,), daemon=True)
            with suppress(RuntimeError):  # no thread is granted: the final fsync takes longer
                thread.start()
                self._thread = thread

    def finish(self) -> None:
        """Wait for what is under way, before descriptors are closed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _flush(descriptor: int) -> None:
    with suppress(OSError):
        getattr(os, "fdatasync", os.fsync)(descriptor)
