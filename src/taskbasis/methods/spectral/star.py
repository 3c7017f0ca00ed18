"""STAR: each spectrum truncated, what is left scaled up to its old nuclear norm, averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import (
    Triplets,
    check_share,
    flat,
    is_matrix,
    matrices,
    mean,
    svd,
    workspace,
)


@dataclass(frozen=True)
class Star(Method):
    """Spectral truncation and rescale:
    ``merged = (1/T) sum_t (sum(s_t) / sum(s_t[:k_t])) low_k_t(tau_t)``.

    ``low_k`` keeps the first k singular triplets, k_t the fewest whose values sum to the share
    ``energy`` of all of task t's. What is kept is scaled up so that the sum of the values, the
    nuclear norm, stays.

    Tensors that are no matrices: the mean. Those of more than two axes are matrices
    [shape[0], rest]. At ``energy`` 1 this is the mean, but for
    singular values below 2^-21 of the largest.

    Source: Lee et al., STAR, NAACL 2025; checked against their code, whose eta is 100 energy, by
    default 40. It was made for the deltas of adapters, which are all matrices; what is done with
    other tensors is ours.

    Raises:
        UsageError: the energy is not in (0, 1].

    >>> deltas = np.array([[3.0, 0, 0, 1]])
    >>> Star(energy=0.5).apply(Chunk(deltas, shape=(2, 2)), ())
    array([4., 0., 0., 0.])
    """

    name: ClassVar[str] = "star"
    formula: ClassVar[str] = "(1/T) sum_t (sum(s_t) / sum(s_t[:k_t])) low_k_t(tau_t)"
    source: ClassVar[str] = (
        "Lee et al., STAR: Spectral Truncation and Rescale, NAACL 2025 (arXiv 2502.10339)"
    )
    when: ClassVar[str] = "You average several adapters, and want their noise left out of the mean."
    unit: ClassVar[Unit] = "matrix"
    energy: float = 0.4
    exact: bool = False

    def __post_init__(self) -> None:
        check_share("energy", self.energy)

    def gain(self) -> float:
        return 1 / self.energy

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not is_matrix(chunk):
            return mean(chunk)
        total = np.zeros(())
        for tau in matrices(chunk):
            total = total + self._truncated(svd(tau, exact=self.exact)).product()
        return flat(total / len(chunk.deltas), chunk)

    def _truncated(self, found: Triplets) -> Triplets:
        if not len(found.values):
            return found
        sums = np.cumsum(found.values)
        count = int(np.searchsorted(sums, self.energy * sums[-1])) + 1
        kept = found.first(count)
        return Triplets(kept.left, kept.values * (sums[-1] / sums[count - 1]), kept.right)
