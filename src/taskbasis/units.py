"""Sizes as people write and read them."""

from __future__ import annotations

import re

from taskbasis.errors import UsageError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "b": 10**9}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MOST_BILLIONS = 10**5
"""What is no number of billions; a number of bytes is often written so."""
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?(b?)")


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units, as the hub and disks count.

    >>> bytes_text(2_200_000_000), bytes_text(999), bytes_text(123_456)
    ('2.20 GB', '999 B', '123 kB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        count /= 1000
        if count < 999.5 or unit == "PB":
            break
    return f"{count:.3g} {unit}" if count >= 100 else f"{count:#.3g} {unit}"


def parse_bytes(text: str) -> int:
    """Bytes from text: ``512MiB``, ``5GB``, ``800M``; a bare ``5B`` is 5 billion, as in mergekit.

    Raises:
        UsageError: the text is not a size, or says billions where bytes were meant.

    >>> parse_bytes("512MiB"), parse_bytes("5GB"), parse_bytes("5B"), parse_bytes("1000")
    (536870912, 5000000000, 5000000000, 1000)
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write e.g. 800MB, 5GB or 512MiB")
    number, unit, binary, b = match.groups()
    if b and not unit and float(number) >= _MOST_BILLIONS:
        raise UsageError(
            f"{text!r} would be {number} billion bytes, as in mergekit; for bytes write {number}"
        )
    factor = _BINARY[unit] if binary else _DECIMAL[unit or b]
    return int(float(number) * factor)
