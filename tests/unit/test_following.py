"""Following recipes: what is written, byte by byte, against dense NumPy; and what is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.chains import follow_all
from taskbasis.engine import Engine
from taskbasis.errors import FileError, MismatchError, UsageError, ValueProblem
from taskbasis.following import CONFIG, account, cost, follow
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import FileBlob
from taskbasis.preparing import prepare
from taskbasis.recipes import parse_recipe
from taskbasis.sidefiles import RECIPE_FILE

LAYERS = 3
INSIDE = {"self_attn.q_proj.weight": (6, 6), "mlp.up_proj.weight": (8, 6), "norm.weight": (6,)}
OUTSIDE = {
    "model.embed_tokens.weight": (10, 6),
    "model.norm.weight": (6,),
    "lm_head.weight": (10, 6),
}
TYPES = "model.types"
CONFIGS = {"model_type": "llama", "num_hidden_layers": LAYERS, "torch_dtype": "float32"}

Arrays = dict[str, NDArray[Any]]
Follow = Callable[..., Arrays]


def name_of(layer: int, rest: str) -> str:
    return f"model.layers.{layer}.{rest}"


def make(seed: int, dtype: Any = np.float32, layers: int = LAYERS) -> Arrays:
    """A base for seed 0; else what was trained from it. With a tensor of whole numbers."""
    random, other = np.random.default_rng(0), np.random.default_rng(seed)
    shapes = {name_of(n, rest): shape for n in range(layers) for rest, shape in INSIDE.items()}
    found = {}
    for name, shape in {**shapes, **OUTSIDE}.items():
        values = random.standard_normal(shape) + (0.1 * other.standard_normal(shape)) * (seed > 0)
        found[name] = values.astype(dtype)
    found[TYPES] = np.arange(4, dtype=np.int64) + seed
    return found


def floats_of(model: Arrays) -> list[str]:
    return [name for name in model if name != TYPES]


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def gradient(values: Sequence[float], layer: int | None, layers: int = LAYERS) -> float:
    place = 0.0 if layer is None else layer / (layers - 1)
    return float(np.interp(place, np.linspace(0, 1, len(values)), values))


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Arrays]:
    monkeypatch.chdir(tmp_path)
    return {name: make(seed) for seed, name in enumerate(("base", "a", "b", "c"))}


@pytest.fixture
def here(models: dict[str, Arrays], write_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """The current folder, with the four models."""
    for name, tensors in models.items():
        side = {"config.json": json.dumps(CONFIGS), "tokenizer.json": json.dumps(_tokenizer("xyz"))}
        write_folder(name, tensors, **side)
    return tmp_path


def _tokenizer(words: str) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}}}


@pytest.fixture
def made(here: Path) -> Follow:
    """``made(recipe, out="out", seed=0, workers=2)``: the tensors of what a recipe describes."""

    def run(text: str, out: str = "out", seed: int = 0, workers: int = 2, **how: Any) -> Arrays:
        engine = Engine(workers=workers)
        (here / "scratch").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=here / "scratch") as scratch:
            follow_all(parse_recipe(text), here / out, Path(scratch), seed, engine=engine, **how)
        return read(here / out)

    return run


def read(path: Path) -> Arrays:
    return {name: info.load() for name, info in open_tensors(path).items()}


def same_bytes(left: Arrays, right: Arrays) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert values.dtype == right[name].dtype
        assert values.tobytes() == right[name].tobytes(), name


def near(found: NDArray[Any], wanted: NDArray[Any], atol: float = 2e-6) -> None:
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=atol)


# Every kind of recipe, against NumPy.


def test_task_arithmetic_with_gradients_and_filters(made: Follow, models: Any) -> None:
    found = made("""
        merge_method: task_arithmetic
        base_model: base
        models:
          - {model: a, parameters: {weight: [0.0, 1.0, 0.5]}}
          - model: b
            parameters: {weight: [{filter: mlp, value: [1, 0]}, {filter: lm_head, value: 0}, -0.5]}
        parameters: {lambda: 0.8}
    """.replace(", -0.5]", ", {value: -0.5}]"))  # fmt: skip
    for name in floats_of(models["base"]):
        layer = layer_of(name)
        first = gradient([0, 1, 0.5], layer)
        second = gradient([1, 0], layer) if "mlp" in name else -0.5 * ("lm_head" not in name)
        base, a, b = (models[key][name].astype(float) for key in ("base", "a", "b"))
        near(found[name], base + 0.8 * (first * (a - base) + second * (b - base)))
    np.testing.assert_array_equal(found[TYPES], models["base"][TYPES])


def test_a_tensor_that_nothing_changes_keeps_its_bytes(made: Follow, models: Any) -> None:
    found = made("""
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a, parameters: {weight: [{filter: mlp, value: 1}, {value: 0}]}}]
    """)
    for name, values in models["base"].items():
        assert (found[name].tobytes() == values.tobytes()) == ("mlp" not in name), name


def test_linear_without_a_base(made: Follow, models: Any) -> None:
    found = made("""
        merge_method: linear
        models:
          - {model: a, parameters: {weight: 3}}
          - {model: b, parameters: {weight: [1, 3]}}
    """)
    for name in floats_of(models["a"]):
        weight = gradient([1, 3], layer_of(name))
        a, b = (models[key][name].astype(float) for key in "ab")
        near(found[name], (3 * a + weight * b) / (3 + weight))
    np.testing.assert_array_equal(found[TYPES], models["a"][TYPES])


def test_linear_that_is_not_normalised_is_a_sum(made: Follow, models: Any) -> None:
    found = made("""
        merge_method: linear
        models: [{model: a, parameters: {weight: 2}}, {model: b, parameters: {weight: -0.5}}]
        parameters: {normalize: false}
    """)
    for name in floats_of(models["a"]):
        near(found[name], 2.0 * models["a"][name] - 0.5 * models["b"][name], 5e-6)


def slerp(t: float, one: NDArray[Any], two: NDArray[Any]) -> NDArray[Any]:
    left, right = one.astype(float), two.astype(float)
    cosine = np.sum(left * right) / np.linalg.norm(left) / np.linalg.norm(right)
    if abs(cosine) > 0.9995:
        return (1 - t) * left + t * right
    angle = np.arccos(cosine)
    mixed = np.sin((1 - t) * angle) * left + np.sin(t * angle) * right
    return np.asarray(mixed / np.sin(angle))


def test_slerp_in_one_slice(made: Follow, models: Any) -> None:
    found = made("""
        slices:
          - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]
        merge_method: slerp
        base_model: a
        parameters:
          t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]
    """)
    for name in floats_of(models["a"]):
        layer = layer_of(name)
        t = 0.5
        if "self_attn" in name:
            t = gradient([0, 0.5, 1], layer)
        elif "mlp" in name:
            t = gradient([1, 0], layer)
        near(found[name], slerp(t, models["a"][name], models["b"][name]), 1e-5)


def ties(base: Any, tuned: Any, weights: Any, densities: Any) -> NDArray[Any]:
    rows = []
    for model, weight, density in zip(tuned, weights, densities, strict=True):
        delta = (model.astype(float) - base.astype(float)).reshape(-1)
        kept = np.argsort(-np.abs(delta))[: int(density * delta.size)]
        trimmed = np.zeros_like(delta)
        trimmed[kept] = delta[kept]
        rows.append(weight * trimmed)
    sign = np.where(sum(rows) >= 0, 1, -1)
    agree = [np.sign(row) == sign for row in rows]
    total = sum(row * mask for row, mask in zip(rows, agree, strict=True))
    divisor = sum(weight * mask for weight, mask in zip(weights, agree, strict=True))
    return np.asarray(base + (total / np.where(divisor == 0, 1, divisor)).reshape(base.shape))


def test_ties_with_a_gradient_of_densities(made: Follow, models: Any) -> None:
    found = made("""
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {density: [0.25, 0.75], weight: 0.5}}
          - {model: b, parameters: {density: 0.5, weight: [{filter: mlp, value: 0.3}, {value: 1}]}}
        parameters: {normalize: true, int8_mask: true}
        dtype: float32
    """)
    for name in floats_of(models["base"]):
        density = gradient([0.25, 0.75], layer_of(name))
        weights = [0.5, 0.3 if "mlp" in name else 1.0]
        tuned = [models["a"][name], models["b"][name]]
        near(found[name], ties(models["base"][name], tuned, weights, [density, 0.5]))


@pytest.mark.parametrize("method", ["karcher", "model_stock", "sce", "arcee_fusion", "nuslerp"])
def test_methods_run_with_the_models_they_take(method: str, made: Follow, models: Any) -> None:
    tuned = {"arcee_fusion": "a", "karcher": "abc", "model_stock": "abc"}.get(method, "ab")
    each = ", parameters: {weight: 1}" if method == "nuslerp" else ""
    listed = ", ".join(f"{{model: {name}{each}}}" for name in tuned)
    base = "" if method == "karcher" else "base_model: base\n"
    found = made(f"merge_method: {method}\n{base}models: [{listed}]\n")
    assert found.keys() == models["base"].keys()
    for name in floats_of(models["base"]):
        values = np.stack([models[key][name] for key in (*tuned, "base")])
        assert np.isfinite(found[name]).all()
        assert np.abs(found[name] - models["base"][name]).max() < 2 * np.ptp(values, 0).max()


# Slices and modules.

FRANKEN = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}]
merge_method: passthrough
"""


def test_a_frankenmerge_has_the_bytes_of_its_sources(made: Follow, models: Any, here: Path) -> None:
    found = made(FRANKEN)
    wanted = {}
    for layer, (model, own) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2)]):
        for rest in INSIDE:
            wanted[name_of(layer, rest)] = models[model][name_of(own, rest)]
    wanted["model.embed_tokens.weight"] = models["a"]["model.embed_tokens.weight"]
    for name in ("model.norm.weight", "lm_head.weight", TYPES):
        wanted[name] = models["b"][name]
    same_bytes(found, wanted)
    config = json.loads((here / "out" / "config.json").read_text())
    assert config == CONFIGS | {"num_hidden_layers": 4}


def test_a_frankenmerge_in_another_dtype_is_rounded_once(
    made: Follow, models: Any, here: Path
) -> None:
    found = made(FRANKEN + "dtype: bfloat16\n")
    wanted = models["b"][name_of(2, "mlp.up_proj.weight")].astype(ml_dtypes.bfloat16)
    assert found[name_of(3, "mlp.up_proj.weight")].tobytes() == wanted.tobytes()
    assert found[TYPES].dtype == np.int64
    config = json.loads((here / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_layers_can_be_repeated_and_scaled(made: Follow, models: Any) -> None:
    found = made("""
        slices:
          - sources: [{model: a, layer_range: [1, 2]}]
          - sources:
              - model: a
                layer_range: [1, 2]
                parameters:
                  scale: [{filter: mlp, value: 0}, {filter: q_proj, value: 0.5}, {value: 1}]
        merge_method: passthrough
    """)  # fmt: skip
    attention, mlp, norm = (models["a"][name_of(1, rest)] for rest in INSIDE)
    np.testing.assert_array_equal(found[name_of(0, "mlp.up_proj.weight")], mlp)
    assert not found[name_of(1, "mlp.up_proj.weight")].any()
    np.testing.assert_array_equal(found[name_of(1, "self_attn.q_proj.weight")], attention / 2)
    np.testing.assert_array_equal(found[name_of(1, "norm.weight")], norm)
    assert name_of(2, "norm.weight") not in found


def test_slices_that_are_merged_number_their_layers(made: Follow, models: Any) -> None:
    found = made("""
        slices:
          - sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [0, 1]}]
          - sources:
              - {model: b, layer_range: [1, 3], parameters: {weight: [0, 1]}}
              - {model: c, layer_range: [0, 2], parameters: {weight: 1}}
        merge_method: linear
        parameters: {weight: 1}
    """)
    a, b, c = (models[key] for key in "abc")
    for rest in INSIDE:
        near(found[name_of(0, rest)], (a[name_of(2, rest)] + b[name_of(0, rest)]) / 2.0)
        np.testing.assert_array_equal(found[name_of(1, rest)], c[name_of(0, rest)])
        near(found[name_of(2, rest)], (b[name_of(2, rest)] + c[name_of(1, rest)]) / 2.0)
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    near(found[embed], (a[embed] + b[embed]) / 2.0)
    np.testing.assert_array_equal(found[head], c[head])  # the gradient's beginning: b has 0


def test_models_of_different_depth_give_their_layers(
    made: Follow, models: Any, write_folder: Any
) -> None:
    deep = make(5, layers=5)
    write_folder("deep", deep, **{"config.json": json.dumps(CONFIGS | {"num_hidden_layers": 5})})
    found = made("""
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources: [{model: deep, layer_range: [3, 5]}]
        merge_method: passthrough
    """)
    for rest in INSIDE:
        assert found[name_of(2, rest)].tobytes() == deep[name_of(4, rest)].tobytes()


def tower(seed: int) -> Arrays:
    """A model of two towers of unlike depth, and a projector between."""
    random = np.random.default_rng(seed)
    names = [f"vision_tower.layers.{n}.mlp.weight" for n in range(2)]
    names += [f"language_model.layers.{n}.mlp.weight" for n in range(3)]
    names += ["multi_modal_projector.linear.weight", "language_model.norm.weight"]
    return {name: random.standard_normal((3, 3)).astype(np.float32) for name in names}


MODULES = """
modules:
  vision_tower:
    models: [{model: x}]
  multi_modal_projector:
    models: [{model: y}]
  default:
    slices:
      - sources: [{model: x, layer_range: [0, 2]}]
      - sources: [{model: y, layer_range: [1, 3]}]
merge_method: passthrough
"""


def test_modules_are_merged_apart(made: Follow, write_folder: Any) -> None:
    x, y = tower(1), tower(2)
    write_folder("x", x)
    write_folder("y", y)
    found = made(MODULES)
    for layer, (source, own) in enumerate([(x, 0), (x, 1), (y, 1), (y, 2)]):
        wanted = source[f"language_model.layers.{own}.mlp.weight"]
        assert found[f"language_model.layers.{layer}.mlp.weight"].tobytes() == wanted.tobytes()
    for layer in range(2):
        name = f"vision_tower.layers.{layer}.mlp.weight"
        assert found[name].tobytes() == x[name].tobytes()
    name = "multi_modal_projector.linear.weight"
    assert found[name].tobytes() == y[name].tobytes()


# Dtypes.

LINEAR = """
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
"""


@pytest.mark.parametrize(("one", "two", "wanted"), [
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float16", "float32"),
    ("float16", "float32", "float32"),
    ("bfloat16", "float64", "float64"),
])  # fmt: skip
def test_unlike_dtypes_take_what_holds_both(
    one: str, two: str, wanted: str, made: Follow, write_folder: Any
) -> None:
    first, second = make(1, np.dtype(one)), make(2, np.dtype(two))
    write_folder("one", first)
    write_folder("two", second)
    text = LINEAR.replace("model: a", "model: one").replace("model: b", "model: two")
    found = made(text)
    for name in floats_of(first):
        assert found[name].dtype.name == wanted
        mean = (first[name].astype(float) + second[name].astype(float)) / 2
        precision = float(ml_dtypes.finfo(found[name].dtype).eps)
        near(found[name], mean, max(4 * precision, 1e-12))


@pytest.mark.parametrize(("said", "wanted"), [
    ("dtype: float16", "float16"),
    ("dtype: float32\nout_dtype: bfloat16", "bfloat16"),
    ("out_dtype: float64", "float64"),
])  # fmt: skip
def test_dtype_and_out_dtype(said: str, wanted: str, made: Follow, models: Any) -> None:
    found = made(f"{LINEAR}{said}\n")
    whole = made(f"{LINEAR}dtype: float32\n", "whole")
    for name in floats_of(models["a"]):
        assert found[name].dtype.name == wanted
        assert found[name].tobytes() == whole[name].astype(found[name].dtype).tobytes()
    assert found[TYPES].dtype == np.int64


def test_what_overflows_its_dtype_is_refused(made: Follow, here: Path, write_folder: Any) -> None:
    write_folder("huge", {n: v * (1 if n == TYPES else 1e5) for n, v in make(1).items()})
    with pytest.raises(ValueProblem):
        made(LINEAR.replace("model: b", "model: huge") + "dtype: float16\n")
    assert not (here / "out").exists()


# Adapters.


@pytest.fixture
def adapter(here: Path) -> dict[str, NDArray[Any]]:
    """``lora``, in PEFT's layout, on the attention of layers 0 and 2: the updates by name."""
    random, tensors, updates = np.random.default_rng(9), {}, {}
    for layer in (0, 2):
        module = name_of(layer, "self_attn.q_proj")
        up, down = (random.standard_normal(s).astype(np.float32) for s in ((6, 2), (2, 6)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        updates[f"{module}.weight"] = 0.5 * up.astype(float) @ down
    (here / "lora").mkdir()
    save_file(tensors, here / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (here / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return updates


def test_an_adapter_on_the_base_is_a_task_vector(adapter: Any, made: Follow, models: Any) -> None:
    found = made("""
        merge_method: task_arithmetic
        base_model: base
        models:
          - {model: base+lora, parameters: {weight: 0.5}}
          - {model: a, parameters: {weight: 0.25}}
    """)
    for name in floats_of(models["base"]):
        base, a = (models[key][name].astype(float) for key in ("base", "a"))
        near(found[name], base + 0.25 * (a - base) + 0.5 * adapter.get(name, 0), 5e-6)


def test_an_adapter_on_another_model(adapter: Any, made: Follow, models: Any) -> None:
    found = made("""
        merge_method: linear
        models: [{model: a+lora, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
    """)
    for name in floats_of(models["base"]):
        a, b = (models[key][name].astype(float) for key in "ab")
        near(found[name], (a + adapter.get(name, 0) + 3 * b) / 4, 5e-6)


def test_an_adapter_is_written_into_its_model(adapter: Any, made: Follow, models: Any) -> None:
    found = made("merge_method: passthrough\nmodels: [model: {model: a, lora: lora}]\n")
    for name in floats_of(models["a"]):
        near(found[name], models["a"][name] + adapter.get(name, 0.0), 5e-6)
        if name not in adapter:
            assert found[name].tobytes() == models["a"][name].tobytes()


def test_an_adapter_moves_with_the_layers_of_a_slice(
    adapter: Any, made: Follow, models: Any
) -> None:
    found = made("""
        slices:
          - sources: [{model: b, layer_range: [0, 1]}]
          - sources: [{model: a+lora, layer_range: [2, 3]}]
        merge_method: passthrough
    """)
    rest = "self_attn.q_proj.weight"
    near(found[name_of(1, rest)], models["a"][name_of(2, rest)] + adapter[name_of(2, rest)], 5e-6)
    assert found[name_of(0, rest)].tobytes() == models["b"][name_of(0, rest)].tobytes()


@pytest.mark.parametrize("method", ["task_arithmetic", "slerp"])
def test_a_base_with_an_adapter_is_the_base_with_the_adapter(
    method: str, adapter: Any, made: Follow, models: Any
) -> None:
    each = ", parameters: {weight: 0.5}" if method == "task_arithmetic" else ""
    shared = "" if method == "task_arithmetic" else "parameters: {t: 0.25}\n"
    text = f"merge_method: {method}\nbase_model: base+lora\nmodels: [{{model: a{each}}}]\n{shared}"
    found = made(text)
    for name, update in adapter.items():
        base, a = models["base"][name] + update, models["a"][name].astype(float)
        wanted = (base + a) / 2 if method == "task_arithmetic" else slerp(0.25, base, a)
        near(found[name], wanted, 1e-5)


def test_an_adapter_of_another_model_is_refused(
    adapter: Any, made: Follow, write_folder: Any, here: Path
) -> None:
    write_folder("other", {"layers.0.w.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(MismatchError, match="lora: adapts"):
        made("merge_method: passthrough\nmodels: [model: other+lora]\n")
    assert not (here / "out").exists()


# Several documents.

CHAIN = """
name: last
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.7}}, {model: c, parameters: {weight: -0.5}}]
---
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]
dtype: float32
"""


def test_documents_build_on_each_other(made: Follow, models: Any, here: Path) -> None:
    found = made(CHAIN)
    for name in floats_of(models["base"]):
        base, a, b, c = (models[key][name].astype(float) for key in ("base", "a", "b", "c"))
        near(found[name], base + 0.7 * ((a + b) / 2 - base) - 0.5 * (c - base))


def test_the_order_of_documents_is_immaterial(made: Follow) -> None:
    last, first = CHAIN.split("---")
    same_bytes(made(CHAIN), made(f"{first}---{last}", "turned"))


def test_a_merge_of_the_file_goes_before_a_folder(made: Follow, here: Path, models: Any) -> None:
    first = made(CHAIN)
    (here / "first").mkdir()
    save_file(models["c"], here / "first" / "model.safetensors")
    same_bytes(first, made(CHAIN, "again"))


def test_several_ends_are_refused(made: Follow, here: Path) -> None:
    text = CHAIN.replace("model: first", "model: a")
    with pytest.raises(UsageError, match=r"2 merges of the file are wanted \(last, first\)"):
        made(text)
    assert not list((here / "scratch").iterdir())


def test_notes_are_told(made: Follow) -> None:
    said: list[str] = []
    text = """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 1}}
          - {model: b, parameters: {weight: -0.9}}
    """
    made(text, tell=said.append)
    assert len(said) == 1
    assert said[0].startswith("weights of both signs: mergekit divides by their signed sum")


# Random methods, order, workers.

DARE = """
merge_method: dare_linear
base_model: base
models:
  - {model: a, parameters: {weight: 0.5, density: 0.5}}
  - {model: b, parameters: {weight: 1, density: [0.3, 0.8]}}
  - {model: c, parameters: {weight: -0.4, density: 0.7}}
"""


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "dare_ties", "della"])
def test_the_order_of_models_is_immaterial(method: str, made: Follow, models: Any) -> None:
    text = DARE.replace("dare_linear", method)
    *head, a, b, c, _ = text.split("\n")
    first, second = made(text), made("\n".join([*head, c, a, b]), "turned")
    for name in floats_of(models["base"]):
        near(first[name], second[name])
    other = made(text, "other", seed=1)
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)


@pytest.mark.parametrize("text", [DARE, CHAIN, LINEAR, FRANKEN, DARE.replace("dare_", "della_")])
def test_the_same_bytes_for_any_number_of_workers(text: str, made: Follow, here: Path) -> None:
    for workers in (1, 2, 5):
        made(text, f"out{workers}", workers=workers)
    files = [(here / f"out{n}" / "model.safetensors").read_bytes() for n in (1, 2, 5)]
    assert files[0] == files[1] == files[2]


# What stands beside the weights.


def test_side_files(made: Follow, here: Path) -> None:
    (here / "base" / "README.md").write_text("I am the base")
    (here / "base" / CONFIG).write_text("I made the base")
    (here / "a" / "tokenizer.json").write_text(json.dumps(_tokenizer("xyz"), indent=4))
    made(DARE)
    out = here / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "config.json", CONFIG, "model.safetensors", "taskbasis_digests.json",
        RECIPE_FILE, "tokenizer.json",
    ]  # fmt: skip
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (here / "base" / name).read_bytes()
    assert "I am the base" not in (out / "README.md").read_text()
    record = json.loads((out / RECIPE_FILE).read_text())
    assert parse_recipe(record["recipe"]) == parse_recipe(DARE)
    assert record["models"] == {name: name for name in ("base", "a", "b", "c")}
    assert parse_recipe((out / CONFIG).read_text()) == parse_recipe(DARE)


def test_the_first_model_stands_in_for_a_base(made: Follow, here: Path) -> None:
    (here / "a" / "special.txt").write_text("of a")
    made(LINEAR)
    assert (here / "out" / "special.txt").read_text() == "of a"


def test_no_card_where_none_is_wanted(made: Follow, here: Path) -> None:
    made(LINEAR, card=False)
    assert not (here / "out" / "README.md").exists()


def test_one_file_has_nothing_beside_it(made: Follow, here: Path) -> None:
    same_bytes(made(LINEAR, "one.safetensors"), made(LINEAR))
    assert (here / "one.safetensors").is_file()


def test_shards(made: Follow, here: Path) -> None:
    found = made(FRANKEN, "sharded", shard_size=600)
    same_bytes(found, made(FRANKEN))
    files = sorted((here / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((here / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)


@pytest.mark.parametrize("text", [DARE, FRANKEN, LINEAR + "dtype: bfloat16\n"])
def test_what_is_recorded_gives_the_same_bytes(text: str, made: Follow, here: Path) -> None:
    first = made(text)
    same_bytes(first, made((here / "out" / CONFIG).read_text(), "again"))


def test_the_record_of_a_chain_gives_the_same_bytes(made: Follow, here: Path) -> None:
    first = made(CHAIN)
    same_bytes(first, made((here / "out" / CONFIG).read_text(), "again"))


def test_the_seed_is_recorded(made: Follow, here: Path) -> None:
    made(DARE, seed=7)
    assert json.loads((here / "out" / RECIPE_FILE).read_text())["seed"] == 7


def test_the_card_names_the_models_not_an_empty_merge(made: Follow, here: Path) -> None:
    made(DARE)
    card = (here / "out" / "README.md").read_text()
    assert "dare_linear" in card
    assert "0 task vectors" not in card
    assert "nothing was added" not in card


def test_the_rules_say_what_became_of_every_tensor(here: Path, models: Any) -> None:
    (document,) = parse_recipe(DARE).documents
    saved = follow(prepare(document), here / "out", engine=Engine(workers=1))
    assert set(saved.rules["merged"]) == set(floats_of(models["base"]))
    assert saved.rules["copied"] == (TYPES,)
    assert saved.norm > 0
    (franken,) = parse_recipe(FRANKEN + "dtype: bfloat16\n").documents
    saved = follow(prepare(franken), here / "franken", engine=Engine(workers=1))
    assert not saved.rules["merged"]
    assert len(saved.rules["converted"]) == 4 * len(INSIDE) + len(OUTSIDE)


# What it takes, and what is left over.


def prepared(text: str) -> Any:
    (document,) = parse_recipe(text).documents
    return prepare(document)


def test_account(here: Path, models: Any) -> None:
    unused = account(prepared(FRANKEN))
    last = [name_of(2, rest) for rest in INSIDE]
    assert unused["a"] == tuple(sorted([*last, "lm_head.weight", "model.norm.weight", TYPES]))
    first = [name_of(0, rest) for rest in INSIDE]
    assert unused["b"] == tuple(sorted([*first, "model.embed_tokens.weight"]))
    assert set(account(prepared(DARE)).values()) == {()}


def test_account_tells_of_a_strange_tensor(here: Path, models: Any, write_folder: Any) -> None:
    write_folder("more", models["b"] | {"adapter.scale": np.ones(3, np.float32)})
    unused = account(prepared(LINEAR.replace("model: b", "model: more")))
    assert unused == {"a": (), "more": ("adapter.scale",)}


@pytest.mark.parametrize("text", [
    DARE,
    LINEAR,
    FRANKEN,
    FRANKEN + "dtype: bfloat16\n",
    DARE.replace("dare_linear", "ties"),
    DARE.replace("dare_linear", "task_arithmetic"),
    CHAIN.split("---")[1],
])  # fmt: skip
def test_cost_is_exact(text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(text)
    said = cost(one)
    counted = counting(monkeypatch)
    saved = follow(one, here / "out", engine=Engine(workers=1))
    assert said.read == sum(counted)
    assert said.written == saved.nbytes
    assert said.written == sum(array.nbytes for array in read(here / "out").values())
    assert said.memory > 0


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many bytes of tensors are read from files."""
    counted: list[int] = []
    real = FileBlob.read_into

    def noted(self: FileBlob, offset: int, buffer: memoryview) -> None:
        counted.append(buffer.nbytes)
        real(self, offset, buffer)

    monkeypatch.setattr(FileBlob, "read_into", noted)
    return counted


def test_passes(here: Path) -> None:
    assert cost(prepared(LINEAR)).passes == 1
    assert cost(prepared(FRANKEN)).passes == 1
    assert cost(prepared(DARE.replace("dare_linear", "ties"))).passes == 3


# What is refused: in one sentence, and with nothing written.


def test_a_model_that_lacks_a_tensor(made: Follow, models: Any, write_folder: Any) -> None:
    write_folder("less", {n: v for n, v in models["b"].items() if n != "lm_head.weight"})
    with pytest.raises(MismatchError, match=r"less lacks 1 tensors of a, such as 'lm_head"):
        made(LINEAR.replace("model: b", "model: less"))


@pytest.mark.parametrize(("shape", "said"), [
    ((12, 6), r"are they of different vocabularies\? tokenizer_source aligns rows by token"),
    ((10, 8), r"is it of another size\?"),
])  # fmt: skip
def test_shapes_that_differ(
    shape: Any, said: str, made: Follow, models: Any, write_folder: Any, here: Path
) -> None:
    name = "model.embed_tokens.weight"
    write_folder("other", models["b"] | {name: np.zeros(shape, np.float32)})
    with pytest.raises(MismatchError, match=said) as caught:
        made(LINEAR.replace("model: b", "model: other"))
    assert f"has shape {list(shape)} in other" in str(caught.value)
    assert "[10, 6]" in str(caught.value)
    assert name in str(caught.value)
    assert not (here / "out").exists()


def test_floats_beside_whole_numbers(made: Follow, models: Any, write_folder: Any) -> None:
    name = "model.norm.weight"
    write_folder("whole", models["b"] | {name: np.ones(6, np.int32)})
    with pytest.raises(MismatchError, match=name.replace(".", r"\.")):
        made(LINEAR.replace("model: b", "model: whole"))


def test_another_vocabulary(made: Follow, here: Path) -> None:
    (here / "b" / "tokenizer.json").write_text(json.dumps(_tokenizer("xzy")))
    with pytest.raises(MismatchError, match=r"2 tokens of a and b differ, e\.g\. 'y' is 1 and 2"):
        made(LINEAR)
    assert not (here / "out").exists()


def test_another_vocabulary_of_the_base(made: Follow, here: Path) -> None:
    (here / "base" / "tokenizer.json").write_text(json.dumps(_tokenizer("xzy")))
    with pytest.raises(MismatchError, match="2 tokens of"):
        made(DARE)


def test_a_tokenizer_of_another_vocabulary(made: Follow, here: Path) -> None:
    plain = made(LINEAR, "plain")
    (here / "c" / "tokenizer.json").write_text(json.dumps(_tokenizer("xzy")))
    found = made(LINEAR + "tokenizer_source: c\n")
    for name in OUTSIDE:
        rows = [0, 2, 1] if "norm" not in name else slice(None)
        np.testing.assert_array_equal(found[name], plain[name][rows])


def test_the_tokenizer_is_the_one_asked_for(made: Follow, here: Path) -> None:
    (here / "b" / "tokenizer_config.json").write_text('{"of": "b"}')
    made(LINEAR + "tokenizer_source: b\n")
    assert (here / "out" / "tokenizer_config.json").read_text() == '{"of": "b"}'


@pytest.mark.parametrize("said", ["chat_template: chatml", "chat_template: '{{ messages }}'"])
def test_chat_templates(said: str, made: Follow, here: Path) -> None:
    made(f"{LINEAR}{said}\n")
    text = (here / "out" / "chat_template.jinja").read_text()
    assert ("<|im_start|>" in text) if "chatml" in said else (text == "{{ messages }}")
    made(f"{LINEAR}chat_template: auto\n", "auto")
    assert not (here / "auto" / "chat_template.jinja").exists()


def test_a_list_with_an_entry_for_each_layer(made: Follow, here: Path) -> None:
    config = CONFIGS | {"layer_types": ["full"] * LAYERS, "eos_token_id": [1, 2]}
    (here / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"'layer_types' .* the config of b has none for its 3"):
        made(FRANKEN)
    assert not (here / "out").exists()
    three = FRANKEN.replace("[1, 3]", "[2, 3]")
    made(three)
    assert json.loads((here / "out" / "config.json").read_text()) == config
    other = config | {"layer_types": ["sliding", "full", "sliding"]}
    (here / "b" / "config.json").write_text(json.dumps(other))
    made(FRANKEN, "four")
    wanted = {"layer_types": ["full", "full", "full", "sliding"], "num_hidden_layers": 4}
    assert json.loads((here / "four" / "config.json").read_text()) == config | wanted


def test_a_config_of_several_towers_is_not_left_wrong(
    made: Follow, here: Path, write_folder: Any
) -> None:
    layers = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2}}
    config = json.dumps({**layers, "model_type": "llava"})
    for seed, name in enumerate("xy", start=1):
        write_folder(name, tower(seed), **{"config.json": config})
    made(MODULES)
    made_config = json.loads((here / "out" / "config.json").read_text())
    assert made_config["text_config"]["num_hidden_layers"] == 4
    assert made_config["vision_config"]["num_hidden_layers"] == 2


def test_layers_beyond_the_model(made: Follow) -> None:
    with pytest.raises(UsageError, match=r"b has 3 layers, numbered from 0; layer_range \[1, 4\]"):
        made(FRANKEN.replace("[1, 3]", "[1, 4]"))


def test_a_model_that_is_nowhere(made: Follow, here: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        made(LINEAR.replace("model: b", "model: nowhere"))
    assert not (here / "out").exists()


def test_a_value_that_is_not_finite(
    made: Follow, models: Any, here: Path, write_folder: Any, leftovers: Any
) -> None:
    broken = models["b"] | {"model.norm.weight": np.full(6, np.nan, np.float32)}
    write_folder("broken", broken)
    for text in (LINEAR, CHAIN):
        with pytest.raises(ValueProblem, match=r"model\.norm\.weight"):
            made(text.replace("model: b,", "model: broken,"))
        assert not (here / "out").exists()
        assert leftovers(here) == []
        assert leftovers(here / "scratch") == []


def test_the_advice_on_a_value_that_is_not_finite_helps(
    made: Follow, models: Any, write_folder: Any
) -> None:
    """A filter that gives the tensor weight 0: nothing of it is read."""
    name = "model.norm.weight"
    write_folder("broken", models["b"] | {name: np.full(6, np.nan, np.float32)})
    broken = "{model: broken, parameters: {weight: 1}}"
    filtered = broken.replace("1", f"[{{filter: {name}, value: 0}}, {{value: 1}}]")
    recipe = LINEAR.replace("{model: b, parameters: {weight: 1}}", broken)
    for out, text in enumerate((
        recipe,
        recipe.replace("linear", "task_arithmetic\nbase_model: base"),
        recipe.replace("linear", "ties\nbase_model: base"),
    )):  # fmt: skip
        with pytest.raises(ValueProblem, match="in a recipe by a filter that gives it weight 0"):
            made(text)
        found = made(text.replace(broken, filtered), f"filtered{out}")
        without = made(text.replace(f", {broken}", ""), f"without{out}")
        np.testing.assert_array_equal(found[name], without[name])


def test_a_used_folder_is_refused_before_any_work(
    made: Follow, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(LINEAR)
    before = (here / "out" / "model.safetensors").stat().st_mtime_ns
    counted = counting(monkeypatch)
    with pytest.raises(FileError, match="out"):
        made(LINEAR)
    assert not counted
    assert (here / "out" / "model.safetensors").stat().st_mtime_ns == before
    made(FRANKEN, replace_used=True)
    assert name_of(3, "norm.weight") in read(here / "out")


@pytest.mark.parametrize("out", ["a", "a/model.safetensors", "base"])
def test_no_model_of_the_recipe_is_replaced(out: str, made: Follow, here: Path) -> None:
    before = (here / "a" / "model.safetensors").read_bytes()
    with pytest.raises(FileError):
        made(DARE, out, replace_used=True)
    assert (here / "a" / "model.safetensors").read_bytes() == before


def test_no_model_of_an_earlier_document_is_replaced(made: Follow, here: Path) -> None:
    """``a`` goes into the first merge alone, but it is made of nothing that can be had again."""
    with pytest.raises(FileError):
        made(CHAIN, "a", replace_used=True)


def test_all_documents_are_checked_before_any_work(
    made: Follow, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = counting(monkeypatch)
    with pytest.raises(FileError, match="nowhere"):
        made(CHAIN.replace("model: c", "model: nowhere"))
    assert not counted


def test_a_list_that_has_as_many_entries_by_chance(
    made: Follow, here: Path, write_folder: Any
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    write_folder("one", make(1, layers=1), **{"config.json": json.dumps(config)})
    piece = "  - sources: [{model: one, layer_range: [0, 1]}]\n"
    made(f"slices:\n{piece}{piece}merge_method: passthrough\n")
    assert json.loads((here / "out" / "config.json").read_text())["num_hidden_layers"] == 2


def test_a_folder_has_no_revision(made: Follow, here: Path) -> None:
    with pytest.raises(UsageError, match="v1"):
        made(LINEAR.replace("model: b", "model: b@v1"))


def test_a_folder_whose_name_has_an_at_sign(made: Follow, here: Path) -> None:
    (here / "b").rename(here / "b@v1")
    assert made(LINEAR.replace("model: b", "model: b@v1"))


def test_strange_tensors_are_told(made: Follow, models: Any, write_folder: Any) -> None:
    write_folder("more", models["b"] | {"adapter.scale": np.ones(3, np.float32)})
    said: list[str] = []
    made(LINEAR.replace("model: b", "model: more"), tell=said.append)
    assert len(said) == 1
    assert "adapter.scale" in said[0]


def test_another_architecture_is_told(made: Follow) -> None:
    said: list[str] = []
    text = LINEAR.replace("model: b", "model: {model: b, override_architecture: X}")
    made(text, tell=said.append)
    assert len(said) == 1
    assert "override_architecture" in said[0]


def test_models_of_another_depth_are_refused(made: Follow, models: Any, write_folder: Any) -> None:
    more = dict(models["b"])
    for name in [name for name in more if ".layers.0." in name]:
        more[name.replace(".layers.0.", ".layers.9.")] = more[name]
    deep = {n.replace("layers.9.", f"layers.{LAYERS}."): v for n, v in more.items()}
    write_folder("deep", deep)
    with pytest.raises(MismatchError, match=f"a has {LAYERS} layers .*but deep has {LAYERS + 1}"):
        made(LINEAR.replace("model: b", "model: deep"))


def test_no_name_of_a_recipe_reaches_the_record(made: Follow, here: Path) -> None:
    """Merges that others start from are told by their names, not by folders that are gone."""
    made(CHAIN)
    record = json.loads((here / "out" / "taskbasis_recipe.json").read_text())
    card = (here / "out" / "README.md").read_text(encoding="utf-8")
    assert "scratch" not in json.dumps(record)
    assert "scratch" not in card
