"""The last pass: form every output and store it at its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.errors import ValueProblem
from taskbasis.io.tensors import TensorInfo
from taskbasis.io.writer import Sink
from taskbasis.passes.forming import Former, Merged
from taskbasis.passes.reading import not_finite, quietly, read_cut
from taskbasis.plan import Cut, Merge, Plan

_COPY_PIECE = 8 << 20


def write(
    plan: Plan,
    sink: Sink,
    former: Former,
    outputs: Callable[[str], Sequence[str]],
    add_base: bool,
    engine: Engine,
) -> dict[str, NDArray[np.float64]]:
    """The last pass: form every output and store it at its place.

    Args:
        outputs: the names of the M outputs that a tensor becomes.
        add_base: whether the outputs are weights; the plan's copies are then written too.

    Returns:
        Per output tensor, the squared norms of its delta and of what rounding took from it.

    Raises:
        ValueProblem: a value is not finite, or too large for the dtype it is stored in.
    """

    def work(cut: Cut, scratch: Scratch) -> tuple[NDArray[np.float64], Any]:
        merge = plan.merges[cut.index]
        names = outputs(merge.name)
        stats, note = np.zeros((len(names), 2)), None
        if names:
            with quietly():
                stretch = read_cut(merge, cut, scratch)
            bits = sink.dtype(names[0]).bits
            out = scratch.array("out", (len(names), cut.stop - cut.start), bits)
            with quietly():
                note = former.form(stretch, add_base, out, stats)
            for name, words in zip(names, out, strict=True):
                sink.write(name, cut.start, words)
        return stats, note

    if add_base:
        _copy(plan.copies, sink, engine)
    most = max((len(outputs(merge.name)) for merge in plan.merges), default=0)
    methods = {part[0] for part in former.parts} if isinstance(former, Merged) else {None}
    engine = engine.within(max(plan.memory(most, method) for method in methods))
    cuts, totals = plan.cuts(), dict[str, NDArray[np.float64]]()
    # Closed at once on an error, so that no worker writes to a sink that is gone.
    with closing(engine.map(work, cuts, plan.cut_bytes, "write")) as results:
        for cut, (stats, note) in zip(cuts, results, strict=True):
            former.collect(note)
            merge = plan.merges[cut.index]
            for name, row in zip(outputs(merge.name), stats, strict=True):
                _refuse_not_finite(merge, name, row, sink, add_base)
                totals[name] = totals.get(name, 0.0) + row
    return totals


def _refuse_not_finite(
    merge: Merge, name: str, row: NDArray[np.float64], sink: Sink, add_base: bool
) -> None:
    if not np.isfinite(row[0]):
        raise ValueProblem(not_finite(merge))
    if not np.isfinite(row[1]):
        base = f", or the base {merge.base.blob.label} is not finite there" if merge.base else ""
        raise ValueProblem(
            f"tensor {name!r}: a value is too large for {sink.dtype(name).name}"
            f"{base if add_base else ''}; store it in float32 or bfloat16"
        )


def _copy(copies: Sequence[TensorInfo], sink: Sink, engine: Engine) -> None:
    """Copy the base's untouched tensors, byte for byte."""

    def work(piece: tuple[TensorInfo, int, int], scratch: Scratch) -> None:
        info, start, stop = piece
        words = scratch.array("copy", (stop - start,), info.dtype.bits)
        info.read(start, stop, words)
        sink.write(info.name, start, words)

    pieces = [piece for info in copies for piece in _pieces(info)]

    def size(piece: tuple[TensorInfo, int, int]) -> int:
        return (piece[2] - piece[1]) * piece[0].dtype.itemsize

    with closing(engine.map(work, pieces, size, "copy")) as results:
        for _ in results:
            pass


def _pieces(info: TensorInfo) -> list[tuple[TensorInfo, int, int]]:
    step = max(_COPY_PIECE // info.dtype.itemsize, 1)
    return [(info, start, min(start + step, info.size)) for start in range(0, info.size, step)]


def rounding(totals: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """The norm of all deltas that were stored, and the norm of what rounding took from them."""
    squares = np.sum([row for _, row in sorted(totals.items())], axis=0) if totals else np.zeros(2)
    return float(np.sqrt(squares[0])), float(np.sqrt(squares[1]))
