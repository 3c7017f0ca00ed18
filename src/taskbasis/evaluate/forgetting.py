"""How much of a task vector to take out, and how strongly: chosen on validation, shown on test.

Two things are searched at once: the density, the share of the vector's entries that is taken out,
and the scale that they are taken out with. Every control task must keep its share of what the
untouched model scores; among the points that do, the lowest target wins. The whole grid is
measured, because the curve of target against control says more than its best point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskbasis import notebook
from taskbasis.errors import UsageError, ValueProblem, nearest
from taskbasis.evaluate.task import Model, Task, evaluate

DENSITIES: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the entries to try: from a few to the whole vector, which is plain negation."""

SCALES: tuple[float, ...] = tuple(i / 4 for i in range(13))
"""Scales to try: 0, 0.25, ..., 3; a few entries bear more than the whole vector does."""

BuildAt = Callable[[float, float], Model]
"""``build(density, scale)``: the model less the scaled selection; untouched at scale 0."""


@dataclass(frozen=True)
class ForgetPoint:
    """One point of the grid, measured on validation.

    Attributes:
        density: the share of entries that is taken out.
        scale: what they are multiplied by.
        target: the score of what is to be forgotten.
        controls: the scores of what must be kept.
        share: the smallest share of its own score that a control keeps.
        feasible: whether every control keeps enough, so that the point may be chosen.
    """

    density: float
    scale: float
    target: float
    controls: Mapping[str, float]
    share: float
    feasible: bool


@dataclass(frozen=True)
class ForgetChoice:
    """What a search chose on validation; :func:`report_forgetting` takes it to test.

    Attributes:
        density, scale: the chosen point; scale 0 leaves the model as it is.
        score: the target's score there.
        points: the whole grid, the untouched model first, then densities by scales.
        target: the task that is to be forgotten.
        kept: what the untouched model scores on every control.
        keep: the share of it that was to be kept.
    """

    density: float
    scale: float
    score: float
    points: tuple[ForgetPoint, ...]
    target: str
    kept: Mapping[str, float]
    keep: float

    def _repr_html_(self) -> str:
        title = f"forgetting {self.target}: density {self.density:g}, scale {self.scale:g}"
        rows = [
            [p.density, p.scale, p.target, *p.controls.values(), "yes" if p.feasible else "no"]
            for p in self.points
        ]
        header = ["density", "scale", self.target, *self.kept, "feasible"]
        return notebook.table(f"{title}, chosen on validation", header, rows)

    @property
    def chosen(self) -> ForgetPoint:
        """The chosen point."""
        at = (self.density, self.scale)
        return next(p for p in self.points if (p.density, p.scale) == at)


def search_forgetting(
    build: BuildAt,
    target: Task,
    controls: Sequence[Task],
    kept: Mapping[str, float],
    densities: Sequence[float] = DENSITIES,
    scales: Sequence[float] = SCALES,
    keep: float = 0.95,
) -> ForgetChoice:
    """The density and scale of the lowest target score that keep every control.

    A point is feasible when ``control >= keep * kept[control]`` for every control. The untouched
    model, scale 0, always is: it is tried first, once, under the first density, whether the
    scales name it or not. Then come the densities in their order, and the other scales within
    each; the first minimum wins.

    Args:
        build: the model at a density and a scale; called once per point.
        target: what is to be forgotten.
        controls: what must be kept.
        kept: the untouched model's validation score of every control.
        densities: shares of the entries to try, in order.
        scales: what to multiply them by, in order.
        keep: the share of ``kept`` to keep, from 0 to 1.

    Raises:
        UsageError: an unusable grid or ``keep``, no control, two tasks of one name, or a control
            that ``kept`` does not name.
        ValueProblem: a score that is not finite, or a control of which no share can be kept.

    >>> import numpy as np
    >>> def build(density, scale):
    ...     return {"gone": np.float64(scale * density**0.5), "harm": np.float64(scale * density)}
    >>> target = Task("target", lambda model, split: max(0.0, 1 - float(model["gone"])))
    >>> control = Task("control", lambda model, split: 1 - 0.4 * float(model["harm"]))
    >>> found = search_forgetting(build, target, [control], {"control": 1.0}, [0.1, 1.0], [1, 2])
    >>> found.density, found.scale, [point.feasible for point in found.points]
    (0.1, 1.0, [True, True, False, False, False])
    """
    shares, factors = _grid("densities", densities), _grid("scales", scales)
    for density in shares:
        if not 0 < density <= 1:
            raise UsageError(f"a density of {density} has no meaning; use a share above 0, up to 1")
    floors = _floors(target, controls, kept, keep)
    grid = [(shares[0], 0.0), *((d, s) for d in shares for s in factors if s != 0)]
    points = []
    for density, scale in grid:
        scores = evaluate(build(density, scale), [target, *controls], "validation")
        reached = {control.name: scores[control.name] for control in controls}
        points.append(
            ForgetPoint(
                density,
                scale,
                scores[target.name],
                reached,
                min(score / kept[name] for name, score in reached.items()),
                scale == 0 or all(score >= floors[name] for name, score in reached.items()),
            )
        )
    best = min((p for p in points if p.feasible), key=lambda p: p.target)  # the first of equals
    own = {control.name: kept[control.name] for control in controls}
    return ForgetChoice(
        best.density, best.scale, best.target, tuple(points), target.name, own, keep
    )


def report_forgetting(
    choice: ForgetChoice, build: BuildAt, tasks: Iterable[Task]
) -> tuple[dict[str, float], dict[str, float]]:
    """The test scores of the untouched model and of the one at the chosen point, each scored once.

    Raises:
        UsageError: ``choice`` does not come from a search.

    >>> task = Task("t", lambda model, split: 1.0 if split == "validation" else 0.5)
    >>> other = Task("c", lambda model, split: 0.8)
    >>> found = search_forgetting(lambda d, s: {}, task, [other], {"c": 0.8}, [1.0], [1.0])
    >>> report_forgetting(found, lambda d, s: {}, [task, other])
    ({'t': 0.5, 'c': 0.8}, {'t': 0.5, 'c': 0.8})
    """
    if not isinstance(choice, ForgetChoice):
        raise UsageError(f"test is for a finished search, not for a {type(choice).__name__}")
    judged = list(tasks)
    untouched = evaluate(build(choice.density, 0.0), judged, "test")
    if choice.scale == 0:
        return untouched, dict(untouched)
    return untouched, evaluate(build(choice.density, choice.scale), judged, "test")


def _floors(
    target: Task, controls: Sequence[Task], kept: Mapping[str, float], keep: float
) -> dict[str, float]:
    """What every control must at least score; whatever is wrong with the question is said here."""
    if not 0 <= keep <= 1:
        raise UsageError(f"keep is {keep}; it is a share, from 0 to 1")
    if not controls:
        raise UsageError("forgetting needs at least one control task, which says what to keep")
    names = [target.name, *(control.name for control in controls)]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise UsageError(
            f"{doubled[0]!r} is named twice; the target and every control must be different tasks"
        )
    for name in names[1:]:
        if name not in kept:
            raise UsageError(
                f"control {name!r} has no score of the untouched model; {nearest(name, kept)}"
            )
        if not (math.isfinite(kept[name]) and kept[name] > 0):
            raise ValueProblem(
                f"the untouched model scores {kept[name]} on the control {name!r}, of which no "
                "share can be kept; use a control whose scores are above 0"
            )
    return {name: keep * kept[name] for name in names[1:]}


def _grid(what: str, values: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if not found or not all(math.isfinite(value) for value in found):
        raise UsageError(f"the {what} {list(values)} need one finite number or more")
    if len(set(found)) < len(found):
        raise UsageError(f"the {what} {list(values)} name a number twice")
    return found
