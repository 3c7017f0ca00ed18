"""TALL masks: of the sum of all vectors, the entries that one task needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, PerVector, Selecting, State, per_vector, summed


@dataclass(frozen=True)
class Tall(Selecting):
    """One task's part of the sum: ``merged = mask_t * sum_s tau_s``,
    ``mask_t = |tau_t| > lam * |sum_s tau_s - tau_t|``.

    An entry belongs to task t where the task's own change is large beside what all others do to
    it. The sum is stored once, and one bit an entry for each task; which model is used must be
    known at inference.

    - ``task`` 0, the default, is the plain sum, which is task arithmetic; 1 to T is the model of
      that vector, counted in the order of the vectors, which matters for that reason alone.
    - ``lam`` is one number, or one for each vector: the larger, the fewer entries. The authors
      choose it of 0.2 to 0.6, for each task on validation data.
    - ``taskbasis select --method tall`` stores the masks of all tasks. A task's model is then the
      base plus its mask times the sum: ``base + masks["math"] * (math + code)``.

    Compared in float64, so that the order in which vectors are summed makes no mask.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    ICML 2024; the mask as the released code has it.

    Raises:
        UsageError: ``lam`` or ``task`` is negative, or there is no such vector.

    >>> chunk = Chunk(np.array([[1.0, 2.0, 0.0], [3.0, -1.0, 4.0]]))
    >>> Tall(task=1).apply(chunk, ()), Tall(task=2).apply(chunk, ())
    (array([0., 1., 0.]), array([4., 1., 4.]))
    """

    name: ClassVar[str] = "tall"
    formula: ClassVar[str] = "mask_t sum_s tau_s, mask_t = |tau_t| > lam |sum_s tau_s - tau_t|"
    source: ClassVar[str] = "Wang et al., Localizing Task Information (TALL masks), ICML 2024"
    when: ClassVar[str] = "You know the task at inference, and store one vector and a bit a task."
    identity: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    lam: PerVector = 0.4
    task: int = 0

    def __post_init__(self) -> None:
        check_lam(self.lam)
        check_task(self.task)

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return None if self.task else np.ones(len(weights))

    def select(self, chunk: Chunk, state: State) -> NDArray[np.bool_]:
        """[T, n]: every task's own mask, whichever ``task`` is; each is for the sum."""
        lams = per_vector(self.lam, len(chunk.deltas), "lam")
        total = total_of(chunk.deltas)
        masks = [mask_of(row, total, lam) for row, lam in zip(chunk.deltas, lams, strict=True)]
        return np.stack(masks)

    def masked(self, chunk: Chunk, kept: NDArray[np.bool_]) -> NDArray[Any]:
        """The sum of all vectors, by the mask of one task; as it is for task 0."""
        total = summed(chunk.deltas)
        if self.task > len(kept):
            raise no_task(self.task, len(kept))
        return np.where(kept[self.task - 1], total, 0) if self.task else total


def mask_of(row: NDArray[Any], total: NDArray[np.float64], lam: float) -> NDArray[np.bool_]:
    """[n]: where a vector is large beside all the others, whose sum with it is ``total``."""
    return np.asarray(np.abs(row) > lam * np.abs(total - row))


def total_of(deltas: NDArray[Any]) -> NDArray[np.float64]:
    """[n] the sum of the rows in float64, one row after the other and without a copy of all."""
    total = np.zeros(deltas.shape[1])
    for row in deltas:
        total += row
    return total


def check_lam(lam: PerVector) -> None:
    """Refuse factors that are negative or no numbers.

    Raises:
        UsageError: naming them.
    """
    if not np.all((np.asarray(lam) >= 0) & np.isfinite(lam)):
        raise UsageError(f"lam {lam} makes no mask; use 0 or more, such as 0.2 to 0.6")


def check_task(task: int) -> None:
    """Refuse a negative number of a task.

    Raises:
        UsageError: naming it.
    """
    if task < 0:
        raise UsageError(f"task {task} is none; use 0 for no task, or 1 for the first vector's")


def no_task(task: int, count: int) -> UsageError:
    """What is wrong with a task that no vector has."""
    return UsageError(f"there is no task {task} of {count} vectors; use 0 to {count}")
