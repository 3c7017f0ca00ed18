"""Rows, paired differences and the page, on numbers that can be checked by hand."""

import pytest

from taskbasis.bench.contenders import TUNED, Contender, Recipe
from taskbasis.bench.measuring import Yard
from taskbasis.bench.rows import (
    ADDED,
    ADDING,
    COLUMNS,
    FORGETTING,
    KEPT,
    LEFT,
    RATIO,
    STAYED,
    TARGET,
    WORST,
    Context,
    contender_rows,
    differences,
    page,
    reference_rows,
)
from taskbasis.report import BASE, INDIVIDUAL, Report, t_interval


def yard(shift: float = 0.0) -> Yard:
    base = {"a": 0.4 + shift, "b": 0.6}
    own = {"a": 0.8, "b": 1.0}
    kept = {"a": 0.9, "b": 0.7}
    return Yard(*({"validation": dict(x), "test": dict(x)} for x in (base, own, kept)))


def measured(a: float, b: float, target: float = 0.3) -> dict[str, object]:
    return {
        "storage": 100,
        "adding": {"scale": 0.3, "density": 0.1, "test": {"a": a, "b": b}},
        "forgetting": {
            "a": {"scale": 0.5, "target": target, "control": 0.8},
            "b": {"scale": 1.0, "target": target + 0.2, "control": 0.6},
        },
    }


@pytest.fixture
def report() -> Report:
    rows = []
    for seed in (0, 1):
        context = Context(yard(), seed, "made here")
        rows += reference_rows(context, 100)
        tuned = Contender(TUNED, "task arithmetic", Recipe(), None, forgets=(None,))
        rows += contender_rows(context, tuned, measured(0.6, 0.8))
        other = Contender("STA", "STA", Recipe("sta"), forgets=(0.1,))
        rows += contender_rows(context, other, measured(0.6 + 0.1 * seed, 0.9, 0.2))
    return Report(rows)


def value(report: Report, method: str, metric: str) -> float:
    (found,) = {r.value for r in report.rows if (r.method, r.metric) == (method, metric)}
    return found


def test_means_ratios_and_the_worst_task(report: Report) -> None:
    assert value(report, TUNED, ADDED) == pytest.approx(0.7)
    assert value(report, TUNED, RATIO) == pytest.approx((0.75 + 0.8) / 2)
    assert value(report, TUNED, WORST) == pytest.approx(0.75)
    assert value(report, TUNED, TARGET) == pytest.approx(0.4)
    assert value(report, TUNED, KEPT) == pytest.approx(0.7)
    assert value(report, TUNED, LEFT) == pytest.approx((0.3 / 0.4 + 0.5 / 0.6) / 2)
    assert value(report, TUNED, STAYED) == pytest.approx((0.8 / 0.9 + 0.6 / 0.7) / 2)
    assert value(report, BASE, LEFT) == value(report, BASE, STAYED) == 1
    assert value(report, BASE, ADDED) == pytest.approx(0.5)
    assert value(report, BASE, KEPT) == pytest.approx(0.8)
    assert value(report, INDIVIDUAL, RATIO) == value(report, INDIVIDUAL, WORST) == 1


def test_a_base_that_knows_nothing_has_no_shares() -> None:
    context = Context(yard(-0.4), 0, "made here")
    other = Contender("STA", "STA", Recipe("sta"), forgets=(0.1,))
    metrics = {row.metric for row in contender_rows(context, other, measured(0.6, 0.8))}
    assert {TARGET, KEPT} <= metrics
    assert not {LEFT, STAYED} & metrics


def test_rows_say_what_was_chosen_and_of_which_checkpoints(report: Report) -> None:
    rows = {(r.method, r.metric): r for r in report.rows if r.seed == 0}
    added, target = rows[TUNED, ADDED], rows[TUNED, TARGET]
    assert added.extras == {
        "scale": 0.3, "density": 0.1, "tuned": "yes", "family": "task arithmetic",
        "checkpoints": "made here",
    }  # fmt: skip
    assert target.extras["scale"] == pytest.approx(0.75)
    assert rows["STA", ADDED].extras["tuned"] == "no"
    assert {row.split for row in report.rows} == {"test"}
    assert {row.extras["checkpoints"] for row in report.rows} == {"made here"}


def test_differences_are_paired_by_seed_and_task(report: Report) -> None:
    found = {one.method: one for one in differences(report, ADDING)}
    assert set(found) == {BASE, INDIVIDUAL, "STA"}
    mean, low, _ = t_interval([0.0, 0.1, 0.1, 0.1])
    assert found["STA"].mean == pytest.approx(mean)
    assert found["STA"].half == pytest.approx(mean - low)
    assert found["STA"].pairs == 4
    assert found[BASE].mean == pytest.approx(-0.2)
    forgotten = {one.method: one.mean for one in differences(report, FORGETTING)}
    assert forgotten["STA"] == pytest.approx(-0.1)
    assert INDIVIDUAL not in forgotten


def test_one_pair_has_no_interval_and_no_reference_no_differences(report: Report) -> None:
    single = Report(r for r in report.rows if r.seed == 0 and r.metric in (ADDED, "adding: a"))
    assert {one.half for one in differences(single, ADDING)} == {None}
    assert differences(Report(r for r in report.rows if r.method != TUNED), ADDING) == []


def test_the_page_holds_both_tables(report: Report) -> None:
    text = page("All methods on x", ["Checkpoints: made here."], report)
    assert "| method | storage | n | " + " | ".join(COLUMNS) + " |" in text
    assert "| STA | 100 B | 2 | 0.775 ± 0.318 |" in text
    assert "| STA | +0.0750 ± 0.0796 | 4 | -0.1000 ± 0.0000 |" in text
    assert "adding: " not in text


def test_a_page_without_the_reference_has_one_table(report: Report) -> None:
    rows = [row for row in report.rows if row.method != TUNED]
    assert "Differences" not in page("x", [], Report(rows))
