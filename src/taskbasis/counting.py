"""Loops over the bits of numbers and of masks, each beside the NumPy expression that it equals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit

_BLOCK = 2048
"""Entries that are compared together: what is known of them stays in the first cache."""


@jit()
def _count_upper(values: Any, counts: Any) -> None:
    words = values.view(np.uint32)
    for i in range(words.size):
        counts[(words[i] >> np.uint32(16)) & np.uint32(0x7FFF)] += 1  # -0.0 counts as 0


@jit()
def _count_lower(values: Any, upper: Any, counts: Any) -> None:
    words = values.view(np.uint32)
    for i in range(words.size):
        if (words[i] >> np.uint32(16)) & np.uint32(0x7FFF) == upper:
            counts[words[i] & np.uint32(0xFFFF)] += 1


@jit()
def _keep(bits: Any, row: Any) -> None:
    zero = row.dtype.type(0)
    for i in range(row.size):
        if not (bits[i >> 3] >> (i & 7)) & 1:
            row[i] = zero


@jit()
def _leave_best(scores: Any, kept: Any, block: int) -> None:
    count, size = scores.shape
    best, winner = np.empty(block, np.float32), np.empty(block, np.int32)
    for start in range(0, size, block):
        stop = min(start + block, size)
        best[:] = -1
        winner[:] = 0
        for t in range(count):
            _compare(scores[t, start:stop], kept[t, start:stop], t, best, winner)
        for t in range(count):
            _leave(winner, t, kept[t, start:stop])


@jit()
def _compare(scores: Any, kept: Any, number: int, best: Any, winner: Any) -> None:
    for i in range(scores.size):
        score = scores[i] if kept[i] else np.float32(-1)
        higher = score > best[i]
        best[i] = score if higher else best[i]
        winner[i] = np.int32(number) if higher else winner[i]


@jit()
def _leave(winner: Any, number: int, kept: Any) -> None:
    for i in range(kept.size):
        kept[i] = kept[i] & (winner[i] == number)


@jit()
def _add_kept(row: Any, kept: Any, total: Any) -> None:
    zero = total.dtype.type(0)
    for i in range(row.size):
        total[i] += row[i] if kept[i] else zero


@jit(fastmath={"reassoc", "nsz"})
def _squares(row: Any, kept: Any) -> Any:
    inside, whole = 0.0, 0.0
    for i in range(row.size):
        square = np.float64(row[i]) * np.float64(row[i])
        whole += square
        inside += square if kept[i] else 0.0
    return inside, whole


def leave_best(scores: NDArray[np.float32], kept: NDArray[np.bool_]) -> None:
    """Of the rows that keep an entry only the one of highest score keeps it; the first of equals.

    Equals ``kept &= np.arange(T)[:, None] == np.argmax(np.where(kept, scores, -1), axis=0)`` for
    scores >= 0.

    Args:
        scores, kept: [T, n]; ``kept`` is changed.

    >>> kept = np.array([[True, True], [True, False]])
    >>> leave_best(np.array([[1, 1], [2, 2]], np.float32), kept)
    >>> kept.tolist()
    [[False, True], [True, False]]
    """
    _leave_best(scores, kept, _BLOCK)


def sum_kept(rows: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
    """The sum of what the masks keep of each row, one row after the other.

    Equals ``sum(np.where(mask, row, 0) for row, mask in zip(rows, kept))``.

    >>> sum_kept(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[True, False], [True, True]]))
    array([4., 4.])
    """
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row, mask in zip(rows, kept, strict=True):
        _add_kept(row, mask, total)
    return total


def squares(row: NDArray[Any], kept: NDArray[np.bool_]) -> tuple[float, float]:
    """The sums of squares of what a mask keeps and of all, in float64.

    >>> squares(np.array([1.0, 2.0]), np.array([False, True]))
    (4.0, 5.0)
    """
    inside, whole = _squares(row, kept)
    return float(inside), float(whole)


def count_upper(values: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    """Count magnitudes by the upper half of their bits, which is in their order.

    Equals ``counts += np.bincount(np.abs(values).view(np.uint32) >> 16, minlength=counts.size)``.

    >>> counts = np.zeros(1 << 15, np.int64)
    >>> count_upper(np.array([1.0, 1.0, 2.0], np.float32), counts)
    >>> np.flatnonzero(counts).tolist(), counts[0x3F80].item()
    ([16256, 16384], 2)
    """
    _count_upper(values, counts)


def count_lower(values: NDArray[np.float32], upper: int, counts: NDArray[np.int64]) -> None:
    """Count the numbers of one bin of :func:`count_upper` by the lower half of their bits.

    The sign is no part of a bin's number here, either.
    """
    _count_lower(values, np.uint32(upper), counts)


def keep(bits: NDArray[np.uint8], row: NDArray[Any]) -> None:
    """Set entries to zero whose bit is not set; the first entry has the lowest bit of a byte.

    Equals ``row[np.unpackbits(bits, bitorder="little")[: row.size] == 0] = 0``.

    >>> row = np.ones(3, np.float32)
    >>> keep(np.array([0b101], np.uint8), row)
    >>> row.tolist()
    [1.0, 0.0, 1.0]
    """
    _keep(bits, row)
