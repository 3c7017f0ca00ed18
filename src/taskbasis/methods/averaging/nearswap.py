"""NearSwap: take over entries that are close to the base, and step towards those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State


@dataclass(frozen=True)
class NearSwap(Method):
    """One vector, each entry mixed in by ``min(t / |tau|, 1)``: ``merged = clip(tau, -t, t)``.

    Entries that differ from the base by ``t`` or less become the tuned model's, and the others
    move towards it by ``t``, so the model moves by ``t`` at most anywhere. mergekit takes 1e-6
    for entries smaller than that, so for t below 1e-6 it moves them less.

    Source: alchemonaut, QuartetAnemoi-70B (model card, 2024), as mergekit 0.1.5 computes it.

    Raises:
        UsageError: ``t`` is not above 0.

    >>> NearSwap(t=0.5).apply(Chunk(np.array([[0.25, -3.0, 0.5]])), ())
    array([ 0.25, -0.5 ,  0.5 ])
    """

    name: ClassVar[str] = "nearswap"
    formula: ClassVar[str] = "min(t / |tau|, 1) tau"
    source: ClassVar[str] = "alchemonaut, QuartetAnemoi-70B, 2024, at second hand (mergekit 0.1.5)"
    when: ClassVar[str] = "You want one model's small changes, and its large ones held back."
    takes: ClassVar[tuple[int, int | None]] = (1, 1)
    t: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.t < np.inf:
            raise UsageError(f"a t of {self.t} moves nothing sensible; use a number above 0")

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return np.asarray(np.clip(chunk.deltas[0], -self.t, self.t))
