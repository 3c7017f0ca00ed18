"""Rows and reports: what they refuse, how they aggregate, and that text is exact."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError, ValueProblem
from taskbasis.report import Report, Row, t_interval


def row(value=0.5, method="svd k=2", metric="accuracy", seed=0, **options):
    options = {"storage_bytes": 1000, "n": 8, "split": "test"} | options
    return Row(method=method, metric=metric, value=value, seed=seed, **options)


finite = st.floats(-1e6, 1e6)
names = st.text(min_size=1, max_size=12)
extras = st.dictionaries(names, st.one_of(finite, st.integers(-9, 9), names), max_size=3)
rows = st.builds(
    Row,
    method=names,
    storage_bytes=st.integers(0, 10**15),
    metric=names,
    value=finite,
    n=st.integers(1, 100),
    seed=st.one_of(st.none(), st.integers(0, 99)),
    split=st.sampled_from(["validation", "test"]),
    extras=extras,
)


@given(st.lists(rows, max_size=6))
def test_json_gives_the_report_back_exactly(found):
    report = Report(found)
    text = report.to_json()
    assert Report.from_json(text) == report
    assert Report.from_json(text).to_json() == text
    assert len(text.splitlines()) == (len(found) + 2 if found else 1)


def test_json_keeps_the_interval():
    report = Report([row(low=0.4, high=0.6, extras={"scale": 0.3, "family": "svd"})])
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not a report"),
        ('{"format": "other"}', "not a report"),
        ('{"format": "taskbasis.report", "version": 2, "rows": []}', "not of version 1"),
        ('{"format": "taskbasis.report", "version": 1, "rows": {}}', "not of version 1"),
        ('{"format": "taskbasis.report", "version": 1, "rows": [3]}', "row 0 of the report needs"),
        ('{"format": "taskbasis.report", "version": 1, "rows": [{}]}', "needs exactly"),
    ],
)
def test_what_is_no_report_is_refused(text, message):
    with pytest.raises(ValueProblem, match=message):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", 3),
        ("value", "0.5"),
        ("value", True),
        ("n", 1.5),
        ("seed", "0"),
        ("extras", []),
        ("low", "0"),
        ("storage_bytes", None),
    ],
)
def test_a_row_of_wrong_types_is_refused_by_number_and_name(name, value):
    document = json.loads(Report([row(), row(seed=1)]).to_json())
    document["rows"][1][name] = value
    with pytest.raises(ValueProblem, match=f"row 1 of the report has {name}"):
        Report.from_json(json.dumps(document))


def test_a_nan_in_the_text_is_refused():
    text = Report([row()]).to_json().replace("0.5", "NaN")
    with pytest.raises(ValueProblem, match="NaN or infinite"):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value": math.nan}, ValueProblem, "'accuracy' of 'svd k=2' is NaN or infinite"),
        ({"value": math.inf}, ValueProblem, "NaN or infinite"),
        ({"low": math.nan, "high": 1.0}, ValueProblem, "NaN or infinite"),
        ({"extras": {"scale": math.nan}}, ValueProblem, "NaN or infinite"),
        ({"storage_bytes": -1}, UsageError, "storage -1"),
        ({"n": 0}, UsageError, "n 0"),
        ({"low": 0.4}, ValueProblem, "only one end"),
        ({"low": 0.6, "high": 0.7}, ValueProblem, "outside"),
    ],
)
def test_a_row_that_means_nothing_cannot_be_made(options, error, message):
    with pytest.raises(error, match=message):
        row(**options)


def test_the_t_interval_is_the_textbook_one():
    mean, low, high = t_interval([0.1, 0.2, 0.4])
    half = 4.302652729911275 * statistics.stdev([0.1, 0.2, 0.4]) / math.sqrt(3)
    assert mean == pytest.approx(0.7 / 3)
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    with pytest.raises(ValueProblem, match="at least 2"):
        t_interval([0.5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_surrounds_the_mean(values):
    mean, low, high = t_interval(values)
    assert low <= mean <= high
    assert mean == pytest.approx(statistics.fmean(values))
    assert high - mean == pytest.approx(mean - low, abs=1e-9)


def test_aggregating_gives_one_row_per_method_metric_and_split():
    report = Report(
        row(value, method, metric, seed)
        for seed, value in enumerate((0.4, 0.5, 0.6))
        for method in ("b", "a")
        for metric in ("accuracy", "control")
    )
    found = report.aggregate()
    assert [(r.method, r.metric) for r in found.rows] == [
        ("b", "accuracy"),
        ("b", "control"),
        ("a", "accuracy"),
        ("a", "control"),
    ]
    for r in found.rows:
        assert (r.n, r.seed, r.split) == (3, None, "test")
        assert r.value == pytest.approx(0.5)
        assert r.high - r.value == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))


def test_one_seed_has_no_interval():
    found = Report([row(0.4)]).aggregate().rows[0]
    assert (found.value, found.n, found.low, found.high) == (0.4, 1, None, None)


def test_splits_are_not_mixed():
    report = Report([row(0.4, split="validation"), row(0.6, split="test")])
    assert [r.value for r in report.aggregate().rows] == [0.4, 0.6]


def test_storage_and_extras_are_averaged_where_that_means_something():
    found = Report(
        [
            row(seed=0, storage_bytes=1000, extras={"scale": 0.2, "family": "svd", "who": "a"}),
            row(seed=1, storage_bytes=1501, extras={"scale": 0.3, "family": "svd", "who": "b"}),
        ]
    ).aggregate()
    assert found.rows[0].storage_bytes == 1250
    assert found.rows[0].extras == {"scale": 0.25, "family": "svd"}


@pytest.mark.parametrize("seeds", [(0, 0), (None, 1), (None,)])
def test_seeds_that_cannot_be_averaged_are_refused(seeds):
    with pytest.raises(ValueProblem, match="cannot be averaged over the seeds"):
        Report(row(seed=seed) for seed in seeds).aggregate()


def test_the_table_has_a_line_per_method_and_a_column_per_metric():
    report = Report([row(0.5), row(0.25, metric="control", n=4), row(0.75, method="pca | k=2")])
    header, cells = report.table()
    assert header == ["method", "storage", "n", "accuracy", "control"]
    assert cells == [
        ["svd k=2", "1.00 kB", "4-8", "0.500", "0.250"],
        ["pca | k=2", "1.00 kB", "8", "0.750", "–"],
    ]
    assert r"| pca \| k=2 |" in report.to_markdown()


def test_seed_and_split_are_columns_only_where_they_differ():
    header, cells = Report([row(seed=0), row(seed=1, split="validation")]).table()
    assert header == ["method", "storage", "seed", "split", "n", "accuracy"]
    assert [line[2:4] for line in cells] == [["0", "test"], ["1", "validation"]]


def test_columns_can_be_chosen_and_misspelt():
    report = Report([row(0.5), row(0.25, metric="control")])
    assert report.table(["control"])[0] == ["method", "storage", "n", "control"]
    with pytest.raises(UsageError, match=r"no metric 'contrl'; did you mean 'control'"):
        report.table(["contrl"])
    with pytest.raises(ValueProblem, match="two rows give 'accuracy'"):
        Report([row(), row()]).table()


def test_the_caption_says_what_the_numbers_are():
    single = Report([row()])
    assert single.caption() == "Split: test. Single seeds; n numbers per mean."
    many = Report([row(0.4), row(0.6, seed=1)]).aggregate()
    assert "± half of the 95 % t-interval" in many.caption()
    assert "Means over seeds" in many.to_markdown().splitlines()[-1]
    assert Report().caption() == "Split: none. Single seeds; n numbers per mean."


def test_markdown_is_the_same_every_time_and_rectangular():
    report = Report(row(0.1 * i, f"m{i % 3}", f"k{i % 2}", seed=i) for i in range(6))
    assert report.to_markdown() == Report.from_json(report.to_json()).to_markdown()
    lines = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_reports_are_joined_and_filtered():
    first, second = Report([row()]), Report([row(method="pca"), row(metric="control")])
    both = first + second
    assert both.methods == ("svd k=2", "pca")
    assert both.metrics == ("accuracy", "control")
    assert len(both.metric("accuracy").rows) == 2
    with pytest.raises(AttributeError):
        both.rows = ()  # type: ignore[misc]
