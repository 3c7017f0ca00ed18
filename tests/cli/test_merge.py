"""merge, select, and what show says of scores and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.cli import run
from taskbasis.masks import Masks
from taskbasis.recipe import Binding
from taskbasis.scores import ImportanceWriter, MomentsWriter, Origin
from taskbasis.vectors import Checkpoint


@pytest.fixture
def here(tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tiny checkpoints, with scores for both fine-tunes."""
    monkeypatch.chdir(tiny_checkpoints)
    for seed, name in enumerate(("math", "code")):
        origin = Origin(
            Binding(name, None, Checkpoint(tiny_checkpoints / name).fingerprint),
            options={"factor": "weight", "samples": 3},
            rules={"head": ("classifier.weight",)},
        )
        shapes = {n: i.shape for n, i in Checkpoint(name).store.items() if i.dtype.mergeable}
        random = np.random.default_rng(seed)
        with ImportanceWriter(f"{name}-scores.safetensors", shapes, origin) as writer:
            for tensor, shape in shapes.items():
                writer.write(tensor, random.random(shape))
            writer.commit()
    return tiny_checkpoints


SCORES = "--scores math-scores.safetensors --scores code-scores.safetensors"


def say(command: str) -> int:
    return run(command.split())


def tensors(path: str) -> dict[str, Any]:
    return {name: info.load() for name, info in Checkpoint(path).store.items()}


def test_selective_task_arithmetic_at_full_density_is_the_sum(here: Path) -> None:
    assert say("add base math code -o sum --scale 0.7") == 0
    assert say(f"merge base math code -o sta --scale 0.7 --set density=1 {SCORES}") == 0
    left, right = tensors("sum"), tensors("sta")
    assert {n: a.tobytes() for n, a in left.items()} == {n: a.tobytes() for n, a in right.items()}


@pytest.mark.parametrize("named", [False, True])
def test_merging_by_masks_and_at_once(named: bool, here: Path, capsys: Any) -> None:
    scores = (
        "--scores code=code-scores.safetensors --scores math=math-scores.safetensors"
        if named
        else SCORES
    )
    settings = "--set density=0.5 --set exclusive=true"
    assert say(f"select math code --base base -o m.safetensors {settings} {scores}") == 0
    assert "masks of 2 vectors" in capsys.readouterr().out
    assert say("merge base math code --method task_arithmetic --masks m.safetensors -o one") == 0
    assert say(f"merge base math code {settings} {scores} -o two") == 0
    said = capsys.readouterr().out
    assert "kept" in said
    assert "0.0% with code" in said
    for name, array in tensors("one").items():
        np.testing.assert_array_equal(array, tensors("two")[name])
    masks = Masks.open("m.safetensors")
    assert masks.exclusive
    assert masks.options["scores"] == ["math-scores.safetensors", "code-scores.safetensors"]


def test_show_says_what_they_are(here: Path, capsys: Any) -> None:
    assert say("select math code --base base -o m.safetensors") == 0
    origin = Origin(Binding("math", None, "00"), options={"samples": 2})
    with MomentsWriter("moments.safetensors", {"w": (2, 2)}, origin) as writer:
        writer.write("w", np.eye(2), 5)
        writer.commit()
    capsys.readouterr()
    for path, words in (
        ("math-scores.safetensors", ["importance scores of math", "factor: weight", "head: 1"]),
        ("m.safetensors", ["masks that exclude each other", "tasks: math, code", "density: 0.3"]),
        ("moments.safetensors", ["activation moments of math", "samples: 2"]),
    ):
        assert say(f"show {path}") == 0
        said = capsys.readouterr().out
        for word in words:
            assert word in said


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("merge base math --method stau -o x", 2, "there is no method 'stau'; did you mean 'sta'"),
        ("merge base math --set densty=1 -o x", 2, "no option 'densty'; did you mean 'density'"),
        ("merge base math --set density=2 -o x", 2, "a density of 2"),
        ("merge base math --set scope=row -o x", 2, "scope 'row' is unknown"),
        ("merge base math --set normalize=men -o x", 2, "did you mean 'mean'"),
        ("merge base math --set threshold=-1 -o x", 2, "a threshold of -1"),
        ("merge base math code --scores math-scores.safetensors -o x", 2, "2 vectors (math, code)"),
        (
            "merge base math code --scores maht=math-scores.safetensors -o x",
            2,
            "no vector 'maht'; did you mean 'math'",
        ),
        (
            "merge base math --scores code-scores.safetensors -o x",
            1,
            "were learnt of the model code",
        ),
        ("merge base math --scores math -o x", 1, "math: is a checkpoint, not importance scores"),
        (
            "merge base math --scores math=a --scores math=b -o x",
            2,
            "--scores of 'math' are given twice",
        ),
        (
            "merge base math --scores math=math-scores.safetensors "
            "--scores math-scores.safetensors -o x",
            2,
            "name all files",
        ),
        (f"merge base math code --method ties {SCORES} -o x", 2, "'ties' takes no scores"),
        ("merge base math --masks math-scores.safetensors -o x", 1, "importance scores, not a m"),
        ("select math -o x.safetensors", 2, "pass its base with --base"),
        ("add base math-scores.safetensors -o x", 2, "is importance scores, not a task vector"),
    ],
)
def test_what_is_refused(command: str, code: int, said: str, here: Path, capsys: Any) -> None:
    before = sorted(here.iterdir())
    assert say(command) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert sorted(here.iterdir()) == before


def test_weights_by_place_and_by_name(here: Path) -> None:
    add = "--method task_arithmetic -q"
    assert say(f"merge base math code {add} --weights 0.5,-2 -o places") == 0
    assert say(f"merge base math code {add} --weights code=-2 --weights math=0.5 -o names") == 0
    assert say(f"merge base math code {add} --weights code=-2 -o one") == 0
    base, math, code = (Checkpoint(name) for name in ("base", "math", "code"))
    for out, first in (("places", 0.5), ("names", 0.5), ("one", 1.0)):
        wanted = (base + first * (math - base) - 2 * (code - base)).tensors()
        found = Checkpoint(out).store
        for tensor, values in wanted.items():
            np.testing.assert_array_equal(found[tensor].load(), values)


@pytest.mark.parametrize(("words", "said"), [
    ("--weights 0.5", "2 vectors (math, code) need a number each; or give some as NAME=NUMBER"),
    ("--weights maths=1", "there is no vector 'maths'; did you mean 'math'?"),
    ("--weights math=1,math=2", "--weights gives 'math' twice"),
    ("--weights math=x", "--weights: 'x' is no number"),
    ("--weights 0,1", "a weight of 0 takes no part"),
    ("--method ties:densty=1", "has no option 'densty'; did you mean 'density'?"),
    ("--method slerp --weights 1,1 --set t=2", "t 2 is beyond the two models"),
])  # fmt: skip
def test_weights_and_methods_that_are_refused(
    words: str, said: str, here: Path, capsys: Any
) -> None:
    assert say(f"merge base math code {words} -o out") == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_options_in_the_name_are_those_of_set(here: Path) -> None:
    assert say("merge base math code --method ties:density=0.5 -q -o one") == 0
    assert say("merge base math code --method ties --set density=0.5 -q -o two") == 0
    one, two = Checkpoint("one").store, Checkpoint("two").store
    assert {n: i.load().tobytes() for n, i in one.items()} == {
        n: i.load().tobytes() for n, i in two.items()
    }


def test_only_methods_that_select_select(here: Path, capsys: Any) -> None:
    assert say("select math code --base base --method average -o m.safetensors") == 2
    assert "method 'average' selects no entries" in capsys.readouterr().err
    assert say("select math code --base base --method sta:density=0.5 -q -o m.safetensors") == 0
    assert Masks.open("m.safetensors").names == ("math", "code")


def test_masks_of_every_task_for_the_sum(here: Path) -> None:
    """TALL: what select stores, times the sum, is the method's model of each task."""
    from taskbasis import TaskVector

    say("select math code --base base --method tall:lam=0.5 -q -o m.safetensors")
    masks, base = Masks.open("m.safetensors"), Checkpoint("base")
    total = TaskVector("base", "math") + TaskVector("base", "code")
    for number, name in enumerate(("math", "code"), 1):
        say(f"merge base math code --method tall:lam=0.5,task={number} -q -o {name}-own")
        wanted = Checkpoint(f"{name}-own").store
        for tensor, values in (base + masks[name] * total).tensors().items():
            np.testing.assert_allclose(values, wanted[tensor].load(), rtol=1e-6)


def test_masks_of_tall_are_not_for_each_vector(here: Path, capsys: Any) -> None:
    say("select math code --base base --method tall -q -o m.safetensors")
    assert say("merge base math code --masks m.safetensors -o out") == 2
    assert "masks of tall are for the sum of all vectors" in capsys.readouterr().err


def test_a_name_with_commas_can_be_weighted(here: Path) -> None:
    Path("code").rename("co,de")
    add = "--method task_arithmetic -q"
    assert say(f"merge base math co,de {add} --weights co,de=-2 -o one") == 0
    base = Checkpoint("base")
    wanted = (base + (Checkpoint("math") - base) - 2 * (Checkpoint("co,de") - base)).tensors()
    for tensor, values in wanted.items():
        np.testing.assert_array_equal(Checkpoint("one").store[tensor].load(), values)


def test_an_inner_merge_takes_its_options_in_one_text(here: Path, capsys: Any) -> None:
    fit = "basis fit math code --base base --method cluster -k 1"
    assert say(f"{fit} --set inner=ties:density=0.5 -q -o one.safetensors") == 0
    assert say(f"{fit} --set inner=ties --set density=0.5 -q -o two.safetensors") == 0
    for tensor, info in Checkpoint("one.safetensors").store.items():
        np.testing.assert_array_equal(
            info.load(), Checkpoint("two.safetensors").store[tensor].load()
        )
    assert say(f"{fit} --set inner=karcher -o three") == 2
    assert "karcher needs base, so it cannot merge clusters" in capsys.readouterr().err
