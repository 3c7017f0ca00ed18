"""The comparison of granularities: pairing, cases and designs, without any training."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taskbasis.demo import InMemory
from taskbasis.evaluate import Effort, Task, Yardstick, judge, measure
from taskbasis.report import Report


@pytest.fixture
def bench(scripts: dict[str, ModuleType]) -> SimpleNamespace:
    """The scripts as modules, each under its name."""
    return SimpleNamespace(**scripts)


def outcome(
    bench: SimpleNamespace, groups: str, k: str, seed: int, case: str, value: float
) -> object:
    return bench.paired.Outcome({"groups": groups, "k": k}, seed, "m", case, value)


@pytest.fixture
def outcomes(bench: SimpleNamespace) -> list[object]:
    """Fine groups beat the model by 0.1 on seed 0 and by 0.3 on seed 1, more at k = 2."""
    found = []
    for seed, gain in ((0, 0.1), (1, 0.3)):
        for case, level in (("a", 0.5), ("b", 0.9)):
            for k, more in (("4", -0.05), ("2", 0.05)):
                found.append(outcome(bench, "model", k, seed, case, level))
                found.append(outcome(bench, "fine", k, seed, case, level + gain + more))
    return found


def test_a_difference_is_taken_within_seed_and_case_and_averaged_over_the_rest(
    bench: SimpleNamespace, outcomes: list[object]
) -> None:
    found = bench.paired.compare(outcomes, "m", "groups", "fine", "model", {})
    assert found.cases == 4  # two sizes of one seed and case are one case
    assert found.mean == pytest.approx(0.2)
    assert found.by_seed == pytest.approx({0: 0.1, 1: 0.3})
    assert found.agreeing == 2
    assert found.low < 0.2 < found.high
    assert found.seed_half == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_factors_can_be_held(bench: SimpleNamespace, outcomes: list[object]) -> None:
    found = bench.paired.compare(outcomes, "m", "groups", "fine", "model", {"k": "2"})
    assert found.mean == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no pair differs in groups"):
        bench.paired.compare(outcomes, "m", "groups", "fine", "model", {"k": "3"})


def test_what_has_no_counterpart_does_not_count(
    bench: SimpleNamespace, outcomes: list[object]
) -> None:
    lonely = [outcome(bench, "fine", "4", 7, "a", 99.0), outcome(bench, "odd", "4", 0, "a", 99.0)]
    found = bench.paired.compare([*outcomes, *lonely], "m", "groups", "fine", "model", {})
    assert found.mean == pytest.approx(0.2)


def test_one_seed_has_no_interval_over_seeds(bench: SimpleNamespace) -> None:
    found = bench.paired.summarised({(0, "a"): -0.25})
    assert (found.mean, found.seed_half, found.agreeing) == (-0.25, math.inf, 1)
    text = bench.paired.table([("x − y", "m", found)])
    assert text.splitlines()[-1] == "| x − y | m | -0.2500 | -inf to +inf | 1 | inf | 1 of 1 |"


def test_the_worst_case_of_every_basis_is_a_metric_of_its_own(
    bench: SimpleNamespace, outcomes: list[object]
) -> None:
    found = bench.paired.with_worst(outcomes, "m", min)[len(outcomes) :]
    assert len(found) == 8  # two seeds, two kinds of groups, two sizes
    assert {one.value for one in found if one.factors["groups"] == "model"} == {0.5}
    difference = bench.paired.compare(found, "worst m", "groups", "fine", "model", {})
    assert (difference.mean, difference.cases) == (pytest.approx(0.2), 2)


def test_designs_are_valid_and_have_different_labels(bench: SimpleNamespace) -> None:
    factors = bench.granularity.all_factors(8)
    assert {f["k"] for f in factors} == {"4", "2"}
    assert len({bench.granularity.label_of(f) for f in factors}) == len(factors) == 40
    for one in factors:
        design = bench.granularity.design_of(one, seed=3)
        assert design.construction().name == one["method"]
        granularity, _, budget = one["groups"].partition(" ")
        assert (design.granularity, design.budget) == (granularity, budget or "even")


def test_images_need_data(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.granularity.parse(["--work", "w"])
    assert "needs --data" in capsys.readouterr().err
    assert bench.granularity.parse(["--work", "w", "--suite", "digits"]).seeds == 3


def toy() -> tuple[InMemory, Yardstick]:
    """Four tasks: each wants its own entry of the weights to be 1, and the others not to grow."""
    names = ("a", "b", "c", "d")
    base = {"w": np.zeros(4, np.float32)}
    deltas = np.eye(4, dtype=np.float32) + np.float32(0.1)

    def score(place: int) -> Any:
        def of(model: Any, split: str) -> float:
            own, others = model["w"][place], np.delete(model["w"], place)
            return float(0.9 - 0.3 * abs(1 - own) - 0.05 * np.abs(others).sum())

        return of

    tasks = [Task(name, score(place)) for place, name in enumerate(names)]
    control = Task("control", lambda model, split: float(1 - 0.1 * np.abs(model["w"]).max()))
    whole = InMemory(names, 100, base, deltas, deltas.sum(axis=0))
    tuned = {name: whole.combine({name: 1.0}) for name in names}
    return whole, measure(base, tuned, tasks, control, seed=5)


def test_cases_average_to_what_the_judge_says(bench: SimpleNamespace) -> None:
    whole, yardstick = toy()
    effort = Effort(bench.granularity.FINE, bench.granularity.COARSE, 2)
    cases = bench.cases.judge_cases(whole, yardstick, effort)
    ours = {row.metric: row for row in bench.cases.rows_of("x", 100, 5, cases)}
    theirs = {row.metric: row for row in judge(whole, yardstick, "x", effort)}
    assert len(ours) == 5
    for metric, row in ours.items():
        assert row.value == pytest.approx(theirs[metric].value), metric
        assert (row.storage_bytes, row.seed, row.split) == (100, 5, "test")
    assert len({case for metric, case, _ in cases if metric == bench.cases.SUBSET}) == 4


def test_a_page_holds_both_tables(bench: SimpleNamespace) -> None:
    rows, outcomes = [], []
    for seed in (0, 1):
        for number, factors in enumerate(bench.granularity.all_factors(8)):
            cases = [(metric, "a+b", 0.5 + number / 100) for metric in bench.granularity.COLUMNS]
            rows += bench.cases.rows_of(bench.granularity.label_of(factors), 1000, seed, cases)
            outcomes += [bench.paired.Outcome(factors, seed, *case) for case in cases]
    text = bench.granularity.page("digits", Report(rows).aggregate(), outcomes)
    assert "| svd, tensor even, mean, k=2 | 1.00 kB | 2 |" in text
    assert "| tensor even − model | subset normalised | +0.1200 |" in text
    assert "| cosine − mean (model) | recovery normalised | +0.0200 |" in text
