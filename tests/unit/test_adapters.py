"""Adapters as task vectors: bound to a base whose tensors they must fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.adapters import adapted_store, adapter_leaves, whole_tensors
from taskbasis.cli import run
from taskbasis.engine import Engine
from taskbasis.errors import (
    BaseError,
    HeaderError,
    MismatchError,
    TaskbasisError,
    UsageError,
    ValueProblem,
)
from taskbasis.io.adapter import open_adapter
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.library import Design, fit
from taskbasis.merging import merge
from taskbasis.methods import method
from taskbasis.recipe import Combination, Leaf, Term
from taskbasis.vectors import Checkpoint, TaskVector

Array = NDArray[Any]
Write = Callable[..., Path]
ONE = Engine(workers=1)


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


BASE = {
    "net.0.q.weight": random(4, 6, seed=1),
    "net.1.q.weight": random(4, 6, seed=2),
    "net.sq.weight": random(5, 5, seed=3),
    "emb.weight": random(7, 4, seed=4),
    "norm.weight": random(4, seed=5),
    "steps": np.array([3], np.int64),
}


@pytest.fixture
def write_adapter(tmp_path: Path) -> Write:
    """``write_adapter(name, modules)``: rank 2, alpha 6, of [out, in] modules."""

    def make(
        name: str,
        modules: Mapping[str, tuple[int, int]],
        more: Mapping[str, Array] = {},
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}
        (folder / "adapter_config.json").write_text(json.dumps(content))
        tensors = dict(more)
        for seed, (module, (out, width)) in enumerate(modules.items()):
            tensors[f"{module}.lora_A.weight"] = random(2, width, seed=10 + seed)
            tensors[f"{module}.lora_B.weight"] = random(out, 2, seed=20 + seed)
        named = {f"base_model.model.{key}": value for key, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")
        return folder

    return make


@pytest.fixture
def base(open_folder: Callable[..., TensorStore]) -> TensorStore:
    return open_folder("base", BASE)


def update(seed: int, out: int, width: int, scaling: float = 3.0) -> NDArray[np.float64]:
    up, down = random(out, 2, seed=20 + seed), random(2, width, seed=10 + seed)
    return scaling * up.astype(np.float64) @ down.astype(np.float64)


def vector(leaf: Leaf) -> TaskVector:
    return TaskVector.of(Combination((Term(leaf),)))


def leaf_of(path: Path, base: TensorStore, *exclude: str) -> Leaf:
    (leaf,) = adapter_leaves(open_adapter(path), base, exclude)
    return leaf


def refused(path: Path, base: TensorStore, match: str, *exclude: str) -> str:
    with pytest.raises(MismatchError, match=match) as caught:
        leaf_of(path, base, *exclude)
    assert str(path) in str(caught.value)
    assert str(base.path) in str(caught.value)
    return str(caught.value)


TWO = {"net.0.q": (4, 6), "net.1.q": (4, 6)}


def test_a_leaf_of_deltas_bound_to_the_base(write_adapter: Write, base: TensorStore) -> None:
    path = write_adapter("lora", TWO)
    leaf = leaf_of(path, base)
    assert leaf.label == str(path)
    assert not leaf.difference
    assert leaf.base.store is base
    assert leaf.tuned is None
    assert leaf.rules == {}
    assert set(leaf.files) == {
        path,
        path / "adapter_config.json",
        path / "adapter_model.safetensors",
        base.path,
        *base.files,
    }
    assert list(leaf.infos) == ["net.0.q.weight", "net.1.q.weight"]
    for seed, info in enumerate(leaf.infos.values()):
        np.testing.assert_allclose(info.load(), update(seed, 4, 6), rtol=1e-6, atol=1e-6)


def test_adding_it_gives_base_plus_update(write_adapter: Write, base: TensorStore) -> None:
    lora = vector(leaf_of(write_adapter("lora", TWO), base))
    for scale in (1.0, -0.5):
        found = lora.apply_to(base.path, scale).tensors(ONE)
        for seed, name in enumerate(["net.0.q.weight", "net.1.q.weight"]):
            expected = BASE[name] + scale * update(seed, 4, 6)
            np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)
        for name in ("net.sq.weight", "emb.weight", "norm.weight", "steps"):
            np.testing.assert_array_equal(found[name], BASE[name])


def test_a_bfloat16_base_keeps_its_type(write_adapter: Write, open_folder: Any) -> None:
    weights = BASE["net.0.q.weight"].astype(ml_dtypes.bfloat16)
    low = open_folder("low", {"net.0.q.weight": weights})
    lora = vector(leaf_of(write_adapter("lora", {"net.0.q": (4, 6)}), low))
    found = lora.apply_to(low.path).tensors(ONE)["net.0.q.weight"]
    expected = (weights.astype(np.float32) + update(0, 4, 6).astype(np.float32)).astype(found.dtype)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, expected)


def test_stored_and_opened_again_it_is_the_same_vector(
    write_adapter: Write, base: TensorStore, tmp_path: Path, open_folder: Any
) -> None:
    lora = vector(leaf_of(write_adapter("lora", TWO), base))
    saved = lora.save(tmp_path / "v.safetensors", engine=ONE)
    assert saved.rules == {"stored": ("net.0.q.weight", "net.1.q.weight")}
    again = TaskVector.open(tmp_path / "v.safetensors")
    for name, values in lora.tensors(ONE).items():
        np.testing.assert_array_equal(again.tensors(ONE)[name], values)
    merged = again.apply_to(base.path).tensors(ONE)
    np.testing.assert_array_equal(
        merged["net.0.q.weight"], lora.apply_to(base.path).tensors(ONE)["net.0.q.weight"]
    )
    other = open_folder("other", {**BASE, "norm.weight": BASE["norm.weight"] + 1})
    with pytest.raises(BaseError, match=r"'norm\.weight'"):
        lora.apply_to(other.path).tensors(ONE)


def test_adapters_mix_with_checkpoints_and_with_each_other(
    write_adapter: Write, write_folder: Any, base: TensorStore
) -> None:
    """Two adapters of other modules, and a whole checkpoint, under a method that compares them."""
    tuned = write_folder("tuned", {**BASE, "net.sq.weight": BASE["net.sq.weight"] + 1})
    one = vector(leaf_of(write_adapter("one", TWO), base))
    two = vector(leaf_of(write_adapter("two", {"net.1.q": (4, 6), "net.sq": (5, 5)}), base))
    three = TaskVector(Checkpoint(base.path), Checkpoint(tuned))
    found = merge(base.path, [one, two, three], method("magmax")).tensors(ONE)
    expected = np.stack([update(1, 4, 6), update(0, 4, 6), np.zeros((4, 6))])
    rows = np.take_along_axis(expected, np.abs(expected).argmax(0)[None], 0)[0]
    np.testing.assert_allclose(found["net.1.q.weight"], BASE["net.1.q.weight"] + rows, atol=1e-5)
    total = (one + two + three).apply_to(base.path).tensors(ONE)["net.sq.weight"]
    np.testing.assert_allclose(total, BASE["net.sq.weight"] + 1 + update(1, 5, 5), atol=1e-5)


def test_more_workers_give_the_same_bits(
    write_adapter: Write, open_folder: Any, tmp_path: Path
) -> None:
    large = open_folder("large", {"q.weight": random(700, 900), "k.weight": random(300, 1000)})
    path = write_adapter("lora", {"q": (700, 900), "k": (300, 1000)})
    lora = vector(leaf_of(path, large))
    one, three = (
        lora.apply_to(large.path, 0.7).tensors(Engine(workers=workers)) for workers in (1, 3)
    )
    for name in ("q.weight", "k.weight"):
        np.testing.assert_array_equal(one[name], three[name])
    seed, (out, width) = 0, (700, 900)
    expected = large["q.weight"].load() + 0.7 * update(seed, out, width)
    np.testing.assert_allclose(one["q.weight"], expected, rtol=1e-5, atol=1e-5)


def test_values_that_are_not_finite_are_refused(write_adapter: Write, base: TensorStore) -> None:
    broken = {
        "net.0.q.lora_A.weight": np.full((2, 6), np.nan, np.float32),
        "net.0.q.lora_B.weight": np.ones((4, 2), np.float32),
    }
    path = write_adapter("lora", {}, broken)
    with pytest.raises(ValueProblem, match=r"net.0.q.weight.*adapter_model.safetensors"):
        vector(leaf_of(path, base)).tensors(ONE)
    large = {name: np.full(v.shape, 1e30, np.float32) for name, v in broken.items()}
    path = write_adapter("large", {}, large)
    with pytest.raises(ValueProblem, match="NaN or infinite"):
        vector(leaf_of(path, base)).tensors(ONE)


@pytest.mark.parametrize(("tuned", "own"), [("", "model."), ("bert.", "")])
def test_one_word_before_all_names(
    write_adapter: Write, open_folder: Any, tuned: str, own: str
) -> None:
    """A model with a head calls its encoder's tensors by one word more, or the base does."""
    store = open_folder("b", {f"{own}a.q.weight": random(4, 6), f"{own}a.norm": random(4)})
    leaf = leaf_of(write_adapter("lora", {f"{tuned}a.q": (4, 6)}), store)
    assert list(leaf.infos) == [f"{own}a.q.weight"]
    assert leaf.rules == {"renamed": (f"{own}a.q.weight",)}


def test_a_module_that_the_base_lacks(write_adapter: Write, base: TensorStore) -> None:
    path = write_adapter("lora", {**TWO, "net.2.q": (4, 6)})
    said = refused(path, base, r"adapts 'net.2.q.weight'.*\(did you mean 'net.1.q.weight'\?\)")
    assert "merge_and_unload" in said
    leaf = leaf_of(path, base, "net.2.*")
    assert list(leaf.infos) == ["net.0.q.weight", "net.1.q.weight"]


def test_the_names_of_a_large_base_are_not_all_listed(
    write_adapter: Write, open_folder: Any
) -> None:
    store = open_folder("b", {f"net.{n}.weight": random(1) for n in range(300)})
    path = write_adapter("lora", {"zzzzzzzzzz": (4, 6)})
    said = refused(path, store, r"has no 'zzzzzzzzzz\.weight'\. Where the head")
    assert len(said) < 400 + len(str(path)) + len(str(store.path))


def test_another_shape(write_adapter: Write, base: TensorStore) -> None:
    path = write_adapter("lora", {"net.0.q": (4, 5)}, base_model_name_or_path="org/base")
    refused(path, base, r"'net.0.q.weight' .* \[4, 5\], but .* \[4, 6\] there; .* 'org/base'$")
    nameless = write_adapter("nameless", {"net.0.q": (4, 5)})
    refused(nameless, base, "there; give the base that it was trained on$")


@pytest.mark.parametrize("fan", [False, True])
def test_a_matrix_that_lies_the_other_way_round(
    write_adapter: Write, base: TensorStore, fan: bool
) -> None:
    """PEFT's config is wrong for models of both kinds of layers; then nothing is guessed."""
    shape = (4, 6) if fan else (6, 4)
    path = write_adapter("lora", {"net.sq": (5, 5), "net.0.q": shape}, fan_in_fan_out=fan)
    said = refused(path, base, r"\[6, 4\], but .* \[4, 6\] there; it lies the other way round")
    assert f"fan_in_fan_out to {'false' if fan else 'true'}" in said
    turned = write_adapter("turned", {"net.0.q": shape}, fan_in_fan_out=not fan)
    assert leaf_of(turned, base).infos["net.0.q.weight"].shape == (4, 6)


def test_a_base_that_holds_no_floats(write_adapter: Write, open_folder: Any) -> None:
    packed = open_folder("packed", {"q.weight": np.ones((4, 6), np.uint8)})
    refused(write_adapter("lora", {"q": (4, 6)}), packed, "'q.weight' .* holds uint8")


def embedding(copy: Array | None, seed: int = 0) -> dict[str, Array]:
    found = {
        "emb.lora_embedding_A": random(2, 7, seed=seed),
        "emb.lora_embedding_B": random(4, 2, seed=seed + 1),
    }
    return found if copy is None else {**found, "emb.base_layer.weight": copy}


def test_adapted_embeddings(write_adapter: Write, base: TensorStore) -> None:
    parts = embedding(None)
    path = write_adapter("lora", {}, parts)
    found = vector(leaf_of(path, base)).apply_to(base.path).tensors(ONE)["emb.weight"]
    delta = 3 * (parts["emb.lora_embedding_B"] @ parts["emb.lora_embedding_A"]).T
    np.testing.assert_allclose(found, BASE["emb.weight"] + delta, rtol=1e-5, atol=1e-5)


def test_copies_of_the_base_say_nothing_new(write_adapter: Write, base: TensorStore) -> None:
    more = {**embedding(BASE["emb.weight"]), "norm.weight": BASE["norm.weight"]}
    leaf = leaf_of(write_adapter("lora", {}, {**more, "steps": BASE["steps"]}), base)
    assert list(leaf.infos) == ["emb.weight"]
    assert leaf.rules == {"unchanged": ("norm.weight", "steps")}


@pytest.mark.parametrize(
    ("stored", "copied"),
    [(ml_dtypes.bfloat16, np.float32), (np.float32, ml_dtypes.bfloat16), (np.float32, np.float16)],
)
def test_copies_in_another_type_are_compared_by_value(
    write_adapter: Write, open_folder: Any, stored: Any, copied: Any
) -> None:
    """A base loaded in another type is copied in that; rounding it is no training."""
    weights = BASE["emb.weight"].astype(stored)
    store = open_folder("b", {"emb.weight": weights})
    path = write_adapter("lora", {}, embedding(weights.astype(copied)))
    assert list(leaf_of(path, store).infos) == ["emb.weight"]
    moved = weights.astype(copied)
    moved[3, 2] *= 2
    (trained,) = whole_tensors(open_adapter(write_adapter("m", {}, embedding(moved))), store)
    assert trained.name == "base_model.model.emb.base_layer.weight"


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        (
            np.concatenate([BASE["emb.weight"], BASE["emb.weight"][:1]]),
            r"has 8 rows, but the base .* has 7 rows of 'emb.weight': it was resized",
        ),
        (BASE["emb.weight"][:-1], "has 6 rows, but"),
        (BASE["emb.weight"].reshape(4, 7), r"has shape \[4, 7\], but .* has \[7, 4\] there"),
        (BASE["emb.weight"].astype(np.int32), "holds int32, but .* holds float32 there"),
    ],
    ids=["longer", "shorter", "of another shape", "of integers"],
)
def test_whole_tensors_that_do_not_fit(
    write_adapter: Write, base: TensorStore, copy: Array, said: str
) -> None:
    path = write_adapter("lora", TWO, {"emb.weight": copy})
    assert refused(path, base, said).endswith(
        "or, outside of recipes, leave it out with --exclude 'emb.weight'"
    )
    assert leaf_of(path, base, "emb.weight").rules == {"excluded": ("emb.weight",)}
    path = write_adapter("stranger", TWO, {"head.weight": BASE["emb.weight"]})
    refused(path, base, "is a whole tensor, but the base .* has no 'head.weight'")


WHOLE = BASE["emb.weight"] + np.eye(7, 4, dtype=np.float32)


def test_whole_tensors_replace_the_base_s(write_adapter: Write, base: TensorStore) -> None:
    """As modules_to_save, biases and embeddings do: beside factors, and beneath them."""
    bias = BASE["norm.weight"] * 2
    parts = {**embedding(WHOLE), "norm.weight": bias, "steps": BASE["steps"] + 1}
    path = write_adapter("lora", TWO, parts, modules_to_save=["norm"], bias="all")
    updates, wholes = adapter_leaves(open_adapter(path), base)
    assert updates.rules == {"integer": ("steps",)}
    assert (updates.difference, wholes.difference) == (False, True)
    assert sorted(wholes.infos) == ["emb.weight", "norm.weight"]
    assert wholes.label == f"{path} (whole tensors)"
    found = TaskVector(base.path, path).apply_to(base.path, 0.5).tensors(ONE)
    delta = 3 * (parts["emb.lora_embedding_B"] @ parts["emb.lora_embedding_A"]).T
    for name, wanted in {
        "emb.weight": BASE["emb.weight"] + (WHOLE - BASE["emb.weight"] + delta) / 2,
        "norm.weight": BASE["norm.weight"] * 1.5,
        "net.0.q.weight": BASE["net.0.q.weight"] + update(0, 4, 6) / 2,
    }.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["steps"], BASE["steps"])


def test_whole_tensors_are_stored_in_vectors(
    write_adapter: Write, base: TensorStore, tmp_path: Path
) -> None:
    path = write_adapter("lora", TWO, {"norm.weight": BASE["norm.weight"] * 2})
    lora = TaskVector(base.path, path)
    saved = lora.save(tmp_path / "v.safetensors", engine=ONE)
    assert saved.rules["stored"] == ("net.0.q.weight", "net.1.q.weight", "norm.weight")
    again = TaskVector.open(tmp_path / "v.safetensors").tensors(ONE)
    np.testing.assert_array_equal(again["norm.weight"], BASE["norm.weight"])


def test_a_basis_of_adapters_with_whole_tensors(
    write_adapter: Write, base: TensorStore, tmp_path: Path
) -> None:
    vectors = {}
    for scale, name in enumerate("ab", start=2):
        more = {"norm.weight": BASE["norm.weight"] * scale}
        vectors[name] = TaskVector(base.path, write_adapter(name, TWO, more, lora_alpha=scale))
    library = fit(vectors, tmp_path / "lib.safetensors", Design(2, "svd"), engine=ONE)
    for name, vector in vectors.items():
        found = library[name].apply_to(base.path).tensors(ONE)
        wanted = vector.apply_to(base.path).tensors(ONE)
        for tensor, values in wanted.items():
            np.testing.assert_allclose(found[tensor], values, atol=1e-4)


def test_what_is_said_of_whole_tensors(write_adapter: Write, capsys: Any) -> None:
    path = write_adapter("lora", TWO, {"norm.weight": BASE["norm.weight"] * 2})
    assert run(["show", str(path), "--tensors"]) == 0
    said = capsys.readouterr().out
    assert "2 tensors, rank 2, and 1 whole beside them" in said
    assert "whole" in next(line for line in said.splitlines() if "norm.weight" in line)


def test_embeddings_that_the_base_ties_to_its_head(
    write_adapter: Write, open_folder: Any, tmp_path: Path
) -> None:
    """PEFT trains a copy of them and leaves the head, which a tied model cannot say."""
    name, own = "model.embed_tokens.weight", random(7, 4)
    path = write_adapter("lora", TWO, {name: own + 1}, modules_to_save=["embed_tokens"])
    held = {**BASE, name: own}
    untied = open_folder("untied", {**held, "lm_head.weight": own})
    bare = open_folder("bare", held)
    tied = open_folder("tied", held)
    for folder in (untied, tied):
        (folder.path / "config.json").write_text('{"tie_word_embeddings": true}')
    for store in (untied, bare):
        assert [len(leaf.infos) for leaf in adapter_leaves(open_adapter(path), store)] == [2, 1]
    said = refused(
        path, tied, "holds 'model.embed_tokens.weight' whole, apart from the head, which"
    )
    assert "merge_and_unload" in said
    leaf_of(path, tied, name)
    under = {"model.embed_tokens.base_layer.weight": own + 1}
    assert adapter_leaves(open_adapter(write_adapter("under", TWO, under)), tied)


def test_whole_tensors_can_be_left_out(write_adapter: Write, base: TensorStore) -> None:
    path = write_adapter("lora", TWO, {"norm.weight": BASE["norm.weight"] * 2})
    assert leaf_of(path, base, "norm.*").rules == {"excluded": ("norm.weight",)}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_a_model_with_an_adapter_on_it(write_adapter: Write, open_folder: Any, dtype: Any) -> None:
    weights = {n: v.astype(dtype) if v.dtype == np.float32 else v for n, v in BASE.items()}
    store = open_folder("b", weights)
    whole = (BASE["norm.weight"] * 2).astype(dtype)
    parts = {"net.0.q": (4, 6)}
    adapter = open_adapter(write_adapter("lora", parts, {**embedding(WHOLE), "norm.weight": whole}))
    found = adapted_store(adapter, store)
    assert list(found) == list(store)
    assert found.path == store.path
    assert set(found.files) == {*store.files, adapter.path, *adapter.files}
    wide = np.float64 if dtype == np.float64 else np.float32
    product = update(0, 4, 6).astype(np.float32)
    values = found["net.0.q.weight"].load()
    assert values.dtype == wide
    wanted = weights["net.0.q.weight"].astype(wide) + product
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["norm.weight"].load(), whole)
    delta = 3 * (random(4, 2, seed=1) @ random(2, 7)).T
    np.testing.assert_allclose(found["emb.weight"].load(), WHOLE + delta, rtol=1e-4, atol=1e-5)
    assert found["net.1.q.weight"] is store["net.1.q.weight"]


def test_whole_tensors_are_compared_to_their_end(
    write_adapter: Write, open_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskbasis.adapters._PIECE", 10)
    store = open_folder("b", BASE)
    last = BASE["emb.weight"].copy()
    assert leaf_of(write_adapter("same", {}, embedding(last)), store)
    last[-1, -1] += 1
    assert whole_tensors(open_adapter(write_adapter("last", {}, embedding(last))), store)


def test_tensors_can_be_left_out(write_adapter: Write, base: TensorStore) -> None:
    path = write_adapter("lora", TWO)
    leaf = leaf_of(path, base, "net.1.*", "steps")
    assert list(leaf.infos) == ["net.0.q.weight"]
    assert leaf.rules == {"excluded": ("net.1.q.weight", "steps")}
    with pytest.raises(UsageError, match=r"'nett\.\*' matches no tensor"):
        leaf_of(path, base, "nett.*")


def test_patterns_name_tensors_of_either_side(write_adapter: Write, open_folder: Any) -> None:
    store = open_folder("b", {"a.q.weight": random(4, 6), "a.k.weight": random(4, 6)})
    path = write_adapter("lora", {"bert.a.q": (4, 6), "bert.a.k": (4, 6)})
    for pattern in ("bert.a.q.*", "a.q.*"):
        leaf = leaf_of(path, store, pattern)
        assert list(leaf.infos) == ["a.k.weight"]
        assert leaf.rules["excluded"] == ("a.q.weight",)


def test_an_empty_base(write_adapter: Write, open_folder: Any) -> None:
    with pytest.raises(HeaderError, match="b: holds no tensors, so nothing can be made of it"):
        open_folder("b", {})


def test_an_adapter_goes_onto_a_model_merged_on_its_base(
    write_adapter: Write, write_folder: Any, base: TensorStore
) -> None:
    """It is a delta, not a checkpoint: the base need not be read where it is added."""
    merged = {**BASE, "net.0.q.weight": BASE["net.0.q.weight"] * 2}
    onto = write_folder("merged", merged)
    lora = vector(leaf_of(write_adapter("lora", TWO), base))
    found = merge(base.path, [lora], onto=onto).tensors(ONE)["net.0.q.weight"]
    np.testing.assert_allclose(found, merged["net.0.q.weight"] + update(0, 4, 6), atol=1e-5)


def test_the_store_stays_closed_to_adapters_as_models(write_adapter: Write) -> None:
    """An adapter is no checkpoint: opened as one it would be compared by the names of factors."""
    with pytest.raises(TaskbasisError, match="is a PEFT adapter"):
        open_tensors(write_adapter("lora", TWO))
