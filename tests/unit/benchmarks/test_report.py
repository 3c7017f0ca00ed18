"""The table and the targets."""

from __future__ import annotations

import json
import os
from types import ModuleType

import pytest

MIB = 1 << 20


def row(report: ModuleType, measure: ModuleType, **fields: object) -> object:
    wall, code, peak = fields.pop("wall", 1.0), fields.pop("code", 0), fields.pop("peak", MIB)
    runs = [measure.Run(wall, 0.5, 0.25, peak, code)]  # type: ignore[arg-type]
    default = {"job": "add", "by": report.OURS, "runs": runs, "first": 2.0}
    return report.Row(**{**default, **fields})


def test_a_row_compares_with_the_rival_and_the_floor(
    report: ModuleType, measure: ModuleType
) -> None:
    ground = measure.Floor(100, 100, 1000.0, 500.0, 100.0)
    line = row(report, measure, wall=1.0, floor=ground, passes=3, rival=8.0)
    assert line.of_rival == 0.125
    assert line.of_floor == pytest.approx(1.0 / 0.5)
    assert "| 0.12 | 0.50 (1.30) | 2.00 |" in report.table([line])


def test_a_row_takes_medians_and_the_worst_peak(report: ModuleType, measure: ModuleType) -> None:
    runs = [measure.Run(wall, wall, 0.5, int(wall * MIB), 0) for wall in (3.0, 1.0, 2.0)]
    line = report.Row("add", report.OURS, runs, 1.0)
    assert report.table([line]).splitlines()[-1] == (
        "| add | taskbasis | 3 | 2.00 (1.00 to 3.00) | 2.50 (0.50) | 3 MiB |  |  |  |"
    )


def test_a_failure_is_shown_as_one(report: ModuleType, measure: ModuleType) -> None:
    line = row(report, measure, code=2)
    assert line.failed
    assert "failed, exit code 2" in report.table([line])


def test_every_line_of_a_table_has_as_many_cells_as_its_head(
    report: ModuleType, measure: ModuleType
) -> None:
    ground = measure.Floor(1, 1, 1.0, 1.0, 1.0)
    rows = [
        row(report, measure),
        row(report, measure, code=1),
        row(report, measure, floor=ground, rival=1e-9),
    ]
    assert len({line.count("|") for line in report.table(rows).splitlines()}) == 1


def test_memory_targets(report: ModuleType, measure: ModuleType) -> None:
    rows = [
        row(report, measure, job="small", peak=report.PEAK_LIMIT - 1),
        row(report, measure, job="large", peak=report.PEAK_LIMIT),
        row(report, measure, job="broken", code=1),
        row(report, measure, job="theirs", by="mergekit", peak=9 * report.PEAK_LIMIT),
    ]
    targets = report.peak_targets(rows)
    assert [target.verdict for target in targets] == ["met", "missed", "missed"]
    assert [target.found for target in targets] == ["1,024 MiB", "1,024 MiB", "failed"]


@pytest.mark.parametrize(
    ("wall", "code", "rival_code", "verdict"),
    [
        (1.0, 0, 0, "met"),
        (1.01, 0, 0, "missed"),
        (1.0, 1, 0, "missed"),
        (1.0, 0, 1, "not judged"),
    ],
)
def test_the_target_beside_mergekit(
    report: ModuleType, measure: ModuleType, wall: float, code: int, rival_code: int, verdict: str
) -> None:
    ours = row(report, measure, wall=wall, code=code)
    theirs = row(report, measure, by="mergekit", wall=4.0, code=rival_code)
    assert report.rival_target(ours, theirs, "add").verdict == verdict


def test_without_mergekit_its_target_is_not_judged(report: ModuleType, measure: ModuleType) -> None:
    target = report.rival_target(row(report, measure), None, "add")
    assert (target.met, target.found) == (None, "mergekit was not run")


def test_the_machine_is_described_without_its_name(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "fresh_memory_seconds", lambda: 0.25)
    about = report.machine()
    assert about["cores"] >= 1
    assert about["memory_gib"] > 0
    assert os.uname().nodename not in json.dumps(about)


def test_the_cpu_model(report: ModuleType) -> None:
    assert report._cpu_model("processor\t: 0\nmodel name\t: Some: CPU\n") == "Some: CPU"
    assert report._cpu_model("") != ""


def test_a_row_as_json(report: ModuleType, measure: ModuleType) -> None:
    ground = measure.Floor(100, 100, 1000.0, 500.0, 100.0)
    data = json.loads(json.dumps(report.as_json(row(report, measure, floor=ground))))
    assert data["wall"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert data["floor_seconds"] == pytest.approx(0.3)
    assert data["runs"][0]["system"] == 0.25
    assert report.as_json(row(report, measure))["floor"] is None


def test_the_page(report: ModuleType, measure: ModuleType) -> None:
    rows = [row(report, measure)]
    text = report.page("Title", ["a fact"], rows, report.peak_targets(rows))
    assert text.startswith("# Title\n\n- a fact\n\n| job |")
    assert "| add: peak memory below 1,024 MiB | 1 MiB | met |" in text
