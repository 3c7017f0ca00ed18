"""Reading a cut of every input into reused buffers, and what methods see of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import counting, kernels
from taskbasis.engine import Scratch
from taskbasis.errors import ValueProblem
from taskbasis.io.lowrank import LowRank
from taskbasis.io.tensors import TensorInfo
from taskbasis.methods import Chunk, Factors, Method, Moment
from taskbasis.plan import Companion, Cut, Merge, Plan

_NOTHING = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Stretch:
    """What was read for one cut, in the form the kernels take.

    Attributes:
        merge: the tensor it belongs to.
        cut: which stretch of it.
        scratch: the worker's arrays, for what else is needed.
        base: stored words of the base, [n]; None when it is not needed.
        words: stored words of the rows, [R, n].
        difference: whether the base is to be subtracted from the rows.
        rows: the kernels' scratch, in the type that is computed in.
    """

    merge: Merge
    cut: Cut
    scratch: Scratch
    base: NDArray[Any] | None
    words: NDArray[Any]
    difference: bool
    rows: NDArray[Any]


def read_cut(merge: Merge, cut: Cut, scratch: Scratch) -> Stretch:
    """Read a cut of every input into reused buffers."""
    size = cut.stop - cut.start
    compute = np.float64 if merge.double else np.float32
    base = None
    if merge.base is not None:
        base = scratch.array("base", (size,), merge.base.dtype.bits, travels=True)
        merge.base.read(cut.start, cut.stop, base)
    rows = scratch.array("rows", kernels.scratch_rows(len(merge.rows)), compute)
    if merge.factored:
        return Stretch(merge, cut, scratch, base, _NOTHING, False, rows)
    alike = len({(info.dtype, sub) for info, sub in _inputs(merge)}) == 1 and not any(merge.masks)
    if alike:
        shape = (len(merge.rows), size)
        words = scratch.array("words", shape, merge.rows[0].dtype.bits, travels=True)
        for info, row in zip(merge.rows, words, strict=True):
            info.read(cut.start, cut.stop, row)
        return Stretch(merge, cut, scratch, base, words, merge.differences[0], rows)
    words = scratch.array("words", (len(merge.rows), size), compute, travels=True)
    _read_mixed(merge, cut, base, words, scratch)
    return Stretch(merge, cut, scratch, base, words, False, rows)


def _inputs(merge: Merge) -> Iterable[tuple[TensorInfo, bool]]:
    return zip(merge.rows, merge.differences, strict=True)


def _read_mixed(
    merge: Merge, cut: Cut, base: NDArray[Any] | None, out: NDArray[Any], scratch: Scratch
) -> None:
    """Rows of unlike dtypes, or both deltas and weights: each widened to its delta at once."""
    size = cut.stop - cut.start
    origin = scratch.array("origin", (size,), out.dtype)
    if base is not None:
        kernels.decode(base, origin)
    for (info, difference), row in zip(_inputs(merge), out, strict=True):
        stored = scratch.array("stored", (size,), info.dtype.bits)
        info.read(cut.start, cut.stop, stored)
        if difference:
            kernels.decode_difference(stored, origin, row)
        else:
            kernels.decode(stored, row)
    for masks, row in zip(merge.masks, out, strict=bool(merge.masks)):
        for mask in masks:
            apply_mask(mask, cut, row, scratch)


def apply_mask(mask: TensorInfo, cut: Cut, row: NDArray[Any], scratch: Scratch) -> None:
    """Set the entries to zero that a mask does not keep; cuts begin at whole bytes of bits."""
    bits = scratch.array("mask", (-(-row.size // 8),), np.uint8)
    mask.read(cut.start // 8, cut.start // 8 + bits.size, bits)
    counting.keep(bits, row)


def read_base(merge: Merge, cut: Cut, scratch: Scratch) -> Stretch:
    """Read a cut of the base alone, where the plan wants it."""
    base = None
    if merge.base is not None:
        base = scratch.array("base", (cut.stop - cut.start,), merge.base.dtype.bits)
        merge.base.read(cut.start, cut.stop, base)
    compute = np.float64 if merge.double else np.float32
    return Stretch(merge, cut, scratch, base, _NOTHING, False, np.zeros((0, 0), compute))


def chunk(stretch: Stretch, plan: Plan, method: Method, with_deltas: bool = True) -> Chunk:
    """What a method sees of a stretch.

    Args:
        with_deltas: whether the deltas are read; zeros stand for them otherwise.

    Raises:
        ValueProblem: a value is not finite.
    """
    merge, cut, compute = stretch.merge, stretch.cut, stretch.rows.dtype
    factors = _factors(merge) if with_deltas and merge.factored else ()
    if factors:
        deltas = np.zeros((plan.vectors, 0), compute)
    elif with_deltas:
        deltas = widened(stretch)
    else:
        deltas = np.broadcast_to(compute.type(0), (plan.vectors, cut.stop - cut.start))
    return Chunk(
        deltas,
        _scores(merge, cut, stretch.scratch),
        [_moment(companion) for companion in merge.moments],
        merge.name,
        merge.shape,
        cut.start,
        None if method.base == "ignored" else _base(stretch),
        plan.weights,
        plan.names,
        factors,
    )


def _factors(merge: Merge) -> list[Factors]:
    """Per vector the factors of its weighted sum of rows: theirs, side by side.

    Raises:
        ValueProblem: a value is not finite.
    """
    rows = [info.blob.factors() for info in merge.rows if isinstance(info.blob, LowRank)]
    if not all(np.all(np.isfinite(part)) for pair in rows for part in pair):
        raise ValueProblem(not_finite(merge))
    height = merge.shape[0]
    width = merge.size // max(height, 1)
    found = []
    for numbers in merge.mixing:
        used = [(n * up, down) for n, (up, down) in zip(numbers, rows, strict=True) if n]
        ups, downs = [up for up, _ in used], [down for _, down in used]
        found.append(
            Factors(
                np.concatenate([np.zeros((height, 0)), *ups], axis=1),
                np.concatenate([np.zeros((0, width)), *downs], axis=0),
            )
        )
    return found


def _base(stretch: Stretch) -> NDArray[Any] | None:
    """[n] the base's entries, in the type that is computed in."""
    if stretch.base is None:
        return None
    out = stretch.scratch.array("base entries", stretch.base.shape, stretch.rows.dtype)
    kernels.decode(stretch.base, out)
    info = stretch.merge.base
    if info is not None and not np.all(np.isfinite(out)):
        raise ValueProblem(f"{info.where}: a value is NaN or infinite; repair the base")
    return out


def _scores(merge: Merge, cut: Cut, scratch: Scratch) -> NDArray[np.float32] | None:
    """[T, n] the scores of a cut; zeros where a vector has none of the tensor."""
    if not merge.scores:
        return None
    size = cut.stop - cut.start
    rows = scratch.array("scores", (len(merge.scores), size), np.float32)
    for companion, row in zip(merge.scores, rows, strict=True):
        if companion is None:
            row[:] = 0
            continue
        stored = scratch.array("stored scores", (size,), companion.info.dtype.bits)
        companion.info.read(cut.start, cut.stop, stored)
        kernels.decode(stored, row)
        np.multiply(row, np.float32(companion.number), out=row)
        # Comparisons would drop NaN without a trace, and order negative scores wrongly.
        if not np.all(row >= 0) or not np.all(np.isfinite(row)):
            raise ValueProblem(
                f"{companion.info.where}: a score is negative, NaN or infinite; make them again"
            )
    return rows


def _moment(companion: Companion | None) -> Moment | None:
    if companion is None:
        return None
    values = np.asarray(companion.info.load(), np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueProblem(f"{companion.info.where}: a value is NaN or infinite; make it again")
    return Moment(values, companion.transposed)


def widened(stretch: Stretch) -> NDArray[Any]:
    """The deltas of the T vectors over a stretch, [T, n], in the type that is computed in.

    Raises:
        ValueProblem: a value is not finite; a comparison would drop NaN without a trace.
    """
    compute = stretch.rows.dtype
    mixing = stretch.merge.mixing.astype(compute)
    deltas = stretch.scratch.array("deltas", (len(mixing), stretch.words.shape[1]), compute)
    inputs = (stretch.base, stretch.words, stretch.difference)
    if _diagonal(mixing):
        finite = kernels.deltas(*inputs, np.diag(mixing), deltas, stretch.rows)
    else:
        stats = np.zeros((len(deltas), 2))
        kernels.form(*inputs, mixing, False, deltas, stretch.rows, stats)
        finite = bool(np.all(np.isfinite(stats)))
    if not finite:
        raise ValueProblem(not_finite(stretch.merge))
    return deltas


def _diagonal(mixing: NDArray[Any]) -> bool:
    """Whether every vector is a number times a row of its own, in their order."""
    square = mixing.shape[0] == mixing.shape[1]
    return square and int(np.count_nonzero(mixing)) == int(np.count_nonzero(np.diag(mixing)))


def quietly() -> np.errstate:
    """No warnings about overflow: it shows in the statistics, and is refused by name."""
    return np.errstate(over="ignore", invalid="ignore")


def not_finite(merge: Merge) -> str:
    """What is said of a tensor whose inputs hold NaN or infinity."""
    read = (*merge.rows, *([merge.base] if merge.base is not None else []))
    inputs = ", ".join(sorted({info.blob.label for info in read}))
    return (
        f"tensor {merge.name!r}: a value is NaN or infinite (inputs: {inputs}); "
        "repair the checkpoint, or leave the tensor out: with --exclude, or in a recipe by a "
        "filter that gives it weight 0"
    )
