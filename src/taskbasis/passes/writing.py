"""The last pass: form every output and store it at its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.errors import ValueProblem
from taskbasis.io.dtypes import F64
from taskbasis.io.journal import Entry
from taskbasis.io.storing import AS_IT_IS, Storing
from taskbasis.io.tensors import TensorInfo
from taskbasis.io.writer import Sink
from taskbasis.passes.forming import Former, Linear, Merged
from taskbasis.passes.reading import not_finite, quietly, read_cut
from taskbasis.passes.resuming import Place, each, entry
from taskbasis.passes.stochastic import form_at_random
from taskbasis.plan import Cut, Merge, Plan

_COPY_PIECE = 8 << 20


def write(
    plan: Plan,
    sink: Sink,
    former: Former,
    outputs: Callable[[str], Sequence[str]],
    add_base: bool,
    engine: Engine,
    storing: Storing = AS_IT_IS,
) -> dict[str, NDArray[np.float64]]:
    """The last pass: form every output and store it at its place.

    Args:
        outputs: the names of the M outputs that a tensor becomes.
        add_base: whether the outputs are weights; the plan's copies are then written too.
        storing: how values are rounded; the sink knows what they are stored in.

    Returns:
        Per output tensor, the squared norms of its delta and of what rounding took from it.

    Raises:
        ValueProblem: a value is not finite, or too large for the dtype it is stored in.
    """
    plan = replace(plan, far=engine.device is not None and isinstance(former, Linear))

    def work(cut: Cut, scratch: Scratch) -> Entry:
        merge = plan.merges[cut.index]
        names = outputs(merge.name)
        stats, note = np.zeros((len(names), 2)), None
        out: NDArray[Any] = np.empty(0)
        if names:
            with quietly():
                stretch = read_cut(merge, cut, scratch)
            dtype = sink.dtype(names[0])
            out = scratch.array("out", (len(names), cut.stop - cut.start), dtype.bits, travels=True)
            with quietly():
                if storing.seed is None or dtype == F64:
                    note = former.form(stretch, add_base, out, stats)
                else:
                    keys = [storing.key(name) for name in names]
                    note = form_at_random(former, stretch, add_base, out, stats, dtype, keys)
            for name, words in zip(names, out, strict=True):
                sink.write(name, cut.start, words)
        return entry(sink, out, stats, note)

    def place(cut: Cut) -> Place:
        return outputs(plan.merges[cut.index].name), cut.start, cut.stop

    most = max((len(outputs(merge.name)) for merge in plan.merges), default=0)
    most = most if storing.seed is None else 2 * most + 1  # values before they are rounded
    methods = {part[0] for part in former.parts} if isinstance(former, Merged) else {None}
    engine = engine.within(max(plan.memory(most, method) for method in methods))
    if add_base:
        _copy(plan.copies, sink, engine)
    cuts, totals = plan.cuts(), dict[str, NDArray[np.float64]]()
    with closing(each(sink, work, cuts, place, plan.cut_bytes, "write", engine)) as results:
        for cut, made in results:
            former.collect(made.note)
            merge = plan.merges[cut.index]
            for name, row in zip(outputs(merge.name), made.stats, strict=True):
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

    def work(piece: tuple[TensorInfo, int, int], scratch: Scratch) -> Entry:
        info, start, stop = piece
        words = scratch.array("copy", (stop - start,), info.dtype.bits)
        info.read(start, stop, words)
        sink.write(info.name, start, words)
        return entry(sink, words, np.zeros(0))

    def place(piece: tuple[TensorInfo, int, int]) -> Place:
        return (piece[0].name,), piece[1], piece[2]

    pieces = [piece for info in copies for piece in _pieces(info)]

    def size(piece: tuple[TensorInfo, int, int]) -> int:
        return (piece[2] - piece[1]) * piece[0].dtype.itemsize

    with closing(each(sink, work, pieces, place, size, "copy", engine)) as results:
        for _ in results:
            pass


def _pieces(info: TensorInfo) -> list[tuple[TensorInfo, int, int]]:
    step = max(_COPY_PIECE // info.dtype.itemsize, 1)
    return [(info, start, min(start + step, info.size)) for start in range(0, info.size, step)]


def rounding(totals: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """The norm of all deltas that were stored, and the norm of what rounding took from them."""
    squares = np.sum([row for _, row in sorted(totals.items())], axis=0) if totals else np.zeros(2)
    return float(np.sqrt(squares[0])), float(np.sqrt(squares[1]))
