"""The coordinate-wise median of the task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError, nearest
from taskbasis.methods.base import Chunk, Method, State

Middle = Literal["mean", "lower", "upper"]

_FEW = 16


@dataclass(frozen=True)
class Median(Method):
    """The median of each entry: ``merged_j = median_t tau_{t, j}``.

    It follows the many and ignores outliers; an entry that fewer than half of the vectors change is
    left as it is, so of tasks with little in common not much remains.

    An even number of vectors has two middle values. ``middle`` takes their ``mean``, the default;
    or the ``lower`` or ``upper`` one. The released code takes the lower one, which pulls every
    entry down, and merges vectors times -1 to another model than -1 times the merged: the lower
    of the negated is the negated upper. The mean has neither fault.

    Source: Tao et al., Task Arithmetic through the Lens of One-Shot Federated Learning, TMLR 2025,
    by the released code; after Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.

    Raises:
        UsageError: the word is unknown.

    >>> deltas = np.array([[1.0, -5.0], [2.0, 0.0], [9.0, 1.0], [4.0, 2.0]])
    >>> [Median(which).apply(Chunk(deltas.copy()), ()).tolist() for which in ("mean", "lower")]
    [[3.0, 0.5], [2.0, 0.0]]
    """

    name: ClassVar[str] = "median"
    formula: ClassVar[str] = "median_t tau_t, per entry"
    source: ClassVar[str] = "Tao et al., One-Shot Federated Learning, TMLR 2025; Yin et al. 2018"
    when: ClassVar[str] = "Many vectors of one task or of alike tasks, some of which may be bad."
    middle: Middle = "mean"

    def __post_init__(self) -> None:
        if self.middle not in get_args(Middle):
            hint = nearest(self.middle, get_args(Middle))
            raise UsageError(f"middle {self.middle!r} is unknown; {hint}")

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        rows = chunk.deltas
        _sort_columns(rows)
        lower, upper = rows[(len(rows) - 1) // 2], rows[len(rows) // 2]
        if self.middle == "mean":
            return np.asarray(lower / 2 + upper / 2)  # halved first, lest huge ones overflow
        return np.array(lower if self.middle == "lower" else upper)


def _sort_columns(rows: NDArray[Any]) -> None:
    """Sort every column in place.

    A few rows by exchanges of neighbours, whole rows at a time (odd-even transposition), which is
    some times faster than sorting many short columns.
    """
    if len(rows) > _FEW:
        rows.sort(axis=0)
        return
    for start in range(len(rows)):
        for place in range(start % 2, len(rows) - 1, 2):
            one, other = rows[place], rows[place + 1]
            smaller = np.minimum(one, other)
            np.maximum(one, other, out=other)
            one[:] = smaller
