"""MagMax: every entry from the vector that moved it most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State


@dataclass(frozen=True)
class MagMax(Method):
    """The entry of largest magnitude: ``merged_j = tau_{t*, j}``, ``t* = argmax_t |tau_{t, j}|``.

    Vectors compete as they are weighted. The order of the vectors matters where magnitudes are
    equal: the later vector's entry is taken, as in the method's own code.

    Source: Marczak et al., MagMax, ECCV 2024; formula and ties as the released code has them.

    >>> MagMax().apply(Chunk(np.array([[1.0, -2.0], [-3.0, 2.0]])), ())
    array([-3.,  2.])
    """

    name: ClassVar[str] = "magmax"
    formula: ClassVar[str] = "tau_t where |tau_t| is largest, per entry"
    source: ClassVar[str] = "Marczak et al., MagMax, ECCV 2024"
    when: ClassVar[str] = "You merge tasks learnt one after the other, and want no density to tune."
    ordered: ClassVar[bool] = True

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        merged = np.array(chunk.deltas[0])
        for delta in chunk.deltas[1:]:
            np.copyto(merged, delta, where=np.abs(delta) >= np.abs(merged))
        return merged
