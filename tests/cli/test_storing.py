"""--keep-float32 and --rounding, wherever a model or a vector is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

RECIPE = """
merge_method: task_arithmetic
base_model: base
models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 1}}]
dtype: bfloat16
"""
CHAIN = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
dtype: bfloat16
---
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.7}}]
dtype: bfloat16
"""
FLAGS = "--dtype bfloat16 --keep-float32 *norm --rounding stochastic"


@pytest.fixture
def stored(desk: Path, call: Any) -> Path:
    """The desk, with what the verbs start from."""
    (desk / "r.yml").write_text(RECIPE)
    (desk / "chain.yml").write_text(CHAIN)
    for name in "ab":
        assert call(f"extract base {name} -o {name}.safetensors -q").code == 0
    assert call("basis fit a b --base base -o lib -k 2 --method svd -q").code == 0
    return desk


def tensors(name: str) -> dict[str, Any]:
    place = Path(name)
    if not place.is_dir():
        return load_file(place)
    files = sorted(place.glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize(
    "verb",
    [
        "extract base a -o OUT",
        "add base a b -o OUT",
        "negate base a -o OUT",
        "analogy base --plus a --plus b --minus c -o OUT",
        "merge base a b --method ties -o OUT",
        "forget base a -o OUT --set density=0.5",
        "basis recover lib a -o OUT",
        "basis recover lib a -o OUT --base base",
        "basis add lib -o OUT --base base",
        "basis negate lib a -o OUT --base base",
        "disentangle base a b -o OUT --iterations 2",
        "merge r.yml OUT",
        "merge chain.yml OUT",
    ],
)
def test_every_verb_that_writes_weights(verb: str, stored: Path, call: Any) -> None:
    flags = FLAGS.removeprefix("--dtype bfloat16 ") if ".yml" in verb else FLAGS
    outs = ["x", "y"]
    one = call(*f"{verb.replace('OUT', outs[0])} {flags}".split())
    assert one.code == 0, one.err
    assert "to which rounding added noise of " in one.out or verb.startswith("dis")
    other = call(*f"{verb.replace('OUT', outs[1])} {flags} --rounding-seed 1 -q".split())
    assert (other.code, other.out) == (0, "")
    first, second = map(tensors, outs)
    dtypes = {name: value.dtype.name for name, value in first.items()}
    assert dtypes.pop("norm") == "float32"
    assert set(dtypes.values()) == {"bfloat16"}
    near = call(*f"{verb.replace('OUT', 'near')} {flags.split(' --rounding')[0]} -q".split())
    assert near.code == 0
    third = tensors("near")
    for name, value in first.items():
        low, high, middle = (x[name].astype(np.float64) for x in (first, second, third))
        bits = 23 if name == "norm" else 7
        step = np.ldexp(1.0, np.frexp(np.abs(middle) + 1e-30)[1] - bits)
        assert np.all(np.abs(low - middle) <= step)
        assert np.all(np.abs(low - high) <= step)
        if name != "norm":  # of which float32 may hold every sum
            assert value.tobytes() != second[name].tobytes()


def test_tensors_in_float32_are_told_to_whoever_loads_them(stored: Path, call: Any) -> None:
    for words in ("add base a -o x --dtype bfloat16", "merge r.yml y"):
        said = call(*words.split(), "--keep-float32", "*norm")
        assert said.out.splitlines()[-1].startswith(
            "to keep what is stored in float32, load the model in float32 (dtype=torch.float32 in"
        )
        assert "load the model" not in call(*words.split(), "--replace").out
    record = json.loads((stored / "y" / "taskbasis_recipe.json").read_text())
    assert "stored" not in record
    assert call("merge r.yml y --replace -q --keep-float32 *norm --rounding stochastic").code == 0
    record = json.loads((stored / "y" / "taskbasis_recipe.json").read_text())
    assert record["stored"] == {
        "float32": ["*norm"],
        "rounding": "stochastic",
        "rounding_seed": 0,
    }
    line = "taskbasis merge mergekit_config.yml merged --keep-float32 '*norm' --rounding stochastic"
    assert line in (stored / "y" / "README.md").read_text()


def test_the_card_tells_the_command_that_makes_the_same_bytes(stored: Path, call: Any) -> None:
    assert call(f"merge base a b --method ties -o one -q {FLAGS} --rounding-seed 4").code == 0
    (line,) = re.findall("```bash\n(.*)\n```", (stored / "one" / "README.md").read_text())
    assert call(*shlex.split(line)[1:]).code == 0
    one, again = ((stored / name / "model.safetensors").read_bytes() for name in ("one", "merged"))
    assert one == again


def test_merges_in_between_are_stored_as_the_recipe_says(stored: Path, call: Any) -> None:
    """The options are for the last merge; a pattern is looked for there, before anything is."""
    for out, flags in (("x", ""), ("y", "--rounding stochastic"), ("z", "--keep-float32 norm")):
        assert call(f"merge chain.yml {out} -q {flags}").code == 0
    whole, kept = tensors("x"), tensors("z")
    assert kept["norm"].dtype == np.float32
    assert kept["embed.weight"].tobytes() == whole["embed.weight"].tobytes()
    before = sorted(stored.iterdir())
    said = call("merge chain.yml w --keep-float32 nurm")
    assert (said.code, said.sentence) == (
        2,
        "--keep-float32 'nurm' matches no tensor of floats; did you mean 'norm'?",
    )
    assert sorted(stored.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--keep-float32 layer.*", "--keep-float32 'layer.*' matches no tensor of floats; "),
        ("--rounding-seed 3", "a rounding seed has no part in rounding to nearest; leave it out"),
    ],
)
@pytest.mark.parametrize(
    "verb", ["extract base a -o v.safetensors", "add base a -o x", "merge r.yml x"]
)
def test_options_without_a_meaning(
    verb: str, flags: str, sentence: str, stored: Path, call: Any
) -> None:
    before = sorted(stored.iterdir())
    said = call(*verb.split(), *flags.split())
    assert said.code == 2
    assert said.sentence.startswith(sentence)
    assert sorted(stored.iterdir()) == before


def test_another_rounding_is_no_choice(stored: Path, call: Any) -> None:
    said = call("add base a -o x --rounding up")
    assert said.code == 2
    assert "'up' is not one of 'nearest', 'stochastic'" in said.err


def test_atoms_are_stored_without_these_options(stored: Path, call: Any) -> None:
    for verb in ("basis fit a b --base base -o l2 -k 2", "basis update lib c --base base -o l2"):
        said = call(*verb.split(), "--rounding", "stochastic")
        assert said.code == 2
        assert "No such option" in said.err


def test_inputs_that_a_recipe_s_dtype_cannot_hold_are_told(stored: Path, call: Any) -> None:
    said = call("merge r.yml x")
    assert (
        "warning: float32 in base, a and b: mergekit rounds it to dtype bfloat16 before it merges; "
        "here it is merged as it is, and only the result is rounded"
    ) in said.err
    assert call("add base a -o half -q --dtype bfloat16").code == 0
    for dtype, told in (
        ("float32", ""),
        ("bfloat16", "float32 in base and a:"),
        ("float16", "bfloat16 and float32 in base, a and half:"),
    ):
        text = RECIPE.replace("dtype: bfloat16", f"dtype: {dtype}")
        (stored / "r.yml").write_text(text.replace("model: b,", "model: half,"))
        said = call("check r.yml")
        assert said.code == 0
        assert told in said.err
        assert said.err.count("mergekit rounds") == bool(told)
    (stored / "r.yml").write_text(RECIPE.replace("dtype: bfloat16", "out_dtype: bfloat16"))
    assert "mergekit rounds" not in call("check r.yml").err
