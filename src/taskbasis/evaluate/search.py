"""Choosing a scale on validation, reporting it on test: two steps that cannot be swapped.

What selects (:func:`search_addition`, :func:`search_negation`) takes no split: it sees validation
alone. What reports (:func:`report_choice`) takes a finished :class:`Choice` and scores it once on
test. There is no way to hand a test score to a search.

The rules are those of the Task Vector Bases release (arXiv 2502.01015, v5): 21 points from 0 to 1;
addition maximises the mean over tasks of accuracy / fine-tuned accuracy, the first maximum wins;
negation minimises the target's accuracy where the control task keeps 95 % of the base's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taskbasis import notebook
from taskbasis.errors import UsageError, ValueProblem, nearest
from taskbasis.evaluate.task import Model, Task, evaluate

GRID: tuple[float, ...] = tuple(i / 20 for i in range(21))
"""The official grid: 0, 0.05, ..., 1."""

Build = Callable[[float], Model]
"""Gives the model at a scale; a search calls it once per grid point."""


@dataclass(frozen=True)
class Point:
    """One grid point of a search, measured on validation.

    Attributes:
        scale: the coefficient.
        objective: what the search compares.
        scores: the score of each task.
        feasible: whether the point may be chosen.
    """

    scale: float
    objective: float
    scores: Mapping[str, float]
    feasible: bool = True


@dataclass(frozen=True)
class Choice:
    """What a search chose, on validation; :func:`report_choice` takes it to test.

    Ties: the first of equally good points in grid order wins; a later point must be strictly
    better. Addition starts from objective 0 at scale 0, so a point must also be above 0.

    Attributes:
        scale: the chosen coefficient.
        score: its objective on validation.
        points: the whole validation curve, in grid order.
    """

    scale: float
    score: float
    points: tuple[Point, ...]

    def _repr_html_(self) -> str:
        title = f"scale {self.scale:g}, chosen on validation (objective {self.score:.4f})"
        return notebook.table(title, *_curve(self.points))


def search_addition(
    build: Build,
    tasks: Sequence[Task],
    individual: Mapping[str, float],
    grid: Sequence[float] = GRID,
) -> Choice:
    """The scale that maximises ``mean over tasks of accuracy / individual accuracy``.

    The first maximum wins, and it must be above 0; otherwise the choice is scale 0, score 0.

    Args:
        build: the model at a scale; called once per grid point.
        tasks: what is to be good at once; scored on validation only.
        individual: validation accuracy of each task's own fine-tuned model.
        grid: the scales to try, in order.

    Raises:
        UsageError: no tasks, an unusable grid, or a task without an individual accuracy.
        ValueProblem: an individual accuracy that is not above 0, or a score that is not finite.

    >>> task = Task("t", lambda model, split: 1 - abs(float(model["scale"]) - 0.3))
    >>> import numpy as np
    >>> search_addition(lambda s: {"scale": np.float64(s)}, [task], {"t": 1.0}).scale
    0.3
    """
    checked = check_grid(grid)
    if not tasks:
        raise UsageError("a search needs at least one task")
    for task in tasks:
        check_individual(task.name, individual)
    points = []
    for scale in checked:
        scores = evaluate(build(scale), tasks, "validation")
        points.append(Point(scale, normalised(scores, individual), scores))
    best = max(points, key=lambda point: point.objective)  # the first of equals
    if best.objective <= 0:
        return Choice(0.0, 0.0, tuple(points))
    return Choice(best.scale, best.objective, tuple(points))


def search_negation(
    build: Build,
    target: Task,
    control: Task,
    control_base: float,
    grid: Sequence[float] = GRID,
    keep: float = 0.95,
) -> Choice:
    """The scale that minimises the target's accuracy while the control keeps its own.

    A point is feasible when ``control >= keep * control_base``; scale 0 (the untouched base)
    always is, and is tried first if the grid leaves it out. The first minimum wins.

    Args:
        build: the model at a scale, which is the base minus ``scale`` times the vector.
        target: what is to be forgotten.
        control: what must be kept.
        control_base: validation accuracy of the base on ``control``.
        grid: the scales to try, in order.
        keep: the share of ``control_base`` to keep, from 0 to 1.

    Raises:
        UsageError: an unusable grid or ``keep``, or target and control of one name.
        ValueProblem: a score that is not finite.

    >>> import numpy as np
    >>> target = Task("target", lambda model, split: 1 - float(model["s"]))
    >>> control = Task("control", lambda model, split: 1 - float(model["s"]) ** 2)
    >>> search_negation(lambda s: {"s": np.float64(s)}, target, control, 1.0).scale
    0.2
    """
    checked = check_grid(grid)
    if not 0 <= keep <= 1:
        raise UsageError(f"keep is {keep}; it is a share, from 0 to 1")
    if not math.isfinite(control_base):
        raise ValueProblem(f"the base's accuracy on {control.name!r} is {control_base}")
    points = []
    for scale in checked if 0.0 in checked else (0.0, *checked):
        scores = evaluate(build(scale), [target, control], "validation")
        feasible = scale == 0 or scores[control.name] >= keep * control_base
        points.append(Point(scale, scores[target.name], scores, feasible))
    allowed = [point for point in points if point.feasible]
    best = min(allowed, key=lambda point: point.objective)  # the first of equals
    return Choice(best.scale, best.objective, tuple(points))


def _curve(points: Sequence[Point]) -> tuple[list[str], list[list[object]]]:
    """The points of a search as a table: a column for every task."""
    names = list(points[0].scores) if points else []
    rows: list[list[object]] = [
        [p.scale, p.objective, "yes" if p.feasible else "no", *(p.scores[name] for name in names)]
        for p in points
    ]
    return ["scale", "objective", "feasible", *names], rows


def report_choice(choice: Choice, build: Build, tasks: Sequence[Task]) -> dict[str, float]:
    """The test scores of the model at the chosen scale, by task name: built and scored once.

    Raises:
        UsageError: ``choice`` does not come from a search.

    >>> task = Task("t", lambda model, split: 0.5 if split == "test" else 1.0)
    >>> report_choice(search_addition(lambda s: {}, [task], {"t": 1.0}), lambda s: {}, [task])
    {'t': 0.5}
    """
    if not isinstance(choice, Choice):
        raise UsageError(f"test is for a finished search, not for a {type(choice).__name__}")
    return evaluate(build(choice.scale), tasks, "test")


def normalised(scores: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Mean over the tasks in ``scores`` of ``score / individual``.

    Raises:
        UsageError: a task without an individual accuracy.
        ValueProblem: an individual accuracy that is not above 0; the message names the task.

    >>> normalised({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9})
    0.75
    """
    if not scores:
        raise UsageError("a mean over no tasks has no meaning")
    ratios = [score / check_individual(name, individual) for name, score in scores.items()]
    return math.fsum(ratios) / len(ratios)


def check_individual(name: str, individual: Mapping[str, float]) -> float:
    """What the task's own fine-tuned model scores, which must be there and above 0."""
    if name not in individual:
        hint = nearest(name, individual)
        raise UsageError(f"task {name!r} has no accuracy of its own fine-tuned model; {hint}")
    value = individual[name]
    if not (math.isfinite(value) and value > 0):
        raise ValueProblem(
            f"the fine-tuned model of task {name!r} scores {value}, which nothing can be "
            "normalised by; check that model or leave the task out"
        )
    return value


def check_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """The scales to try; they must be finite, and each be there once (UsageError)."""
    scales = tuple(float(scale) for scale in grid)
    if not scales or not all(math.isfinite(scale) for scale in scales):
        raise UsageError(f"the grid {list(grid)} needs one finite scale or more")
    if len(set(scales)) < len(scales):
        raise UsageError(f"the grid {list(grid)} names a scale twice")
    return scales
