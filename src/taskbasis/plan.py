"""From recipes to plans: which tensors are merged or copied, in which cuts, in how much memory.

A plan is resolved from headers alone. Its cuts depend on the recipe, never on the number of
workers, so every sum over cuts has the same bits however the work is shared out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, ValueProblem
from taskbasis.io.dtypes import F64, DType
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.kernels import BLOCK
from taskbasis.recipe import Combination, Leaf, shape_check

_MAX_CUT = 1 << 18
_ROWS_TIMES_CUT = 1 << 22


@dataclass(frozen=True)
class Merge:
    """One tensor of the result and what it is made of.

    Attributes:
        name, shape: of the tensor.
        base: the base's tensor; None where neither adding to nor subtracting it is asked.
        rows: the inputs' tensors, R of them; none for a tensor that is only converted.
        differences: per row, whether the base is subtracted.
        mixing: [T, R]: vector t is the sum over rows of mixing[t, r] * row r.
    """

    name: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    rows: tuple[TensorInfo, ...]
    differences: tuple[bool, ...]
    mixing: NDArray[np.float64] = field(repr=False)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def double(self) -> bool:
        """Whether it is computed in float64: when any input is stored so."""
        inputs = (*self.rows, self.base) if self.base else self.rows
        return any(info is not None and info.dtype == F64 for info in inputs)

    @property
    def bytes_per_element(self) -> int:
        """Bytes read per element of the tensor."""
        inputs = [*self.rows, *([self.base] if self.base else [])]
        return sum(info.dtype.itemsize for info in inputs)


@dataclass(frozen=True)
class Cut:
    """A stretch of one tensor of the plan: elements ``start`` to ``stop`` of merge ``index``."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Everything that will be read, and how it is cut.

    Attributes:
        merges: the tensors that are computed.
        copies: the base's tensors that are copied byte for byte.
        combinations: the T task vectors.
    """

    merges: tuple[Merge, ...]
    copies: tuple[TensorInfo, ...]
    combinations: tuple[Combination, ...]

    @property
    def vectors(self) -> int:
        """T, the number of task vectors."""
        return len(self.combinations)

    @property
    def rows(self) -> int:
        """The largest number of inputs that any tensor has."""
        return max((len(merge.rows) for merge in self.merges), default=0)

    @property
    def cut_size(self) -> int:
        """Elements per cut: fewer when more rows are read at once, always whole blocks."""
        fitting = _ROWS_TIMES_CUT // max(self.rows + 2, 1)
        return max(min(_MAX_CUT, fitting) // BLOCK, 1) * BLOCK

    def cuts(self) -> list[Cut]:
        """The cuts in plan order; an empty tensor has one empty cut."""
        step = self.cut_size
        return [
            Cut(index, start, min(start + step, merge.size))
            for index, merge in enumerate(self.merges)
            for start in range(0, max(merge.size, 1), step)
        ]

    def cut_bytes(self, cut: Cut) -> int:
        """Bytes read for a cut."""
        return (cut.stop - cut.start) * self.merges[cut.index].bytes_per_element

    def memory(self, outputs: int) -> int:
        """An upper bound of the bytes that one worker's buffers take."""
        width = 8 if any(merge.double for merge in self.merges) else 4
        per_element = width * (2 * self.rows + self.vectors + 3) + 8 * outputs
        return self.cut_size * per_element + (self.rows + 3) * BLOCK * width + (1 << 20)


def make_plan(
    combinations: Sequence[Combination],
    add_to: TensorStore | None,
    origin: TensorStore | None,
    dtype: DType | None = None,
) -> Plan:
    """Resolve combinations against headers.

    Args:
        combinations: the T task vectors.
        add_to: the weights that the result is added to; None when the result is a delta.
        origin: the base that differences are taken from; None when there are none.
        dtype: what weights are stored in; float tensors of another dtype that no vector touches
            are converted, not copied. None keeps every tensor's own.

    Raises:
        MismatchError: a vector holds a tensor that the base lacks, or shapes differ.
        ValueProblem: there is nothing to combine.
    """
    if not combinations and add_to is None:
        raise ValueProblem("there is no task vector to work on")
    leaves = _leaves(combinations)
    names = sorted({name for leaf in leaves for name in leaf.infos})
    merges = [_merge(name, combinations, leaves, add_to, origin) for name in names]
    kept = [merge for merge in merges if merge.rows]
    merged = {merge.name for merge in kept}
    rest = [] if add_to is None else [i for n, i in add_to.items() if n not in merged]
    converted = [i for i in rest if dtype and i.dtype.mergeable and i.dtype != dtype]
    kept += [_conversion(info, len(combinations)) for info in converted]
    copies = tuple(info for info in rest if info not in converted)
    return Plan(tuple(kept), copies, tuple(combinations))


def _conversion(info: TensorInfo, count: int) -> Merge:
    return Merge(info.name, info.shape, info, (), (), np.zeros((count, 0)))


def _leaves(combinations: Iterable[Combination]) -> list[Leaf]:
    found = {id(leaf): leaf for comb in combinations for leaf in comb.leaves}
    return list(found.values())


def _merge(
    name: str,
    combinations: Sequence[Combination],
    leaves: Sequence[Leaf],
    add_to: TensorStore | None,
    origin: TensorStore | None,
) -> Merge:
    values = [combination.coefficients(name) for combination in combinations]
    nonzero = {key for row in values for key, value in row.items() if value != 0.0}
    used = [leaf for leaf in leaves if name in leaf.infos and id(leaf) in nonzero]
    holders = used or [leaf for leaf in leaves if name in leaf.infos]
    shape = holders[0].infos[name].shape
    for leaf in holders[1:]:
        shape_check(leaf.infos[name], holders[0].infos[name])
    base = _base_tensor(name, holders[0], add_to, origin, any(leaf.difference for leaf in used))
    place = {id(leaf): r for r, leaf in enumerate(used)}
    mixing = np.zeros((len(combinations), len(used)))
    for t, row in enumerate(values):
        for key in row.keys() & place.keys():
            mixing[t, place[key]] = row[key]
    return Merge(
        name,
        shape,
        base,
        tuple(leaf.infos[name] for leaf in used),
        tuple(leaf.difference for leaf in used),
        mixing,
    )


def _base_tensor(
    name: str, leaf: Leaf, add_to: TensorStore | None, origin: TensorStore | None, subtract: bool
) -> TensorInfo | None:
    store = add_to if add_to is not None else (origin if subtract else None)
    if store is None:
        return None
    if name not in store:
        raise MismatchError(
            f"{leaf.infos[name].where} has no counterpart in the base {store.path}; "
            "was the vector taken from another architecture?"
        )
    shape_check(leaf.infos[name], store[name])
    if not store[name].dtype.mergeable:
        raise MismatchError(
            f"{store[name].where} holds {store[name].dtype.name}, which nothing is added to, but "
            f"{leaf.label} has a delta for it"
        )
    return store[name]
