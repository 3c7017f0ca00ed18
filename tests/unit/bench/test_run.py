"""The bench from end to end on tiny digits: results kept, resumed, written, drawn."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskbasis.bench import COLUMNS, Bench, run, running
from taskbasis.bench.contenders import TUNED
from taskbasis.bench.worlds import check
from taskbasis.errors import FileError, UsageError
from taskbasis.report import BASE, INDIVIDUAL, Report

ONLY = (TUNED, "average", "sta weight 0.3, λ 1", "sta magnitude, density chosen", "random t/2*",
        "sta weight 0.3 on*", "regmean")  # fmt: skip
SAID: list[str] = []


def tell(sentence: str) -> None:
    SAID.append(sentence)


def measured() -> list[str]:
    """What was told of contenders since the last time."""
    found = [s.split(": ", 1)[1] for s in SAID if " of " in s and "fine-tuning" not in s]
    SAID.clear()
    return found


@pytest.fixture(scope="module")
def done(
    cache: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bench, Report]:
    out = tmp_path_factory.mktemp("results") / "out"
    bench = Bench("digits", out, cache, seeds=2, only=ONLY, **tiny)
    SAID.clear()
    return bench, run(bench, tell, workers=1)


def test_every_contender_has_a_row_for_every_seed(done: tuple[Bench, Report]) -> None:
    report = done[1]
    added = report.metric("addition accuracy").rows
    assert len(added) == 2 * (2 + 7)
    assert added[0].method == BASE
    assert added[1].method == INDIVIDUAL
    forgot = {row.method for row in report.metric("forgetting target").rows}
    assert forgot == {BASE, TUNED, "STA magnitude, density chosen"}
    assert all(0 <= row.value <= 2 for row in report.rows)


def test_tables_and_pictures_are_written(done: tuple[Bench, Report]) -> None:
    bench, report = done
    assert Report.from_json((bench.out / "bench-digits.json").read_text()) == report
    text = (bench.out / "bench-digits.md").read_text()
    assert "Tasks: parity, high, loop, prime." in text
    assert "Checkpoints: a ViT of 16 x 1, pre-trained here on digits 0 to 4." in text
    for column in COLUMNS:
        assert column in text
    for name in ("addition", "forgetting"):
        assert (bench.out / f"bench-digits-{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_running_again_measures_nothing_and_says_the_same(done: tuple[Bench, Report]) -> None:
    bench, report = done
    files = {path: path.stat().st_mtime_ns for path in (bench.out / "results").rglob("*.json")}
    before = (bench.out / "bench-digits.md").read_bytes()
    assert run(bench, tell, workers=1) == report
    assert {p: p.stat().st_mtime_ns for p in (bench.out / "results").rglob("*.json")} == files
    assert (bench.out / "bench-digits.md").read_bytes() == before


def test_one_lost_result_is_measured_again(
    done: tuple[Bench, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, report = done
    (bench.results(1) / "average.adding.json").unlink()
    again: list[str] = []
    add = running.add

    def counted(lab: object, contender: object, *rest: object) -> object:
        again.append(contender.label)  # type: ignore[attr-defined]
        return add(lab, contender, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "add", counted)
    assert run(bench, tell, workers=1) == report
    assert again == ["average"]


def test_what_was_measured_before_an_interruption_is_kept(
    asked: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = asked(only=("average", TUNED))
    forget = running.forget

    def stopped(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "forget", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(bench, tell, workers=1)
    kept = {path.name for path in bench.results(0).iterdir()}
    assert kept == {
        "single-models.json", "average.adding.json", "task-arithmetic-tuned.adding.json"
    }  # fmt: skip
    assert not (bench.out / "bench-digits.json").exists()
    monkeypatch.setattr(running, "forget", forget)
    monkeypatch.setattr(running, "add", stopped)  # it is not asked again
    assert TUNED in run(bench, tell, workers=1).methods


def test_processes_give_the_same_bytes(done: tuple[Bench, Report], tmp_path: Path) -> None:
    bench = replace(done[0], out=tmp_path / "out", only=("average", "sta weight 0.3, λ 1"))
    found = run(bench, print, workers=2)
    kept = set(found.methods)
    assert found == Report(row for row in done[1].rows if row.method in kept)


def test_results_depend_on_samples_effort_and_tasks(asked: Callable[..., Bench]) -> None:
    bench = asked(only=("average",))
    run(bench, tell, workers=1)
    path = bench.results(0) / "average.adding.json"
    keys = [json.loads(path.read_text())["key"]]
    for more in ({"samples": 9}, {"tasks": ("parity", "high")}, {"effort": None}):
        run(asked(only=("average",), **more), tell, workers=1)
        keys.append(json.loads(path.read_text())["key"])
    assert len(set(keys)) == 4


def test_a_table_of_references_alone_is_no_table(asked: Callable[..., Bench]) -> None:
    with pytest.raises(UsageError, match="no method of the bench is 'nothing'"):
        run(asked(only=("nothing",)), tell, workers=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"suite": "digit"}, "no suite 'digit'; did you mean 'digits'"),
        ({"data": Path("x")}, "digits brings its own data"),
        ({"suite": "text"}, "text needs --data"),
        ({"suite": "images"}, "images needs --data"),
        ({"encoder": Path("x")}, "--encoder is for the suites text and clip"),
        ({"limits": {"test": 3}}, "the splits of the suite digits are fixed"),
        ({"seeds": 0}, "0 seeds"),
        ({"samples": 0}, "0 samples"),
        ({"tasks": ("parities",)}, "did you mean 'parity'"),
    ],
)
def test_options_that_do_not_belong_are_refused(
    asked: Callable[..., Bench], more: dict[str, object], message: str
) -> None:
    bench = replace(asked(only=("average",)), **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        run(bench, tell, workers=1)
    assert not bench.out.exists()


def test_models_made_otherwise_are_not_reused(asked: Callable[..., Bench]) -> None:
    run(asked(only=("average",)), tell, workers=1)
    with pytest.raises(FileError, match="another seed or other settings"):
        run(asked(only=("average",), settings=None), tell, workers=1)
    check(asked())
    assert measured()
