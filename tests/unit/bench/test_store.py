"""Results are kept as soon as they are there, and only under the facts they were measured under."""

import json
from pathlib import Path
from typing import Any

import pytest

from taskbasis.bench.store import digest, remembered, slug


def counted(calls: list[int], value: float) -> Any:
    def measure() -> dict[str, float]:
        calls.append(1)
        return {"value": value}

    return measure


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    calls: list[int] = []
    path = tmp_path / "deep" / "x.json"
    facts = {"tasks": ("a", "b"), "grid": [0.1]}
    assert remembered(path, facts, counted(calls, 0.1 + 0.2)) == {"value": 0.1 + 0.2}
    assert remembered(path, facts, counted(calls, 9.0)) == {"value": 0.1 + 0.2}
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', '{"key": "k", "found": 3}'])
def test_what_is_damaged_is_measured_again(tmp_path: Path, damage: str) -> None:
    calls: list[int] = []
    path = tmp_path / "x.json"
    remembered(path, {}, counted(calls, 1.0))
    path.write_text(damage.replace('"k"', json.dumps(digest({}))))
    assert remembered(path, {}, counted(calls, 2.0)) == {"value": 2.0}
    assert len(calls) == 2


def test_other_facts_are_measured_anew_and_replace(tmp_path: Path) -> None:
    calls: list[int] = []
    path = tmp_path / "x.json"
    for seed in (0, 1, 1):
        remembered(path, {"seed": seed}, counted(calls, float(seed)))
    assert len(calls) == 2
    assert json.loads(path.read_text())["found"] == {"value": 1.0}


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remembered(tmp_path / "x.json", {}, failing)
    assert list(tmp_path.iterdir()) == []


def test_digests_tell_numbers_and_names_apart() -> None:
    assert len({digest(x) for x in (1, 1.5, "1", [1], {"a": 1}, {"a": 2}, None)}) == 7
    assert digest((1, 2)) == digest([1, 2])


def test_slugs_are_file_names() -> None:
    assert slug("autoencoder T/2, tuned") == "autoencoder-t-2-tuned"
    assert "/" not in slug("a/b: c")
