"""A coefficient for every vector, chosen on validation by Optuna and reported on test.

The two steps are kept apart as in :mod:`taskbasis.evaluate.search`: what tunes sees validation
alone, and what reports takes a finished :class:`Tuned`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from taskbasis import notebook
from taskbasis.errors import UsageError, require
from taskbasis.evaluate.search import check_individual, normalised
from taskbasis.evaluate.task import Model, Task, evaluate

UNIFORM: tuple[float, ...] = (0.3, 0.6, 1.0, 0.1)
"""Where tuning starts: one coefficient for all vectors, at these shares of the bounds."""

TRIALS = 60
"""Models that are built and scored, unless said otherwise."""

BuildEach = Callable[[Mapping[str, float]], Model]
"""Gives the model at a coefficient for every vector, by name; called once per trial."""


@dataclass(frozen=True)
class Trial:
    """One trial, measured on validation.

    Attributes:
        coefficients: by vector.
        objective: what is maximised.
        scores: the score of each task.
    """

    coefficients: Mapping[str, float]
    objective: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Tuned:
    """What tuning chose on validation; :func:`report_tuned` takes it to test.

    Attributes:
        coefficients: the best trial's, by vector; the first of equals.
        score: its objective on validation.
        trials: all of them, in order.
        seed: what they were drawn by.
    """

    coefficients: Mapping[str, float]
    score: float
    trials: tuple[Trial, ...]
    seed: int

    def _repr_html_(self) -> str:
        title = f"chosen of {len(self.trials)} trials on validation (objective {self.score:.4f})"
        names = list(self.coefficients)
        tasks = list(self.trials[0].scores)
        best = sorted(self.trials, key=lambda trial: -trial.objective)
        rows = [
            [*(t.coefficients[n] for n in names), t.objective, *(t.scores[n] for n in tasks)]
            for t in best
        ]
        return notebook.table(title, [*names, "objective", *tasks], rows)


def tune_addition(
    build: BuildEach,
    names: Sequence[str],
    tasks: Sequence[Task],
    individual: Mapping[str, float],
    *,
    trials: int = TRIALS,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tuned:
    """A coefficient for every vector, maximising ``mean over tasks of accuracy / individual``.

    The first trials take one coefficient for all vectors (0.3, 0.6, 1 and 0.1 of the way between
    the bounds), so that tuning starts from what one scale could do. The others are proposed by the
    multivariate tree-structured Parzen estimator of Optuna. The same seed gives the same trials
    for the same scores and release of Optuna.

    Args:
        build: the model at coefficients by name; called once per trial.
        names: of the vectors.
        tasks: what is to be good at once; scored on validation only.
        individual: validation accuracy of each task's own fine-tuned model.
        trials: how many models are built and scored.
        seed: of the proposals.
        bounds: the least and the largest coefficient.

    Raises:
        UsageError: no names or tasks, unusable bounds or seed, or fewer than one trial.
        ValueProblem: a score that is not finite.
        MissingExtraError: Optuna is not installed.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.

    >>> task = Task("t", lambda model, split: 1 - (model["a"] - 0.6) ** 2 - model["b"] ** 2)
    >>> found = tune_addition(dict, ["a", "b"], [task], {"t": 1.0}, trials=40)
    >>> found.score > 0.99, found == tune_addition(dict, ["a", "b"], [task], {"t": 1.0}, trials=40)
    (True, True)
    """
    optuna = check_tuning(trials, seed, bounds)
    low, high = map(float, bounds)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"tuning needs vectors with a name each, not {list(names)}")
    if not tasks:
        raise UsageError("a search needs at least one task")
    for task in tasks:
        check_individual(task.name, individual)
    done: list[Trial] = []
    with _quiet(optuna):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for share in UNIFORM[:trials]:
            study.enqueue_trial(dict.fromkeys(names, low + share * (high - low)))
        for _ in range(trials):
            asked = study.ask()
            chosen = {name: float(asked.suggest_float(name, low, high)) for name in names}
            scores = evaluate(build(chosen), tasks, "validation")
            done.append(Trial(chosen, normalised(scores, individual), scores))
            study.tell(asked, done[-1].objective)
    best = max(done, key=lambda trial: trial.objective)  # the first of equals
    return Tuned(best.coefficients, best.objective, tuple(done), seed)


def check_tuning(trials: int, seed: int, bounds: tuple[float, float]) -> Any:
    """Optuna, once the options mean something: what can be refused before anything is scored.

    Raises:
        UsageError: unusable bounds or seed, or fewer than one trial.
        MissingExtraError: Optuna is not installed.
    """
    low, high = map(float, bounds)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"the bounds {low:g} and {high:g} leave nothing to choose between")
    if trials < 1:
        raise UsageError(f"{trials} trials try nothing; use at least 1")
    if not 0 <= seed < 2**32:
        raise UsageError(f"a seed of {seed} draws nothing; use a number from 0 to {2**32 - 1}")
    return require("optuna", "search", "tuning a coefficient for every vector")


def report_tuned(tuned: Tuned, build: BuildEach, tasks: Sequence[Task]) -> dict[str, float]:
    """The test scores at the chosen coefficients, by task name: built and scored once.

    Raises:
        UsageError: ``tuned`` does not come from tuning.
    """
    if not isinstance(tuned, Tuned):
        raise UsageError(f"test is for a finished search, not for a {type(tuned).__name__}")
    return evaluate(build(tuned.coefficients), tasks, "test")


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna without its line for every trial; put back as it was after."""
    level = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        yield
    finally:
        optuna.logging.set_verbosity(level)
