"""FedNova: vectors of longer training count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, PerVector, State, per_vector, summed


@dataclass(frozen=True)
class FedNova(Method):
    """The mean per step of training: ``merged = (1/T) sum_t (mean(steps) / steps_t) tau_t``.

    Each vector is brought to the mean number of steps, so that a task that was trained longer does
    not outweigh the others. ``steps`` is one number for all vectors, which makes the plain mean, or
    one for each; only their ratios count. A vector of very few steps is scaled up without bound.

    It is a mean, so the scale is of the order of 1; the authors search up to 2.

    Source: Tao et al., Task Arithmetic through the Lens of One-Shot Federated Learning, TMLR 2025,
    by the released code; after Wang et al., FedNova, NeurIPS 2020, of which it takes the steps only
    and not the rest of the local optimiser.

    Raises:
        UsageError: a number of steps is not positive, or there is not one for each vector.

    >>> FedNova(steps=(100, 300)).apply(Chunk(np.array([[1.0, 2.0], [3.0, 3.0]])), ())
    array([2., 3.])
    """

    name: ClassVar[str] = "fednova"
    formula: ClassVar[str] = "(1/T) sum_t (mean(steps) / steps_t) tau_t"
    source: ClassVar[str] = "Tao et al., One-Shot Federated Learning, TMLR 2025; Wang et al. 2020"
    when: ClassVar[str] = "Tasks were trained for very different numbers of steps, which you know."
    steps: PerVector = 1.0

    def __post_init__(self) -> None:
        if not np.all((np.asarray(self.steps) > 0) & np.isfinite(self.steps)):
            raise UsageError(f"{self.steps} steps train nothing; use positive numbers")

    def gain(self) -> float:
        count = len(self.steps) if isinstance(self.steps, tuple) else 1
        return float(np.max(self._shares(count), initial=0))

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._shares(len(weights))

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        shares = self._shares(len(chunk.deltas)).astype(chunk.deltas.dtype)
        return summed(np.multiply(chunk.deltas, shares[:, None], out=chunk.deltas))

    def _shares(self, count: int) -> NDArray[np.float64]:
        steps = per_vector(self.steps, count, "steps")
        return np.asarray(steps.mean() / steps / count)
