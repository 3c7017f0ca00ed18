"""The page of results is what the stored tables say; contrasts are what a loop gives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from taskbasis.report import Report, Row

ROOT = Path(__file__).parents[3]


def test_the_page_is_made_from_the_tables(scripts: dict[str, ModuleType]) -> None:
    page = scripts["results_page"]
    words = (ROOT / "benchmarks" / "results_page.md").read_text(encoding="utf-8")
    stored = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.page(page.load(), words) == stored, "run python benchmarks/results_page.py"
    assert "{" not in stored.replace("{...}", "")


def test_two_suites_with_three_seeds_are_stored(scripts: dict[str, ModuleType]) -> None:
    page = scripts["results_page"]
    reports = page.load()
    assert {"digits", "images"} <= reports.keys()
    for suite in ("digits", "images"):
        own = page.outcomes(reports[suite], page.ADDING)
        assert {seed for seed, _ in own["task arithmetic, tuned"]} == {0, 1, 2}


@pytest.fixture
def made() -> Report:
    random = np.random.default_rng(0)
    methods = (
        "task arithmetic, tuned",
        "STA weight 1.0 exclusive, λ 1",
        "STA magnitude 1.0 exclusive, λ 1",
        "STA weight, abs_mean 0.1, λ 1",
        "STA weight 0.1, λ 1",
        "STA weight, abs_mean 0.3, λ 1",
        "STA weight 0.3, λ 1",
    )
    return Report(
        Row(method, 0, f"adding: {task}", float(random.random()), 1, seed, "test")
        for method in methods
        for seed in (0, 1)
        for task in "abc"
    )


def test_contrasts(scripts: dict[str, ModuleType], made: Report) -> None:
    page = scripts["results_page"]
    values = page.outcomes(made, page.ADDING)
    chosen = {contrast.label: contrast for contrast in page.contrasts()}
    found = chosen["weight instead of magnitude, exclusive"].values(made)
    left, right = (
        values["STA weight 1.0 exclusive, λ 1"],
        values["STA magnitude 1.0 exclusive, λ 1"],
    )
    assert found == [left[key] - right[key] for key in left]
    assert len(found) == 6
    both = chosen["abs_mean instead of mean_abs (weight)"].values(made)
    for at, key in enumerate(left):
        wanted = np.mean(
            [
                values[f"STA weight, abs_mean {d}, λ 1"][key] - values[f"STA weight {d}, λ 1"][key]
                for d in ("0.1", "0.3")
            ]
        )
        assert both[at] == pytest.approx(wanted)
    assert chosen["delta instead of weight, exclusive"].values(made) == []


def test_every_contrast_names_methods_of_the_bench(scripts: dict[str, ModuleType]) -> None:
    from taskbasis.bench.contenders import contenders

    known = {contender.label for contender in contenders()}
    for contrast in scripts["results_page"].contrasts():
        for pair in contrast.pairs:
            assert set(pair) <= known


def test_standings_are_sorted_by_their_mean(scripts: dict[str, ModuleType], made: Report) -> None:
    page = scripts["results_page"]
    lines = page.standings({"one": made, "two": made}, page.ADDING).splitlines()[2:]
    means = [float(line.split("|")[2]) for line in lines]
    assert means == sorted(means, reverse=True)
    assert len(lines) == 6
