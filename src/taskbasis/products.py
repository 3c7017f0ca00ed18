"""Inner products and norms of rows in memory, in float64 and in one order on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.lanes import exact_product, four_products

_BLOCK = 2048
"""Entries of each row that are taken at once: they stay in the first cache."""

_NO_BASE: NDArray[np.float64] = np.empty(0)


@jit()
def _take(row: Any, into: Any) -> None:
    for i in range(row.size):
        into[i] = row[i]


@jit()
def _take_magnitudes(row: Any, into: Any) -> None:
    for i in range(row.size):
        into[i] = abs(row[i])


@jit()
def _inner(base: Any, rows: Any, out: Any) -> None:
    last = rows.shape[0]
    block = np.zeros((last + 1, _BLOCK), np.float64)
    for start in range(0, rows.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[1])
        if base.size:
            _take(base[start:stop], block[0])
        for r in range(last):
            _take(rows[r, start:stop], block[r + 1])
        for i in range(0, last + 1, 2):
            for j in range(0, i + 1, 2):
                ends = min(i + 1, last), min(j + 1, last)
                found = four_products(block, i, ends[0], j, ends[1], stop - start)
                out[i, j] += found[0]
                out[i, j + 1] += found[1]
                out[i + 1, j] += found[2]
                out[i + 1, j + 1] += found[3]


@jit()
def _magnitude(row: Any) -> float:
    block = np.ones((2, _BLOCK), np.float64)
    total = 0.0
    for start in range(0, row.size, _BLOCK):
        stop = min(start + _BLOCK, row.size)
        _take_magnitudes(row[start:stop], block[0])
        total += exact_product(block, 0, 1, stop - start)[0]
    return total


def inner_products(rows: NDArray[Any], base: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """[1 + T, 1 + T]: the inner products of a base and T rows, zeros for a base that is None.

    Args:
        rows: [T, n].
        base: [n].

    >>> inner_products(np.array([[1.0, 2.0]]), np.array([3.0, 1.0])).tolist()
    [[10.0, 5.0], [5.0, 5.0]]
    """
    count = 1 + len(rows)
    out = np.zeros((count + 1, count + 1))  # rows are taken two by two
    _inner(_NO_BASE if base is None else base, rows, out)
    lower = np.tril(out[:count, :count])
    return np.asarray(lower + np.tril(lower, -1).T)


def magnitude(row: NDArray[Any]) -> float:
    """The sum of a row's magnitudes.

    >>> magnitude(np.array([1.0, -2.0], np.float32))
    3.0
    """
    return float(_magnitude(row))
