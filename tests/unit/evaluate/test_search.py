"""The rules of the search, and that it cannot see the test split."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError, ValueProblem
from taskbasis.evaluate import GRID, Choice, Task, report_choice, search_addition, search_negation
from taskbasis.evaluate.search import normalised


def at(scale):
    return {"scale": np.float64(scale)}


def blind(name, function):
    """A task that fails the test when anyone asks for the test split."""

    def score(model, split):
        assert split == "validation", "a search looked at the test split"
        return function(float(model["scale"]))

    return Task(name, score)


def table(name, values, grid=GRID):
    """A task with the given score at each grid point."""
    known = dict(zip(grid, values, strict=True))
    return blind(name, lambda scale: known[scale])


def test_the_grid_is_the_official_one_in_exact_decimals():
    assert len(GRID) == 21
    assert [str(scale) for scale in GRID[:4]] == ["0.0", "0.05", "0.1", "0.15"]
    assert GRID[-1] == 1.0
    assert all(float(f"{i / 20:.2f}") == scale for i, scale in enumerate(GRID))


def test_addition_maximises_the_mean_normalised_accuracy_on_validation():
    a = blind("a", lambda s: 0.5 + s / 10)
    b = blind("b", lambda s: 0.9 - abs(s - 0.4))
    choice = search_addition(at, [a, b], {"a": 0.6, "b": 0.9})
    curve = [((0.5 + s / 10) / 0.6 + (0.9 - abs(s - 0.4)) / 0.9) / 2 for s in GRID]
    assert choice.scale == GRID[int(np.argmax(curve))] == 0.4
    assert [point.scale for point in choice.points] == list(GRID)
    np.testing.assert_allclose([point.objective for point in choice.points], curve)
    assert choice.score == max(point.objective for point in choice.points)
    assert choice.points[3].scores == {"a": 0.5 + GRID[3] / 10, "b": 0.9 - abs(GRID[3] - 0.4)}


def test_normalising_changes_the_choice():
    easy = blind("easy", lambda s: 0.9 - 0.2 * s)  # loses more in absolute terms
    hard = blind("hard", lambda s: 0.1 + 0.1 * s)  # gains more relative to its own model
    choice = search_addition(at, [easy, hard], {"easy": 0.9, "hard": 0.2})
    assert choice.scale == 1.0


def test_the_first_of_equal_maxima_wins():
    values = [0.1] * 21
    values[5] = values[9] = values[20] = 0.7
    assert search_addition(at, [table("a", values)], {"a": 1.0}).scale == GRID[5]


def test_the_first_in_grid_order_wins_even_in_a_falling_grid():
    choice = search_addition(at, [blind("a", lambda s: 0.5)], {"a": 1.0}, [0.8, 0.4, 0.0])
    assert choice.scale == 0.8


def test_nothing_above_zero_leaves_scale_zero():
    choice = search_addition(at, [blind("a", lambda s: 0.0)], {"a": 1.0}, [0.5, 1.0])
    assert (choice.scale, choice.score) == (0.0, 0.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=21, max_size=21))
def test_addition_is_a_loop_with_strict_improvement_over_zero(values):
    best_scale, best = 0.0, 0.0
    for scale, value in zip(GRID, values, strict=True):
        if value > best:
            best_scale, best = scale, value
    choice = search_addition(at, [table("a", values)], {"a": 1.0})
    assert (choice.scale, choice.score) == (best_scale, best)


def test_the_model_is_built_once_per_grid_point():
    built = []

    def build(scale):
        built.append(scale)
        return at(scale)

    tasks = [blind(name, lambda s: s) for name in "abc"]
    search_addition(build, tasks, dict.fromkeys("abc", 1.0), [0.0, 0.5, 1.0])
    search_negation(build, tasks[0], tasks[1], 1.0, [0.0, 0.25])
    assert built == [0.0, 0.5, 1.0, 0.0, 0.25]


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_an_individual_accuracy_that_cannot_divide_is_an_error_naming_the_task(bad):
    with pytest.raises(ValueProblem, match="'b' scores"):
        search_addition(at, [blind("a", abs), blind("b", abs)], {"a": 1.0, "b": bad})


def test_a_missing_individual_accuracy_is_an_error_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"'parity' has no accuracy.*did you mean 'party'"):
        search_addition(at, [blind("parity", abs)], {"party": 1.0})


def test_faults_are_found_before_anything_is_built():
    def build(scale):
        raise AssertionError("built in vain")

    task = blind("a", abs)
    for call in (
        lambda: search_addition(build, [], {}),
        lambda: search_addition(build, [task], {}),
        lambda: search_addition(build, [task], {"a": 1.0}, []),
        lambda: search_addition(build, [task], {"a": 1.0}, [0.1, 0.1]),
        lambda: search_addition(build, [task], {"a": 1.0}, [math.nan]),
        lambda: search_negation(build, task, task, 1.0, keep=1.5),
        lambda: search_negation(build, task, task, 1.0, []),
    ):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(ValueProblem, match="the base's accuracy on 'a' is nan"):
        search_negation(build, task, task, math.nan)


def test_negation_minimises_the_target_where_the_control_is_kept():
    target = blind("target", lambda s: 0.9 - 0.5 * s)
    control = blind("control", lambda s: 1.0 - 0.2 * s**2)
    choice = search_negation(at, target, control, 1.0)
    assert choice.scale == 0.5  # 0.2 * 0.25 = 0.05 is the last that keeps 95 %
    assert choice.score == pytest.approx(0.65)
    assert [point.feasible for point in choice.points] == [scale <= 0.5 for scale in GRID]


def test_the_first_of_equal_minima_wins():
    control = blind("control", lambda s: 1.0)
    target = blind("target", lambda s: 0.3 if s >= 0.25 else 0.8)
    assert search_negation(at, target, control, 1.0).scale == 0.25


def test_negation_stays_at_zero_when_nothing_else_is_feasible():
    target, control = blind("target", lambda s: 1 - s), blind("control", lambda s: 0.2)
    choice = search_negation(at, target, control, 1.0)
    assert (choice.scale, choice.score) == (0.0, 1.0)
    assert choice.points[0].feasible


def test_scale_zero_is_tried_even_if_the_grid_leaves_it_out():
    target, control = blind("target", lambda s: 0.5 + s), blind("control", lambda s: 1.0)
    choice = search_negation(at, target, control, 1.0, [0.5, 1.0])
    assert choice.scale == 0.0
    assert [point.scale for point in choice.points] == [0.0, 0.5, 1.0]


@given(
    st.lists(st.integers(0, 4), min_size=21, max_size=21),
    st.lists(st.integers(0, 4), min_size=21, max_size=21),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_negation_is_a_loop_over_feasible_points(targets, controls, keep):
    best_scale, best = 0.0, targets[0] / 4
    for scale, target, control in zip(GRID, targets, controls, strict=True):
        if control / 4 >= keep * 0.75 and target / 4 < best:
            best_scale, best = scale, target / 4
    target = table("target", [value / 4 for value in targets])
    control = table("control", [value / 4 for value in controls])
    choice = search_negation(at, target, control, 0.75, keep=keep)
    assert (choice.scale, choice.score) == (best_scale, best)


def test_a_choice_is_scored_once_on_test():
    calls = []

    def build(scale):
        calls.append(scale)
        return at(scale)

    def score(model, split):
        calls.append(split)
        return float(model["scale"]) / (2 if split == "test" else 1)

    task = Task("a", score)
    choice = search_addition(build, [task], {"a": 1.0}, [0.0, 0.6])
    calls.clear()
    assert report_choice(choice, build, [task]) == {"a": 0.3}
    assert calls == [0.6, "test"]


@pytest.mark.parametrize("forged", [0.3, None, (0.3, 1.0, ())])
def test_only_a_finished_search_reaches_test(forged):
    def build(scale):
        raise AssertionError("test was reached without a search")

    with pytest.raises(UsageError, match="finished search"):
        report_choice(forged, build, [])


def test_no_function_that_selects_takes_a_split():
    for function in (search_addition, search_negation):
        assert "split" not in inspect.signature(function).parameters


def test_a_choice_is_frozen_and_a_nan_stops_the_search():
    choice = Choice(0.1, 0.5, ())
    with pytest.raises(AttributeError):
        choice.scale = 0.2  # type: ignore[misc]
    with pytest.raises(ValueProblem, match="'a' scored nan on validation"):
        search_addition(at, [blind("a", lambda s: math.nan)], {"a": 1.0})


def test_normalised_needs_tasks():
    assert normalised({"a": 0.5}, {"a": 1.0, "unused": 0.0}) == 0.5
    with pytest.raises(UsageError, match="no tasks"):
        normalised({}, {})
