"""The k-th largest of many numbers, exactly and out of core, and what makes scores comparable.

Float32 numbers >= 0 order like their bits read as integers. One pass counts them by the upper
half of their bits, a second resolves the lower half of the bin that holds the k-th largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from taskbasis import counting
from taskbasis.errors import UsageError, nearest
from taskbasis.granularity import Granularity
from taskbasis.methods.base import PerVector, per_vector

Normalize = Literal["mean", "rank", "max"]

_UPPER, _LOWER = 1 << 15, 1 << 16
_INFINITE = 0x7F800000
_SMALLEST, _LARGEST = (float(end) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def count_upper(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """[T, 2^15]: how many of each row's magnitudes fall in each bin of upper halves."""
    counts = np.zeros((len(rows), _UPPER), np.int64)
    for row, count in zip(rows, counts, strict=True):
        counting.count_upper(row, count)
    return counts


def count_lower(rows: NDArray[np.float32], bins: Any) -> NDArray[np.int64]:
    """[T, 2^16]: the magnitudes of each row's own bin, by the lower half of their bits."""
    counts = np.zeros((len(rows), _LOWER), np.int64)
    for row, (upper, _), count in zip(rows, bins, counts, strict=True):
        counting.count_lower(row, upper, count)
    return counts


def find_bins(
    counts: NDArray[np.int64], density: PerVector, least: int = 1
) -> list[tuple[int, int]]:
    """Per row, the bin of its k-th largest number and the rank within it.

    ``k = max(least, floor(density * d))`` for d numbers; the cutoff of k = 0 is infinite.
    """
    densities = per_vector(density, len(counts), "density")
    sizes = counts.sum(axis=1)
    return find_ranks(
        counts, [max(least, int(d * n)) for d, n in zip(densities, sizes, strict=True)]
    )


def find_ranks(counts: NDArray[np.int64], ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Per row, the bin of its number of a given rank (1: the largest), and the rank within it."""
    return [_locate(row, rank) for row, rank in zip(counts, ranks, strict=True)]


def find_cutoffs(counts: NDArray[np.int64], bins: Any) -> NDArray[np.float32]:
    """[T]: each row's number of the rank that its bin was found for; infinite for rank 0."""
    words = [
        (upper << 16) | _locate(row, rank)[0] if rank else _INFINITE
        for row, (upper, rank) in zip(counts, bins, strict=True)
    ]
    return np.asarray(words, np.uint32).view(np.float32)


def _locate(counts: NDArray[Any], rank: int) -> tuple[int, int]:
    """The bin holding the ``rank``-th largest entry, and its rank within it; 0 without entries."""
    above = np.cumsum(counts[::-1])
    position = min(int(np.searchsorted(above, rank)), len(counts) - 1)
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before


def count_rounded(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """[T, 2^15]: like :func:`count_upper`, of the numbers rounded to 8 significant bits."""
    return count_upper(_rounded(rows).view(np.float32))


def _rounded(rows: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits whose upper half is that of the nearest number of 8 significant bits."""
    bits = np.abs(rows).view(np.uint32)
    return np.asarray(bits + np.uint32(0x8000), np.uint32)


def counted(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The numbers that :func:`count_rounded` counted in one row, and how many there are of each."""
    filled = np.flatnonzero(counts)
    values = (filled.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.minimum(values, _LARGEST), counts[filled]  # rounding may have reached infinity


class Normalizer:
    """Makes the scores of one tensor comparable with those of others.

    ``mean`` and ``max`` divide by the tensor's mean or largest score; ``rank`` gives the share of
    the tensor's scores that are smaller. What is divided by, and ranks, are found from counts of
    the scores rounded to 8 significant bits (ranks are interpolated in between), so they depend
    neither on order nor on where a tensor is cut. Zero stays zero, and the order of scores is
    kept.

    Args:
        counts: of one row, as :func:`count_rounded` has them.
        kind: mean, rank or max.

    >>> scores = np.array([[0.0, 1.0, 3.0, 4.0]], np.float32)
    >>> counts = count_rounded(scores)[0]
    >>> [Normalizer(counts, kind)(scores[0]).tolist() for kind in ("mean", "max", "rank")]
    [[0.0, 0.5, 1.5, 2.0], [0.0, 0.25, 0.75, 1.0], [0.0, 0.375, 0.625, 0.875]]
    """

    def __init__(self, counts: NDArray[np.int64], kind: Normalize) -> None:
        check_normalize(kind)
        self._kind = kind
        number = max(int(counts.sum()), 1)
        if kind == "rank":
            filled = np.flatnonzero(counts[1:]) + 1  # the bin of zeros lies far below the others
            first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (1, 1)
            self._first = first
            below = counts[:first].sum() + np.cumsum(np.append(0, counts[first : last + 1]))
            self._below, self._lowest = below / number, int(counts[0]) / number
            return
        values, numbers = counted(counts)
        size = float(values @ numbers) / number if kind == "mean" else values.max(initial=0)
        self._factor = 1 / size if size > 0 else 1.0

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores made comparable, [n]."""
        if self._kind != "rank":
            # The factor of very small or large scores is beyond float32, what comes of it is not.
            compute = np.float32 if _SMALLEST < self._factor < _LARGEST else np.float64
            scaled = np.multiply(scores, self._factor, dtype=compute)
            return np.asarray(scaled, np.float32)
        words = _rounded(scores)
        bins = (words >> np.uint32(16)).astype(np.int64)
        inside = (words & np.uint32(0xFFFF)) / 65536.0
        place = np.maximum(bins - self._first, 0)
        low, high = self._below[place], self._below[place + 1]
        ranks = np.where(bins > 0, low + (high - low) * inside, self._lowest * inside)
        return np.where(scores > 0, ranks, 0).astype(np.float32)


def check_normalize(kind: str) -> None:
    """Refuse an unknown way of making scores comparable.

    Raises:
        UsageError: naming the nearest.
    """
    if kind not in get_args(Normalize):
        raise UsageError(f"normalize {kind!r} is unknown; {nearest(kind, get_args(Normalize))}")


def check_scope(scope: str) -> None:
    """Refuse an unknown word for what shares one number.

    Raises:
        UsageError: naming the nearest.
    """
    if scope not in get_args(Granularity):
        raise UsageError(f"scope {scope!r} is unknown; {nearest(scope, get_args(Granularity))}")


def check_density(density: PerVector) -> None:
    """Refuse a density outside (0, 1], for all vectors or for one.

    Raises:
        UsageError: naming it.
    """
    for number in density if isinstance(density, tuple) else (density,):
        if not 0 < number <= 1:
            raise UsageError(f"a density of {number} keeps nothing sensible; use (0, 1]")
