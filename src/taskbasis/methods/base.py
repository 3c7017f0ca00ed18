"""What every method is: a frozen record of hyperparameters with one pure function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

State = Any


def summed(rows: NDArray[Any]) -> NDArray[Any]:
    """The sum of the rows, one after the other.

    ``rows.sum(axis=0)`` takes another order when there is one column only, so the last bits
    would depend on where a tensor is cut.
    """
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total += row
    return total


@dataclass(frozen=True)
class Method(ABC):
    """Combines the deltas of T task vectors, stretch by stretch.

    A method that needs to know something of the whole vectors first (a global threshold, say)
    asks for ``stages``: in each, ``observe`` maps every stretch to an array, the arrays are
    summed in a fixed order, and ``finish`` turns the sum into the state for what follows. Only
    sums cross stretches, so streaming and threads are one mechanism.
    """

    name: ClassVar[str]
    stages: ClassVar[int] = 0

    def weights(self, count: int) -> NDArray[Any] | None:
        """For a linear method the coefficients [T] of the vectors, so that fused kernels do the
        work; None for the others."""
        del count
        return None

    def observe(self, stage: int, deltas: NDArray[Any], state: State) -> NDArray[Any]:
        """What a stage needs of one stretch, as an array that is summed over stretches."""
        raise NotImplementedError(f"{self.name} has no stage {stage}")

    def finish(self, stage: int, total: NDArray[Any], state: State) -> State:
        """The state after a stage, from the sum of what it observed."""
        raise NotImplementedError(f"{self.name} has no stage {stage}")

    @abstractmethod
    def apply(self, deltas: NDArray[Any], state: State) -> NDArray[Any]:
        """The merged delta [n] of ``deltas`` [T, n]; ``deltas`` may be overwritten."""
