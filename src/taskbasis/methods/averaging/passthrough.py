"""Passthrough: one model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State


@dataclass(frozen=True)
class Passthrough(Method):
    """One model as it is: ``theta = scale (base + tau)``.

    ``scale`` multiplies the model's weights, not its vector, as mergekit has it: at 0 a tensor
    becomes 0, which switches off a layer. As a delta this is ``(scale - 1) base + scale tau``, so
    unless scale is 1 a vector that is 0 changes the base, too.

    Source: mergekit 0.1.5.

    Raises:
        UsageError: ``scale`` is not a finite number.

    >>> chunk = Chunk(np.array([[1.0, 2.0]]), base=np.array([10.0, 20.0]))
    >>> Passthrough(scale=0.5).apply(chunk, ())
    array([-4.5, -9. ])
    """

    name: ClassVar[str] = "passthrough"
    formula: ClassVar[str] = "(scale - 1) base + scale tau"
    source: ClassVar[str] = "mergekit 0.1.5"
    when: ClassVar[str] = "You take a layer from one model, or switch layers off."
    takes: ClassVar[tuple[int, int | None]] = (1, 1)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale):
            raise UsageError(f"a scale of {self.scale} has no meaning; use a finite number")
        if self.scale != 1:
            for what, value in (
                ("base", "required"),
                ("double", True),
                ("signed", False),
                ("keeps_base", False),
            ):
                object.__setattr__(self, what, value)

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return np.ones(len(weights)) if self.scale == 1 else None

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        model: NDArray[Any] = chunk.deltas[0]
        if self.scale != 1 and chunk.base is not None:
            model *= self.scale
            model += (self.scale - 1) * chunk.base
        return model
