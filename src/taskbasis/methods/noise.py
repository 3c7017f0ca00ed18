"""Random numbers that are a function of a key and a position, and of nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis import philox

_DRAWS = 1 << 32


def draws(key: str, start: int, count: int) -> NDArray[np.uint32]:
    """Uniform 32-bit words for entries ``start`` to ``start + count`` of an endless row.

    The raw bits of Philox, which NumPy guarantees for ever.

    >>> bool(np.all(draws("a", 3, 4) == draws("a", 0, 7)[3:]))
    True
    """
    return philox.words(xxhash.xxh3_128_intdigest(key.encode()), start, count)


def keep_below(row: NDArray[Any], key: str, start: int, bound: int) -> None:
    """Multiply entries by whether their draws are below a bound: ``row *= draws < bound``.

    >>> row = np.ones(4, np.float32)
    >>> keep_below(row, "a", 3, 1 << 32)
    >>> row.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    philox.keep_below(row, xxhash.xxh3_128_intdigest(key.encode()), start, bound)


def below(chance: NDArray[np.float64] | float) -> NDArray[np.uint64]:
    """The number that draws are below with the given chances; at least 1, so none is impossible."""
    return np.asarray(np.maximum(np.rint(np.asarray(chance) * _DRAWS), 1), np.uint64)


def drawn(key: str, density: float, start: int, count: int) -> NDArray[np.bool_]:
    """Whether each of ``count`` entries from ``start`` on is kept: a function of key and position.

    >>> drawn("a", 1.0, 0, 3).tolist()
    [True, True, True]
    """
    return np.asarray(draws(key, start, count) < below(density))
