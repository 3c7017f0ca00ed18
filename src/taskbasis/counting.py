"""Loops over the bits of numbers and of masks, each beside the NumPy expression that it equals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.kernels import jit


@jit()
def _count_upper(values: Any, counts: Any) -> None:
    words = values.view(np.uint32)
    for i in range(words.size):
        counts[(words[i] >> np.uint32(16)) & np.uint32(0x7FFF)] += 1  # -0.0 counts as 0


@jit()
def _count_lower(values: Any, upper: Any, counts: Any) -> None:
    words = values.view(np.uint32)
    for i in range(words.size):
        if words[i] >> np.uint32(16) == upper:
            counts[words[i] & np.uint32(0xFFFF)] += 1


@jit()
def _keep(bits: Any, row: Any) -> None:
    zero = row.dtype.type(0)
    for i in range(row.size):
        if not (bits[i >> 3] >> (i & 7)) & 1:
            row[i] = zero


def count_upper(values: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    """Count numbers by the upper half of their bits; for numbers >= 0 that orders them.

    Equals ``counts += np.bincount(values.view(np.uint32) >> 16, minlength=counts.size)``.

    >>> counts = np.zeros(1 << 15, np.int64)
    >>> count_upper(np.array([1.0, 1.0, 2.0], np.float32), counts)
    >>> np.flatnonzero(counts).tolist(), counts[0x3F80].item()
    ([16256, 16384], 2)
    """
    _count_upper(values, counts)


def count_lower(values: NDArray[np.float32], upper: int, counts: NDArray[np.int64]) -> None:
    """Count the numbers of one bin of :func:`count_upper` by the lower half of their bits."""
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
