"""RAM: the mean of each entry over the vectors that changed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State, summed


@dataclass(frozen=True)
class Ram(Method):
    """The mean of those who changed an entry: ``merged = sum_t m_t tau_t / max(1, sum_t m_t)``,
    ``m_t = |tau_t| > epsilon``.

    Reinforcement learning changes few entries, and other ones for each task. A mean over all
    vectors would dilute what one of them alone changed; here it is kept as it is, and only shared
    entries are averaged. For vectors that change nearly every entry it is the plain mean.

    ``epsilon`` is in the units of the weights, and is compared with the vector before its weight
    is multiplied, since a weight does not alter what was changed. Smaller changes are dropped.

    Source: Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572,
    2026; formula and epsilon as the released code and mergekit have them.

    Raises:
        UsageError: ``epsilon`` is negative.

    >>> Ram().apply(Chunk(np.array([[1.0, 2.0, 1e-6], [3.0, 0.0, 0.0]])), ())
    array([2., 2., 0.])
    """

    name: ClassVar[str] = "ram"
    formula: ClassVar[str] = "sum_t m_t tau_t / max(1, sum_t m_t), m_t = |tau_t| > epsilon"
    source: ClassVar[str] = "Yuan et al., Reinforced Agent Merging (RAM), arXiv 2601.13572, 2026"
    when: ClassVar[str] = "You merge agents trained by reinforcement learning, with sparse changes."
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        changed = changed_by(chunk, self.epsilon)
        count = np.maximum(changed.sum(axis=0), 1)
        chunk.deltas[~changed] = 0
        return np.asarray(summed(chunk.deltas) / count, chunk.deltas.dtype)


def changed_by(chunk: Chunk, epsilon: float) -> NDArray[np.bool_]:
    """[T, n]: which entries each vector changed, whatever its weight."""
    limits = epsilon * np.abs(chunk.vector_weights())
    return np.stack([np.abs(row) > limit for row, limit in zip(chunk.deltas, limits, strict=True)])


def check_epsilon(epsilon: float) -> None:
    """Refuse a negative or infinite size.

    Raises:
        UsageError: naming it.
    """
    if not 0 <= epsilon < np.inf:
        raise UsageError(f"an epsilon of {epsilon} is no size of a change; use 0 or more")
