"""Centred clipping: long vectors are shortened, then all are summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State


@dataclass(frozen=True)
class CClip(Method):
    """The sum of clipped vectors: ``merged = sum_t min(1, rho / ||tau_t||) tau_t``.

    The norm is Euclidean, of the whole model, and of the vector times its weight. No vector counts
    for more than rho, whatever its training did.

    ``rho`` 0, the default, stands for the median of the norms above 0 (the mean of both middle
    ones for an even number): the longer half of the vectors is shortened to it, one vector is left
    as it is, and the result scales with the vectors. The authors choose rho between the least and
    the largest norm, on validation data.

    Source: Tao et al., Task Arithmetic through the Lens of One-Shot Federated Learning, TMLR 2025,
    by the released code; after Karimireddy et al., Learning from History for Byzantine Robust
    Optimization, ICML 2021. That the median stands in for a search is our choice.

    Raises:
        UsageError: rho is negative or no number.

    >>> from taskbasis.testing import merged
    >>> deltas = np.array([[3.0, 4.0], [0.6, 0.8]])
    >>> merged(CClip(rho=2.0), deltas), merged(CClip(), deltas)
    (array([1.8, 2.4]), array([2.4, 3.2]))
    """

    name: ClassVar[str] = "cclip"
    formula: ClassVar[str] = "sum_t min(1, rho / ||tau_t||) tau_t, the norm over the whole model"
    source: ClassVar[str] = "Tao et al., One-Shot Federated Learning, TMLR 2025; Karimireddy 2021"
    when: ClassVar[str] = "Some vectors are far longer than the others and drown them in the sum."
    float_sums: ClassVar[bool] = True
    rho: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rho < np.inf:
            raise UsageError(
                f"a rho of {self.rho} is no length; use a positive one, or 0 for the median norm"
            )

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",)

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        return np.array([np.square(row, dtype=np.float64).sum() for row in chunk.deltas])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        norms = np.sqrt(total)
        changed = norms[norms > 0]
        rho = self.rho or (np.median(changed) if len(changed) else 1.0)
        return rho / np.maximum(norms, rho)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        merged = np.zeros(chunk.deltas.shape[1])
        for row, factor in zip(chunk.deltas, state[0], strict=True):
            merged += factor * row
        return np.asarray(merged, chunk.deltas.dtype)
