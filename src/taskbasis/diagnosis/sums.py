"""The one pass over vectors and base: of every tensor only sums are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels
from taskbasis.diagnosis import loops
from taskbasis.engine import Engine, Scratch
from taskbasis.errors import ValueProblem
from taskbasis.io.dtypes import DType
from taskbasis.methods.base import summed
from taskbasis.methods.noise import draws
from taskbasis.passes.reading import Stretch, quietly, read_cut, widened
from taskbasis.plan import Cut, Plan

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sums:
    """What is summed over some entries of T vectors and their base.

    Attributes:
        entries: how many there are.
        gram: [T + 1, T + 1] inner products of the vectors and, last, the base (zeros without).
        sizes: [T, T] sums of ``|a b|``.
        both: [T, T] in how many entries both vectors are not zero.
        opposed: [T, T] in how many of these their signs differ.
        lengths: [T + 1] sums of ``|tau|``, and last of ``|sum of all tau|``.
        rounding: what becomes of the update, as :func:`loops.follow` has it.
    """

    entries: int
    gram: Matrix
    sizes: Matrix
    both: NDArray[np.int64]
    opposed: NDArray[np.int64]
    lengths: Matrix
    rounding: Matrix

    @classmethod
    def nothing(cls, count: int) -> Sums:
        """The sums over no entry of T vectors."""
        square = (count, count)
        return cls(
            0,
            np.zeros((count + 1, count + 1)),
            np.zeros(square),
            np.zeros(square, np.int64),
            np.zeros(square, np.int64),
            np.zeros(count + 1),
            np.zeros(loops.SUMS),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.entries + other.entries,
            self.gram + other.gram,
            self.sizes + other.sizes,
            self.both + other.both,
            self.opposed + other.opposed,
            self.lengths + other.lengths,
            self.rounding + other.rounding,
        )


def sums_by_tensor(
    plan: Plan, scale: float, dtype: DType | None, engine: Engine
) -> Mapping[str, Sums]:
    """The sums of every tensor, in plan order; the same for any number of workers.

    Products are summed in float32 within blocks of :data:`kernels.BLOCK` entries and in float64
    beyond, everything else in float64. Where the plan adds to a base, ``base + scale * sum of
    all vectors`` is formed and rounded as the last pass does it when a model is saved.

    Args:
        scale: lambda, what multiplies the sum of the vectors.
        dtype: what the sum is stored in; each base tensor's own when None.

    Raises:
        ValueProblem: a vector holds a value that is not finite, or the base where it is changed.
    """
    count = plan.vectors

    def work(cut: Cut, scratch: Scratch) -> Sums:
        with quietly():
            stretch = read_cut(plan.merges[cut.index], cut, scratch)
            deltas = widened(stretch)
        rows = scratch.array("all", (count + 1, deltas.shape[1]), deltas.dtype)
        rows[:count] = deltas
        rows[count] = 0
        _base(stretch, deltas, rows[count])
        both, opposed = _signs(deltas)
        rounding = np.zeros(loops.SUMS)
        if stretch.base is not None:
            _round(stretch, rows[count], scale, dtype, rounding)
        lengths = [np.abs(row).sum(dtype=np.float64) for row in (*deltas, summed(deltas))]
        gram = _gram(rows, stretch.rows)
        np.abs(rows, out=rows)
        return Sums(
            deltas.shape[1],
            gram,
            _gram(rows[:count], stretch.rows),
            both,
            opposed,
            np.asarray(lengths, np.float64),
            rounding,
        )

    found = {merge.name: Sums.nothing(count) for merge in plan.merges}
    engine = engine.within(plan.memory(3 * count + 8))
    cuts = plan.cuts()
    for cut, part in zip(cuts, engine.map(work, cuts, plan.cut_bytes, "diagnose"), strict=True):
        merge = plan.merges[cut.index]
        if not np.all(np.isfinite(part.gram)):
            inputs = ", ".join(sorted({info.blob.label for info in merge.rows}))
            raise ValueProblem(
                f"tensor {merge.name!r}: a number is too large to be squared (inputs: {inputs}); "
                "repair the checkpoint, or leave the tensor out with --exclude"
            )
        found[merge.name] += part
    return found


def _base(stretch: Stretch, deltas: NDArray[Any], out: NDArray[Any]) -> None:
    """The base's entries; those that are not finite, such as a mask of -inf, count as 0."""
    if stretch.base is None:
        return
    kernels.decode(stretch.base, out)
    broken = ~np.isfinite(out)
    if broken.any():
        if deltas[:, broken].any():
            assert stretch.merge.base is not None
            raise ValueProblem(
                f"{stretch.merge.base.where}: a value is NaN or infinite where a vector changes "
                "it; repair the base, or leave the tensor out with --exclude"
            )
        out[broken] = 0


def _gram(rows: NDArray[Any], scratch: NDArray[Any]) -> Matrix:
    room = np.empty(kernels.scratch_rows(len(rows)), scratch.dtype)
    total = np.zeros((len(rows), len(rows)))
    kernels.gram(None, rows, False, room, total)
    return np.asarray(np.tril(total) + np.tril(total, -1).T)


def _signs(deltas: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[T, T] counts of entries where both are not zero, and of those with unlike signs.

    Whole numbers below 2^24 are exact in float32, and no cut is as long as that.
    """
    signs = np.sign(deltas, dtype=deltas.dtype).astype(np.float32)
    agreeing = (signs @ signs.T).astype(np.int64)
    np.abs(signs, out=signs)
    both = (signs @ signs.T).astype(np.int64)
    return both, (both - agreeing) // 2


def _round(
    stretch: Stretch,
    base: NDArray[Any],
    scale: float,
    dtype: DType | None,
    out: NDArray[np.float64],
) -> None:
    """Form ``base + scale * sum`` as it is saved, and follow its entries."""
    merge, size = stretch.merge, base.size
    assert merge.base is not None
    kept = dtype or merge.base.dtype
    ones = np.full((1, len(merge.mixing)), scale)
    mixed = (ones @ merge.mixing).astype(stretch.rows.dtype)
    update = stretch.scratch.array("update", (1, size), stretch.rows.dtype)
    words = stretch.scratch.array("stored words", (1, size), kept.bits)
    stored = stretch.scratch.array("stored", (size,), stretch.rows.dtype)
    still = stretch.scratch.array("still", (size,), stretch.rows.dtype)

    def form(coefficients: NDArray[Any], rows: Any, add: bool, into: NDArray[Any]) -> None:
        with quietly():
            difference = stretch.difference and len(rows) > 0
            kernels.form(
                stretch.base, rows, difference, coefficients, add, into, stretch.rows, _WASTE.copy()
            )

    form(mixed, stretch.words, False, update)
    form(mixed[:, :0], stretch.words[:0], True, words)
    kernels.decode(words[0], still)
    form(mixed, stretch.words, True, words)
    kernels.decode(words[0], stored)
    own = ~np.isfinite(still) & (update[0] == 0) & (base == 0)
    stored[own] = still[own] = 0  # infinity of the base's own counts as 0 there, too
    noise = draws(f"diagnose/{merge.name}", stretch.cut.start, size)
    loops.follow(base, update[0], stored, still, noise, kept, out)


_WASTE = np.zeros((1, 2))
