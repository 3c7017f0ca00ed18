"""The mean of the task vectors: what averaging the models amounts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.matrices import mean


@dataclass(frozen=True)
class Average(Method):
    """The mean of the task vectors: ``merged = (1/T) sum_t w_t tau_t``.

    At scale 1, with weights of 1, the result is the average of the fine-tuned models. Weights
    multiply their vectors and nothing else: the sum is divided by the number of vectors, T. For a
    mean that divides by the weights take ``linear``.

    Source: Wortsman et al., Model Soups, ICML 2022 (the uniform soup).

    >>> Average().apply(Chunk(np.array([[1.0, 2.0], [3.0, -2.0]])), ())
    array([2., 0.])
    """

    name: ClassVar[str] = "average"
    formula: ClassVar[str] = "(1/T) sum_t w_t tau_t"
    source: ClassVar[str] = "Wortsman et al., Model Soups (uniform), ICML 2022"
    when: ClassVar[str] = "You merge models of one task, or want a baseline without options."

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return np.full(len(weights), 1.0 / len(weights))

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return mean(chunk)
