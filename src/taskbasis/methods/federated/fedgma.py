"""FedGMA: the sum, weakened where signs disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State, summed


@dataclass(frozen=True)
class FedGma(Method):
    """Gradient-masked averaging: ``merged = m * sum_t tau_t``, per entry ``m = 1`` where
    ``A >= rho`` and ``m = A`` elsewhere, with the agreement of signs ``A = |mean_t sign(tau_t)|``.

    An entry that a vector leaves as it is counts as half agreeing: of two vectors, one of which is
    0, A is 1/2. The default rho of 1/2, the middle of the authors' grid of 0.1 to 0.9, keeps such
    an entry whole. At rho 0 it is task arithmetic. Weights count by their signs alone in A.

    Source: Tao et al., Task Arithmetic through the Lens of One-Shot Federated Learning, TMLR 2025,
    by the released code; after Tenison et al., Gradient Masked Averaging, TMLR 2023.

    Raises:
        UsageError: rho is not in [0, 1].

    >>> FedGma(rho=0.8).apply(Chunk(np.array([[1.0, 2.0, 0.0], [3.0, -1.0, 4.0]])), ())
    array([4., 0., 2.])
    """

    name: ClassVar[str] = "fedgma"
    formula: ClassVar[str] = "m sum_t tau_t, m = 1 if A >= rho else A, A = |mean_t sign tau_t|"
    source: ClassVar[str] = (
        "Tao et al., One-Shot Federated Learning, TMLR 2025; Tenison et al. 2023"
    )
    when: ClassVar[str] = "Tasks disagree in sign, and entries should fade rather than be cut."
    rho: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise UsageError(f"a rho of {self.rho} is no share of agreeing signs; use [0, 1]")

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return None if self.rho else np.ones(len(weights))

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        votes = np.zeros(deltas.shape[1])
        for row in deltas:
            votes += np.sign(row)
        agreement = np.abs(votes, out=votes)
        agreement /= len(deltas)
        agreement[agreement >= self.rho] = 1
        return np.asarray(summed(deltas) * agreement, deltas.dtype)
