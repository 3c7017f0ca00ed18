"""The whole benchmark at the tiny size, some jobs of it; and what it is made of."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from taskbasis import Checkpoint, Design, TaskVector, fit, merge
from taskbasis.lora import extract_lora
from taskbasis.methods import method
from taskbasis.scores import Importance

Scripts = dict[str, ModuleType]


def words(folder: Path, *more: str) -> list[str]:
    given = {"--size": "tiny", "--runs": "1"}
    given |= {"--work": str(folder / "work"), "--results": str(folder / "results")}
    return [word for pair in given.items() for word in pair] + ["--skip-mergekit", *more]


def stored(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(
        (folder / "results" / "speed-tiny.json").read_text()
    )
    return found


def test_jobs_are_checked_measured_and_added_to_what_is_known(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speed.main(words(tmp_path, "--only", "linear", "--profile")) == 0
    assert speed.main(words(tmp_path, "--only", "solver")) == 0
    jobs = stored(tmp_path)["jobs"]
    assert sorted(jobs) == ["linear", "solver"]
    linear = jobs["linear"]
    assert [check["good"] for check in linear["checks"]] == [True]  # type: ignore[index]
    assert len(linear["ours"]["inside"]) == 1  # type: ignore[index]
    assert linear["floor"]["write_bytes"] > 2_000_000  # type: ignore[index]
    # The toy's floor is microseconds, so it is always missed.
    assert linear["profile"]["seconds"]["fsync"] > 0  # type: ignore[index]
    assert jobs["solver"]["floor"] is None
    text = (tmp_path / "results" / "speed-tiny.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "linear: peak memory at most 512 MiB" in text
    assert (tmp_path / "results" / "speed-tiny.png").read_bytes()[:4] == b"\x89PNG"
    for path in (tmp_path / "results").glob("speed-tiny.[jm]*"):
        assert str(tmp_path) not in path.read_text()
        assert os.uname().nodename not in path.read_text()
    left = sorted(path.name for path in (tmp_path / "work" / "tiny").iterdir())
    assert left == ["base", "tuned-1", "tuned-2"]
    assert not (tmp_path / "work" / "out-tiny").exists()


def test_a_command_that_fails_is_an_error_and_is_shown_as_one(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "taskbasis"
    broken.write_text("#!/bin/sh\necho gave up\nexit 3\n")
    broken.chmod(0o755)
    more = ["--only", "linear,error", "--taskbasis", str(broken)]
    assert speed.main(words(tmp_path, *more)) == 1
    told = capsys.readouterr()
    assert "failed with exit code 3: gave up" in told.err
    assert "failed or wrong: linear" in told.err
    assert "| linear | failed, exit code 3 |" in told.out
    assert stored(tmp_path)["jobs"]["linear"]["floor"] is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--only", "linear,tys"], "no such job; there are help, error"),
        (["--only", ""], "no such job"),
        (["--runs", "0"], "--runs must be at least 1"),
        (["--taskbasis", "nowhere"], "say where with --taskbasis"),
    ],
)
def test_what_cannot_start_says_why(
    speed: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    reason: str,
) -> None:
    assert speed.main(words(tmp_path, *more)) == 2
    assert reason in capsys.readouterr().err


def test_without_mergekit_it_says_how_to_get_it(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_mergekit = [word for word in words(tmp_path) if word != "--skip-mergekit"]
    assert speed.main([*with_mergekit, "--mergekit", str(tmp_path)]) == 2
    assert "benchmarks/setup_mergekit" in capsys.readouterr().err


def test_too_little_disk_is_known_beforehand(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = speed.parse(words(tmp_path))
    assert speed.refusal(options) is None
    monkeypatch.setattr(speed, "disk_needed", lambda size: 10**18)
    assert "GB of disk" in speed.refusal(options)


def test_the_disk_needed_by_the_full_size(scripts: Scripts) -> None:
    assert 30e9 < scripts["work"].disk_needed("1b") < 45e9


@pytest.fixture
def models(scripts: Scripts, checkpoints: ModuleType, tmp_path: Path) -> object:
    maker = checkpoints.Maker(tmp_path, "tiny")
    tuned = [maker.tuned(number) for number in (1, 2)]
    return scripts["references"].Models(maker.base(), tuned, (1.0, 1.0))


# Method and options of ours, the reference, and options that it must not agree with.
REFERENCES = {
    "task_arithmetic": ({}, "plain_sum", {"normalize": True}),
    "ties": ({"density": 0.2, "variant": "mergekit"}, "mergekit_ties", {"variant": "paper"}),
    "dare_ties": (
        {"density": 0.2, "variant": "mergekit", "normalize": False},
        "dare_ties",
        {"seed": 1},
    ),
    "model_stock": ({}, "model_stock", None),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_agree_with_the_method_and_with_no_other(
    scripts: Scripts, models: object, tmp_path: Path, name: str
) -> None:
    references = scripts["references"]
    options, reference, other = REFERENCES[name]
    made = {
        "plain_sum": references.plain_sum,
        "model_stock": references.model_stock,
        "mergekit_ties": references.mergekit_ties(0.2, (1.0, 1.0)),
        "dare_ties": references.dare_ties(models, 0.2),
    }[reference]
    base = Checkpoint(models.base)  # type: ignore[attr-defined]
    vectors = {str(path): TaskVector(base, path) for path in models.tuned}  # type: ignore[attr-defined]
    merge(base, vectors, method(name, **options)).save(tmp_path / "merged")
    found = references.compare_with(tmp_path / "merged", models, made)
    assert found.good, found.sentence()
    assert found.entries == 1_217_664
    if other is not None:
        merge(base, vectors, method(name, **{**options, **other})).save(tmp_path / "other")
        assert not references.compare_with(tmp_path / "other", models, made).good


def test_masks_from_scores(scripts: Scripts, models: object, tmp_path: Path) -> None:
    checking, references = scripts["checking"], scripts["references"]
    base = Checkpoint(models.base)  # type: ignore[attr-defined]
    paths = [tmp_path / f"scores-{place}.safetensors" for place in (1, 2)]
    for place, path in enumerate(paths):
        checking.write_scores(models.tuned[place], path, place)  # type: ignore[attr-defined]
    vectors = {path.name: TaskVector(base, path) for path in models.tuned}  # type: ignore[attr-defined]
    scores = [Importance.open(path) for path in paths]
    merge(base, vectors, method("sta", density=0.2), 1.0, scores).save(tmp_path / "merged")
    check = checking.late(lambda: references.masked_sum(paths, 0.2), models)
    (found,) = check({"taskbasis": tmp_path / "merged"})
    assert found.good, found.sentence
    other = checking.late(lambda: references.masked_sum(paths, 0.1), models)
    assert not other({"taskbasis": tmp_path / "merged"})[0].good


def test_vectors_bases_and_inner_products(
    scripts: Scripts, models: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checking, ours = scripts["checking"], "taskbasis"
    base = Checkpoint(models.base)  # type: ignore[attr-defined]
    paths = []
    for tuned in models.tuned:  # type: ignore[attr-defined]
        paths.append(tmp_path / f"{tuned.name}.safetensors")
        TaskVector(base, tuned).save(paths[-1], dtype="bfloat16")
    first, second = models.tuned  # type: ignore[attr-defined]
    assert checking.vector(base.path, first, {ours: paths[0]})[0].good
    assert not checking.vector(base.path, second, {ours: paths[0]})[0].good

    monkeypatch.setattr(
        sys, "argv", ["pieces.py", "gram", str(tmp_path / "g.npz"), *map(str, paths)]
    )
    assert scripts["pieces"].main() == 0
    assert checking.gram(paths, {ours: tmp_path / "g.npz"})[0].good
    assert not checking.gram(paths[::-1], {ours: tmp_path / "g.npz"})[0].good

    named = {path.stem: TaskVector.open(path) for path in paths}
    library = fit(named, tmp_path / "library", Design(k=1), dtype="bfloat16")
    assert checking.basis(paths, {ours: library.path})[0].good
    (base + library["tuned-1"]).save(tmp_path / "again")
    (base + 1.5 * library["tuned-1"]).save(tmp_path / "more")
    asked = (library.path, base.path, "tuned-1")
    assert checking.recovered(*asked, {ours: tmp_path / "again"})[0].good
    assert not checking.recovered(*asked, {ours: tmp_path / "more"})[0].good


def test_an_adapter_is_held_against_the_best_of_its_rank(
    scripts: Scripts, models: object, tmp_path: Path
) -> None:
    base, tuned = models.base, models.tuned[0]  # type: ignore[attr-defined]
    vector = TaskVector(Checkpoint(base), tuned)
    extract_lora(base, vector, tmp_path / "adapter", 4)
    adapter = scripts["checking"].adapter
    assert adapter(base, tuned, 4, {"taskbasis": tmp_path / "adapter"})[0].good
    found = adapter(base, tuned, 8, {"mergekit": tmp_path / "adapter"})[0]
    assert (found.good, found.required) == (False, False)


def test_a_missing_tensor_is_seen(scripts: Scripts, models: object, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "part").mkdir()
    save_file({"model.norm.weight": np.zeros(128, np.float32)}, tmp_path / "part" / "m.safetensors")
    references = scripts["references"]
    found = references.compare_with(tmp_path / "part", models, references.plain_sum)
    assert "do not match" in found.sentence()


def test_a_cutoff_of_the_whole_model(scripts: Scripts, models: object) -> None:
    references = scripts["references"]
    sizes = [np.abs(models.load(name)[1][0]) for name in models.names]  # type: ignore[attr-defined]
    everything = np.sort(np.concatenate(sizes))
    cutoff = references.global_cutoffs(models, 0.2)[0]
    assert cutoff == everything[everything.size - int(0.2 * everything.size)]


def test_of_a_large_model_the_ends_are_compared(
    scripts: Scripts, models: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(models.sample()) == 39  # type: ignore[attr-defined]
    monkeypatch.setattr(scripts["references"], "SAMPLED_ABOVE", 1000)
    sampled = models.sample()  # type: ignore[attr-defined]
    layers = {name.split(".")[2] for name in sampled if ".layers." in name}
    assert layers == {"0", "3"}
    assert {"lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"} < {*sampled}


def test_what_float32_cannot_hold_of_parts_that_cancel_is_no_error(compare: ModuleType) -> None:
    import ml_dtypes

    stored_as = np.array([2.0**-20, 1.0], ml_dtypes.bfloat16)
    exact = np.array([2.0**-20 * 1.1, 1.0])
    assert not compare.compare_arrays("a", stored_as, exact, np.zeros(2)).good
    assert compare.compare_arrays("a", stored_as, exact, np.full(2, 2.0**-21)).good


def test_where_a_line_bends_and_why(scripts: Scripts) -> None:
    bends = scripts["growth"].line_bends

    def points(seconds: list[float], rates: list[float]) -> list[dict[str, float]]:
        return [
            {"x": 2.0**n, "seconds": s, "floor": 2.0**n, "read_rate": rate * 1e9}
            for n, (s, rate) in enumerate(zip(seconds, rates, strict=True))
        ]

    assert bends("add", points([1, 2, 4], [9, 9, 9])) == [
        "add: no bend; the exponent is 1.00 from end to end."
    ]
    (disk,) = bends("add", points([1, 2, 9], [9, 9, 1]))
    assert "at the speed of the disk, not of memory (9.0 to 1.0 GB/s)" in disk
    (down,) = bends("add", points([1, 4, 5], [9, 9, 9]))
    assert "over the floor it is 1.00, 2.00, 1.25 around it" in down
    assert bends("add", points([1], [9])) == []


def test_the_picture_of_growth(scripts: Scripts, tmp_path: Path) -> None:
    point = {"x": 2, "seconds": 1.0, "peak": 1 << 27, "floor": 0.5, "read_rate": 1e9}
    panels = [
        {"by": by, "lines": {"add": [point, {**point, "x": 4, "seconds": 2.0}]}}
        for by in ("vectors", "parameters")
    ]
    scripts["growth"].store(tmp_path, panels)
    assert json.loads((tmp_path / "growth.json").read_text())["bends"] == [
        f"add, against {by}: no bend; the exponent is 1.00 from end to end."
        for by in ("vectors", "parameters")
    ]
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
    text = scripts["speed_page"].growth(tmp_path)
    assert "growth.png" in text
    assert "- add, against vectors: no bend" in text


def test_the_page_holds_what_is_stored(scripts: Scripts) -> None:
    page = scripts["speed_page"]
    stored_sizes = [n for n in page.SIZES if (page.RESULTS / f"speed-{n}.json").exists()]
    if not stored_sizes:
        pytest.skip("nothing of benchmarks/speed.py is stored yet")
    text = page.page(
        page.load(page.RESULTS, stored_sizes[0]), page.RESULTS, page.WORDS.read_text("utf-8")
    )
    assert page.PAGE.read_text("utf-8") == text
