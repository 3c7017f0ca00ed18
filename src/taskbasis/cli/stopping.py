"""How the program ends when it is told to: tidily the first time, at once the second."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from taskbasis.io.hidden import abandon, shown

_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def stop_on_signals() -> None:
    """Have Ctrl-C, SIGTERM and SIGHUP raise :class:`Stopped`, unless they are ignored.

    What is being written is removed, or kept for ``--resume``, on the way out. That waits for the
    pieces under way; who sends another signal does not wait for them.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping:
            abandon()
            os._exit(128 + number)
        stopping.append(number)
        if number == signal.SIGHUP and sys.stderr.isatty():
            silence = os.open(os.devnull, os.O_WRONLY)  # the terminal is gone
            for stream in (1, 2):
                os.dup2(silence, stream)
        raise Stopped(number)

    for number in _ASKED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def exit_code(error: BaseException) -> int:
    """What to exit with after an interruption: 128 and the number of its signal."""
    cause = error if isinstance(error, Stopped) else error.__cause__
    return cause.exit_code if isinstance(cause, Stopped) else 130


def what_stands() -> str:
    """What there is of the output of a run that was stopped."""
    written = ", ".join(map(str, shown()))
    return f"stopped; {written} is written, whole" if written else "stopped; nothing was written"
