"""Task arithmetic: the plain sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, summed


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """The sum of the task vectors: ``merged = sum_t tau_t``.

    The caller's scale multiplies it: theta = theta_0 + lambda * merged.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.

    >>> TaskArithmetic().apply(Chunk(np.array([[1.0, 2.0], [3.0, -2.0]])), ())
    array([4., 0.])
    """

    name: ClassVar[str] = "task_arithmetic"

    def weights(self, count: int) -> NDArray[Any]:
        return np.ones(count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return summed(chunk.deltas)
