"""Selective Task Arithmetic: of every vector the entries its task's loss depends on, summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis import counting
from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Need, Selecting, State
from taskbasis.methods.cutoff import (
    Normalize,
    Normalizer,
    check_density,
    check_normalize,
    check_scope,
    count_lower,
    count_rounded,
    count_upper,
    find_bins,
    find_cutoffs,
)

_SMALLEST = np.float32(1e-45)


@dataclass(frozen=True)
class Sta(Selecting):
    """Keep the entries of high importance and add: ``merged = sum_t mask_t * tau_t``.

    Entry i of vector t is kept when

    1. its score is among the ``density`` share of largest scores of its tensor, its layer, or the
       whole model (``scope``): at least as large as the k-th largest, k = max(1, floor(density *
       d)), and above 0. At density 1 everything is kept, whatever its score;
    2. its score, made comparable by ``normalize``, is at least ``threshold``;
    3. with ``exclusive`` (the default below density 1), no other vector that keeps the entry
       scores it higher; of equal scores the first vector's counts. Supports are then disjoint,
       sums do not overshoot, and any vector can be taken out again exactly. A vector also holds
       entries that it did not move: what its task depends on is left alone by the others.

    Scores are importances learnt from data (:func:`taskbasis.learn.importance`); without any, the
    magnitudes of the vectors' own entries. Cutoffs are exact and found out of core. Scores of
    different tensors and tasks are compared by ``normalize``: divided by the tensor's ``mean`` or
    ``max``, or replaced by their ``rank`` in the tensor.

    With ``effect`` the comparable score is multiplied by ``|tau|``: not how much the loss depends
    on the entry, but how much on what the vector does to it. That is not the factor ``delta``,
    whose normalisation takes the vectors' own lengths away.

    At density 1, without threshold and unless ``exclusive`` is asked for, it is task arithmetic,
    bit for bit.

    The order of the vectors matters where exclusive scores are equal.

    Source: Selective Task Arithmetic, arXiv 2411.16139: importance, normalisation per layer, a
    threshold, and an unscaled sum (scale 1). The paper's density, normaliser and whether masks
    exclude each other are not known to us; they are options here, and the defaults are what did
    best in our measurements (docs/results.md).

    Raises:
        UsageError: the density is not in (0, 1], the threshold is negative, or a word is unknown.

    >>> scores = np.array([[3, 2, 1, 0], [0, 2, 1, 4]], np.float32)
    >>> deltas = np.array([[1, 1, 1, 1], [10, 10, 10, 10]], np.float32)
    >>> method = Sta(density=1.0, threshold=1.2)
    >>> counts = method.observe(0, Chunk(deltas, scores), ())
    >>> state = [method.finish(0, counts, ())]
    >>> method.apply(Chunk(deltas, scores), state).tolist()
    [1.0, 1.0, 0.0, 10.0]
    """

    name: ClassVar[str] = "sta"
    formula: ClassVar[str] = "sum_t mask_t tau_t, mask_t = the entries of highest importance"
    source: ClassVar[str] = "Selective Task Arithmetic, arXiv 2411.16139"
    when: ClassVar[str] = "You want no scale to tune, or tasks that can be taken out again."
    ordered: ClassVar[bool] = True
    scores: ClassVar[Need] = "optional"
    density: float = 0.3
    scope: Granularity = "tensor"
    normalize: Normalize = "mean"
    threshold: float = 0.0
    exclusive: bool | None = None
    effect: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        check_normalize(self.normalize)
        check_scope(self.scope)
        if self.exclusive not in (None, True, False):
            raise UsageError(f"exclusive takes true or false, not {self.exclusive!r}")
        if not 0 <= self.threshold < np.inf:
            raise UsageError(f"a threshold of {self.threshold} has no meaning; use 0 or more")

    def disjoint(self) -> bool:
        return self.density < 1 if self.exclusive is None else self.exclusive

    @property
    def _compared(self) -> bool:
        """Whether scores of different tensors or tasks meet."""
        by_density = self.density < 1 and self.scope != "tensor"
        return by_density or self.threshold > 0 or self.disjoint()

    def stages(self) -> tuple[Granularity, ...]:
        compare: tuple[Granularity, ...] = ("tensor",) if self._compared else ()
        return (*compare, self.scope, self.scope) if self.density < 1 else compare

    def stages_see_deltas(self) -> bool:
        return self.effect

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        everything = self.density == 1 and not self.threshold and not self.disjoint()
        return np.ones(len(weights)) if everything else None

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        if self._compared and stage == 0:
            return count_rounded(_raw(chunk))
        scores = self._of_effect(self._comparable(chunk, state), chunk)
        if stage == len(self.stages()) - 2:
            return count_upper(scores)
        return count_lower(scores, state[-1])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if self._compared and stage == 0:
            return [Normalizer(counts, self.normalize) for counts in total]
        if stage == len(self.stages()) - 2:
            return find_bins(total, self.density)
        return np.maximum(find_cutoffs(total, state[-1]), _SMALLEST)

    def select(self, chunk: Chunk, state: State) -> NDArray[np.bool_]:
        comparable = self._comparable(chunk, state)
        scores = self._of_effect(comparable, chunk)
        if self.density < 1:
            kept = np.asarray(scores >= state[-1][:, None])
        else:
            kept = np.ones(scores.shape, np.bool_)
        if self.threshold:
            kept &= comparable >= np.float32(self.threshold)
        if self.disjoint():
            counting.leave_best(scores, kept)
        return kept

    def _comparable(self, chunk: Chunk, state: State) -> NDArray[np.float32]:
        """[T, n] scores, normalised where those of different tensors or tasks meet."""
        rows = _raw(chunk)
        if not self._compared:
            return rows
        return np.stack([normal(row) for normal, row in zip(state[0], rows, strict=True)])

    def _of_effect(self, scores: NDArray[np.float32], chunk: Chunk) -> NDArray[np.float32]:
        return np.asarray(scores * np.abs(chunk.deltas), np.float32) if self.effect else scores


def _raw(chunk: Chunk) -> NDArray[np.float32]:
    if chunk.scores is not None:
        return chunk.scores
    return np.asarray(np.abs(chunk.deltas), np.float32)
