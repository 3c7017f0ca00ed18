"""Inputs a little away from honest ones: bytes changed anywhere, or one part of a JSON document."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 1 << 16

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "w", "F32", "F64", "F16", "BF16", "U8", "BOOL", "F4"),
    *("../x", "/etc/passwd", "\0", "\x1b[2J", "\n", "\u202e", "\ud800", "\uffff", "é" * 50),
    *("x" * 2000, [], {}, [[]], [{}], {"": ""}, [0, 8], [0, 16], [2, 2], [-1], [1.5], [True]),
    *(["w"], ["w", "w"], {"w": 1}, {"w": [2, 3]}, list(range(70)), "(a|a)*b", ".*.*.*", "[", "1e9"),
)


def mutated(
    dice: random.Random, data: bytes, words: Sequence[str], most: int = MOST_BYTES
) -> bytes:
    """``data`` after one to five changes, as a document where it is one, or else as bytes."""
    if dice.random() < 0.6:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            pass
        else:
            for _ in range(dice.randint(1, 3)):
                document = _other(dice, document)
            # Not every document of JSON is one of Unicode; a fuzzer wants both.
            return json.dumps(document).encode()[:most]
    found = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        dice.choice(_CHANGES)(dice, found, words)
    return bytes(found[:most])


def _other(dice: random.Random, value: Any) -> Any:
    """The document with one of its parts changed, whichever."""
    if isinstance(value, (dict, list)) and value and dice.random() < 0.85:
        return _inside(dice, value)
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.choice((-8, -1, 1, 8))
    if isinstance(value, str) and value and dice.random() < 0.4:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice(("", ".", "/", "\\", "\0", "A", "é")) + value[at + 1 :]
    return dice.choice(ODD)


def _inside(dice: random.Random, value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = dice.choice(keys), dice.randrange(6)
    copy = dict(value) if isinstance(value, dict) else list(value)
    if kind == 0:
        del copy[key]
    elif kind == 1 and isinstance(copy, dict):
        copy[str(_other(dice, key))] = copy.pop(key)
    elif kind == 1:
        copy.insert(key, copy[dice.choice(keys)])
    elif kind == 2:
        other = dice.choice(keys)
        copy[key], copy[other] = copy[other], copy[key]
    else:
        copy[key] = _other(dice, copy[key])
    return copy


def _flip(dice: random.Random, data: bytearray, words: Sequence[str]) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _insert(dice: random.Random, data: bytearray, words: Sequence[str]) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = dice.choice(words).encode() if words else b"0"


def _delete(dice: random.Random, data: bytearray, words: Sequence[str]) -> None:
    at = dice.randrange(len(data) + 1)
    del data[at : at + dice.randint(1, 12)]


def _repeat(dice: random.Random, data: bytearray, words: Sequence[str]) -> None:
    start, at = dice.randrange(len(data) + 1), dice.randrange(len(data) + 1)
    data[at:at] = data[start : start + dice.randint(1, 40)]


def _lines(dice: random.Random, data: bytearray, words: Sequence[str]) -> None:
    lines = bytes(data).split(b"\n")
    at = dice.randrange(len(lines))
    lines[at] = b" " * dice.randint(0, 6) + lines[dice.randrange(len(lines))].strip()
    data[:] = b"\n".join(lines)


_CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[str]], None], ...] = (
    *(_flip, _insert, _delete, _repeat, _lines),
)
