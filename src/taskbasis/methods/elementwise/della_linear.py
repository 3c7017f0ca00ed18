"""DELLA without election: drop small entries more often than large ones, rescale, and sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.errors import UsageError, check_word
from taskbasis.methods.base import Chunk, Method, PerVector, State, Unit, per_vector
from taskbasis.methods.cutoff import check_density
from taskbasis.methods.trimming import (
    UNBOUNDED,
    coefficients,
    drop,
    key,
    multiplied,
    norms,
    restoring,
    row_blocks,
    smallest,
    total,
)

DellaVariant = Literal["paper", "mergekit"]


@dataclass(frozen=True)
class DellaLinear(Method):
    """Drop by rank and rescale: ``merged = sum_t m_t * w_t tau_t / p_t``, m_t 1 with chance p_t.

    ``p_t`` rises linearly with the rank of an entry's magnitude in its row: from ``density -
    epsilon`` of the smallest to ``density + epsilon`` of the largest. Entries of equal magnitude
    (as float32) share their mean rank, and an entry that is alone in its row has the chance
    ``density``. With density 1 a vector is kept whole, whatever epsilon is. With ``rescale`` what
    is kept is scaled up again, by ``variant``:

    - ``paper``: each entry is divided by its own chance, so that it keeps its expected value;
    - ``mergekit``: each tensor keeps its sum of magnitudes.

    A row is everything under one index of the first axis; tensors of one axis, and single numbers,
    are one row. Tensors are taken whole, since ranks need all of a row. With ``normalize`` the sum
    is divided by ``sum_t |w_t|``. Draws are as for
    :class:`~taskbasis.methods.elementwise.dare_linear.DareLinear`.

    mergekit ranks along the second axis, which is another thing for tensors of more than two axes.
    In the paper's code a window is 2 * epsilon, and ranks of equal magnitudes are an accident of
    sorting; rows of one entry make it and mergekit 0.1.5 fail.

    Source: Deep et al., DELLA-Merging, arXiv 2406.11617, and its released code, of whose README
    the defaults are (drop rate 0.3, window 0.14; it scales by 1.1, which is the caller's scale);
    mergekit 0.1.5 as it computes.

    Raises:
        UsageError: a density is not in (0, 1], density - epsilon or density + epsilon is not in
            (0, 1], epsilon is negative, or a word is unknown.

    >>> chunk = Chunk(np.array([[3.0, -1.0, 2.0]]), tensor="w", shape=(3,))
    >>> DellaLinear(density=0.5, epsilon=0.25, seed=4).apply(chunk, ())
    array([ 0., -4.,  0.])
    """

    name: ClassVar[str] = "della_linear"
    formula: ClassVar[str] = "sum_t m_t * w_t tau_t / p_t, p_t rises with the rank of |tau_t|"
    source: ClassVar[str] = "Deep et al., DELLA-Merging, arXiv 2406.11617, 2024"
    when: ClassVar[str] = "As dare_linear, where larger changes matter more than smaller ones."
    unit: ClassVar[Unit] = "tensor"
    density: PerVector = 0.7
    epsilon: float = 0.07
    rescale: bool = True
    seed: int = 0
    variant: DellaVariant = "paper"
    normalize: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        check_word("variant", self.variant, DellaVariant)
        densities = self.density if isinstance(self.density, tuple) else (self.density,)
        for density in densities:
            least, most = density - self.epsilon, density + self.epsilon
            if not self.epsilon >= 0 or (density < 1 and not 0 < least <= most <= 1):
                raise UsageError(
                    f"an epsilon of {self.epsilon} around the density {density} leaves (0, 1]; "
                    f"use 0 to {min(density, 1 - density):.3g}, less than the density"
                )

    def gain(self) -> float:
        if not self.rescale or smallest(self.density) == 1:
            return 1.0
        if self.variant == "mergekit":
            return UNBOUNDED
        return 1 / (smallest(self.density) - self.epsilon)

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if smallest(self.density) < 1:
            return None
        return coefficients(weights, self.normalize)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        densities = per_vector(self.density, len(chunk.deltas), "density").tolist()
        for row, name, density in zip(chunk.deltas, chunk.vector_names(), densities, strict=True):
            if density < 1:
                self._drop(row, key(self.name, self.seed, name, chunk.tensor), chunk, density)
        return self._combined(chunk.deltas, chunk.vector_weights())

    def _combined(self, rows: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
        return total(rows, weights, self.normalize)

    def _drop(self, row: NDArray[Any], words: str, chunk: Chunk, density: float) -> None:
        """Drop entries of one vector in place, and scale up the rest."""
        divides = self.rescale and self.variant == "paper"
        restores = self.rescale and not divides
        whole = norms(row[None]) if restores else None
        width, blocks = row_blocks(chunk.shape, row.size)
        for block in blocks:
            part = row[block]
            chances = keep_chances(part.reshape(-1, width), density, self.epsilon).reshape(-1)
            drop(part, words, block.start, chances)
            if divides:
                part /= chances
        if whole is not None:
            multiplied(row[None], restoring(whole, norms(row[None])))


def keep_chances(rows: NDArray[Any], density: float, epsilon: float) -> NDArray[np.float64]:
    """[rows, width]: each entry's chance to be kept, by the rank of its magnitude in its row.

    >>> keep_chances(np.array([[3.0, -1.0, 1.0, 0.0]]), 0.5, 0.25).tolist()
    [[0.75, 0.5, 0.5, 0.25]]
    """
    width = rows.shape[1]
    if width < 2:
        return np.full(rows.shape, density)
    # Magnitude and place in one word: a sort of words that order like what they begin with.
    magnitudes = np.abs(rows.astype(np.float32, copy=False)).view(np.uint32)
    words = (magnitudes.astype(np.uint64) << np.uint64(32)) | np.arange(width, dtype=np.uint64)
    words.sort(axis=1)
    chances = np.empty(rows.shape)
    _rank(words, density - epsilon, epsilon / (width - 1), chances)
    return chances


@jit()
def _rank(words: Any, least: float, step: float, chances: Any) -> None:
    for r in range(words.shape[0]):
        row, out, first = words[r], chances[r], 0
        for i in range(row.size):
            if i + 1 == row.size or row[i + 1] >> np.uint64(32) != row[i] >> np.uint64(32):
                for j in range(first, i + 1):  # a run of equal magnitudes, by its mean rank
                    out[np.int64(row[j] & np.uint64(0xFFFFFFFF))] = least + step * (first + i)
                first = i + 1
