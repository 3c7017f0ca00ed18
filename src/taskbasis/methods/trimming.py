"""Dropping entries at random or by rank, and scaling up what is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import PerVector, summed
from taskbasis.methods.noise import below, draws, keep_below
from taskbasis.norms import magnitude

_AT_ONCE = 1 << 18

UNBOUNDED = 1e30
"""The gain of what restores a norm: single entries may grow by any factor."""


def key(name: str, seed: int, vector: str, tensor: str) -> str:
    """What draws are a function of, beside an entry's position in its tensor.

    So neither the order of the vectors nor cuts and workers matter.
    """
    return f"{name}/{seed}/{vector}/{tensor}"


def drop(row: NDArray[Any], words: str, start: int, chance: NDArray[np.float64] | float) -> None:
    """Set entries to 0, each but with its chance to stay.

    Args:
        row: [n], overwritten.
        words: the key of the draws.
        start: where the row begins in its tensor.
        chance: one for all entries, or one for each.
    """
    bound = below(chance)
    if bound.ndim:
        row *= draws(words, start, row.size) < bound
    else:
        keep_below(row, words, start, int(bound))


def row_blocks(shape: tuple[int, ...], size: int) -> tuple[int, Iterator[slice]]:
    """The width of a tensor's rows, and stretches of whole rows that are not too large at once.

    A row is everything under one index of the first axis; other tensors are one row.

    >>> width, blocks = row_blocks((3, 2, 2), 12)
    >>> width, list(blocks)
    (4, [slice(0, 12, None)])
    """
    width = size // shape[0] if len(shape) > 1 and shape[0] else size
    step = max(1, _AT_ONCE // max(width, 1)) * width
    return width, (slice(at, min(at + step, size)) for at in range(0, size, step or 1))


def norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    """[T]: each row's sum of magnitudes."""
    return np.asarray([magnitude(row) for row in rows])


def restoring(whole: NDArray[np.float64], kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T]: what gives each row its sum of magnitudes again; 1 where nothing was kept."""
    return np.divide(whole, kept, out=np.ones_like(whole), where=kept > 0)


def multiplied(rows: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[Any]:
    """The rows, overwritten, each times its factor."""
    for row, factor in zip(rows, factors, strict=True):
        if factor != 1:
            row *= rows.dtype.type(factor)
    return rows


def coefficients(weights: NDArray[np.float64], normalize: bool) -> NDArray[np.float64]:
    """[T]: what :func:`total` multiplies each row by."""
    return np.full(len(weights), 1 / np.abs(weights).sum() if normalize else 1.0)


def total(rows: NDArray[Any], weights: NDArray[np.float64], normalize: bool) -> NDArray[Any]:
    """The sum of the rows, divided by the sum of their weights' sizes if ``normalize``."""
    found = summed(rows)
    return found / rows.dtype.type(np.abs(weights).sum()) if normalize else found


def smallest(density: PerVector) -> float:
    """The least of the densities.

    >>> smallest(0.5), smallest((0.5, 0.25))
    (0.5, 0.25)
    """
    return min(density) if isinstance(density, tuple) else density
