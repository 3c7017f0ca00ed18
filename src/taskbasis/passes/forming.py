"""Forming the outputs of a stretch: by one fused kernel, or by a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels
from taskbasis.methods import Method, Selecting
from taskbasis.passes.reading import Stretch, chunk
from taskbasis.passes.stages import Found, of_members
from taskbasis.passes.tally import Tally
from taskbasis.plan import Plan


class Former(Protocol):
    """Forms the outputs of a stretch; the linear case is one call of the loops."""

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> Any:
        """Fill ``out`` [M, n] with stored words and add to ``stats`` [M, 2].

        Returns:
            What :meth:`collect` is given, cut after cut in plan order.
        """

    def collect(self, note: Any) -> None:
        """Fold what a cut had to report."""


@dataclass(frozen=True)
class Linear:
    """Outputs that are fixed linear combinations of the vectors: on the engine's device, if any.

    Attributes:
        coefficients: [M, T] for a tensor's name.
    """

    coefficients: Callable[[str], NDArray[np.float64]]

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> None:
        merge = stretch.merge
        mixed = (self.coefficients(merge.name) @ merge.mixing).astype(stretch.rows.dtype)
        stretch.scratch.loops.form(
            stretch.base,
            stretch.words,
            stretch.difference,
            mixed,
            add_base,
            out,
            stretch.rows,
            stats,
        )

    def collect(self, note: Any) -> None:
        pass


@dataclass(frozen=True)
class Merged:
    """Outputs that methods make of groups of vectors, on the processor.

    Attributes:
        plan: what is read.
        parts: per output the method, the numbers of its vectors, and what its stages found.
        scale: multiplies every output.
        tally: what counts the entries that a selecting method keeps, if that is asked.
    """

    plan: Plan
    parts: Sequence[tuple[Method, Sequence[int], Found]]
    scale: float = 1.0
    tally: Tally | None = None

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> Any:
        compute = stretch.rows.dtype
        if not stretch.merge.rows and not stretch.merge.moved:  # only stored in another dtype
            nothing = np.zeros((len(self.parts), 0), compute)
            kernels.form(
                stretch.base, stretch.words, False, nothing, add_base, out, stretch.rows, stats
            )
            return None
        whole = chunk(stretch, self.plan, self.parts[0][0])
        factor = np.full((1, 1), self.scale, compute)
        rows = stretch.scratch.array("result rows", kernels.scratch_rows(1), compute)
        note = None
        for m, (method, members, found) in enumerate(self.parts):
            state = found.of(stretch.merge.name)
            own = of_members(whole, members)
            if own is whole and len(self.parts) > 1:
                own = replace(whole, deltas=whole.deltas.copy())
            if self.tally is not None and isinstance(method, Selecting):
                kept = method.select(own, state)
                note = self.tally.count(own.deltas, kept)
                result = method.masked(own, kept)
            else:
                result = method.apply(own, state)
            kernels.form(
                stretch.base,
                result[None].astype(compute, copy=False),
                False,
                factor,
                add_base,
                out[m : m + 1],
                rows,
                stats[m : m + 1],
            )
        return note

    def collect(self, note: Any) -> None:
        if self.tally is not None and note is not None:
            self.tally.collect(note)
