"""From the text of a recipe to numbers: small models, and the formulas by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis import Checkpoint, TaskVector, merge
from taskbasis.recipes import Location, ModelRef, parse_recipe, translate

Model = dict[str, NDArray[np.float32]]
LAYERS = 3


def made(seed: int) -> Model:
    draw = np.random.default_rng(seed)
    shapes = {"wte.weight": (5, 4), "ln_f.weight": (4,)}
    for layer in range(LAYERS):
        shapes[f"h.{layer}.attn.weight"] = (4, 4)
        shapes[f"h.{layer}.mlp.up.weight"] = (6, 4)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


MODELS = {name: made(seed) for seed, name in enumerate("abc")}


def computed(text: str, folder: Path) -> Model:
    """The output of a recipe; a layer from elsewhere is renamed before it is merged."""
    document = parse_recipe(text).documents[0]
    names = {ref: list(MODELS[str(ref)]) for ref in document.references()}
    found = translate(document, names)
    out: dict[str, Any] = {}
    for number, (step, tensors) in enumerate(found.grouped().items()):
        paths = {}
        for ref in {step.base, *step.models}:
            of = {
                name: next(one.tensor for one in found.wanted[name].inputs if one.model == ref)
                for name in tensors
            }
            paths[ref] = folder / f"{ref}-{number}.safetensors"
            save_file({name: MODELS[str(ref)][own] for name, own in of.items()}, paths[ref])
        base = Checkpoint(paths[step.base])
        vectors = [TaskVector(base, paths[model]) for model in step.models]
        out.update(merge(base, vectors, step.build(), step.scale, weights=step.weights).tensors())
    return out


def close(found: Model, expected: dict[str, NDArray[Any]]) -> None:
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_frankenmerge_is_copies(tmp_path: Path) -> None:
    text = """\
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 3]}]
- sources: [{model: c, layer_range: [0, 1]}]
  parameters: {scale: [{filter: mlp, value: 0}, {value: 2}]}
"""
    found = computed(text, tmp_path)
    a, b, c = MODELS.values()
    expected = {"wte.weight": a["wte.weight"], "ln_f.weight": 2 * c["ln_f.weight"]}
    for number, (model, layer) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        for rest in ("attn.weight", "mlp.up.weight"):
            expected[f"h.{number}.{rest}"] = model[f"h.{layer}.{rest}"]
    expected["h.4.attn.weight"] = 2 * c["h.0.attn.weight"]
    expected["h.4.mlp.up.weight"] = 0 * c["h.0.mlp.up.weight"]
    close(found, expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_gradient_of_weights_over_the_layers(tmp_path: Path) -> None:
    text = """\
merge_method: linear
models:
- {model: a, parameters: {weight: [1, 0]}}
- {model: b, parameters: {weight: [0, 1]}}
"""
    a, b, _ = MODELS.values()
    shares = {"wte": 0.0, "ln_f": 0.0, "h.0": 0.0, "h.1": 0.5, "h.2": 1.0}
    expected = {}
    for name in a:
        share = next(value for start, value in shares.items() if name.startswith(start))
        expected[name] = (1 - share) * a[name] + share * b[name]
    close(computed(text, tmp_path), expected)


def test_slerp_by_filters(tmp_path: Path) -> None:
    text = """\
merge_method: slerp
base_model: a
models: [model: b]
parameters:
  t:
  - {filter: attn, value: [0, 1]}
  - {filter: mlp, value: [1, 0]}
  - value: 0.5
"""

    def between(x: NDArray[Any], y: NDArray[Any], t: float) -> NDArray[Any]:
        x, y = x.astype(np.float64), y.astype(np.float64)
        angle = np.arccos(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
        parts = np.sin((1 - t) * angle) * x + np.sin(t * angle) * y
        return np.asarray(parts / np.sin(angle))

    a, b, _ = MODELS.values()
    expected = {}
    for name in a:
        t = 0.5
        if name.startswith("h."):
            t = int(name.split(".")[1]) / (LAYERS - 1)
            t = 1 - t if "mlp" in name else t
        expected[name] = between(a[name], b[name], t)
    close(computed(text, tmp_path), expected)


def test_one_model_is_subtracted(tmp_path: Path) -> None:
    """What mergekit's ties turns into its opposite."""
    text = """\
merge_method: ties
base_model: a
models: [{model: b, parameters: {weight: -1}}]
"""
    a, b, _ = MODELS.values()
    close(computed(text, tmp_path), {name: 2 * a[name] - b[name] for name in a})
    document = parse_recipe(text).documents[0]
    names = {ref: list(a) for ref in document.references()}
    assert "here it is subtracted" in translate(document, names).notes[0]


def test_the_base_counts_as_a_model_in_linear(tmp_path: Path) -> None:
    text = """\
merge_method: linear
base_model: a
models: [model: b, model: c]
parameters: {weight: 2}
"""
    a, b, c = MODELS.values()
    close(computed(text, tmp_path), {name: (a[name] + b[name] + c[name]) / 3 for name in a})


def test_weights_beyond_the_models(tmp_path: Path) -> None:
    """Without a base there is nothing to subtract from, but a line to go along."""
    text = """\
merge_method: linear
models: [{model: a, parameters: {weight: 3}}, {model: b, parameters: {weight: -1}}]
"""
    a, b, _ = MODELS.values()
    close(computed(text, tmp_path), {name: 1.5 * a[name] - 0.5 * b[name] for name in a})


def test_slices_of_several_models_with_weights_of_their_own(tmp_path: Path) -> None:
    text = """\
merge_method: task_arithmetic
base_model: a
parameters: {weight: 1, lambda: [1, 3]}
slices:
- sources:
  - {model: a, layer_range: [0, 2]}
  - {model: b, layer_range: [1, 3], parameters: {weight: 0.5}}
- sources:
  - {model: a, layer_range: [2, 3]}
  - {model: c, layer_range: [0, 1]}
  parameters: {weight: {filter: mlp, value: -2}}
"""
    a, b, c = MODELS.values()

    def moved(own: str, other: NDArray[Any], size: float) -> NDArray[Any]:
        return np.asarray(a[own] + size * (other - a[own]))

    expected = {
        "wte.weight": moved("wte.weight", b["wte.weight"], 0.5),
        "ln_f.weight": moved("ln_f.weight", c["ln_f.weight"], 1),
    }
    for rest, last in (("attn.weight", 3.0), ("mlp.up.weight", -6.0)):
        expected[f"h.0.{rest}"] = moved(f"h.0.{rest}", b[f"h.1.{rest}"], 0.5)
        expected[f"h.1.{rest}"] = moved(f"h.1.{rest}", b[f"h.2.{rest}"], 1.5)
        expected[f"h.2.{rest}"] = moved(f"h.2.{rest}", c[f"h.0.{rest}"], last)
    close(computed(text, tmp_path), expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_many_documents_stand_in_order(count: int) -> None:
    """A chain, written from its end."""
    parts = [
        f"name: s{i}\nmerge_method: passthrough\nmodels: [model: {f's{i - 1}' if i else 'hub'}]\n"
        for i in reversed(range(count))
    ]
    recipes = parse_recipe("---\n".join(parts))
    assert [one.name for one in recipes.in_order()] == [f"s{i}" for i in range(count)]


def test_all_models_of_a_recipe_are_known() -> None:
    text = """\
merge_method: task_arithmetic
base_model: base
modules:
  x:
    slices:
    - sources: [{model: a, layer_range: [0, 1]}, {model: other, layer_range: [0, 1]}]
      base_model: other
  y: {models: [model: a+l]}
parameters: {weight: 1}
tokenizer: {source: tok, tokens: {t: {source: a}}}
"""
    found = parse_recipe(text).documents[0].references()
    assert [str(ref) for ref in found] == ["base", "a", "other", "a+l", "tok"]
    assert found[3] == ModelRef(Location("a"), Location("l"))
