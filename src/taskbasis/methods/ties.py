"""TIES: trim each vector over the whole model, elect a sign per entry, average who agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Method, State, summed

_HIGH, _LOW = 1 << 15, 1 << 16


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, disjoint mean.

    1. keep of each vector the ``density`` fraction of largest magnitude over the whole model:
       every entry at least as large as the k-th largest, k = max(1, floor(density * d));
    2. the sign of an entry is that of the sum of the trimmed values;
    3. average the trimmed, non-zero values of that sign.

    The threshold is exact and found out of core: one pass counts magnitudes by the upper half
    of their float32 bits, a second resolves the lower half of the bin that holds the k-th
    largest. Where the summed values cancel to zero no sign is elected and the entry is zero;
    the paper's code takes the majority sign of the whole vector there.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023.

    Raises:
        UsageError: the density is not in (0, 1].

    >>> merged = Ties(density=1.0).apply(np.array([[1.0, -2.0], [3.0, 1.0]]), np.zeros(2))
    >>> merged
    array([ 2., -2.])
    """

    name: ClassVar[str] = "ties"
    stages: ClassVar[int] = 2
    density: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"a density of {self.density} keeps nothing sensible; use (0, 1]")

    def observe(self, stage: int, deltas: NDArray[Any], state: State) -> NDArray[Any]:
        bits = _magnitude_bits(deltas)
        if stage == 0:
            rows = [np.bincount(row >> 16, minlength=_HIGH) for row in bits]
        else:
            rows = [
                np.bincount(row[row >> 16 == high] & 0xFFFF, minlength=_LOW)
                for row, (high, _) in zip(bits, state, strict=True)
            ]
        return np.asarray(rows, np.int64)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> State:
        if stage == 0:
            return [_locate(row, max(1, int(self.density * row.sum()))) for row in total]
        words = [
            (high << 16) | _locate(row, rest)[0]
            for row, (high, rest) in zip(total, state, strict=True)
        ]
        return np.asarray(words, np.uint32).view(np.float32)

    def apply(self, deltas: NDArray[Any], state: State) -> NDArray[Any]:
        thresholds = np.asarray(state)[:, None]
        kept = np.abs(deltas.astype(np.float32, copy=False)) >= thresholds
        trimmed = np.where(kept, deltas, 0)
        sign = np.sign(summed(trimmed))
        agreeing = (np.sign(trimmed) == sign) & (sign != 0)
        count = np.maximum(agreeing.sum(axis=0), 1)
        merged = summed(np.where(agreeing, trimmed, 0)) / count
        return np.asarray(merged, deltas.dtype)


def _magnitude_bits(deltas: NDArray[Any]) -> NDArray[np.uint32]:
    """Bits of |x| in float32: as integers they order like the magnitudes."""
    return np.abs(deltas.astype(np.float32, copy=False)).view(np.uint32)


def _locate(counts: NDArray[Any], rank: int) -> tuple[int, int]:
    """The bin holding the ``rank``-th largest entry, and its rank within it; 0 without entries."""
    above = np.cumsum(counts[::-1])
    position = min(int(np.searchsorted(above, rank)), len(counts) - 1)
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before
