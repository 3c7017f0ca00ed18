"""The records, the targets and the table."""

from __future__ import annotations

import json
import os
from types import ModuleType

import pytest

MIB = 1 << 20
Scripts = dict[str, ModuleType]


def timing(scripts: Scripts, **fields: object) -> object:
    walls, peak = fields.pop("walls", (1.0,)), fields.pop("peak", MIB)
    runs = tuple(scripts["measure"].Run(wall, 0.5, 0.25, peak, 0) for wall in walls)
    return scripts["records"].Timing(**{"runs": runs, "first": 2.0, **fields})


def record(scripts: Scripts, **fields: object) -> object:
    kind = scripts["records"].Record
    given = {"job": "linear", "title": "linear", "size": "tiny", "ours": timing(scripts)}
    return kind(**{**given, **fields})


def ground(scripts: Scripts) -> object:
    return scripts["measure"].Floor(100, 100, 1000.0, 500.0, 100.0)  # 0.1 + 0.2 (1.0) seconds


def test_a_record_is_held_against_the_floor(scripts: Scripts) -> None:
    ours = timing(scripts, walls=(3.0, 1.0, 2.0), inside=(0.5, 0.75, 1.0))
    found = record(scripts, ours=ours, floor=ground(scripts), passes=3)
    assert found.floor_seconds == pytest.approx(0.5)
    assert found.wall_of_floor == pytest.approx(4)
    assert found.process_of_floor == pytest.approx(1.5)
    assert found.process_of_synced == pytest.approx(0.75 / 1.3)


def test_a_record_without_a_floor_or_that_failed_has_no_ratio(scripts: Scripts) -> None:
    assert record(scripts).wall_of_floor is None
    failed = record(scripts, ours=timing(scripts, failed="exit code 3"), floor=ground(scripts))
    assert (failed.wall_of_floor, failed.process_of_floor, failed.sound) == (None, None, False)


def test_a_result_that_must_be_right_and_is_not_is_not_sound(scripts: Scripts) -> None:
    check = scripts["records"].Check
    assert not record(scripts, checks=(check("taskbasis", "off", False),)).sound
    assert record(scripts, checks=(check("mergekit", "off", False, False),)).sound


def test_a_job_may_be_held_against_the_rival_of_another(scripts: Scripts) -> None:
    faster = scripts["records"].times_faster
    one = record(scripts, job="ties", theirs=timing(scripts, walls=(30.0,)))
    other = record(scripts, job="ties_paper", beside="ties", ours=timing(scripts, walls=(2.0,)))
    known = {"ties": one, "ties_paper": other}
    assert (faster(one, known), faster(other, known)) == (30.0, 15.0)
    assert faster(other, {"ties_paper": other}) is None
    broken = record(scripts, theirs=timing(scripts, failed="exit code 1"))
    assert faster(broken, {"linear": broken}) is None


def test_a_record_comes_back_from_json(scripts: Scripts) -> None:
    check = scripts["records"].Check("taskbasis", "equal", True)
    found = record(
        scripts,
        theirs=timing(scripts, walls=(8.0, 9.0), inside=(7.0, 8.0)),
        floor=ground(scripts),
        checks=(check,),
        load=(0.5, 1.5),
        profile={"wall": 1.0},
    )
    kind = scripts["records"].Record
    assert kind.from_json(json.loads(json.dumps(found.as_json()))) == found
    plain = record(scripts)
    assert kind.from_json(json.loads(json.dumps(plain.as_json()))) == plain


def judged(scripts: Scripts, *records: object) -> dict[str, str]:
    by_job = {one.job: one for one in records}  # type: ignore[attr-defined]
    found = scripts["targets"].judge(by_job, {"tiny": 10 * MIB})
    return {f"{one.job}: {one.promise.partition(': ')[2]}": one.verdict for one in found}


@pytest.mark.parametrize(
    ("inside", "verdict"), [(0.45, "met"), (0.46, "**missed**"), (None, "not judged")]
)
def test_the_target_beside_the_floor(scripts: Scripts, inside: float | None, verdict: str) -> None:
    ours = timing(scripts, inside=() if inside is None else (inside,))
    found = judged(scripts, record(scripts, ours=ours, floor=ground(scripts)))
    assert found["linear: in process at most 1.5 times the floor"] == verdict


def test_a_target_names_the_ratio_to_the_synced_floor_as_well(scripts: Scripts) -> None:
    ours = timing(scripts, inside=(0.66,))
    one = record(scripts, ours=ours, floor=ground(scripts))
    found = scripts["targets"].judge({"linear": one}, {"tiny": 10 * MIB})
    assert found[0].found == "2.20 (0.60 synced)"


@pytest.mark.parametrize(("theirs", "verdict"), [(6.0, "met"), (5.9, "**missed**")])
def test_the_target_beside_mergekit(scripts: Scripts, theirs: float, verdict: str) -> None:
    found = judged(scripts, record(scripts, theirs=timing(scripts, walls=(theirs,))))
    assert found["linear: at least 6 times faster than mergekit"] == verdict
    assert found["task_arithmetic: at least 6 times faster than mergekit"] == "not judged"


def test_a_job_that_failed_misses_every_target(scripts: Scripts) -> None:
    found = judged(scripts, record(scripts, ours=timing(scripts, failed="exit code 1")))
    own = {promise: verdict for promise, verdict in found.items() if promise.startswith("linear:")}
    assert len(own) == 3
    assert set(own.values()) == {"**missed**"}


@pytest.mark.parametrize(
    ("job", "limit"),
    [("linear", 512), ("ties_capped", 384), ("lora", 522)],
)
def test_memory_targets(scripts: Scripts, job: str, limit: int) -> None:
    promise = f"{job}: peak memory at most {limit} MiB"
    met = record(scripts, job=job, ours=timing(scripts, peak=limit * MIB))
    missed = record(scripts, job=job, ours=timing(scripts, peak=limit * MIB + 1))
    assert judged(scripts, met)[promise] == "met"
    assert judged(scripts, missed)[promise] == "**missed**"


def test_what_does_no_work_has_no_memory_target(scripts: Scripts) -> None:
    found = judged(scripts, record(scripts, job="help", ours=timing(scripts, peak=1 << 40)))
    assert not any("peak" in promise for promise in found)


def test_the_table(scripts: Scripts) -> None:
    report = scripts["report"]
    ours = timing(scripts, walls=(3.0, 1.0, 2.0), inside=(0.45,))
    theirs = timing(scripts, walls=(16.0,), inside=(8.0,), peak=4096 * MIB)
    text = report.table(
        {
            "linear": record(scripts, ours=ours, theirs=theirs, floor=ground(scripts)),
            "ties": record(scripts, ours=timing(scripts, failed="exit code 3")),
            "slerp": record(scripts, theirs=timing(scripts, failed="exit code 1")),
        }
    )
    head, _, first, second, third = text.splitlines()
    assert first == (
        "| linear | 2.00 (1.00–3.00) | 0.45 | 0.75 | 1 MiB | 16.00 | 8.00 | 4,096 MiB | 8.00 "
        "| 0.30 (1.10) | 6.67 | 1.50 |"
    )
    assert "failed, exit code 3" in second
    assert "failed, exit code 1" in third
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert head.startswith("| job |")


def test_a_miss_is_explained_by_its_profile(scripts: Scripts) -> None:
    profile = {"wall": 2.0, "start": 0.5, "seconds": {"reading": 1.5, "fsync": 0.5}}
    target = scripts["targets"].Target
    missed = target("linear", "linear: fast", "9", False)
    lines = [missed, target("linear", "small", "9", False, by_profile=False)]
    text = scripts["report"].target_table(lines, {"linear": record(scripts, profile=profile)})
    assert "| linear: fast | 9 | **missed** | one worker, 2.00 s in process: reading 75 %" in text
    assert "| small | 9 | **missed** |  |" in text


def test_noise_and_checks_are_told(scripts: Scripts) -> None:
    check = scripts["records"].Check
    known = {
        "linear": record(
            scripts,
            ours=timing(scripts, walls=(1.0, 1.5)),
            checks=(check("taskbasis", "equal", True), check("mergekit", "off", False, False)),
            load=(0.5, 2.5),
            fresh=0.75,
        )
    }
    text = scripts["report"].noise(known)
    assert "load 0.50 to 2.50" in text
    assert "1.50 times the fastest" in text
    assert "0.75 to 0.75 s" in text
    assert scripts["report"].checks(known) == [
        "linear, taskbasis: equal",
        "linear, mergekit: off (not ours to get right)",
    ]


def test_the_machine_is_described_without_its_name(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = scripts["report"]
    monkeypatch.setattr(report, "fresh_memory_seconds", lambda: 0.25)
    about = report.machine()
    assert about["cores"] >= 1
    assert about["memory_gib"] > 0
    assert about["scaling"] > 0.2
    assert os.uname().nodename not in json.dumps(about)


def test_the_cpu_model(scripts: Scripts) -> None:
    report = scripts["report"]
    assert report._cpu_model("processor\t: 0\nmodel name\t: Some: CPU\n") == "Some: CPU"
    assert report._cpu_model("") != ""
