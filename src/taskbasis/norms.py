"""Norms of rows in memory, in float64 and in one order on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.lanes import exact_product

_BLOCK = 2048
"""Entries that are taken at once: they stay in the first cache."""


@jit()
def _take_magnitudes(row: Any, into: Any) -> None:
    for i in range(row.size):
        into[i] = abs(row[i])


@jit()
def _magnitude(row: Any) -> float:
    block = np.ones((2, _BLOCK), np.float64)
    total = 0.0
    for start in range(0, row.size, _BLOCK):
        stop = min(start + _BLOCK, row.size)
        _take_magnitudes(row[start:stop], block[0])
        total += exact_product(block, 0, 1, stop - start)[0]
    return total


def magnitude(row: NDArray[Any]) -> float:
    """The sum of a row's magnitudes.

    >>> magnitude(np.array([1.0, -2.0], np.float32))
    3.0
    """
    return float(_magnitude(row))
