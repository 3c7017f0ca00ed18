"""From recipes to plans: which tensors are merged or copied, in which cuts, in how much memory.

A plan is resolved from headers alone. Its cuts depend on the recipe, never on the number of
workers, so every sum over cuts has the same bits however the work is shared out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, ValueProblem
from taskbasis.io.dtypes import F64, DType
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.kernels import BLOCK
from taskbasis.recipe import Combination, Leaf, Learnt, shape_check

_MAX_CUT = 1 << 18
_ROWS_TIMES_CUT = 1 << 22


@dataclass(frozen=True)
class Companion:
    """A tensor that goes with another: its scores, or the moment of what enters it.

    Attributes:
        info: where it stands.
        number: what scores are multiplied by; of how many inputs a moment is the mean.
        transposed: whether a moment's matrix is [in, out] instead of [out, in].
    """

    info: TensorInfo
    number: float
    transposed: bool = False


@dataclass(frozen=True)
class Merge:
    """One tensor of the result and what it is made of.

    Attributes:
        name, shape: of the tensor.
        base: the base's tensor; None where neither adding to nor subtracting it is asked.
        rows: the inputs' tensors, R of them; none for a tensor that is only converted.
        differences: per row, whether the base is subtracted.
        mixing: [T, R]: vector t is the sum over rows of mixing[t, r] * row r.
        masks: per row the packed bits of the masks that it is multiplied by.
        scores, moments: per vector what was learnt of this tensor; None where nothing was. Empty
            when the method takes none.
    """

    name: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    rows: tuple[TensorInfo, ...]
    differences: tuple[bool, ...]
    mixing: NDArray[np.float64] = field(repr=False)
    masks: tuple[tuple[TensorInfo, ...], ...] = ()
    scores: tuple[Companion | None, ...] = ()
    moments: tuple[Companion | None, ...] = ()

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
        scores = [companion.info for companion in self.scores if companion is not None]
        inputs = [*self.rows, *([self.base] if self.base else []), *scores]
        return sum(info.dtype.itemsize for info in inputs)

    @property
    def matrix(self) -> bool:
        """Whether methods that factorise work on it as a matrix: two axes or more, and a moment
        of all inputs together where moments are given."""
        known = [moment for moment in self.moments if moment is not None]
        joint = not self.moments or any(len(moment.info.shape) > 1 for moment in known)
        return len(self.shape) > 1 and joint

    def cut_bytes(self, cut: Cut) -> int:
        """Bytes read for a cut."""
        return (cut.stop - cut.start) * self.bytes_per_element + self.moment_bytes

    @property
    def moment_bytes(self) -> int:
        """Bytes of the moments that belong to the tensor."""
        return sum(moment.info.nbytes for moment in self.moments if moment is not None)


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
        watched: tensors that no vector changes, which a method's stages see all the same.
        whole: whether matrices are never cut.
    """

    merges: tuple[Merge, ...]
    copies: tuple[TensorInfo, ...]
    combinations: tuple[Combination, ...]
    watched: tuple[Merge, ...] = ()
    whole: bool = False

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

    def step(self, merge: Merge) -> int:
        """Elements per cut of one tensor: all of them where it is not to be cut."""
        return max(merge.size, 1) if self.whole and merge.matrix else self.cut_size

    def cuts(self, merges: Sequence[Merge] | None = None) -> list[Cut]:
        """The cuts of the merges (or of others), in order; an empty tensor has one empty cut."""
        return [
            Cut(index, start, min(start + self.step(merge), merge.size))
            for index, merge in enumerate(self.merges if merges is None else merges)
            for start in range(0, max(merge.size, 1), self.step(merge))
        ]

    @property
    def observed(self) -> tuple[Merge, ...]:
        """What a method's stages see: the tensors that vectors change, and the watched, by name.

        So layers come one after the other. Tensors that are only converted are not among them:
        what is kept does not depend on the output's dtype.
        """
        changed = (merge for merge in self.merges if merge.rows)
        return tuple(sorted((*changed, *self.watched), key=lambda merge: merge.name))

    def cut_bytes(self, cut: Cut) -> int:
        """Bytes read for a cut of the merges."""
        return self.merges[cut.index].cut_bytes(cut)

    def memory(self, outputs: int) -> int:
        """An upper bound of the bytes that one worker's buffers take."""
        width = 8 if any(merge.double for merge in self.merges) else 4
        per_element = width * (2 * self.rows + self.vectors + 3) + 8 * outputs
        if any(merge.scores for merge in (*self.merges, *self.watched)):
            per_element += 6 * self.vectors
        longest = max((self.step(merge) for merge in self.merges), default=0)
        moments = max((merge.moment_bytes for merge in self.merges), default=0)
        largest = max(
            (m.info.nbytes for merge in self.merges for m in merge.moments if m), default=0
        )
        return (
            max(longest, self.cut_size) * per_element
            + (self.rows + 3) * BLOCK * width
            + 4 * moments
            + 6 * largest
            + (1 << 20)
        )


def make_plan(
    combinations: Sequence[Combination],
    add_to: TensorStore | None,
    origin: TensorStore | None,
    dtype: DType | None = None,
    scores: Sequence[Learnt] = (),
    moments: Sequence[Learnt] = (),
    whole: bool = False,
    watch: TensorStore | None = None,
) -> Plan:
    """Resolve combinations against headers.

    Args:
        combinations: the T task vectors.
        add_to: the weights that the result is added to; None when the result is a delta.
        origin: the base that differences are taken from; None when there are none.
        dtype: what weights are stored in; float tensors of another dtype that no vector touches
            are converted, not copied. None keeps every tensor's own.
        scores, moments: one per vector, or none.
        whole: whether matrices are never cut.
        watch: the base whose unchanged tensors stages see; ``add_to`` by default.

    Raises:
        MismatchError: a vector holds a tensor that the base lacks, or shapes differ.
        ValueProblem: there is nothing to combine.
    """
    if not combinations and add_to is None:
        raise ValueProblem("there is no task vector to work on")
    scores, moments = (
        [learnt.of(comb) for learnt, comb in zip(parts, combinations, strict=bool(parts))]
        for parts in (scores, moments)
    )
    leaves = _leaves(combinations)
    names = sorted({name for leaf in leaves for name in leaf.infos})
    merges = [
        replace(
            _merge(name, combinations, leaves, add_to, origin),
            scores=_scores(name, combinations, scores),
            moments=tuple(_companion(learnt, name) for learnt in moments),
        )
        for name in names
    ]
    kept = [merge for merge in merges if merge.rows]
    merged = {merge.name for merge in kept}
    rest = [] if add_to is None else [i for n, i in add_to.items() if n not in merged]
    converted = [i for i in rest if dtype and i.dtype.mergeable and i.dtype != dtype]
    kept += [_conversion(info, len(combinations)) for info in converted]
    copies = tuple(info for info in rest if info not in converted)
    watched = _watched(merged, scores, leaves, watch if watch is not None else add_to)
    return Plan(tuple(kept), copies, tuple(combinations), watched, whole)


def _companion(learnt: Learnt, name: str) -> Companion | None:
    if name not in learnt.infos:
        return None
    return Companion(learnt.infos[name], learnt.numbers[name], name in learnt.transposed)


def _scores(
    name: str, combinations: Sequence[Combination], scores: Sequence[Learnt]
) -> tuple[Companion | None, ...]:
    """The scores of a tensor, one per vector; a vector that changes it must have them."""
    for combination, learnt in zip(combinations, scores, strict=bool(scores)):
        changes = [term.leaf for term in combination.terms if name in term.leaf.infos]
        if changes and name not in learnt.infos:
            raise MismatchError(
                f"{learnt.label} holds no scores of tensor {name!r}, which {changes[0].label} "
                "may change; score it too, or leave it out of the vector with --exclude"
            )
        holders = [leaf.infos[name] for leaf in _leaves(combinations) if name in leaf.infos]
        if name in learnt.infos:  # also of a vector that does not change it: both are cut alike
            shape_check(learnt.infos[name], holders[0])
    return tuple(_companion(learnt, name) for learnt in scores)


def _watched(
    merged: set[str], scores: Sequence[Learnt], leaves: Sequence[Leaf], base: TensorStore | None
) -> tuple[Merge, ...]:
    """Tensors that no vector changes: those that have scores, or without scores the base's floats.

    What is known of the whole model must depend neither on whether unchanged tensors were stored
    nor on the output's dtype.
    """
    excluded = {name for leaf in leaves for name in leaf.rules.get("excluded", ())}
    if scores:
        names = {name for learnt in scores for name in learnt.infos}
        known = base if base is not None else {n for leaf in leaves for n in leaf.base.digests}
        names &= set(known)
    else:
        floats = base.values() if base is not None else ()
        names = {info.name for info in floats if info.dtype.mergeable}
    found = []
    for name in sorted(names - merged - excluded):
        companions = tuple(_companion(learnt, name) for learnt in scores)
        shapes = {c.info.shape for c in companions if c is not None}
        shapes |= {base[name].shape} if base is not None else set()
        if len(shapes) == 1:  # others are heads of their own, which no vector can change
            empty = np.zeros((max(len(scores), 1), 0))
            found.append(Merge(name, shapes.pop(), None, (), (), empty, scores=companions))
    return tuple(found)


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
        tuple(leaf.masks.get(name, ()) for leaf in used),
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
