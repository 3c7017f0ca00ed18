"""Which tensors are merged or copied, in which cuts, in how much memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from taskbasis.io.tensors import Forming, TensorInfo
from taskbasis.kernels import BLOCK, scratch_rows
from taskbasis.methods.base import Method, Unit
from taskbasis.plan.tensors import Cut, Merge
from taskbasis.recipe import Combination

_CUT = 1 << 19
"""Elements per cut at most: enough for a cut's own bookkeeping to take little of its time.

Half as many where a method makes arrays of what it sees: few of those then leave the cache.
"""

_ROWS_TIMES_CUT = 1 << 23

_FAR = 8
"""How many times longer cuts are for a device, whose every operation takes a while to start."""


@dataclass(frozen=True)
class Plan:
    """Everything that will be read, and how it is cut.

    Attributes:
        merges: the tensors that are computed.
        copies: the base's tensors that are copied byte for byte.
        combinations: the T task vectors.
        watched: tensors that no vector changes, which a method's stages see all the same.
        unit: what is never cut.
        weights: what every vector has been multiplied by; none means 1.
        names: what the vectors are called; none means by their numbers.
        fused: whether only the kernels see a cut, which make no arrays of it.
        far: whether a device computes what is made of a cut.
    """

    merges: tuple[Merge, ...]
    copies: tuple[TensorInfo, ...]
    combinations: tuple[Combination, ...]
    watched: tuple[Merge, ...] = ()
    unit: Unit = "element"
    weights: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    fused: bool = True
    far: bool = False

    def under(self, method: Method) -> Plan:
        """The plan as a method wants it: uncut tensors, float64, low-rank factors."""
        merges, watched = (
            tuple(
                replace(
                    merge,
                    wide=method.double,
                    factored=method.factors != "ignored" and merge.has_factors,
                )
                for merge in group
            )
            for group in (self.merges, self.watched)
        )
        ones = np.ones(self.vectors)
        fused = not self.vectors or method.coefficients(ones) is not None
        return replace(self, merges=merges, watched=watched, unit=method.unit, fused=fused)

    @property
    def vectors(self) -> int:
        """T, the number of task vectors."""
        return len(self.combinations)

    @cached_property
    def rows(self) -> int:
        """The largest number of inputs that any tensor has."""
        return max((len(merge.rows) for merge in self.merges), default=0)

    @cached_property
    def cut_size(self) -> int:
        """Elements per cut: fewer when more rows are read at once, always whole blocks.

        A power of two, so that cuts seldom share a block that is digested.
        """
        times = _FAR if self.far else 1
        fitting = times * _ROWS_TIMES_CUT // (self.rows + 2)
        longest = times * (_CUT if self.fused else _CUT // 2)
        return max(min(longest, 1 << fitting.bit_length() >> 1), BLOCK)

    def step(self, merge: Merge) -> int:
        """Elements per cut of one tensor: all of them where it is not to be cut."""
        uncut = self.unit == "tensor" or (self.unit == "matrix" and merge.matrix)
        return max(merge.size, 1) if uncut else self.cut_size

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

    def memory(self, outputs: int, method: Method | None = None) -> int:
        """An upper bound of the bytes that one worker takes.

        Args:
            outputs: how many rows are stored.
            method: what takes room on the way to them.
        """
        width = 8 if any(merge.double for merge in (*self.merges, *self.watched)) else 4
        per_element = width * (2 * self.rows + self.vectors + 4) + 8 * outputs
        if any(merge.scores for merge in (*self.merges, *self.watched)):
            per_element += 6 * self.vectors
        longest = max((self.step(merge) for merge in self.merges), default=0)
        moments = max((merge.moment_bytes for merge in self.merges), default=0)
        largest = max(
            (m.info.nbytes for merge in self.merges for m in merge.moments if m), default=0
        )
        work = 0
        if method is not None:
            seen = [self._seen(merge) for merge in (*self.merges, *self.watched)]
            work = max((method.workspace(shape, self.vectors) for shape in seen), default=0)
        return (
            work
            + max(longest, self.cut_size) * per_element
            + math.prod(scratch_rows(self.rows)) * width
            + 4 * moments
            + 6 * largest
            + max((self._factor_bytes(merge) for merge in self.merges), default=0)
            + (1 << 20)
        )

    def _seen(self, merge: Merge) -> tuple[int, ...]:
        """The shape of what a method sees at once of a tensor."""
        step = self.step(merge)
        return merge.shape if step >= merge.size else (step,)

    def _factor_bytes(self, merge: Merge) -> int:
        """What forming rows and the base takes, one after the other or all factors at once."""
        step = min(self.step(merge), merge.size)
        inputs = (*merge.rows, *([merge.base] if merge.base else []))
        blobs = [info.blob for info in inputs]
        sizes = [blob.working_bytes(step) for blob in blobs if isinstance(blob, Forming)]
        return sum(sizes) if merge.factored else max(sizes, default=0)
