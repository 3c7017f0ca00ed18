"""Random numbers that are a function of a key and a position, and of nothing else."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

_BLOCK = 1 << 14
_DRAWS = 1 << 32


def draws(key: str, start: int, count: int) -> NDArray[np.uint32]:
    """Uniform 32-bit words for entries ``start`` to ``start + count`` of an endless row.

    The raw bits of Philox, which NumPy guarantees for ever.

    >>> bool(np.all(draws("a", 3, 4) == draws("a", 0, 7)[3:]))
    True
    """
    word = xxhash.xxh3_128_intdigest(key.encode())
    out = np.empty(count, np.uint32)
    for block in range(start // _BLOCK, -(-(start + count) // _BLOCK)):
        raw = np.random.Philox(key=word, counter=[0, block, 0, 0]).random_raw(_BLOCK // 2)
        words = raw.astype("<u8").view("<u4")
        low, high = max(block * _BLOCK, start), min((block + 1) * _BLOCK, start + count)
        out[low - start : high - start] = words[low - block * _BLOCK : high - block * _BLOCK]
    return out


def below(chance: NDArray[np.float64] | float) -> NDArray[np.uint64]:
    """The number that draws are below with the given chances; at least 1, so none is impossible."""
    return np.asarray(np.maximum(np.rint(np.asarray(chance) * _DRAWS), 1), np.uint64)


def drawn(key: str, density: float, start: int, count: int) -> NDArray[np.bool_]:
    """Whether each of ``count`` entries from ``start`` on is kept: a function of key and position.

    >>> drawn("a", 1.0, 0, 3).tolist()
    [True, True, True]
    """
    return np.asarray(draws(key, start, count) < below(density))
