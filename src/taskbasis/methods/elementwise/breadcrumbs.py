"""Model Breadcrumbs: leave out the largest and the smallest changes, and sum the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, PerVector, State, Unit, per_vector
from taskbasis.methods.cutoff import (
    check_density,
    count_lower,
    count_upper,
    find_cutoffs,
    find_ranks,
)
from taskbasis.methods.trimming import coefficients, row_blocks, smallest, total


@dataclass(frozen=True)
class Breadcrumbs(Method):
    """Remove outliers and small changes: ``merged = sum_t mask_t * w_t tau_t``.

    Of the n entries of every tensor of every vector, sorted by magnitude, the ``gamma`` share of
    largest ones is removed, the ``density`` share of next largest ones is kept, and the rest is
    removed: floor(gamma * n) and max(1, floor(density * n)) entries. Where the two are more than
    n, fewer outliers are removed; at density 1 nothing is, and the method is task arithmetic.
    Entries as large as the largest or the smallest that is kept are kept, too; so equal magnitudes
    are never told apart.

    Masks are of tensors, as the paper says (its layers; from memory, the text was not at hand).
    With ``rows`` they are of the rows of a matrix, as in the authors' released code (everything
    under one index of the first axis; that code takes the last axis, which is another thing for
    tensors of more than two axes, and keeps nothing of rows shorter than 1 / density). With
    ``normalize`` the sum is divided by ``sum_t |w_t|``.

    mergekit 0.1.5 gives the same for tensors where floor(density * n) is at least 1; it zeroes
    smaller ones (older ones, by reading, zeroed tensors with gamma * n < 1 altogether).

    Cutoffs are exact and found out of core, as for
    :class:`~taskbasis.methods.elementwise.ties.Ties`: two passes find both ends.

    Source: Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, and its released code; mergekit
    0.1.5 as it computes. The default density of 0.15 and a gamma of 0.006 are the first point that
    the released search tries, beside a scale of 0.2.

    Raises:
        UsageError: a density is not in (0, 1], or a gamma is not in [0, 1).

    >>> from taskbasis.testing import merged
    >>> merged(Breadcrumbs(density=0.5, gamma=0.25), np.array([[9.0, -2.0, 0.5, 3.0]]))
    array([ 0., -2.,  0.,  3.])
    """

    name: ClassVar[str] = "breadcrumbs"
    formula: ClassVar[str] = "sum_t mask_t * w_t tau_t, without the largest and smallest entries"
    source: ClassVar[str] = "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024"
    when: ClassVar[str] = "Many tasks and one setting for all: outliers and noise are left out."
    density: PerVector = 0.15
    gamma: PerVector = 0.006
    rows: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        for gamma in self.gamma if isinstance(self.gamma, tuple) else (self.gamma,):
            if not 0 <= gamma < 1:
                raise UsageError(f"a gamma of {gamma} removes no sensible share; use [0, 1)")
        if self.rows:
            whole: Unit = "tensor"
            object.__setattr__(self, "unit", whole)

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if smallest(self.density) < 1:
            return None
        return coefficients(weights, self.normalize)

    def stages(self) -> tuple[Granularity, ...]:
        return () if self.rows or self.density == 1 else ("tensor", "tensor")

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        rows = chunk.deltas.astype(np.float32, copy=False)
        if stage == 0:
            return count_upper(rows)
        largest, least = state[0][: len(rows)], state[0][len(rows) :]
        return np.concatenate([count_lower(rows, largest), count_lower(rows, least)])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if stage:
            return find_cutoffs(total, state[0]).reshape(2, -1)
        sizes = total.sum(axis=1).tolist()
        gammas, densities = self._shares(len(total))
        ends = [_ends(*of) for of in zip(sizes, gammas, densities, strict=True)]
        ranks = [end[0] for end in ends] + [end[1] for end in ends]
        return find_ranks(np.tile(total, (2, 1)), ranks)

    def _shares(self, count: int) -> tuple[list[float], list[float]]:
        """Of every vector gamma and density."""
        gammas = per_vector(self.gamma, count, "gamma")
        return gammas.tolist(), per_vector(self.density, count, "density").tolist()

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return self._combined(self._kept(chunk, state), chunk.vector_weights())

    def _combined(self, rows: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
        return total(rows, weights, self.normalize)

    def _kept(self, chunk: Chunk, state: State) -> NDArray[Any]:
        """The deltas [T, n], overwritten: 0 where they are removed."""
        if self.rows:
            return self._kept_of_rows(chunk)
        if state:
            for row, largest, least in zip(chunk.deltas, *state[1], strict=True):
                magnitudes = np.abs(row.astype(np.float32, copy=False))
                row *= (magnitudes >= least) & (magnitudes <= largest)
        return chunk.deltas

    def _kept_of_rows(self, chunk: Chunk) -> NDArray[Any]:
        for delta, *shares in zip(chunk.deltas, *self._shares(len(chunk.deltas)), strict=True):
            width, blocks = row_blocks(chunk.shape, delta.size)
            ends = _ends(width, *shares)
            largest, least = (width - rank for rank in ends)
            for block in blocks:
                magnitudes = np.abs(delta[block]).reshape(-1, width)
                ordered = np.partition(magnitudes, (least, largest), axis=1)
                kept = magnitudes >= ordered[:, least, None]
                kept &= magnitudes <= ordered[:, largest, None]
                delta[block] *= kept.reshape(-1)
        return chunk.deltas


def _ends(size: int, gamma: float, density: float) -> tuple[int, int]:
    """The ranks of the largest and the smallest entry that are kept, 1 being the largest of all.

    >>> _ends(10, 0.2, 0.5), _ends(10, 0.8, 0.5), _ends(10, 0.1, 0.05)
    ((3, 7), (6, 10), (2, 2))
    """
    kept = max(1, int(density * size))
    removed = max(0, min(int(gamma * size), size - kept))
    return removed + 1, removed + kept
