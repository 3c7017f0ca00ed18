"""A number for a model: the one thing that taskbasis asks of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from taskbasis.errors import UsageError, ValueProblem, nearest

Split = Literal["validation", "test"]
"""Coefficients are chosen on ``validation``; ``test`` is for reporting alone."""

Model = Mapping[str, NDArray[Any]]
"""The named tensors of a model, as NumPy arrays."""


@dataclass(frozen=True)
class Task:
    """A name, and a callable giving a number for a model on a named split.

    Attributes:
        name: how reports and errors call it.
        score: ``score(model, split)``, higher is better, such as an accuracy from 0 to 1.
        problem: ``problem(folder)`` is a :class:`taskbasis.learn.Problem`: the model of a folder
            with the task's frozen head and training data; None for a task that only scores.

    >>> task = Task("mean", lambda model, split: float(model["w"].mean()))
    >>> import numpy as np
    >>> task.score({"w": np.array([1.0, 2.0])}, "validation")
    1.5
    """

    name: str
    score: Callable[[Model, Split], float]
    problem: Callable[[Path], Any] | None = None


def evaluate(model: Model, tasks: Iterable[Task], split: Split) -> dict[str, float]:
    """The score of every task for one model on one split, by task name.

    Raises:
        ValueProblem: a score is NaN or infinite; the message names the task.
        UsageError: two tasks have the same name.

    >>> evaluate({}, [Task("a", lambda m, s: 0.5), Task("b", lambda m, s: 1)], "test")
    {'a': 0.5, 'b': 1.0}
    """
    scores: dict[str, float] = {}
    for task in tasks:
        if task.name in scores:
            raise UsageError(f"two tasks are named {task.name!r}; give each its own name")
        scores[task.name] = checked_score(task, model, split)
    return scores


def pick_tasks(tasks: Sequence[Task], names: Iterable[str]) -> list[Task]:
    """The tasks of those names, in the order of the names.

    Raises:
        UsageError: there is no such task; the message names the nearest.

    >>> tasks = [Task("parity", lambda m, s: 0.0), Task("prime", lambda m, s: 0.0)]
    >>> pick_tasks(tasks, ["prim"])
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: no task 'prim'; did you mean 'prime'?
    """
    known = {task.name: task for task in tasks}
    for name in (names := list(names)):
        if name not in known:
            raise UsageError(f"no task {name!r}; {nearest(name, known)}")
    return [known[name] for name in names]


def checked_score(task: Task, model: Model, split: Split) -> float:
    """One task's score as a float.

    Raises:
        ValueProblem: it is NaN or infinite; the message names the task.
    """
    score = float(task.score(model, split))
    if not math.isfinite(score):
        raise ValueProblem(
            f"task {task.name!r} scored {score} on {split}; look for NaN in the model's tensors, "
            "or for an empty split"
        )
    return score
