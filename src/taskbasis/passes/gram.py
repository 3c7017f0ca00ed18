"""The pass of inner products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.errors import ValueProblem
from taskbasis.passes.reading import not_finite, read_cut
from taskbasis.plan import Cut, Plan


def gram_by_tensor(plan: Plan, engine: Engine) -> dict[str, NDArray[np.float64]]:
    """The inner products of all pairs of vectors, one [T, T] matrix per tensor, float64.

    Products are summed in float32 within blocks of :data:`kernels.BLOCK` entries, and in float64
    beyond, in plan order; on a device in float64 throughout.

    Raises:
        ValueProblem: a vector holds a value that is not finite; the message names the tensor.
    """
    plan = replace(plan, far=engine.device is not None)

    def work(cut: Cut, scratch: Scratch) -> NDArray[np.float64]:
        merge = plan.merges[cut.index]
        stretch = read_cut(merge, cut, scratch)
        partial = np.zeros((len(merge.rows), len(merge.rows)))
        scratch.loops.gram(stretch.base, stretch.words, stretch.difference, stretch.rows, partial)
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
            raise ValueProblem(not_finite(merge))
        found[merge.name] = merge.mixing @ full @ merge.mixing.T
    return found
