"""TIES: trim each vector over the whole model, elect a sign per entry, average who agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State, summed
from taskbasis.methods.cutoff import (
    check_density,
    count_lower,
    count_upper,
    find_bins,
    find_cutoffs,
)


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, disjoint mean.

    1. keep of each vector the ``density`` fraction of largest magnitude over the whole model:
       every entry at least as large as the k-th largest, k = max(1, floor(density * d));
    2. the sign of an entry is that of the sum of the trimmed values;
    3. average the trimmed, non-zero values of that sign.

    The threshold is exact and found out of core: one pass counts magnitudes by the upper half
    of their float32 bits, a second resolves the lower half of the bin that holds the k-th
    largest. Where the summed values cancel to zero no sign is elected and the entry is zero;
    the paper's code takes the majority sign of the whole vector there.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023.

    Raises:
        UsageError: the density is not in (0, 1].

    >>> chunk = Chunk(np.array([[1.0, -2.0], [3.0, 1.0]]))
    >>> merged = Ties(density=1.0).apply(chunk, [None, np.zeros(2)])
    >>> merged
    array([ 2., -2.])
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def stages(self) -> tuple[Granularity, ...]:
        return ("model", "model")

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        magnitudes = np.abs(chunk.deltas.astype(np.float32, copy=False))
        return count_lower(magnitudes, state[0]) if stage else count_upper(magnitudes)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        return find_cutoffs(total, state[0]) if stage else find_bins(total, self.density)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        kept = np.abs(deltas.astype(np.float32, copy=False)) >= np.asarray(state[1])[:, None]
        trimmed = np.where(kept, deltas, 0)
        sign = np.sign(summed(trimmed))
        agreeing = (np.sign(trimmed) == sign) & (sign != 0)
        count = np.maximum(agreeing.sum(axis=0), 1)
        merged = summed(np.where(agreeing, trimmed, 0)) / count
        return np.asarray(merged, deltas.dtype)
