"""The JSON of a safetensors header, read entry by entry: a lie costs no more than what precedes it.

A parser of all of JSON makes gigabytes of Python's objects of 100 MB of hostile text, and judges
them afterwards. This one knows what may stand where, and stops at the first thing that may not.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskbasis.errors import HeaderError
from taskbasis.io.regular import parse_json

METADATA = "__metadata__"
_LONGEST_ENTRY = 4096
"""Characters of a tensor's entry: 64 dimensions and two offsets are a third of it."""
_MOST_ENTRIES = 300_000
"""Of tensors, and of strings in the metadata; the largest models have a third of it."""

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Read = Callable[[str, int, str], tuple[Any, int]]
"""What stands at a place of a text, under a name; and the place after it."""


def parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    """The entries of a header by name, and the file's own strings under ``__metadata__``.

    Raises:
        HeaderError: it is no JSON object whose values are objects, or a name stands twice.

    >>> parse_header(Path("x"), b'{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}')
    {'w': {'dtype': 'F32', 'shape': [], 'data_offsets': [0, 4]}}
    """
    where = f"{path}: the header"
    try:
        text = raw.decode("utf-8")
        if text[_skip(text, 0) :][:1] != "{":
            parse_json(raw[:_LONGEST_ENTRY], where)  # says what is wrong where it is not JSON
            raise HeaderError(f"{where} is not a JSON object")

        def entry(text: str, at: int, name: str) -> tuple[Any, int]:
            if name == METADATA:
                return _object(text, at, where, string)
            return _entry(text, at, name, where)

        def string(text: str, at: int, name: str) -> tuple[Any, int]:
            if text[at : at + 1] != '"':
                raise HeaderError(f"{path}: {METADATA} must map strings to strings")
            return _DECODER.raw_decode(text, at)

        found, at = _object(text, _skip(text, 0), where, entry)
        if _skip(text, at) != len(text):
            raise ValueError(f"more than one object, from character {at} on")
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{where} is not valid JSON: {error}") from None
    return found


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _object(text: str, at: int, where: str, read: Read) -> tuple[dict[str, Any], int]:
    """The object that begins at a place, its values as ``read`` reads them; and the place after."""
    if text[at : at + 1] != "{":
        raise HeaderError(f"{where}: {METADATA} must map strings to strings")
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise ValueError(f"no name in quotes at character {at}")
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no colon at character {at}")
        if name in found:
            raise HeaderError(f"{where} names {reprlib.repr(name)} twice")
        if len(found) == _MOST_ENTRIES:
            raise HeaderError(f"{where} has more than {_MOST_ENTRIES:,} entries; no model does")
        found[name], at = read(text, _skip(text, at + 1), name)
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return found, at + 1
        if text[at : at + 1] != ",":
            raise ValueError(f"neither comma nor brace at character {at}")
        at = _skip(text, at + 1)


def _entry(text: str, at: int, name: str, where: str) -> tuple[Any, int]:
    """What is said of one tensor: an object without others in it, and the place after it."""
    if at == len(text):
        raise ValueError("it ends too early")
    end = text.find("}", at, at + _LONGEST_ENTRY) + 1
    if text[at] != "{" or (not end and len(text) - at > _LONGEST_ENTRY):
        raise HeaderError(
            f"{where} says of {reprlib.repr(name)} {reprlib.repr(text[at : at + 40])}; it must "
            "have exactly dtype, shape and data_offsets"
        )
    found = parse_json(text[at : end or len(text)].encode(), where)
    return found, end
