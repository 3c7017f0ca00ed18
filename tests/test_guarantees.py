"""The page of promises is what the tests are marked with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def guarantees() -> Any:
    spec = importlib.util.spec_from_file_location("guarantees", ROOT / "scripts" / "guarantees.py")
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules["guarantees"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_page_is_up_to_date(guarantees: Any) -> None:
    """Otherwise run scripts/docs."""
    before = guarantees.PAGE.read_text(encoding="utf-8")
    assert before == guarantees.page(before, guarantees.promises())


def test_promises_are_sentences_and_stand_once(guarantees: Any) -> None:
    found = guarantees.promises()
    sentences = [promise.sentence for promise in found]
    assert len(set(sentences)) == len(sentences) >= 10
    for sentence in sentences:
        assert sentence.endswith("."), sentence
        assert sentence[0].isupper() or sentence[0] == "`", sentence
    assert {promise.topic for promise in found} >= {"Integrity", "The same bytes"}


def test_every_mark_is_on_the_page(guarantees: Any, request: pytest.FixtureRequest) -> None:
    """And every test on the page that pytest collected, of the files of this run, has its mark."""
    marked = {
        (Path(item.path).relative_to(ROOT).as_posix(), item.originalname)  # type: ignore[attr-defined]
        for item in request.session.items
        if item.get_closest_marker("promise")
    }
    told = {(promise.file, promise.test) for promise in guarantees.promises()}
    files = {Path(item.path).relative_to(ROOT).as_posix() for item in request.session.items}
    whole = len(request.session.items) > 1000  # a run of some tests alone says nothing of others
    assert marked <= told
    assert {one for one in told if one[0] in files} <= marked or not whole


def test_marks_are_read_from_files(guarantees: Any, tmp_path: Path) -> None:
    (tmp_path / "tests" / "robust").mkdir(parents=True)
    (tmp_path / "tests" / "robust" / "test_x.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('a', [1])\n"
        "@pytest.mark.promise('One thing, ' 'and more.')\n"
        "def test_a(a): ...\n"
        "def test_b(): ...\n"
    )
    (one,) = guarantees.promises(tmp_path)
    assert (one.sentence, one.file, one.test) == (
        "One thing, and more.", "tests/robust/test_x.py", "test_a"
    )  # fmt: skip
    assert one.topic == "Crashes, full disks, other processes"
    assert guarantees.text([one]) == (
        "## Crashes, full disks, other processes\n\n- One thing, and more.\n"
        "  ([test_a](../tests/robust/test_x.py))\n"
    )
