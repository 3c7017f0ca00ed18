"""A task is a name and a number; what is no number is refused."""

import math

import numpy as np
import pytest

from taskbasis.errors import UsageError, ValueProblem
from taskbasis.evaluate import Task, evaluate
from taskbasis.evaluate.task import pick_tasks


def test_every_task_is_scored_once_on_the_split_that_was_asked_for():
    calls = []

    def score(model, split):
        calls.append((model["w"].item(), split))
        return 0.25

    model = {"w": np.array(3.0)}
    assert evaluate(model, [Task("a", score), Task("b", score)], "test") == {"a": 0.25, "b": 0.25}
    assert calls == [(3.0, "test"), (3.0, "test")]


def test_scores_come_back_as_plain_floats_in_the_order_of_the_tasks():
    tasks = [Task("b", lambda m, s: np.float32(0.5)), Task("a", lambda m, s: True)]
    scores = evaluate({}, tasks, "validation")
    assert list(scores.items()) == [("b", 0.5), ("a", 1.0)]
    assert all(type(score) is float for score in scores.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_by_name(bad):
    tasks = [Task("fine", lambda m, s: 1.0), Task("parity", lambda m, s: bad)]
    with pytest.raises(ValueProblem, match=r"'parity' scored (nan|inf|-inf) on validation"):
        evaluate({}, tasks, "validation")


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two tasks are named 'a'"):
        evaluate({}, [Task("a", lambda m, s: 1.0)] * 2, "test")


def test_no_tasks_give_no_scores():
    assert evaluate({}, [], "test") == {}


def test_tasks_are_picked_in_the_order_of_the_names():
    tasks = [Task(name, lambda m, s: 0.0) for name in ("a", "b", "c")]
    assert pick_tasks(tasks, iter(["c", "a"])) == [tasks[2], tasks[0]]
    with pytest.raises(UsageError, match="no task 'd'"):
        pick_tasks(tasks, ["a", "d"])


def test_a_task_cannot_be_changed():
    with pytest.raises(AttributeError):
        Task("a", lambda m, s: 0.0).name = "b"  # type: ignore[misc]


def test_importing_the_package_costs_nothing_beyond_numpy(loaded_by):
    rooms = "taskbasis.evaluate, taskbasis.report, taskbasis.plot, taskbasis.suites.digits"
    heavy = {"torch", "transformers", "sklearn", "matplotlib", "scipy", "optuna"}
    assert loaded_by(f"import {rooms}").isdisjoint(heavy)
