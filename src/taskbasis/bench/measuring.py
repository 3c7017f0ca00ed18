"""Measuring one contender on one seed: chosen on validation, tested once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskbasis.bench.contenders import Contender
from taskbasis.bench.lab import Lab, Line
from taskbasis.evaluate import (
    Choice,
    Effort,
    Model,
    evaluate,
    report_choice,
    search_addition,
    search_negation,
)
from taskbasis.evaluate.task import Split, checked_score
from taskbasis.vectors import Checkpoint, EditedModel

Record = dict[str, Any]
"""Plain data, stored as JSON."""

SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class Yard:
    """What everything is held against, by split and task.

    Attributes:
        base: the base's accuracy on every task.
        individual: that of each task's own fine-tune.
        control: that of the base on what must be kept while the task is forgotten.
    """

    base: Mapping[str, Mapping[str, float]]
    individual: Mapping[str, Mapping[str, float]]
    control: Mapping[str, Mapping[str, float]]


def measure_yard(lab: Lab) -> Record:
    """Score the base and the fine-tunes once on either split."""
    found: Record = {"base": {}, "individual": {}, "control": {}}
    base = lab.base_tensors
    for split in SPLITS:
        found["base"][split] = evaluate(base, lab.world.tasks, split)
        kept = {name: lab.world.kept(name) for name in lab.names}
        found["control"][split] = {n: checked_score(t, base, split) for n, t in kept.items()}
    found["individual"] = {split: {} for split in SPLITS}
    for name, path in lab.world.tuned.items():
        own = EditedModel(Checkpoint(path)).tensors(lab.engine)
        for split in SPLITS:
            found["individual"][split][name] = checked_score(lab.task(name), own, split)
    return found


def add(lab: Lab, contender: Contender, yard: Yard, effort: Effort) -> Record:
    """All tasks at once: test accuracy per task, and what was chosen."""
    recipe, tasks = contender.recipe, lab.world.tasks
    if not contender.tuned:
        density, scale = next(iter(contender.densities), None), contender.scale or 0.0
        if recipe.per_task:
            test = {}
            for task in tasks:
                own = lab.merged(recipe, density, scale, lab.names, of=task.name)
                test[task.name] = checked_score(task, own.tensors(lab.engine), "test")
            return {"scale": scale, **_told(density), "test": test}
        model = lab.merged(recipe, density, scale, lab.names).tensors(lab.engine)
        return {"scale": scale, **_told(density), "test": evaluate(model, tasks, "test")}
    grid = effort.grid if contender.scale is None else (contender.scale,)
    found: list[tuple[float | None, Choice]] = []
    for density in contender.densities or (None,):
        line = lab.line(recipe, density, lab.names)
        found.append((density, search_addition(line, tasks, yard.individual["validation"], grid)))
    density, choice = max(found, key=lambda item: item[1].score)  # the first of equals

    def build(scale: float) -> Model:
        return lab.merged(recipe, density, scale, lab.names).tensors(lab.engine)

    scores = report_choice(choice, build, tasks)
    return {
        "scale": choice.scale,
        **_told(density),
        "validation": choice.score,
        "curve": {str(d): [[p.scale, p.objective] for p in c.points] for d, c in found},
        "test": scores,
    }


def forget(lab: Lab, contender: Contender, yard: Yard, effort: Effort) -> Record:
    """Each task on its own: subtracted from the base, as far as its control allows."""
    return {name: _forget_one(lab, contender, name, yard, effort) for name in lab.names}


def _forget_one(lab: Lab, contender: Contender, name: str, yard: Yard, effort: Effort) -> Record:
    recipe = contender.recipe
    target, control = lab.task(name), lab.world.kept(name)
    kept = yard.control["validation"][name]
    found: list[tuple[float | None, Choice]] = []
    for density in contender.forgets or ():
        line = lab.line(recipe, density, (name,))

        def below(scale: float, line: Line = line) -> Model:
            return line(-scale)

        chosen = search_negation(below, target, control, kept, effort.coarse, effort.keep)
        found.append((density, chosen))
    density, choice = min(found, key=lambda item: item[1].score)  # the first of equals

    def build(scale: float) -> Model:
        return lab.merged(recipe, density, -scale, (name,)).tensors(lab.engine)

    scores = report_choice(choice, build, [target, control])
    return {
        "scale": choice.scale,
        **_told(density),
        "target": scores[target.name],
        "control": scores[control.name],
    }


def _told(density: float | None) -> Record:
    return {} if density is None else {"density": density}
