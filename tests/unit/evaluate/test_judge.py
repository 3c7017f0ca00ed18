"""The four questions put to a collection, on tasks whose answers are known by arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError
from taskbasis.evaluate import GRID, Effort, Task, judge, measure, reference_rows
from taskbasis.evaluate.judge import (
    COARSE,
    draw_subsets,
    judge_addition,
    judge_left_out,
    judge_negation,
    judge_recovery,
    judge_subsets,
)
from taskbasis.report import Report

LOSS = 0.01  # what the synthetic tasks lose on test


def values(rows):
    return {row.metric: row.value for row in rows}


def test_the_yardstick_holds_both_splits(world):
    yardstick = world.yardstick(seed=3)
    assert yardstick.base["validation"] == {**dict.fromkeys("abcd", 0.5), "control": 1.0}
    assert yardstick.base["test"]["a"] == pytest.approx(0.5 - LOSS)
    assert yardstick.individual["validation"] == dict.fromkeys("abcd", 1.0)
    assert yardstick.individual["test"]["d"] == pytest.approx(1 - LOSS)
    assert yardstick.seed == 3
    assert [task.name for task in yardstick.pick("ca")] == ["c", "a"]
    with pytest.raises(UsageError, match="no task 'z'"):
        yardstick.pick("az")


def test_a_task_without_a_tuned_model_is_named(world):
    with pytest.raises(UsageError, match="task 'a' has no tuned model; did you mean 'aa'"):
        measure({"w": world.base}, {"aa": {"w": world.base}}, world.tasks, world.control, 0)


def test_adding_everything_finds_the_best_scale_and_reports_test(world):
    rows = judge_addition(world.full(), world.yardstick(), "full")
    assert values(rows) == pytest.approx({"addition accuracy": 1 - LOSS, "addition normalised": 1})
    for row in rows:
        assert (row.method, row.split, row.n, row.seed) == ("full", "test", 4, 0)
        assert row.storage_bytes == 4 * 4 * 4
        assert row.extras["scale"] == 1.0


def test_adding_a_basis_uses_its_own_addition(world):
    rows = judge_addition(world.half(), world.yardstick(), "half")
    half = (2 * 1.0 + 2 * 0.5) / 4 - LOSS
    assert values(rows)["addition accuracy"] == pytest.approx(half)
    assert rows[0].storage_bytes == 2 * 4 * 4


def test_subsets_are_judged_on_their_own_tasks_alone(world):
    effort = Effort(per_size=100)
    rows = judge_subsets(world.full(), world.yardstick(), "full", effort)
    assert values(rows) == pytest.approx({"subset accuracy": 1 - LOSS, "subset normalised": 1})
    assert {row.n for row in rows} == {6 + 4}  # all pairs, all triples
    rows = judge_subsets(world.half(), world.yardstick(), "half", effort)
    kept = [
        sum(name in "ab" for name in names) / len(names) for names in draw_subsets("abcd", 9, 0)
    ]
    expected = np.mean([0.5 + 0.5 * share for share in kept]) - LOSS
    assert values(rows)["subset accuracy"] == pytest.approx(expected)


def test_too_few_tasks_have_no_subsets(world):
    collection = world.full()
    object.__setattr__(collection, "names", ("a", "b"))
    assert judge_subsets(collection, world.yardstick(), "two", Effort()) == []


def test_negation_forgets_each_task_and_keeps_the_control(world):
    rows = judge_negation(world.full(), world.yardstick(), "full", Effort())
    # 0.3 s^2 <= 0.05 allows 0.4 on the coarse grid
    assert values(rows) == pytest.approx(
        {"negation target": 0.5 - 0.2 - LOSS, "negation control": 1 - 0.3 * 0.16}
    )
    assert rows[0].extras["scale"] == pytest.approx(0.4)
    assert rows[0].n == 4


def test_negating_what_the_basis_dropped_does_nothing(world):
    rows = judge_negation(world.half(), world.yardstick(), "half", Effort())
    assert values(rows)["negation target"] == pytest.approx((2 * 0.3 + 2 * 0.5) / 4 - LOSS)
    assert rows[0].extras["scale"] == pytest.approx(0.2)


def test_keep_sets_how_far_negation_goes(world):
    rows = judge_negation(world.full(), world.yardstick(), "full", Effort(GRID, GRID, keep=0.7))
    assert values(rows)["negation target"] == pytest.approx(-LOSS)


def test_recovery_takes_each_task_at_scale_one(world):
    rows = judge_recovery(world.half(), world.yardstick(), "half")
    expected = np.mean([1, 1, (0.5 - LOSS) / (1 - LOSS), (0.5 - LOSS) / (1 - LOSS)])
    assert values(rows)["recovery normalised"] == pytest.approx(expected)
    assert "scale" not in rows[0].extras


def test_left_out_tasks_are_scored_by_their_projection(world):
    asked = []

    def project(name):
        asked.append(name)
        return {"w": world.base + 0.5 * world.vectors["abcd".index(name)]}

    rows = judge_left_out(project, world.half(), world.yardstick(), "half")
    assert asked == list("abcd")
    assert values(rows)["left-out accuracy"] == pytest.approx(0.75 - LOSS)


def test_judge_asks_all_that_needs_no_refit(world):
    rows = judge(world.full(), world.yardstick(seed=5), "full", Effort(per_size=1))
    assert [row.metric for row in rows] == [
        "addition accuracy",
        "addition normalised",
        "subset accuracy",
        "subset normalised",
        "negation target",
        "negation control",
        "recovery accuracy",
        "recovery normalised",
    ]
    assert {row.seed for row in rows} == {5}
    assert rows == judge(world.full(), world.yardstick(seed=5), "full", Effort(per_size=1))


def test_a_search_inside_judging_never_sees_test(world):
    """Models built at a scale that was not chosen are scored on validation only."""
    seen = {"validation": 0, "test": 0}

    def counting(task):
        def score(model, split):
            seen[split] += 1
            return task.score(model, split)

        return Task(task.name, score)

    world.tasks = [counting(task) for task in world.tasks]
    yardstick = world.yardstick()
    seen.update(validation=0, test=0)
    judge_addition(world.full(), yardstick, "full", COARSE)
    assert seen == {"validation": 4 * len(COARSE), "test": 4}
    seen.update(validation=0, test=0)
    judge_negation(world.full(), yardstick, "full", Effort())
    assert seen == {"validation": 4 * len(COARSE), "test": 4}


def test_a_collection_of_unknown_tasks_is_refused(world):
    collection = world.full()
    object.__setattr__(collection, "names", ("a", "b", "c", "e"))
    with pytest.raises(UsageError, match="no task 'e'"):
        judge(collection, world.yardstick(), "odd")


def test_references_stand_beside_the_methods(world):
    report = Report(reference_rows(world.yardstick(), 64))
    found = {(row.method, row.metric): row for row in report.rows}
    assert found["base", "addition accuracy"].value == pytest.approx(0.5 - LOSS)
    assert found["base", "addition accuracy"].storage_bytes == 0
    assert found["base", "negation control"].value == 1.0
    assert found["individual models", "addition normalised"].value == pytest.approx(1.0)
    assert found["individual models", "recovery accuracy"].storage_bytes == 64
    assert ("individual models", "negation target") not in found


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 1000))
def test_subsets_are_different_ordered_and_seeded(count, per_size, seed):
    names = [f"t{number}" for number in range(count)]
    subsets = draw_subsets(names, per_size, seed)
    assert subsets == draw_subsets(names, per_size, seed)
    assert len(set(subsets)) == len(subsets)
    for size in range(2, count):
        of_size = [subset for subset in subsets if len(subset) == size]
        assert len(of_size) == min(per_size, math.comb(count, size))
    for subset in subsets:
        assert list(subset) == sorted(subset, key=names.index)
        assert 2 <= len(subset) < count


def test_another_seed_draws_other_subsets():
    names = [f"t{number}" for number in range(9)]
    assert draw_subsets(names, 3, 0) != draw_subsets(names, 3, 1)
