"""Recipes resolved against headers: ties, adapters, configs, chains, and all errors at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.chains import follow_all, look_ahead
from taskbasis.engine import Engine
from taskbasis.errors import FileError, MismatchError, SeveralErrors, TaskbasisError, UsageError
from taskbasis.following import account, follow
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import ArrayBlob, Forming
from taskbasis.preparing import Prepared, prepare
from taskbasis.recipes import parse_recipe

Array = NDArray[Any]
Arrays = dict[str, Array]
EMBED, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q.weight"
TIED = {"tie_word_embeddings": True, "num_hidden_layers": 2}
APART = {"tie_word_embeddings": False, "num_hidden_layers": 2}
LINEAR = """
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
"""


def make(seed: int, *, head: bool = False, dtype: Any = np.float32) -> Arrays:
    random = np.random.default_rng(seed)
    names = {EMBED: (6, 4), "model.layers.0.q.weight": (4, 4), "model.layers.1.q.weight": (4, 4)}
    more = {HEAD: (6, 4)} if head else {}
    shapes = {**names, "model.norm.weight": (4,), **more}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(write_folder: Callable[..., Path]) -> Callable[..., Arrays]:
    """``model(name, seed, config, **how)``: writes it, and returns its tensors."""

    def write(name: str, tensors: Arrays, config: Any = None) -> Arrays:
        write_folder(name, tensors, **({"config.json": json.dumps(config)} if config else {}))
        return tensors

    return write


def prepared(text: str, **how: Any) -> Prepared:
    (document,) = parse_recipe(text).documents
    return prepare(document, **how)


def written(text: str, out: str = "out", **how: Any) -> Arrays:
    follow(prepared(text, **how), out, engine=Engine(workers=1))
    return {name: info.load() for name, info in open_tensors(out).items()}


def config_of(folder: str) -> Any:
    return json.loads((Path(folder) / "config.json").read_text())


# Heads that some models store, and others tie.


def test_a_tied_model_beside_one_with_a_head(model: Any) -> None:
    a, b = model("a", make(1, head=True), APART), model("b", make(2), TIED)
    found = written(LINEAR)
    np.testing.assert_allclose(found[HEAD], (a[HEAD] + 3 * b[EMBED]) / 4, atol=1e-6)
    np.testing.assert_allclose(found[EMBED], (a[EMBED] + 3 * b[EMBED]) / 4, atol=1e-6)
    assert config_of("out") == APART
    notes = prepared(LINEAR).notes
    assert notes == (f"b stores no {HEAD}: it is tied to {EMBED}, which is read for it",)


def test_a_model_with_a_head_beside_a_tied_one(model: Any) -> None:
    """The first model ties, but no head that stores both would be the embeddings."""
    a, b = model("a", make(1), TIED), model("b", make(2, head=True), APART)
    found = written(LINEAR)
    np.testing.assert_allclose(found[HEAD], (a[EMBED] + 3 * b[HEAD]) / 4, atol=1e-6)
    assert config_of("out") == APART
    assert prepared(LINEAR).notes[-1] == (
        "the output stores its head, and its config says that it is not tied"
    )


def test_a_head_that_is_the_embeddings_once_more(model: Any) -> None:
    model("a", make(1), TIED)
    twice = make(2)
    model("b", {**twice, HEAD: twice[EMBED]}, TIED)
    found = written(LINEAR)
    assert HEAD not in found
    assert config_of("out") == TIED
    assert prepared(LINEAR).notes == (
        f"{HEAD} of b is the embeddings once more; the output ties it",
    )
    assert set(account(prepared(LINEAR)).values()) == {()}


def test_a_base_that_stores_its_tied_head(model: Any) -> None:
    a = make(1)
    model("a", {**a, HEAD: a[EMBED]}, TIED)
    model("b", make(2), TIED)
    found = written(LINEAR)
    np.testing.assert_array_equal(found[HEAD], found[EMBED])


@pytest.mark.parametrize("config", [
    None, APART, {"num_hidden_layers": 2}, {"architectures": ["LlamaForSequenceClassification"]},
])  # fmt: skip
def test_a_head_that_is_missing_is_not_guessed(config: Any, model: Any) -> None:
    model("a", make(1, head=True), APART)
    model("b", make(2), config)
    with pytest.raises(MismatchError, match=r"b lacks 1 tensors of a, such as 'lm_head\.weight'"):
        prepared(LINEAR)


def test_no_weight_is_read_where_the_first_model_has_its_head(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model("a", make(1, head=True), APART)
    model("b", make(2), TIED)

    def fail(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("taskbasis.io.tensors.FileBlob.read_into", fail)
    prepared(LINEAR)


# Adapters.


def adapter(name: str, more: Arrays | None = None, scale: float = 1.0) -> Array:
    """An adapter of the first layer, of rank 2; its update."""
    random = np.random.default_rng(len(name))
    up, down = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 2), (2, 4)))
    stem = f"base_model.model.{Q.removesuffix('.weight')}"
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": scale * up}
    tensors |= {f"base_model.model.{key}": value for key, value in (more or {}).items()}
    Path(name).mkdir()
    save_file(tensors, f"{name}/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    Path(name, "adapter_config.json").write_text(json.dumps(config))
    return np.asarray(scale * up.astype(float) @ down)


ON_BASE = """
merge_method: task_arithmetic
base_model: a+lora
models: [{model: b, parameters: {weight: 0.5}}, {model: a+other, parameters: {weight: 2}}]
"""


def test_a_base_with_an_adapter_on_it(model: Any) -> None:
    a, b = model("a", make(1)), model("b", make(2))
    one, two = adapter("lora"), adapter("other")
    found = written(ON_BASE)
    base = a[Q] + one
    wanted = base + 0.5 * (b[Q] - base) + 2 * (a[Q] + two - base)
    np.testing.assert_allclose(found[Q], wanted, atol=1e-5)
    np.testing.assert_allclose(found[EMBED], (a[EMBED] + b[EMBED]) / 2, atol=1e-6)


def test_the_base_itself_adds_nothing(model: Any) -> None:
    """The base with its adapter is one model wherever it is named."""
    a = model("a", make(1))
    one = adapter("lora")
    found = written("""
merge_method: linear
base_model: a+lora
models: [{model: a+lora, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]
""")
    np.testing.assert_allclose(found[Q], a[Q] + one / 2, atol=1e-5)


def test_whole_tensors_of_an_adapter_replace_the_model_s(model: Any) -> None:
    a = model("a", make(1))
    norm = np.arange(4, dtype=np.float32)
    one = adapter("lora", {"model.norm.weight": norm})
    found = written("merge_method: passthrough\nmodels: [model: a+lora]\n")
    np.testing.assert_array_equal(found["model.norm.weight"], norm)
    np.testing.assert_allclose(found[Q], a[Q] + one, atol=1e-6)
    np.testing.assert_array_equal(found[EMBED], a[EMBED])


ALONE = "merge_method: passthrough\nmodels: [model: a+lora]\n"


@pytest.mark.parametrize("changed", [EMBED, HEAD])
def test_an_adapter_that_trains_embeddings_or_head_apart(changed: str, model: Any) -> None:
    """PEFT does not tie whole copies: the other one stays what the model has."""
    a, new = model("a", make(1), TIED), make(2)[EMBED]
    adapter("lora", {changed: new})
    found = written(ALONE)
    wanted = {EMBED: a[EMBED], HEAD: a[EMBED], changed: new}
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    assert config_of("out") == APART
    said = f"lora trains the embeddings or {HEAD} apart from the other, which a ties; a+lora stores"
    assert any(note.startswith(said) for note in prepared(ALONE).notes)


def test_an_adapter_that_ties_embeddings_and_head(model: Any) -> None:
    """As PEFT's ensure_weight_tying saves them: both, and alike."""
    model("a", make(1), TIED)
    new = make(2)[EMBED]
    adapter("lora", {EMBED: new, HEAD: new})
    found = written(ALONE)
    np.testing.assert_array_equal(found[EMBED], new)
    assert HEAD not in found
    assert config_of("out") == TIED


def test_what_an_adapter_says_of_tied_embeddings_without_changing_them(model: Any) -> None:
    a = model("a", make(1), TIED)
    adapter("lora", {EMBED: a[EMBED], "model.norm.weight": a["model.norm.weight"] + 1})
    assert HEAD not in written(ALONE)


def test_tied_embeddings_whose_head_has_no_known_name(model: Any) -> None:
    tensors, name = make(1), "model.word_embeddings.weight"
    model("a", {name: tensors.pop(EMBED), **tensors}, TIED)
    adapter("lora", {name: make(2)[EMBED]})
    with pytest.raises(MismatchError, match=f"lora: holds '{name}' whole, apart from the head"):
        prepared(ALONE)


FIRST = """
merge_method: linear
name: one
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
"""


def test_an_adapter_with_whole_tensors_on_a_merge_of_the_file(model: Any, here: Path) -> None:
    """What it replaces is not there yet when all is checked."""
    a, b = model("a", make(1)), model("b", make(2))
    norm = np.arange(4, dtype=np.float32)
    one = adapter("lora", {"model.norm.weight": norm})
    text = FIRST + ALONE.replace("a+lora", "one+lora")
    (here / "parts").mkdir()
    follow_all(parse_recipe(text), here / "out", here / "parts", engine=Engine(workers=1))
    found = {name: info.load() for name, info in open_tensors("out").items()}
    np.testing.assert_array_equal(found["model.norm.weight"], norm)
    np.testing.assert_allclose(found[Q], (a[Q] + b[Q]) / 2 + one, atol=1e-5)


def test_whole_numbers_of_a_merge_of_the_file(model: Any) -> None:
    table = {"table": np.arange(6).reshape(2, 3)}
    for seed, name in enumerate("ab"):
        model(name, {**make(seed), **table})
    task = "merge_method: task_arithmetic\nbase_model: one\n"
    task += "models: [{model: a, parameters: {weight: 1}}]\n"
    assert set(look_ahead(parse_recipe(FIRST + task))) == {"one", None}


def test_an_adapter_s_resized_embeddings_are_refused(model: Any) -> None:
    model("a", make(1))
    adapter("lora", {EMBED: np.zeros((8, 4), np.float32)})
    with pytest.raises(MismatchError, match=r"has 8 rows, but the base a has 6 rows of .* resized"):
        prepared("merge_method: passthrough\nmodels: [model: a+lora]\n")


HALF = """
merge_method: linear
models: [{model: a+lora, parameters: {weight: 1}}, {model: a+other, parameters: {weight: 1}}]
"""


def test_small_updates_of_16_bit_models_are_not_rounded_away(model: Any) -> None:
    """mergekit stores the merged model in bfloat16 first, which drops most of a small update."""
    a = model("a", make(1, dtype=ml_dtypes.bfloat16))
    one, two = adapter("lora", scale=1e-4), adapter("other", scale=1e-4)
    exact = a[Q].astype(float) + (one + two) / 2
    ours, theirs = (
        written(HALF + "dtype: float32\n"),
        written(HALF + "dtype: float32\n", "theirs", lora_dtype="bfloat16"),
    )
    np.testing.assert_allclose(ours[Q], exact, atol=1e-6)
    rounded = [
        (a[Q].astype(np.float32) + u.astype(np.float32)).astype(a[Q].dtype) for u in (one, two)
    ]
    wanted = sum(one.astype(float) for one in rounded) / 2
    np.testing.assert_allclose(theirs[Q], wanted, atol=1e-7)
    assert np.abs(theirs[Q] - exact).max() > 1e-5
    own = written(HALF, "own")
    assert {values.dtype for values in own.values()} == {a[Q].dtype}  # as the models are stored
    np.testing.assert_array_equal(own[Q], ours[Q].astype(a[Q].dtype))


def test_an_adapter_s_dtype_is_one(model: Any) -> None:
    model("a", make(1))
    adapter("lora")
    with pytest.raises(UsageError, match="float3"):
        prepared("merge_method: passthrough\nmodels: [model: a+lora]\n", lora_dtype="float3")


@pytest.mark.parametrize("workers", [2, 5])
def test_the_same_bytes_for_any_number_of_workers(workers: int, model: Any) -> None:
    model("a", make(1)), model("b", make(2))
    adapter("lora"), adapter("other")
    follow(prepared(ON_BASE), "one", engine=Engine(workers=1))
    follow(prepared(ON_BASE), "more", engine=Engine(workers=workers))
    one, more = (Path(out, "model.safetensors").read_bytes() for out in ("one", "more"))
    assert one == more


# All that is wrong, at once.


def problems(text: str) -> tuple[TaskbasisError, ...]:
    with pytest.raises(SeveralErrors) as caught:
        look_ahead(parse_recipe(text))
    return caught.value.problems


def test_all_missing_models_are_named(model: Any) -> None:
    model("a", make(1))
    text = LINEAR.replace("model: b,", "model: b+lora,").replace(
        "]", ", {model: c, parameters: {weight: 1}}]"
    )
    found = problems(text)
    assert [str(one).partition(":")[0] for one in found] == ["b", "c"]
    assert all(isinstance(one, FileError) for one in found)


def test_one_problem_is_raised_as_it_is(model: Any) -> None:
    model("a", make(1))
    with pytest.raises(FileError, match=r"^b: no such file or folder"):
        look_ahead(parse_recipe(LINEAR))


def test_models_parameters_shapes_and_layers(model: Any) -> None:
    model("a", make(1)), model("narrow", {n: v[:-1] for n, v in make(2).items()})
    gone = "models: [{model: gone, parameters: {weight: 1}}]"
    text = f"""
name: one
merge_method: task_arithmetic
base_model: a
{gone}
---
name: two
merge_method: linear
models: [{{model: a, parameters: {{weight: 1}}}}, {{model: narrow, parameters: {{weight: 1}}}}]
---
name: three
merge_method: passthrough
slices: [{{sources: [{{model: a, layer_range: [0, 7]}}]}}]
---
merge_method: linear
models: [{{model: one, parameters: {{weight: 1}}}}, {{model: three, parameters: {{weight: 1}}}}]
"""
    found = problems(text)
    assert [type(one) for one in found] == [FileError, MismatchError, UsageError]
    assert "gone" in str(found[0])
    assert "3 more tensors of narrow do not fit" in str(found[1])
    assert "layer_range [0, 7] goes beyond" in str(found[2])


def test_what_is_missing_does_not_hide_what_else_is_wrong(model: Any) -> None:
    model("a", make(1))
    text = LINEAR.replace("weight: 3", "weight: [{filter: norm, value: 1}]")
    assert [type(one) for one in problems(text)] == [FileError, UsageError]


def test_all_parameters_and_all_models_that_lack_tensors(model: Any) -> None:
    model("a", make(1)), model("b", make(2))
    filtered = "weight: [{filter: norm, value: 1}]"
    text = LINEAR.replace("weight: 1", filtered).replace("weight: 3", filtered)
    found = problems(text)
    assert [str(one).partition(" for tensor")[0] for one in found] == [
        "no rule gives the weight of a",
        "no rule gives the weight of b",
    ]
    for name in "cd":
        model(name, {key: value for key, value in make(3).items() if key != Q})
    less = LINEAR.replace("model: b,", "model: c,")
    less = less.replace("}}]", "}}, {model: d, parameters: {weight: 1}}]")
    found = problems(less)
    assert [str(one).partition(" lacks")[0] for one in found] == ["c", "d"]


def test_memory_counts_what_forms_the_sums(model: Any) -> None:
    """The base and the models of which an adapter is part, one after the other."""
    model("a", make(1)), model("b", make(2))
    adapter("lora"), adapter("other")
    (plan,) = (one for one in prepared(ON_BASE).plans if any(m.name == Q for m in one.merges))
    (merge,) = (one for one in plan.merges if one.name == Q)
    nothing = ArrayBlob(np.zeros(0, np.uint8))
    stored = replace(
        merge,
        base=replace(merge.base, blob=nothing),
        rows=tuple(replace(info, blob=nothing) for info in merge.rows),
    )
    others = tuple(one for one in plan.merges if one is not merge)
    blobs = [info.blob for info in (merge.base, *merge.rows)]
    room = [blob.working_bytes(merge.size) for blob in blobs if isinstance(blob, Forming)]
    assert len(room) == 2
    counted = plan.memory(1) - replace(plan, merges=(*others, stored)).memory(1)
    assert counted == max(room)


def test_the_exit_code_is_that_of_data_unless_all_is_usage() -> None:
    data, usage = FileError("a"), UsageError("b")
    assert SeveralErrors([data, usage]).exit_code == 1
    assert SeveralErrors([usage, UsageError("c")]).exit_code == 2
    assert str(SeveralErrors([data, usage])) == "2 things are wrong\n  a\n  b"


# Chains.

CHAIN = """
name: short
merge_method: passthrough
slices: [{sources: [{model: a, layer_range: [1, 2]}]}, {sources: [{model: a, layer_range: [0, 1]}]}]
---
merge_method: linear
models: [{model: short, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
dtype: bfloat16
"""


def test_merges_that_are_not_made_yet_are_known(model: Any, tmp_path: Path) -> None:
    config = {**TIED, "layer_types": ["full", "sliding"]}
    a, b = model("a", make(1), config), model("b", make(2), config)
    ahead = look_ahead(parse_recipe(CHAIN))
    assert list(ahead) == ["short", None]
    assert {t.dtype.name for t in ahead[None].outputs} == {"bfloat16"}
    turned = {**config, "layer_types": ["sliding", "full"]}
    assert ahead["short"].config == ahead[None].config == turned
    assert [file.name for file in ahead[None].files] == ["b", "model.safetensors"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    follow_all(parse_recipe(CHAIN), "out", scratch, engine=Engine(workers=1))
    assert config_of("out") == turned
    found = open_tensors("out")[Q].load().astype(float)
    wanted = (a["model.layers.1.q.weight"] + b[Q]) / 2
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_merge_s_dtype_is_known_to_those_that_start_from_it(model: Any, tmp_path: Path) -> None:
    """Its config is changed twice: by its own dtype, and by the layers of the next merge."""
    model("a", make(1), {"num_hidden_layers": 2, "torch_dtype": "float32"})
    text = """
name: half
merge_method: passthrough
models: [model: a]
dtype: bfloat16
---
merge_method: passthrough
slices: [{sources: [{model: half, layer_range: [0, 1]}]}]
"""
    wanted = {"num_hidden_layers": 1, "torch_dtype": "bfloat16"}
    assert look_ahead(parse_recipe(text))[None].config == wanted
    (tmp_path / "scratch").mkdir()
    follow_all(parse_recipe(text), "out", tmp_path / "scratch", engine=Engine(workers=1))
    assert config_of("out") == wanted


def test_how_adapters_were_rounded_is_recorded(model: Any) -> None:
    model("a", make(1))
    adapter("lora")
    text = "merge_method: passthrough\nmodels: [model: a+lora]\n"
    for out, dtype in (("plain", None), ("half", "bfloat16")):
        written(text, out, lora_dtype=dtype)
        record = json.loads(Path(out, "taskbasis_recipe.json").read_text())
        assert record.get("lora_merge_dtype") == dtype


def test_what_is_not_made_yet_cannot_be_read(model: Any) -> None:
    model("a", make(1))
    made = look_ahead(parse_recipe(CHAIN.partition("---")[0]))["short"].unmade()
    with pytest.raises(FileError, match="short: is made by the recipe first"):
        made.store[Q].load()


# Configs.


def test_layers_that_change_places_take_their_entries_along(model: Any) -> None:
    config = {**TIED, "layer_types": ["full", "sliding"], "max_window_layers": 1}
    model("a", make(1), config)
    one = prepared(CHAIN.partition("---")[0])
    assert one.config == {**config, "layer_types": ["sliding", "full"]}
    assert one.changed
    assert one.notes == (
        "a/config.json: max_window_layers: 1 may speak of layers and stay as they are",
    )


def test_the_same_layers_leave_the_config_as_it_is(model: Any) -> None:
    config = {"num_hidden_layers": "two", "layer_types": ["full", "sliding"]}
    model("a", make(1), config)
    text = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n"
    one = prepared(text)
    assert one.config == config
    assert not one.changed


@pytest.mark.parametrize("dtype", [np.int32, ml_dtypes.float8_e4m3fn])
def test_quantised_models_are_not_merged_by_halves(dtype: Any, model: Any) -> None:
    """One model's packed weights with both models' scales merged would be nobody's model."""
    packed = np.ones((3, 4), dtype)
    ids = np.arange(4)
    a, b = make(1), make(2)
    model("a", {**a, "q.packed": packed, "ids": ids})
    model("b", {**b, "q.packed": packed * dtype(2), "ids": ids + 1})
    refused = r"'q\.packed' of b/model\.safetensors holds \w+ that differ .* convert quantised"
    with pytest.raises(MismatchError, match=refused):
        prepared(LINEAR)
    model("c", {**b, "q.packed": packed, "ids": ids + 1})
    assert prepared(LINEAR.replace("model: b", "model: c")).edits
