"""The fuzzer's corpus again, and thousands of inputs a little off the honest ones.

``scripts/fuzz`` looks for new ones, by coverage; what it found is in ``fuzz/corpus``.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from taskbasis.errors import HeaderError

FUZZ = Path(__file__).parents[2] / "fuzz"
NAMES = ("header", "index", "basis", "record", "adapter-config", "adapter-weights", "recipe")
INPUTS = {"recipe": 400, "basis": 600, "index": 600}
"""Fewer of what is read slowly."""


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Callable[[str], ModuleType]]:
    """The modules of the folder, which is no package."""
    found: dict[str, ModuleType] = {}

    def load(name: str) -> ModuleType:
        if name not in found:
            spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            found[name] = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = found[name]
            spec.loader.exec_module(found[name])
        return found[name]

    yield load
    for module in found.values():
        del sys.modules[module.__name__]


@pytest.fixture
def opens(fuzz: Callable[[str], ModuleType], tmp_path: Path) -> Callable[[str, bytes], bool]:
    """``opens(target, data)``: whether it was read; anything but that or a refusal raises."""
    targets = fuzz("targets")

    def called(name: str, data: bytes) -> bool:
        for path in tmp_path.iterdir():
            path.unlink()
        try:
            return bool(targets.run(targets.TARGETS[name], data, tmp_path))
        except BaseException as error:
            error.args = (f"{name}: {data!r}", *error.args)
            raise

    return called


def test_the_targets_are_these(fuzz: Callable[[str], ModuleType]) -> None:
    assert tuple(fuzz("targets").TARGETS) == NAMES
    assert {path.name for path in (FUZZ / "corpus").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_honest_inputs_are_opened(
    name: str, fuzz: Callable[[str], ModuleType], opens: Callable[[str, bytes], bool]
) -> None:
    for data in fuzz("targets").TARGETS[name].seeds:
        assert opens(name, data), data


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_refused_or_right(name: str, opens: Callable[[str, bytes], bool]) -> None:
    paths = sorted((FUZZ / "corpus" / name).iterdir())
    assert paths
    answers = {opens(name, path.read_bytes()) for path in paths}
    assert answers == {True, False}
    assert sum(path.stat().st_size for path in paths) < 150_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.promise(
    "Inputs a little off are refused by an error of ours, or read right: never a crash or a hang."
)
def test_inputs_a_little_off_are_refused_or_right(
    name: str, fuzz: Callable[[str], ModuleType], opens: Callable[[str, bytes], bool]
) -> None:
    target, mutated = fuzz("targets").TARGETS[name], fuzz("mutating").mutated
    dice = random.Random(f"off {name}")
    answers = [
        opens(name, mutated(dice, dice.choice(target.seeds), target.words))
        for _ in range(INPUTS.get(name, 1500))
    ]
    assert any(answers)
    assert not all(answers)


def test_a_wrong_answer_is_a_crash(
    fuzz: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fuzzer is there to see: errors of other families, and answers that are wrong."""
    targets = fuzz("targets")
    header = targets.TARGETS["header"]

    def other(path: Path) -> None:
        raise KeyError(path)

    def ours(path: Path) -> None:
        raise HeaderError("refused")

    monkeypatch.setattr(targets, "open_tensors", ours)
    assert targets.run(header, header.seeds[0], tmp_path) is False
    monkeypatch.setattr(targets, "open_tensors", other)
    with pytest.raises(KeyError):
        targets.run(header, header.seeds[0], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(targets, "_whole", lambda store: b"not what is there")
    with pytest.raises(AssertionError):
        targets.run(header, header.seeds[0], tmp_path)


def test_mutated_inputs_are_seeded_and_bounded(fuzz: Callable[[str], ModuleType]) -> None:
    mutated = fuzz("mutating").mutated
    data = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    runs = [
        [mutated(dice, data, ("word",), 100) for _ in range(300)]
        for dice in (random.Random(1), random.Random(1), random.Random(2))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert all(len(found) <= 100 for found in runs[0])
    assert len(set(runs[0])) > 200
