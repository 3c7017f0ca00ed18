"""Task arithmetic: the plain sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.trimming import coefficients, total


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """The sum of the task vectors: ``merged = sum_t w_t tau_t``.

    The caller's scale multiplies it: theta = theta_0 + lambda * merged. With ``normalize`` it is
    divided by ``sum_t |w_t|``: a mean where weights are positive. mergekit's option of that name
    divides by the signed sum, which turns a single negative weight into a positive one.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023; normalize as in
    mergekit.

    >>> TaskArithmetic().apply(Chunk(np.array([[1.0, 2.0], [3.0, -2.0]])), ())
    array([4., 0.])
    """

    name: ClassVar[str] = "task_arithmetic"
    formula: ClassVar[str] = "sum_t w_t tau_t, optionally / sum_t |w_t|"
    source: ClassVar[str] = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023"
    when: ClassVar[str] = "First of all, and to take a task out again by a negative weight."
    normalize: bool = False

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return coefficients(weights, self.normalize)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return total(chunk.deltas, chunk.vector_weights(), self.normalize)
