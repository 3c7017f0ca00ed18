"""The one mechanism: read a cut of every input, work on it, fold a sum or store the result.

Three passes are built from it: inner products of all pairs of vectors, the sums that a method's
stages ask for, and the last pass, which forms the outputs and stores them at their offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels
from taskbasis.engine import Engine, Scratch
from taskbasis.errors import ValueProblem
from taskbasis.io.tensors import TensorInfo
from taskbasis.io.writer import Sink
from taskbasis.methods import Method
from taskbasis.plan import Cut, Merge, Plan

_COPY_PIECE = 8 << 20


@dataclass(frozen=True)
class Stretch:
    """What was read for one cut, in the form the kernels take.

    Attributes:
        merge: the tensor it belongs to.
        scratch: the worker's arrays, for what else is needed.
        base: stored words of the base, [n]; None when it is not needed.
        words: stored words of the rows, [R, n].
        difference: whether the base is to be subtracted from the rows.
        rows: the kernels' scratch, in the type that is computed in.
    """

    merge: Merge
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
        base = scratch.array("base", (size,), merge.base.dtype.bits)
        merge.base.read(cut.start, cut.stop, base)
    rows = scratch.array("rows", kernels.scratch_rows(len(merge.rows)), compute)
    alike = len({(info.dtype, sub) for info, sub in _inputs(merge)}) == 1
    if alike:
        words = scratch.array("words", (len(merge.rows), size), merge.rows[0].dtype.bits)
        for info, row in zip(merge.rows, words, strict=True):
            info.read(cut.start, cut.stop, row)
        return Stretch(merge, scratch, base, words, merge.differences[0], rows)
    words = scratch.array("words", (len(merge.rows), size), compute)
    _read_mixed(merge, cut, base, words, scratch)
    return Stretch(merge, scratch, base, words, False, rows)


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
        kernels.decode(stored, row)
        if difference:
            np.subtract(row, origin, out=row)


def gram_by_tensor(plan: Plan, engine: Engine) -> dict[str, NDArray[np.float64]]:
    """The inner products of all pairs of vectors, one [T, T] matrix per tensor, float64.

    Products are summed in float32 within blocks of :data:`kernels.BLOCK` entries, and in float64
    beyond, in plan order.

    Raises:
        ValueProblem: a vector holds a value that is not finite; the message names the tensor.
    """

    def work(cut: Cut, scratch: Scratch) -> NDArray[np.float64]:
        merge = plan.merges[cut.index]
        stretch = read_cut(merge, cut, scratch)
        partial = np.zeros((len(merge.rows), len(merge.rows)))
        kernels.gram(stretch.base, stretch.words, stretch.difference, stretch.rows, partial)
        return partial

    sums = [np.zeros((len(merge.rows), len(merge.rows))) for merge in plan.merges]
    engine = engine.within(plan.memory(0))
    cuts = plan.cuts()
    for cut, partial in zip(
        cuts, engine.map(work, cuts, plan.cut_bytes, "inner products"), strict=True
    ):
        sums[cut.index] += partial
    found: dict[str, NDArray[np.float64]] = {}
    for merge, total in zip(plan.merges, sums, strict=True):
        full = np.tril(total) + np.tril(total, -1).T
        if not np.all(np.isfinite(full)):
            raise ValueProblem(_not_finite(merge))
        found[merge.name] = merge.mixing @ full @ merge.mixing.T
    return found


class Former(Protocol):
    """Forms the outputs of a stretch; the linear case runs in one fused kernel."""

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> None:
        """Fill ``out`` [M, n] with stored words and add to ``stats`` [M, 2]."""


@dataclass(frozen=True)
class Linear:
    """Outputs that are fixed linear combinations of the vectors.

    Attributes:
        coefficients: [M, T] for a tensor's name.
    """

    coefficients: Callable[[str], NDArray[np.float64]]

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> None:
        merge = stretch.merge
        mixed = (self.coefficients(merge.name) @ merge.mixing).astype(stretch.rows.dtype)
        kernels.form(
            stretch.base,
            stretch.words,
            stretch.difference,
            mixed,
            add_base,
            out,
            stretch.rows,
            stats,
        )


@dataclass(frozen=True)
class Merged:
    """Outputs that element-wise methods make of groups of vectors.

    Attributes:
        parts: per output the method, the numbers of its vectors, and its state.
        scale: multiplies every output.
    """

    parts: Sequence[tuple[Method, Sequence[int], Any]]
    scale: float = 1.0

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> None:
        compute = stretch.rows.dtype
        deltas = widened(stretch)
        factor = np.full((1, 1), self.scale, compute)
        rows = stretch.scratch.array("result rows", kernels.scratch_rows(1), compute)
        for m, (method, members, state) in enumerate(self.parts):
            result = method.apply(deltas[list(members)], state)[None].astype(compute, copy=False)
            kernels.form(
                stretch.base,
                result,
                False,
                factor,
                add_base,
                out[m : m + 1],
                rows,
                stats[m : m + 1],
            )


def widened(stretch: Stretch) -> NDArray[Any]:
    """The deltas of the T vectors over a stretch, [T, n], in the type that is computed in.

    Raises:
        ValueProblem: a value is not finite; a comparison would drop NaN without a trace.
    """
    compute = stretch.rows.dtype
    mixing = stretch.merge.mixing.astype(compute)
    deltas = stretch.scratch.array("deltas", (len(mixing), stretch.words.shape[1]), compute)
    stats = np.zeros((len(deltas), 2))
    kernels.form(
        stretch.base,
        stretch.words,
        stretch.difference,
        mixing,
        False,
        deltas,
        stretch.rows,
        stats,
    )
    if not np.all(np.isfinite(stats)):
        raise ValueProblem(_not_finite(stretch.merge))
    return deltas


def run_stages(plan: Plan, method: Method, members: Sequence[int], engine: Engine) -> Any:
    """The state a method asks for before it is applied, from one pass per stage.

    Float tensors of the base that no vector touches are observed as zeros: what a method knows
    of the whole model depends neither on whether unchanged tensors were stored nor on the
    output's dtype.
    """
    state: Any = None
    engine = engine.within(plan.memory(2 * plan.vectors))
    cuts = plan.cuts()
    untouched = sum(info.size for info in plan.copies if info.dtype.mergeable)
    zeros = np.zeros((len(members), min(untouched, plan.cut_size)), np.float32)
    if not cuts and not untouched:
        return state
    for stage in range(method.stages):

        def work(cut: Cut, scratch: Scratch, stage: int = stage, state: Any = state) -> Any:
            merge = plan.merges[cut.index]
            with _quietly():
                deltas = widened(read_cut(merge, cut, scratch))
            return method.observe(stage, deltas[list(members)], state)

        total: Any = 0
        for partial in engine.map(work, cuts, plan.cut_bytes, method.name):
            total = total + partial
        for start in range(0, untouched, plan.cut_size):
            stretch = zeros[:, : min(plan.cut_size, untouched - start)]
            total = total + method.observe(stage, stretch, state)
        state = method.finish(stage, total, state)
    return state


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

    def work(cut: Cut, scratch: Scratch) -> NDArray[np.float64]:
        merge = plan.merges[cut.index]
        names = outputs(merge.name)
        stats = np.zeros((len(names), 2))
        if names:
            stretch = read_cut(merge, cut, scratch)
            bits = sink.dtype(names[0]).bits
            out = scratch.array("out", (len(names), cut.stop - cut.start), bits)
            with _quietly():
                former.form(stretch, add_base, out, stats)
            for name, words in zip(names, out, strict=True):
                sink.write(name, cut.start, words)
        return stats

    if add_base:
        _copy(plan.copies, sink, engine)
    engine = engine.within(plan.memory(max((len(outputs(m.name)) for m in plan.merges), default=0)))
    cuts, totals = plan.cuts(), dict[str, NDArray[np.float64]]()
    # Closed at once on an error, so that no worker writes to a sink that is gone.
    with closing(engine.map(work, cuts, plan.cut_bytes, "write")) as results:
        for cut, stats in zip(cuts, results, strict=True):
            merge = plan.merges[cut.index]
            for name, row in zip(outputs(merge.name), stats, strict=True):
                _refuse_not_finite(merge, name, row, sink, add_base)
                totals[name] = totals.get(name, 0.0) + row
    return totals


def _quietly() -> np.errstate:
    """No warnings about overflow: it shows in the statistics, and is refused by name."""
    return np.errstate(over="ignore", invalid="ignore")


def _refuse_not_finite(
    merge: Merge, name: str, row: NDArray[np.float64], sink: Sink, add_base: bool
) -> None:
    if not np.isfinite(row[0]):
        raise ValueProblem(_not_finite(merge))
    if not np.isfinite(row[1]):
        base = f", or the base {merge.base.blob.label} is not finite there" if merge.base else ""
        raise ValueProblem(
            f"tensor {name!r}: a value is too large for {sink.dtype(name).name}"
            f"{base if add_base else ''}; store it in float32 or bfloat16"
        )


def _not_finite(merge: Merge) -> str:
    inputs = ", ".join(sorted({info.blob.label for info in merge.rows}))
    return (
        f"tensor {merge.name!r}: a value is NaN or infinite (inputs: {inputs}); "
        "repair the checkpoint, or leave the tensor out with --exclude"
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
