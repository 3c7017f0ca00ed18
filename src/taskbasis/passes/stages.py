"""The passes that a method asks for before it is applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taskbasis.engine import Engine, Scratch
from taskbasis.granularity import Granularity, group_name
from taskbasis.methods import Chunk, Method
from taskbasis.passes.reading import Stretch, chunk, quietly, read_cut
from taskbasis.plan import Cut, Plan

_NOTHING = np.zeros((0, 0), np.float32)


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

    Float tensors of the base that no vector touches are observed as zeros by a stage that covers
    the model: what a method knows of it depends neither on whether unchanged tensors were stored
    nor on the output's dtype. Where there are scores, the tensors that have some are observed
    instead, changed or not.
    """
    engine = engine.within(plan.memory(2 * plan.vectors))
    scored = bool(plan.watched) or any(merge.scores for merge in plan.merges)
    blind = scored and not method.stages_see_deltas()
    cuts = plan.cuts(watched=True)
    untouched = 0 if scored else sum(info.size for info in plan.copies if info.dtype.mergeable)
    found = Found()
    for stage, scope in enumerate(method.stages()):

        def work(cut: Cut, scratch: Scratch, stage: int = stage, known: Found = found) -> Any:
            merge = plan.merge(cut)
            if blind or not (merge.rows or merge.base):
                stretch = Stretch(merge, cut, scratch, None, _NOTHING, False, _NOTHING)
                seen = chunk(stretch, with_deltas=False)
            else:
                with quietly():
                    seen = chunk(read_cut(merge, cut, scratch))
            return method.observe(stage, of_members(seen, members), known.of(merge.name))

        groups = [group_name(plan.merge(cut).name, scope) for cut in cuts]
        left, totals, done = Counter(groups), dict[str, Any](), dict[str, Any]()
        observed = engine.map(work, cuts, plan.cut_bytes, method.name)
        for group, partial in zip(groups, observed, strict=True):
            totals[group] = totals[group] + partial if group in totals else partial
            left[group] -= 1
            if not left[group] and scope != "model":  # so that few sums are held at once
                known = found.alike(scope, group)
                done[group] = method.finish(stage, totals.pop(group), known)
        if scope == "model":
            state = found.alike(scope, "model")
            total = totals.get("model", 0)
            zeros = np.zeros((len(members), min(untouched, plan.cut_size)), np.float32)
            for start in range(0, untouched, plan.cut_size):
                stretch = Chunk(zeros[:, : min(plan.cut_size, untouched - start)])
                total = total + method.observe(stage, stretch, state)
            done = {"model": method.finish(stage, total, state)} if cuts or untouched else {}
        found = Found((*found.stages, (scope, done)))
    return found


def of_members(whole: Chunk, members: Sequence[int]) -> Chunk:
    """The chunk of some of the vectors; a copy, since methods may overwrite the deltas."""
    chosen = list(members)
    return replace(
        whole,
        deltas=whole.deltas[chosen],
        scores=None if whole.scores is None else whole.scores[chosen],
        moments=[whole.moments[t] for t in chosen] if whole.moments else (),
    )
