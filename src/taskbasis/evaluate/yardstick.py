"""What single models score, and rows that hold methods against them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskbasis.errors import UsageError, nearest
from taskbasis.evaluate.search import normalised
from taskbasis.evaluate.task import Model, Split, Task, checked_score, evaluate, pick_tasks
from taskbasis.report import BASE, INDIVIDUAL, Extra, Row


@dataclass(frozen=True)
class Yardstick:
    """What single models score: what everything else is held against.

    Attributes:
        tasks: the T tasks.
        control: what negation must keep.
        base: per split, the base's score on every task and on the control.
        individual: per split, every task's score by its own fine-tuned model.
        seed: of the models and of what is drawn while judging.
    """

    tasks: Sequence[Task]
    control: Task
    base: Mapping[Split, Mapping[str, float]]
    individual: Mapping[Split, Mapping[str, float]]
    seed: int

    def pick(self, names: Sequence[str]) -> list[Task]:
        """The tasks of those names, in that order.

        Raises:
            UsageError: there is no such task; the message names the nearest.
        """
        return pick_tasks(self.tasks, names)


def measure(
    base: Model, tuned: Mapping[str, Model], tasks: Sequence[Task], control: Task, seed: int
) -> Yardstick:
    """Score the base and the fine-tuned models once on either split.

    Args:
        base: tensors of the base.
        tuned: tensors of every task's own fine-tuned model, by task name.
        tasks: the tasks.
        control: what negation must keep.
        seed: of the models.

    Raises:
        UsageError: a task without a fine-tuned model.
    """
    for task in tasks:
        if task.name not in tuned:
            raise UsageError(f"task {task.name!r} has no tuned model; {nearest(task.name, tuned)}")
    splits: tuple[Split, ...] = ("validation", "test")
    return Yardstick(
        tuple(tasks),
        control,
        {split: evaluate(base, [*tasks, control], split) for split in splits},
        {
            split: {task.name: checked_score(task, tuned[task.name], split) for task in tasks}
            for split in splits
        },
        seed,
    )


def reference_rows(yardstick: Yardstick, storage_bytes: int) -> list[Row]:
    """Rows of the untouched base and of the individual models, to stand beside the methods.

    Args:
        yardstick: their scores.
        storage_bytes: what the T fine-tuned models take; the base takes none beyond itself.
    """
    names = [task.name for task in yardstick.tasks]
    base = {name: yardstick.base["test"][name] for name in names}
    own = dict(yardstick.individual["test"])
    low, high = Rows(BASE, 0, yardstick), Rows(INDIVIDUAL, storage_bytes, yardstick)
    kept = yardstick.base["test"][yardstick.control.name]
    rows = low.accuracies("addition", [base], len(names), {})
    rows += [
        low.row("negation target", mean(list(base.values())), len(names), {}),
        low.row("negation control", kept, len(names), {}),
    ]
    for kind in ("recovery", "left-out"):
        rows += low.accuracies(kind, [base], len(names), {})
    for kind in ("addition", "recovery"):
        rows += high.accuracies(kind, [own], len(names), {})
    return rows


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one method, all measured on test."""

    method: str
    storage_bytes: int
    yardstick: Yardstick

    def row(self, metric: str, value: float, n: int, extras: Mapping[str, Extra]) -> Row:
        """One number, the mean of ``n``."""
        seed = self.yardstick.seed
        return Row(self.method, self.storage_bytes, metric, value, n, seed, "test", extras=extras)

    def accuracies(
        self, kind: str, groups: Sequence[Mapping[str, float]], n: int, extras: Mapping[str, Extra]
    ) -> list[Row]:
        """``KIND accuracy`` and ``KIND normalised``: the mean over groups of means over tasks."""
        own = self.yardstick.individual["test"]
        plain = mean([mean(list(scores.values())) for scores in groups])
        ratio = mean([normalised(scores, own) for scores in groups])
        return [
            self.row(f"{kind} accuracy", plain, n, extras),
            self.row(f"{kind} normalised", ratio, n, extras),
        ]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, summed exactly."""
    return math.fsum(values) / len(values)
