"""Consensus merging: the sum, without the entries that one task alone needs, or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, PerVector, Selecting, State, per_vector, summed
from taskbasis.methods.elementwise.tall import check_lam, mask_of, total_of


@dataclass(frozen=True)
class Consensus(Selecting):
    """Where tasks agree that an entry matters: ``merged = [sum_t mask_t >= agree] * sum_t tau_t``,
    ``mask_t = |tau_t| > lam * |sum_s tau_s - tau_t|``.

    The masks are those of :class:`~taskbasis.methods.elementwise.tall.Tall`. An entry in no mask
    is lost in the sum of the others, an entry in one mask alone harms the others; both stay the
    base's. At ``agree`` 1 only the former; at 0 it is task arithmetic.

    ``agree`` counts at most all T vectors, so that one vector gives itself; the released code
    would then leave nothing of it. ``lam`` is one number, or one for each vector; the authors
    choose it of 0.2 to 0.6, for each task on validation data.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    ICML 2024; masks and the count as the released code has them.

    Raises:
        UsageError: ``lam`` or ``agree`` is negative.

    >>> deltas = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 4.0]])
    >>> Consensus().apply(Chunk(deltas), ()), Consensus(agree=1).apply(Chunk(deltas), ())
    (array([0., 4., 0.]), array([4., 4., 4.]))
    """

    name: ClassVar[str] = "consensus"
    formula: ClassVar[str] = "sum_t tau_t where at least k of |tau_t| > lam |sum_s tau_s - tau_t|"
    source: ClassVar[str] = "Wang et al., Localizing Task Information (Consensus), ICML 2024"
    when: ClassVar[str] = "You merge many tasks, and entries of one task alone harm the others."
    lam: PerVector = 0.4
    agree: int = 2

    def __post_init__(self) -> None:
        check_lam(self.lam)
        if self.agree < 0:
            raise UsageError(f"agree {self.agree} counts nothing; use 0 or more masks, such as 2")

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return None if self.agree else np.ones(len(weights))

    def select(self, chunk: Chunk, state: State) -> NDArray[np.bool_]:
        deltas, count = chunk.deltas, len(chunk.deltas)
        total, votes = total_of(deltas), np.zeros(deltas.shape[1], np.int32)
        for row, lam in zip(deltas, per_vector(self.lam, count, "lam"), strict=True):
            votes += mask_of(row, total, lam)
        return np.broadcast_to(votes >= min(self.agree, count), deltas.shape)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return np.where(self.select(chunk, state)[0], summed(chunk.deltas), 0)
