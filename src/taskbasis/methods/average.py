"""The mean of the task vectors: what averaging the models amounts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, summed


@dataclass(frozen=True)
class Average(Method):
    """The mean of the task vectors: ``merged = (1/T) sum_t tau_t``.

    At scale 1 the result is the average of the fine-tuned models.

    >>> Average().apply(Chunk(np.array([[1.0, 2.0], [3.0, -2.0]])), ())
    array([2., 0.])
    """

    name: ClassVar[str] = "average"

    def weights(self, count: int) -> NDArray[Any]:
        return np.full(count, 1.0 / count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return np.asarray(summed(chunk.deltas) / len(chunk.deltas), chunk.deltas.dtype)
