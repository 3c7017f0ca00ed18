"""taskbasis disentangle: the table that it prints and the vectors that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis.disentangling import disentangle
from taskbasis.vectors import TaskVector

NAMES = ("x", "y", "z")


@pytest.fixture
def shared(desk: Path) -> Path:
    """The desk with three more fine-tunes that have much in common."""
    random = np.random.default_rng(5)
    base = load_file(desk / "base" / "model.safetensors")
    common = {key: 0.1 * random.standard_normal(value.shape) for key, value in base.items()}
    for name in NAMES:
        tuned = {
            key: np.asarray(
                value + common[key] + 0.1 * random.standard_normal(value.shape), np.float32
            )
            for key, value in base.items()
        }
        (desk / name).mkdir()
        save_file(tuned, desk / name / "model.safetensors", {"format": "pt"})
    return desk


def vectors(desk: Path) -> dict[str, TaskVector]:
    return {name: TaskVector(desk / "base", desk / name) for name in NAMES}


def test_what_is_left_is_written_and_said(shared: Path, call: Any) -> None:
    said = call("disentangle base x y z -o left")
    assert (said.code, said.err) == (0, "")
    found = disentangle(vectors(shared))
    assert found.after < 0.5 * found.before
    (row,) = [line for line in said.out.splitlines() if "model  " in line]
    for number in (found.before, found.after):
        assert f"{number:.4f}" in row
    assert f"{found.groups['model'].share:.1%}" in row
    assert "wrote left: 3 vectors, 1.14 kB" in said.out
    assert sorted(path.name for path in (shared / "left").iterdir()) == [
        f"{name}.safetensors" for name in NAMES
    ]
    for name in NAMES:
        stored = load_file(shared / "left" / f"{name}.safetensors")
        for tensor, value in found.vectors[name].tensors().items():
            np.testing.assert_array_equal(stored[tensor], value)


def test_what_is_left_can_be_merged(shared: Path, call: Any) -> None:
    assert call("disentangle base x y -o left -q").out == ""
    assert call("add base left/x.safetensors left/y.safetensors -o sum -q").code == 0
    found = disentangle({name: vectors(shared)[name] for name in "xy"}).vectors
    merged = load_file(shared / "sum" / "model.safetensors")
    base = load_file(shared / "base" / "model.safetensors")
    for tensor, value in base.items():
        wanted = value + found["x"].tensors()[tensor] + found["y"].tensors()[tensor]
        np.testing.assert_allclose(merged[tensor], wanted, atol=1e-6)


def test_layers_are_listed_and_tensors_only_when_asked(shared: Path, call: Any) -> None:
    said = call("disentangle base x y z -o left --granularity layer").out
    for group in ("all", "embed", "layers.0", "layers.1", "norm"):
        assert f"│ {group} " in said
    short = call("disentangle base x y z -o left --granularity tensor --replace").out
    long = call("disentangle base x y z -o left --granularity tensor --replace -v").out
    assert "│ all " in short
    assert "embed.weight" not in short
    assert "embed.weight" in long


def test_options_reach_the_descent(shared: Path, call: Any) -> None:
    call("disentangle base x y z -o left -q --alpha 0.5 --rate 0.02 --iterations 5")
    found = disentangle(vectors(shared), alpha=0.5, rate=0.02, iterations=5)
    stored = load_file(shared / "left" / "x.safetensors")
    np.testing.assert_array_equal(stored["norm"], found.vectors["x"].tensors()["norm"])
    call("disentangle base x y z -o part -q --exclude embed.* --dtype bfloat16")
    assert "embed.weight" not in TaskVector.open(shared / "part" / "x.safetensors").tensors()
    assert (shared / "part" / "x.safetensors").stat().st_size < (
        shared / "left" / "x.safetensors"
    ).stat().st_size


def test_names_and_warnings(shared: Path, call: Any) -> None:
    said = call("disentangle base first=x -o one")
    assert "one vector shares nothing with others" in said.err
    assert (shared / "one" / "first.safetensors").is_file()
    said = call("disentangle base x y -o two --alpha 100")
    assert "nothing was taken from the vectors; try a smaller --alpha" in said.err
    assert "0.0%" in said.out


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("disentangle base x y -o base", 1, "would touch the input"),
        ("disentangle base x y -o no/left", 1, "the folder"),
        ("disentangle base x y -o left --alpha -1", 2, "an alpha of -1.0 has no meaning"),
        ("disentangle base x y -o left --rate 0", 2, "a rate of 0.0 leads nowhere"),
        ("disentangle base x y -o left --iterations -1", 2, "-1 iterations cannot be made"),
        ("disentangle base x y -o left --dtype int8", 2, "int8"),
        ("disentangle base x nobody -o left", 1, "nobody: no such file or folder"),
    ],
)
def test_errors(shared: Path, call: Any, command: str, code: int, sentence: str) -> None:
    said = call(command)
    assert said.code == code
    assert sentence in said.sentence
    assert not (shared / "left").exists()
    assert not [path for path in shared.iterdir() if "partial" in path.name]


def test_vectors_are_never_sharded_so_no_size_is_taken(call: Any, desk: Path) -> None:
    answer = call("disentangle base a b -o out --out-shard-size 1kB")
    assert answer.code == 2
    assert "No such option" in answer.err
