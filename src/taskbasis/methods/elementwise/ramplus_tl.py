"""RAM+: like RAM, and what one vector alone changed is scaled up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State, summed
from taskbasis.methods.cutoff import check_scope
from taskbasis.methods.elementwise.ram import changed_by, check_epsilon


@dataclass(frozen=True)
class RamPlus(Method):
    """RAM with unique entries scaled: those that vector t alone changed count
    ``1 + r * min(rho_t, alpha)`` times, ``rho_t = shared_t / unique_t``; shared ones are averaged.

    The means over shared entries weaken a vector, the more the more of its changes are shared;
    its unique entries make up for that. ``shared_t`` and ``unique_t`` count the entries that
    vector t changed with others and alone, over each tensor (mergekit's ``tl``: tensor-local), a
    layer, or the whole model (``scope``; so the released code counts them). A change is one
    larger than ``epsilon``, as in :class:`~taskbasis.methods.elementwise.ram.Ram`; at ``r`` 0 it
    is that method.

    Source: Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572,
    2026, as mergekit computes it. The paper's own text was not at hand; its released code bounds
    rho by 1 instead of alpha.

    Raises:
        UsageError: a number is negative, or the scope is unknown.

    >>> from taskbasis.testing import merged
    >>> deltas = np.array([[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 1.0]])
    >>> merged(RamPlus(r=0.5, alpha=0.2), deltas)
    array([2. , 2.2, 0. , 1.1])
    """

    name: ClassVar[str] = "ramplus_tl"
    formula: ClassVar[str] = "RAM, with (1 + r min(shared_t / unique_t, alpha)) tau_t where unique"
    source: ClassVar[str] = "Yuan et al., Reinforced Agent Merging (RAM+), arXiv 2601.13572, 2026"
    when: ClassVar[str] = "RAM weakens agents that share many of the entries that they change."
    r: float = 0.1
    alpha: float = 0.2
    epsilon: float = 1e-5
    scope: Granularity = "tensor"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_scope(self.scope)
        for option, value in (("r", self.r), ("alpha", self.alpha)):
            if not 0 <= value < np.inf:
                raise UsageError(f"{option} {value} scales nothing up; use 0 or more")

    def gain(self) -> float:
        return 1 + self.r * self.alpha

    def stages(self) -> tuple[Granularity, ...]:
        return (self.scope,)

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        changed = changed_by(chunk, self.epsilon)
        count = changed.sum(axis=0)
        return np.array([(changed & (count > 1)).sum(axis=1), (changed & (count == 1)).sum(axis=1)])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        shared, unique = total
        return 1 + self.r * np.minimum(shared / np.maximum(unique, 1), self.alpha)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        changed = changed_by(chunk, self.epsilon)
        count = changed.sum(axis=0)
        chunk.deltas[~changed] = 0
        for row, scale in zip(chunk.deltas, state[0], strict=True):
            np.multiply(row, row.dtype.type(scale), out=row, where=count == 1)
        return np.asarray(summed(chunk.deltas) / np.maximum(count, 1), chunk.deltas.dtype)
