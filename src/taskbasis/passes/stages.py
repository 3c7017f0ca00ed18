"""The passes that a method asks for before it is applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taskbasis.engine import IN_FLIGHT, Engine, Scratch
from taskbasis.granularity import Granularity, group_name
from taskbasis.methods import Chunk, Method
from taskbasis.passes.reading import chunk, quietly, read_base, read_cut
from taskbasis.plan import Cut, Plan

_COUNTS = 16 << 16
"""Bytes of the largest sum that a stage makes of one vector: two rows of counts by 16 bits."""


@dataclass(frozen=True)
class Found:
    """What the stages of a method found, by stage and group.

    Attributes:
        stages: per stage what its sums covered, and what was found for each group.
    """

    stages: tuple[tuple[Granularity, Mapping[str, Any]], ...] = ()

    def of(self, tensor: str) -> tuple[Any, ...]:
        """What was found for a tensor's own groups, stage by stage."""
        return tuple(found.get(group_name(tensor, scope)) for scope, found in self.stages)

    def alike(self, scope: Granularity, group: str) -> tuple[Any, ...]:
        """What stages of one granularity found for a group; None for the others."""
        return tuple(found.get(group) if same == scope else None for same, found in self.stages)


def run_stages(plan: Plan, method: Method, members: Sequence[int], engine: Engine) -> Found:
    """What a method asks for before it is applied, from one pass per stage.

    Tensors that no vector changes are observed, too, as zeros or by their scores: what a method
    knows of a layer or the model depends neither on whether unchanged tensors were stored nor on
    the output's dtype.
    """
    sums = IN_FLIGHT * len(members) * _COUNTS  # of a few cuts that wait to be folded
    engine = engine.within(plan.memory(0, method) + sums)
    merges = plan.observed
    blind = any(merge.scores for merge in merges) and not method.stages_see_deltas()
    cuts = plan.cuts(merges)
    found = Found()
    for stage, scope in enumerate(method.stages()):

        def work(cut: Cut, scratch: Scratch, stage: int = stage, known: Found = found) -> Any:
            merge = merges[cut.index]
            if blind or not merge.rows:
                stretch = read_base(merge, cut, scratch)
                seen = chunk(stretch, plan, method, with_deltas=False)
            else:
                with quietly():
                    seen = chunk(read_cut(merge, cut, scratch), plan, method)
            return method.observe(stage, of_members(seen, members), known.of(merge.name))

        groups = [group_name(merges[cut.index].name, scope) for cut in cuts]
        left, totals, done = Counter(groups), dict[str, Any](), dict[str, Any]()
        observed = engine.map(work, cuts, lambda cut: merges[cut.index].cut_bytes(cut), method.name)
        for group, partial in zip(groups, observed, strict=True):
            if group in totals:
                totals[group] += partial
            else:
                totals[group] = np.array(partial)  # our own: the next ones are added in place
            left[group] -= 1
            if not left[group]:  # so that few sums are held at once
                known = found.alike(scope, group)
                done[group] = method.finish(stage, totals.pop(group), known)
        found = Found((*found.stages, (scope, done)))
    return found


def of_members(whole: Chunk, members: Sequence[int]) -> Chunk:
    """The chunk of some of the vectors; a copy, since methods may overwrite the deltas.

    All of them, in order, are the chunk itself.
    """
    chosen = list(members)
    if chosen == list(range(len(whole.deltas))):
        return whole
    return replace(
        whole,
        deltas=whole.deltas[chosen],
        scores=None if whole.scores is None else whole.scores[chosen],
        moments=[whole.moments[t] for t in chosen] if whole.moments else (),
        weights=[whole.weights[t] for t in chosen] if whole.weights else (),
        names=[whole.names[t] for t in chosen] if whole.names else (),
        factors=[whole.factors[t] for t in chosen] if whole.factors else (),
    )
