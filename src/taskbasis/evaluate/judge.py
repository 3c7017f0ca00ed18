"""Judging a collection of task vectors where it earns its storage, in any framework.

For the uniform sum of all tasks one stored vector is lossless, so it says little about a basis.
What is asked here, each with its scale chosen on validation and reported on test:

- **addition**: all tasks at once, as the collection adds (its atoms, or all vectors);
- **subset**: sums of random subsets, every size from 2 to T - 1;
- **negation**: each task alone is forgotten, the control task is kept;
- **recovery**: each task alone, at scale 1;
- **left-out**: a task that the collection was fitted without, projected onto it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from taskbasis.evaluate.search import (
    GRID,
    Choice,
    report_choice,
    search_addition,
    search_negation,
)
from taskbasis.evaluate.task import Model, checked_score
from taskbasis.evaluate.yardstick import Rows, Yardstick, mean
from taskbasis.report import Row

COARSE: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""A grid for the many small searches: fine where sums and negations have their best."""


class Collection(Protocol):
    """What stands in for T task vectors: all of them, or a basis."""

    @property
    def names(self) -> Sequence[str]:
        """The tasks."""

    @property
    def storage_bytes(self) -> int:
        """What has to be kept on the disk."""

    def combine(self, weights: Mapping[str, float]) -> Model:
        """``base + sum_t weights[t] * tau_hat_t``: recovered vectors of the tasks named."""

    def add(self, scale: float) -> Model:
        """``base + scale * sum``, the sum being whatever adding the collection means."""


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        grid: scales for the addition of all tasks.
        coarse: scales for each subset and each negation.
        per_size: subsets of every size.
        keep: the share of the base's control accuracy that a negation keeps.
    """

    grid: Sequence[float] = GRID
    coarse: Sequence[float] = COARSE
    per_size: int = 2
    keep: float = 0.95


def draw_subsets(names: Sequence[str], per_size: int, seed: int) -> list[tuple[str, ...]]:
    """Different random subsets of every size from 2 to T - 1, names in their order.

    Where there are no more than ``per_size`` subsets of a size, all of them.

    >>> draw_subsets(["a", "b", "c"], 3, seed=0)
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    found: list[tuple[str, ...]] = []
    for size in range(2, len(names)):
        if math.comb(len(names), size) <= per_size:
            found += itertools.combinations(names, size)
            continue
        rng = np.random.default_rng([seed, size])
        drawn: dict[tuple[str, ...], None] = {}
        while len(drawn) < per_size:
            places = sorted(rng.choice(len(names), size, replace=False))
            drawn[tuple(names[place] for place in places)] = None
        found += drawn
    return found


def judge(
    collection: Collection, yardstick: Yardstick, method: str, effort: Effort | None = None
) -> list[Row]:
    """Rows of addition, subset, negation and recovery for one collection.

    Args:
        collection: what is judged.
        yardstick: what it is held against.
        method: how the rows call it.
        effort: how much is tried.

    Raises:
        UsageError: the collection names a task that the yardstick has not.
    """
    effort = effort or Effort()
    return [
        *judge_addition(collection, yardstick, method, effort.grid),
        *judge_subsets(collection, yardstick, method, effort),
        *judge_negation(collection, yardstick, method, effort),
        *judge_recovery(collection, yardstick, method),
    ]


def judge_addition(
    collection: Collection, yardstick: Yardstick, method: str, grid: Sequence[float] = GRID
) -> list[Row]:
    """``addition accuracy`` and ``addition normalised``: means over the tasks."""
    choice, scores = _added(collection.add, yardstick, collection.names, grid)
    rows = Rows(method, collection.storage_bytes, yardstick)
    return rows.accuracies("addition", [scores], len(scores), {"scale": choice.scale})


def judge_subsets(
    collection: Collection, yardstick: Yardstick, method: str, effort: Effort
) -> list[Row]:
    """``subset accuracy`` and ``subset normalised``: means over the subsets; none if T < 3."""
    subsets = draw_subsets(collection.names, effort.per_size, yardstick.seed)
    if not subsets:
        return []
    outcomes = []
    for names in subsets:

        def build(scale: float, names: Sequence[str] = names) -> Model:
            return collection.combine(dict.fromkeys(names, scale))

        outcomes.append(_added(build, yardstick, names, effort.coarse))
    rows = Rows(method, collection.storage_bytes, yardstick)
    extras = {"scale": mean([choice.scale for choice, _ in outcomes])}
    return rows.accuracies("subset", [scores for _, scores in outcomes], len(subsets), extras)


def judge_negation(
    collection: Collection, yardstick: Yardstick, method: str, effort: Effort
) -> list[Row]:
    """``negation target`` (lower is better) and ``negation control``: means over the tasks."""
    control = yardstick.control
    kept = yardstick.base["validation"][control.name]
    targets, controls, scales = [], [], []
    for target in yardstick.pick(collection.names):

        def build(scale: float, name: str = target.name) -> Model:
            return collection.combine({name: -scale})

        choice = search_negation(build, target, control, kept, effort.coarse, effort.keep)
        scores = report_choice(choice, build, [target, control])
        targets.append(scores[target.name])
        controls.append(scores[control.name])
        scales.append(choice.scale)
    rows = Rows(method, collection.storage_bytes, yardstick)
    extras = {"scale": mean(scales)}
    return [
        rows.row("negation target", mean(targets), len(targets), extras),
        rows.row("negation control", mean(controls), len(controls), extras),
    ]


def judge_recovery(collection: Collection, yardstick: Yardstick, method: str) -> list[Row]:
    """``recovery accuracy`` and ``recovery normalised``: each task at scale 1, nothing chosen."""

    def recovered(name: str) -> Model:
        return collection.combine({name: 1.0})

    return _single(recovered, collection, yardstick, method, "recovery")


def judge_left_out(
    project: Callable[[str], Model], collection: Collection, yardstick: Yardstick, method: str
) -> list[Row]:
    """``left-out accuracy`` and ``left-out normalised``: tasks the collection has not seen.

    Args:
        project: for a task, the base plus its vector projected onto a collection that was fitted
            without it; nothing is chosen.
        collection: its names and storage.
        yardstick: what it is held against.
        method: how the rows call it.
    """
    return _single(project, collection, yardstick, method, "left-out")


def _added(
    build: Callable[[float], Model],
    yardstick: Yardstick,
    names: Sequence[str],
    grid: Sequence[float],
) -> tuple[Choice, dict[str, float]]:
    tasks = yardstick.pick(names)
    choice = search_addition(build, tasks, yardstick.individual["validation"], grid)
    return choice, report_choice(choice, build, tasks)


def _single(
    build: Callable[[str], Model],
    collection: Collection,
    yardstick: Yardstick,
    method: str,
    kind: str,
) -> list[Row]:
    tasks = yardstick.pick(collection.names)
    scores = {task.name: checked_score(task, build(task.name), "test") for task in tasks}
    rows = Rows(method, collection.storage_bytes, yardstick)
    return rows.accuracies(kind, [scores], len(scores), {})
