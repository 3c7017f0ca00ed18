"""taskbasis diagnose: tables, sentences, JSON and picture, and what is refused before the work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from matplotlib import image
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskbasis.cli import VERBS
from taskbasis.diagnosis import diagnose
from taskbasis.vectors import Checkpoint, TaskVector

Tensors = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "diagnose", VERBS.get("diagnose", "What is wrong?"))


def vectors(desk: Path, *names: str, base: str = "base") -> dict[str, TaskVector]:
    return {name: TaskVector(desk / base, desk / name) for name in names}


def test_tables_hold_the_numbers(desk: Path, call: Any) -> None:
    said = call("diagnose a b c --base base --dtype bfloat16 --scale 0.5")
    assert said.code == 0
    assert said.err in ("", "compiling the kernels for this machine, once\n")
    found = diagnose(
        vectors(desk, "a", "b", "c"), Checkpoint(desk / "base"), dtype="bfloat16", scale=0.5
    )
    assert found.whole.relative is not None
    assert found.rounding is not None
    for number in (
        f"{found.whole.norms[1]:.4g}",
        f"{found.whole.relative[2]:.2%}",
        f"{found.origins[0].whole.cosine:.3f}",
        f"{found.layers[1].weighted:.1%}",
        f"{found.pairs.cosines[2][1]:.3f}",
        f"{found.pairs.weighted[0][2]:.1%}",
        f"{found.ranks[0].effective[0]:.1f}",
        f"{found.rounding.whole.lost:.2%}",
        f"{found.rounding.layers[0].drawn_kept:.1%}",
    ):
        assert f" {number} " in said.out
    for title in ("norms over the base's", "effective ranks", "what rounding leaves of 0.5 x the"):
        assert title in said.out
    for sentence in found.sentences:
        assert f"- {sentence}\n" in said.out
    assert "shared by all vectors: " in said.out
    assert "embed.weight " in said.out  # among the ranks
    assert "tensors: norms" not in said.out


def test_verbose_lists_tensors(desk: Path, call: Any) -> None:
    said = call("diagnose a b --base base --dtype bfloat16 -v --scale 0.01").out
    assert "tensors: norms over the base's" in said
    assert "tensors: what rounding leaves" in said
    assert "  in float32: embed.weight\n" in said


def test_quiet_says_only_what_is_wrong(desk: Path, call: Any) -> None:
    said = call("diagnose a --base stranger -q")
    assert said.code == 0
    assert said.out.startswith("- a: looks as if it was taken from another base: it takes away ")
    assert call("diagnose a b --base base -q --json out.json").out == ""
    assert call("diagnose a --base base").out.endswith("nothing looks wrong\n")


def test_json_is_the_diagnosis(desk: Path, call: Any) -> None:
    said = call("diagnose first=a b --base base --json out.json --dtype float16 --ranks 1")
    assert said.out.endswith("wrote out.json\n")
    named = {"first": TaskVector("base", "a"), "b": TaskVector("base", "b")}
    found = diagnose(named, Checkpoint("base"), dtype="float16", ranks=1)
    assert json.loads((desk / "out.json").read_text()) == found.to_json()
    assert len(found.ranks) == 1
    every = call("diagnose a --base base --all-ranks --json out.json --replace -q")
    assert every.code == 0
    assert len(json.loads((desk / "out.json").read_text())["ranks"]) == 3


def small_update(desk: Path) -> tuple[Tensors, Tensors]:
    """``half`` in bfloat16 and ``near``: most of the change is in one layer of two."""
    random = np.random.default_rng(5)
    old = {
        f"layers.{n}.w": random.uniform(1, 1.9, (200, 100)).astype(ml_dtypes.bfloat16)
        for n in range(3)
    } | {"head": random.uniform(1, 1.9, 10).astype(ml_dtypes.bfloat16)}
    by = {"layers.0.w": 2e-4, "layers.1.w": 2e-4, "layers.2.w": 2e-4, "head": 2**-7}
    new = {name: value.astype(np.float32) + np.float32(by[name]) for name, value in old.items()}
    for folder, tensors in (("half", old), ("near", new)):
        (desk / folder).mkdir()
        save_file(tensors, desk / folder / "model.safetensors", {"format": "pt"})
    return old, new


def survives(found: Tensors, old: Tensors, new: Tensors) -> tuple[float, float]:
    """How much of the step is made along itself, and the share of its norm that is lost."""
    start, end, made = (
        np.concatenate([side[name].astype(np.float64).ravel() for name in sorted(old)])
        for side in (old, new, found)
    )
    step = end - start
    return float((made - start) @ step / (step @ step)), float(
        np.linalg.norm(made - end) / np.linalg.norm(step)
    )


def test_the_advice_is_followed_word_for_word(desk: Path, call: Any) -> None:
    """diagnose tells what is lost; with the options that it prints the update survives."""
    old, new = small_update(desk)
    told = call("diagnose near --base half --json out.json -q").out.splitlines()
    rounding = json.loads((desk / "out.json").read_text())["rounding"]
    assert call("add half near -o plain -q").code == 0
    made, lost = survives(load_file("plain/model.safetensors"), old, new)
    assert lost == pytest.approx(rounding["whole"]["lost"], rel=1e-4)
    assert made == pytest.approx(rounding["whole"]["kept"], rel=1e-4)
    assert f"loses {lost:.1%} of the update's norm" in told[0]
    assert rounding["in_float32"] == [f"layers.{n}.w" for n in range(3)]
    assert lost > 0.8
    assert made < 0.35
    options = {
        name: shlex.split(line.partition(": write the model with ")[2])
        for name, line in zip(("float32", "stochastic"), told[1:], strict=True)
    }
    assert options == rounding["advice"]
    assert options["float32"] == ["--keep-float32", "layers.*.w"]
    assert call("add", "half", "near", "-o", "kept", "-q", *options["float32"]).code == 0
    kept = load_file("kept/model.safetensors")
    made, lost = survives(kept, old, new)
    assert (made, lost) == (pytest.approx(1, abs=1e-6), pytest.approx(rounding["then"], abs=1e-6))
    assert {name: value.dtype.name for name, value in kept.items()} == {
        "head": "bfloat16",
        **dict.fromkeys(rounding["in_float32"], "float32"),
    }
    assert call("add", "half", "near", "-o", "drawn", "-q", *options["stochastic"]).code == 0
    drawn = load_file("drawn/model.safetensors")
    made, lost = survives(drawn, old, new)
    assert made == pytest.approx(1, abs=0.05)
    assert lost == pytest.approx(rounding["whole"]["stochastic"], rel=0.03)
    assert {value.dtype.name for value in drawn.values()} == {"bfloat16"}


def test_a_picture_is_drawn(desk: Path, call: Any) -> None:
    said = call("diagnose a b --base base --plot out.png --json out.json")
    assert said.out.endswith("wrote out.json\nwrote out.png\n")
    assert image.imread(desk / "out.png").shape == (1290, 1950, 4)


def test_stored_vectors_need_no_base(desk: Path, call: Any) -> None:
    for name in "ab":
        assert call(f"extract base {name} -o {name}.safetensors -q").code == 0
    said = call("diagnose a.safetensors b.safetensors")
    assert said.code == 0
    assert "layers: norms\n" in said.out.replace(" ", "").replace("layers:norms", "layers: norms")
    assert "rounding" not in said.out
    assert call("diagnose a.safetensors b.safetensors --base base").code == 0


def test_tasks_of_a_basis(desk: Path, call: Any) -> None:
    assert call("basis fit a b c --base base -o lib -k 3 --method svd -q").code == 0
    said = call("diagnose lib:a a2=a --base base --json out.json --dtype bfloat16")
    assert said.code == 0
    found = json.loads((desk / "out.json").read_text())
    assert found["names"] == ["a", "a2"]
    assert found["pairs"]["cosines"][0][1] > 0.999
    assert "- a and a2 point the same way (cosine " in said.out


def test_many_vectors_have_a_summary(desk: Path, call: Any) -> None:
    random = np.random.default_rng(1)
    base = load_file("base/model.safetensors")
    for t in range(12):
        (desk / f"t{t}").mkdir()
        tuned = {
            n: v + np.float32(0.01) * random.random(v.shape, np.float32) for n, v in base.items()
        }
        save_file(tuned, desk / f"t{t}" / "model.safetensors")
    names = [f"t{t}" for t in range(12)]
    said = call("diagnose", *names, "--base", "base", "--json", "out.json").out
    found = json.loads((desk / "out.json").read_text())
    assert "smallest" in said
    assert "the 10 pairs of largest |cos|" in said
    largest = max(abs(found["pairs"]["cosines"][i][j]) for i in range(12) for j in range(i))
    assert f" {largest:.3f} " in said
    row = next(line for line in said.splitlines() if line.startswith("│ norm "))
    norms = next(part["relative"] for part in found["layers"] if part["name"] == "norm")
    for number in (min(norms), np.median(norms), max(norms)):
        assert f" {number:.2%} " in row


def test_tensors_can_be_left_out(desk: Path, call: Any) -> None:
    call("diagnose a b --base base --exclude embed.* --json out.json -q")
    names = [part["name"] for part in json.loads((desk / "out.json").read_text())["tensors"]]
    assert names == ["layers.0.w", "layers.1.w", "norm"]


def test_a_base_of_zeros_has_no_ratio(desk: Path, call: Any) -> None:
    zero = {
        name: np.zeros_like(value) for name, value in load_file("base/model.safetensors").items()
    }
    (desk / "zero").mkdir()
    save_file(zero, desk / "zero" / "model.safetensors")
    said = call("diagnose a --base zero")
    assert said.code == 0
    assert "unknown" in said.out


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("diagnose a b", 2, "a is a checkpoint, not a task vector; pass its base with --base"),
        ("diagnose a nobody --base base", 1, "nobody: no such file or folder"),
        ("diagnose a a --base base", 2, "two vectors are called 'a'; name them as NAME=PATH"),
        ("diagnose a --base base --dtype int8", 2, "'int8' is not a float type"),
        ("diagnose a --base base --scale nan", 2, "the scale must be a finite number, not nan"),
        ("diagnose a --base base --target 2", 2, "a target of 2.0 means nothing"),
        ("diagnose a --base base --exclude x", 2, "--exclude 'x' matches no tensor"),
        ("diagnose a --base base --plot p.pdf", 2, "p.pdf does not end in .png"),
        ("diagnose a --base base --plot no/p.png", 1, "the folder no does not exist"),
        ("diagnose a --base base --json no/p.json", 1, "does not exist; create it first"),
        ("diagnose a --base base --json base", 1, "would touch the input base"),
        ("diagnose a --base base --json a/model.safetensors", 1, "would touch the input a"),
        ("diagnose a --base base --json there.json", 1, "already exists; pass --replace"),
        ("diagnose a --base base --json folder --replace", 2, "--json folder is a folder"),
        ("diagnose a --base base --json p.png --plot p.png", 2, "must name different places"),
    ],
)
def test_errors_come_before_the_work(
    desk: Path, call: Any, command: str, code: int, sentence: str
) -> None:
    (desk / "there.json").write_text("mine")
    (desk / "folder").mkdir()
    before = sorted(path.name for path in desk.iterdir())
    said = call(command)
    assert said.code == code
    assert sentence in said.sentence
    assert (desk / "there.json").read_text() == "mine"
    assert sorted(path.name for path in desk.iterdir()) == before


def test_ranks_below_zero_are_refused(desk: Path, call: Any) -> None:
    said = call("diagnose a --base base --ranks -1")
    assert said.code == 2
    assert "--ranks" in said.err
