"""EMR merging: one unified vector, and a mask and a scale for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.elementwise.tall import check_task, no_task, total_of


@dataclass(frozen=True)
class Emr(Method):
    """Elect, mask and rescale: ``unified = sign * max_t |tau_t|`` over the vectors of the elected
    sign, ``sign = sign(sum_t tau_t)``; and for task t ``scale_t * mask_t * unified``.

    - ``mask_t`` is 1 where tau_t has the elected sign.
    - ``scale_t = sum mean|tau_t| / sum mean|mask_t * unified|``, the means over each tensor and
      the sums over all tensors of the model, so that a small tensor counts as much as a large one.
    - ``task`` 0, the default, is the unified vector, which by itself is no good model of any task;
      1 to T is the model of that vector, counted in the order of the vectors, which matters for
      that reason alone. So T models are made of one vector, T bits an entry and T numbers.

    Where the vectors cancel exactly no sign is elected and the entry is 0; the released code
    elects minus there. A task that no entry agrees with gets 0, the released code divides by 0.
    The scale of a task that hardly any entry agrees with may be large.

    Source: Huang et al., EMR-Merging, NeurIPS 2024; scopes of the scale as the released code.

    Raises:
        UsageError: ``task`` is negative, or there is no such vector.

    >>> from taskbasis.testing import merged
    >>> deltas = np.array([[1.0, -2.0, 1.0], [3.0, 1.0, -4.0]])
    >>> merged(Emr(), deltas), merged(Emr(task=1), deltas)
    (array([ 3., -2., -4.]), array([ 2.4, -1.6,  0. ]))
    """

    name: ClassVar[str] = "emr"
    formula: ClassVar[str] = "sign max_t |tau_t| of the elected sign; scale_t mask_t of it per task"
    source: ClassVar[str] = "Huang et al., EMR-Merging, NeurIPS 2024"
    when: ClassVar[str] = "You know the task at inference, and have no data to tune anything."
    identity: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    float_sums: ClassVar[bool] = True
    task: int = 0

    def __post_init__(self) -> None:
        check_task(self.task)

    def gain(self) -> float:
        return 1e6 if self.task else 1.0  # nothing bounds the scale where few entries agree

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",) if self.task else ()

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        own, kept = self._own(chunk), self._masked(chunk)
        sizes = [np.abs(values).sum(dtype=np.float64) for values in (own, kept)]
        return np.array(sizes) / max(math.prod(chunk.shape), 1)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        own, kept = total
        return float(own / kept) if kept else 1.0

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not self.task:
            return _unified(chunk.deltas)
        return np.asarray(state[0] * self._masked(chunk), chunk.deltas.dtype)

    def _own(self, chunk: Chunk) -> NDArray[Any]:
        if self.task > len(chunk.deltas):
            raise no_task(self.task, len(chunk.deltas))
        return np.asarray(chunk.deltas[self.task - 1])

    def _masked(self, chunk: Chunk) -> NDArray[Any]:
        unified = _unified(chunk.deltas)
        unified[np.sign(self._own(chunk)) != np.sign(unified)] = 0
        return unified


def _unified(deltas: NDArray[Any]) -> NDArray[Any]:
    """[n] the elected sign, with the largest magnitude of that sign."""
    sign = np.sign(total_of(deltas)).astype(deltas.dtype)
    largest = np.zeros_like(sign)
    for row in deltas:
        np.maximum(largest, sign * row, out=largest)
    return np.asarray(sign * largest)
