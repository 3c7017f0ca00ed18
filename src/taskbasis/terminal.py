"""What people see: names of strangers cannot steer their terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


_OF_A_NAME = re.compile(r"\n(?!  )")
_LONGEST = 20_000


def visible(text: str) -> str:
    """The text with control characters written out: escapes, carriage returns, text turned round.

    Tabs and the ends of lines are left.

    >>> print(visible("a name\\x1b[2Jof a tensor"))
    a name\\x1b[2Jof a tensor
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def sentence(error: BaseException) -> str:
    """What an error says, short enough to read; only its lists, which are indented, have lines.

    A name with an end of line in it could say things of its own otherwise.

    >>> sentence(ValueError("a name\\nError: another"))
    'a name\\\\nError: another'
    """
    text = _OF_A_NAME.sub(r"\\n", str(error))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text):,} characters)"


class Plain:
    """A stream that writes only what can be seen, and what its encoding has."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write :func:`visible` text; a bar that begins its line anew may do so."""
        start = text[:1] if text[:1] == "\r" else ""
        code = self.stream.encoding or "utf-8"
        shown = visible(text.removeprefix(start))
        self.stream.write(start + shown.encode(code, "backslashreplace").decode(code))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Within, everything written to the standard streams is written as :class:`Plain` does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast(TextIO, Plain(raw(before[0]))),
        cast(TextIO, Plain(raw(before[1]))),
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def raw(stream: TextIO) -> TextIO:
    """The stream that a :class:`Plain` one writes to: for bars and tables, which steer it."""
    return stream.stream if isinstance(stream, Plain) else stream
