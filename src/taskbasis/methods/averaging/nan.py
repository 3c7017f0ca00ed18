"""NAN: models weighted by the inverse of their norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, Need, State, summed
from taskbasis.methods.cutoff import check_scope


@dataclass(frozen=True)
class Nan(Method):
    """The mean of the models, each weighted by the inverse of its norm:
    ``merged = sum_t c_t tau_t, c_t = (1/||theta_t||) / sum_s (1/||theta_s||)``.

    The norms are of the whole weights theta_t = base + w_t tau_t, over the tensor, its layer or
    the model (``scope``). Fine-tuned models have almost the norm of their base, so the result is
    close to the plain mean, but for tensors that are 0 in the base. Where some models have norm
    0, they share the whole weight.

    Source: Si et al., NAN, arXiv 2505.16148, at second hand: that coefficients are proportional
    to the inverse of the norm is the paper's; that they sum to 1, and what a norm is taken over,
    is inferred. The paper combines them with other methods, too.

    Raises:
        UsageError: ``scope`` is unknown.

    >>> from taskbasis.testing import merged
    >>> merged(Nan(), np.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [0.75, 0.75]
    """

    name: ClassVar[str] = "nan"
    formula: ClassVar[str] = "sum_t c_t tau_t, c_t proportional to 1/||theta_t||"
    source: ClassVar[str] = "Si et al., NAN, arXiv 2505.16148, 2025, at second hand"
    when: ClassVar[str] = "You merge models whose weights differ in size, without data."
    base: ClassVar[Need] = "required"
    double: ClassVar[bool] = True
    float_sums: ClassVar[bool] = True
    scope: Granularity = "tensor"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    def stages(self) -> tuple[Granularity, ...]:
        return (self.scope,)

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        models = (delta + chunk.base for delta in chunk.deltas)
        return np.array([model @ model for model in models])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        norms = np.sqrt(total)
        nothing = norms == 0
        inverse = np.where(np.any(nothing), nothing, 1 / np.where(nothing, 1, norms))
        return inverse / inverse.sum()

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        deltas *= np.asarray(state[0])[:, None]
        return summed(deltas)
