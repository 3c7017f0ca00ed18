"""SCE: select entries that differ, calculate a weight for each vector, erase minority signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.cutoff import count_lower, count_upper, find_bins, find_cutoffs
from taskbasis.methods.elementwise.tall import total_of


@dataclass(frozen=True)
class Sce(Method):
    """Select, calculate, erase, tensor by tensor:
    ``merged = sum_t w_t e_t s tau_t / sum_t w_t e_t``.

    1. select: ``s`` is 1 for the ``select_topk`` fraction of entries whose variance over the
       vectors is largest, of those where it is not 0: every entry at least as large as the k-th
       largest, k = max(1, floor(select_topk * d)). At 1, the default, all entries are.
    2. calculate: ``w_t`` is the mean square of ``s tau_t`` over the tensor, so that a vector counts
       where it did most.
    3. erase: ``e_t`` is 1 where ``s tau_t`` has the sign of the sum of all.

    Where nothing varies (one vector, or equal ones) nothing is left out. Where the sum is exactly
    0 no sign is elected and the entry is 0.

    Beside mergekit, of which these are the formulas: it keeps nothing where
    floor(select_topk * d) is 0, as in short tensors, and nothing of a single vector below
    select_topk 1; it takes equal weights where the mean squares sum to less than 1e-6, as they do
    of vectors whose entries are well below 1e-3; and it elects plus where the sum is 0.

    Source: Wan et al., FuseChat: Knowledge Fusion of Chat Models, arXiv 2408.07990, 2024, as
    mergekit computes it. The authors' released code selects for the weights only, and sums all
    entries.

    Raises:
        UsageError: ``select_topk`` is not in (0, 1].

    >>> from taskbasis.testing import merged
    >>> merged(Sce(), np.array([[1.0, 3.0, 0.0, 0.0], [2.0, -1.0, 0.0, 0.0]])).round(3)
    array([1.333, 3.   , 0.   , 0.   ])
    """

    name: ClassVar[str] = "sce"
    formula: ClassVar[str] = "sum_t w_t e_t tau_t / sum_t w_t e_t, w_t = mean tau_t^2, e_t = sign"
    source: ClassVar[str] = "Wan et al., FuseChat (SCE), arXiv 2408.07990, 2024"
    when: ClassVar[str] = "You merge chat models, and want weights for each tensor without tuning."
    float_sums: ClassVar[bool] = True
    select_topk: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.select_topk <= 1:
            raise UsageError(f"a select_topk of {self.select_topk} selects nothing; use (0, 1]")

    def stages(self) -> tuple[Granularity, ...]:
        return ("tensor",) if self.select_topk == 1 else ("tensor",) * 3

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        if stage == len(self.stages()) - 1:
            self._select(chunk, state)
            return np.array([np.square(row, dtype=np.float64).sum() for row in chunk.deltas])
        spread = _spread(chunk.deltas)
        varying = spread[None, spread > 0]
        return count_lower(varying, state[0]) if stage else count_upper(varying)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if stage == len(self.stages()) - 1:
            largest = total.max()
            return total / largest if largest > 0 else np.ones(len(total))
        if stage:
            return find_cutoffs(total, state[0])
        return find_bins(total, self.select_topk)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        self._select(chunk, state)
        sign = np.sign(total_of(chunk.deltas))
        merged, weights = np.zeros(sign.shape), np.zeros(sign.shape)
        for row, weight in zip(chunk.deltas, state[-1], strict=True):
            agreed = weight * (np.sign(row) == sign)
            merged += agreed * row
            weights += agreed
        np.divide(merged, weights, out=merged, where=weights > 0)
        return np.asarray(merged, chunk.deltas.dtype)

    def _select(self, chunk: Chunk, state: State) -> None:
        """Set the entries to zero that are not selected."""
        if self.select_topk < 1:
            chunk.deltas[:, _spread(chunk.deltas) < state[1]] = 0


def _spread(deltas: NDArray[Any]) -> NDArray[np.float32]:
    """[n] standard deviations over the vectors: ordered like variances, and within float32."""
    mean = total_of(deltas) / len(deltas)
    variance = np.zeros(mean.shape)
    for row in deltas:
        variance += np.square(row - mean)
    equal = np.all(deltas == deltas[0], axis=0)  # though the mean may be rounded
    return np.where(equal, 0, np.sqrt(variance / len(deltas))).astype(np.float32)
