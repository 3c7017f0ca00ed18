"""TIES: trim each vector, elect a sign per entry, average who agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import check_word
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, PerVector, State
from taskbasis.methods.cutoff import (
    check_density,
    count_lower,
    count_upper,
    find_bins,
    find_cutoffs,
)
from taskbasis.methods.electing import WEIGHED, Variant, Vote, elect


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, disjoint mean.

    1. keep of each vector the ``density`` share of largest magnitude: every entry at least as
       large as the k-th largest, k = max(1, floor(density * d));
    2. elect the sign of every entry;
    3. average the trimmed, non-zero values of that sign.

    ``variant`` says whose function it is, where those of the same name differ
    (:func:`~taskbasis.methods.electing.elect` has the rules of 2 and 3):

    - ``paper``: k is found over the whole model, the sum of ``w_t tau_t`` votes, and those who
      agree count alike: a weight does what multiplying the vector beforehand would do.
    - ``mergekit``: each tensor is trimmed alone; means are by weight.
    - ``peft``: each tensor is trimmed alone, to k = floor(density * d), which may be nothing;
      vectors vote without their weights.

    ``vote`` may count signs (``frequency``) instead of adding values, and without ``normalize``
    those who agree are summed, not averaged.

    The cutoff is exact and found out of core: one pass counts magnitudes by the upper half of
    their float32 bits, a second resolves the lower half of the bin that holds the k-th largest.
    Density 1 needs neither. Entries as large as the k-th are all kept; mergekit and PEFT keep
    exactly k, and which of the equal ones they drop is an accident of sorting. The paper's code
    keeps one entry more (its cutoff is the next smaller value), and elects the majority sign of
    the whole vector where votes cancel; here such an entry is 0.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023, and its released code; mergekit 0.1.5 and
    PEFT 0.21.2 as they compute.

    Raises:
        UsageError: a density is not in (0, 1], or a word is unknown.

    >>> chunk = Chunk(np.array([[1.0, -2.0], [3.0, 1.0]]))
    >>> Ties(density=1.0).apply(chunk, ())
    array([ 2., -2.])
    """

    name: ClassVar[str] = "ties"
    formula: ClassVar[str] = "mean over t of trim(w_t tau_t) that have the elected sign"
    source: ClassVar[str] = "Yadav et al., TIES-Merging, NeurIPS 2023"
    when: ClassVar[str] = "Several tasks, no data: small changes and clashing signs are left out."
    density: PerVector = 0.2
    variant: Variant = "paper"
    vote: Vote = "total"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_density(self.density)
        check_word("variant", self.variant, Variant)
        check_word("vote", self.vote, Vote)

    def gain(self) -> float:
        return WEIGHED if self.variant == "mergekit" and self.normalize else 1.0

    def stages(self) -> tuple[Granularity, ...]:
        if self.density == 1:
            return ()
        return ("model", "model") if self.variant == "paper" else ("tensor", "tensor")

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        rows = chunk.deltas.astype(np.float32, copy=False)
        return count_lower(rows, state[0]) if stage else count_upper(rows)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if stage:
            return find_cutoffs(total, state[0])
        return find_bins(total, self.density, least=0 if self.variant == "peft" else 1)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        cutoffs = state[1] if state else None
        weights = chunk.vector_weights()
        return elect(chunk.deltas, weights, self.variant, self.vote, self.normalize, cutoffs)
