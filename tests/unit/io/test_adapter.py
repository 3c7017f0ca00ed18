"""PEFT adapters: every tensor of the file accounted for, every size from the config checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.errors import FileError, HeaderError, TaskbasisError
from taskbasis.io.adapter import Adapter, is_adapter, open_adapter
from taskbasis.io.adapter_config import LoraConfig, read_config
from taskbasis.io.lowrank import LowRank

Array = NDArray[Any]
Write = Callable[..., Path]

MINIMAL: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
# What PEFT 0.21.2 writes for a plain adapter, with the values it gives to what was not set.
AS_SAVED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "some/base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 6,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["k", "q"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
DOWN = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], np.float32)
UP = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]], np.float32)
Q = {"q.lora_A.weight": DOWN, "q.lora_B.weight": UP}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(tensors, **config)``: an adapter's folder; names get PEFT's prefix."""

    def make(
        tensors: Mapping[str, Array] = Q,
        name: str = "adapter",
        start: Mapping[str, Any] = MINIMAL,
        prefix: str = "base_model.model.",
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({**start, **config}))
        named = {prefix + key: value for key, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
        return folder

    return make


def pair(module: str, out: int, rank: int, width: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": rng.standard_normal((rank, width)).astype(np.float32),
        f"{module}.lora_B.weight": rng.standard_normal((out, rank)).astype(np.float32),
    }


def scaling(adapter: Adapter, name: str) -> float:
    blob = adapter.infos[name].blob
    assert isinstance(blob, LowRank)
    return blob.scaling


def refused(folder: Path, error: type[TaskbasisError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        open_adapter(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("config", [MINIMAL, AS_SAVED])
def test_an_example_by_hand(write: Write, config: dict[str, Any]) -> None:
    """r = 2 and alpha = 6: three times B A."""
    adapter = open_adapter(write(start=config))
    assert list(adapter.infos) == ["q.weight"]
    expected = [[3, 6, 9], [0, 3, 0], [6, 15, 18], [0, 0, 0]]
    assert adapter.infos["q.weight"].load().tolist() == expected


def test_what_is_known_of_it(write: Write) -> None:
    folder = write(start=AS_SAVED)
    adapter = open_adapter(str(folder))
    assert adapter.path == folder
    assert adapter.base_name == "some/base"
    assert adapter.files == (folder / "adapter_config.json", folder / "adapter_model.safetensors")
    assert adapter.copies == {}
    info = adapter.infos["q.weight"]
    assert info.where == f"tensor 'q.weight' of {folder / 'adapter_model.safetensors'}"


@pytest.mark.parametrize("name", [None, ""])
def test_a_base_that_is_not_named(write: Write, name: str | None) -> None:
    assert open_adapter(write(base_model_name_or_path=name)).base_name == ""
    assert open_adapter(write(name="other")).base_name == ""


def test_rslora_divides_by_the_root(write: Write) -> None:
    tensors = pair("q", 5, 4, 3)
    plain = open_adapter(write(tensors, "plain", r=4, lora_alpha=6, use_rslora=False))
    stable = open_adapter(write(tensors, "stable", r=4, lora_alpha=6, use_rslora=True))
    assert scaling(plain, "q.weight") == 1.5
    assert scaling(stable, "q.weight") == 3.0
    np.testing.assert_array_equal(
        stable.infos["q.weight"].load(), 2 * plain.infos["q.weight"].load()
    )


def test_patterns_give_modules_their_own_rank_and_alpha(write: Write) -> None:
    tensors = {
        **pair("model.layers.0.q_proj", 4, 2, 3),
        **pair("model.layers.1.q_proj", 4, 3, 3),
        **pair("model.layers.1.xq_proj", 4, 8, 3),
        **pair("q_proj", 4, 2, 3),
        **pair("model.layers.10.up", 4, 8, 3),
    }
    patterns = {"layers\\.1\\.q_proj": 3, "q_proj": 2}
    alphas = {"^model.layers.0.q_proj": 1, "xq_proj": 4, r".*\.(up|down)": 0.5}
    adapter = open_adapter(
        write(tensors, r=8, lora_alpha=24, rank_pattern=patterns, alpha_pattern=alphas)
    )
    found = {name: scaling(adapter, name) for name in adapter.infos}
    assert found == {
        "model.layers.0.q_proj.weight": 1 / 2,  # the anchor allows the whole name
        "model.layers.1.q_proj.weight": 24 / 3,  # the first pattern of the rank counts
        "model.layers.1.xq_proj.weight": 4 / 8,  # "q_proj" begins at a dot or not at all
        "q_proj.weight": 24 / 2,
        "model.layers.10.up.weight": 0.5 / 8,
    }


def test_rslora_takes_the_pattern_s_rank(write: Write) -> None:
    adapter = open_adapter(
        write(pair("q", 5, 9, 3), use_rslora=True, rank_pattern={"q": 9}, alpha_pattern={"q": 12})
    )
    assert scaling(adapter, "q.weight") == 4.0


def test_an_anchored_pattern_is_not_a_suffix(write: Write) -> None:
    folder = write({**Q, **pair("layer.q", 2, 2, 2)}, alpha_pattern={"^q$": 2})
    adapter = open_adapter(folder)
    assert (scaling(adapter, "q.weight"), scaling(adapter, "layer.q.weight")) == (1.0, 3.0)


def test_two_alphas_for_one_module_are_refused_since_their_order_is_lost(write: Write) -> None:
    patterns = {"k": 3, "self.k": 30, "v": 5, "self.v": 5}
    tensors = {**pair("self.v", 2, 2, 2), **pair("k", 2, 2, 2)}
    adapter = open_adapter(write(tensors, alpha_pattern=patterns))
    assert scaling(adapter, "self.v.weight") == 2.5  # two patterns, one alpha
    folder = write(pair("self.k", 2, 2, 2), "other", alpha_pattern=patterns)
    refused(folder, HeaderError, "'self.k' several alphas, by 'k' and 'self.k'")


def test_conv1d_is_transposed(write: Write) -> None:
    adapter = open_adapter(write(fan_in_fan_out=True))
    info = adapter.infos["q.weight"]
    assert info.shape == (3, 4)
    np.testing.assert_array_equal(info.load(), 3 * (UP @ DOWN).T)


@pytest.mark.parametrize("fan", [False, True])
def test_embeddings_are_transposed_whatever_the_linear_layers_are(write: Write, fan: bool) -> None:
    """A is [r, tokens] and B is [dimensions, r]; the embedding is [tokens, dimensions]."""
    tensors = {"wte.lora_embedding_A": DOWN, "wte.lora_embedding_B": UP}
    adapter = open_adapter(write(tensors, fan_in_fan_out=fan))
    info = adapter.infos["wte.weight"]
    assert info.shape == (3, 4)
    np.testing.assert_array_equal(info.load(), 3 * (UP @ DOWN).T)


@pytest.mark.parametrize("fan", [False, True])
def test_convolutions_are_not_transposed(write: Write, fan: bool) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "c.lora_A.weight": rng.standard_normal((2, 3, 5, 7)).astype(np.float32),
        "c.lora_B.weight": rng.standard_normal((4, 2, 1, 1)).astype(np.float32),
    }
    info = open_adapter(write(tensors, fan_in_fan_out=fan)).infos["c.weight"]
    up = tensors["c.lora_B.weight"][:, :, 0, 0]
    expected = 3 * np.einsum("or,rihw->oihw", up, tensors["c.lora_A.weight"])
    assert info.shape == (4, 3, 5, 7)
    np.testing.assert_allclose(info.load(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_factors_of_any_float_type_give_float32(write: Write, dtype: Any) -> None:
    info = open_adapter(write({k: v.astype(dtype) for k, v in Q.items()})).infos["q.weight"]
    assert info.dtype.name == "float32"
    np.testing.assert_array_equal(info.load(), 3 * UP @ DOWN)


def test_a_torch_file_is_read_where_there_is_no_other(write: Write) -> None:
    folder = write()
    (folder / "adapter_model.safetensors").unlink()
    tensors = {"base_model.model." + k: torch.from_numpy(v) for k, v in Q.items()}
    torch.save(tensors, folder / "adapter_model.bin")
    adapter = open_adapter(folder)
    assert adapter.files[1].name == "adapter_model.bin"
    np.testing.assert_array_equal(adapter.infos["q.weight"].load(), 3 * UP @ DOWN)


def test_whole_tensors_beside_the_factors_are_kept_apart(write: Write) -> None:
    """PEFT stores embeddings whole when it adapts them, as their module's base layer."""
    head = np.ones((3, 2), np.float32)
    wte = np.ones((3, 4), np.float16)
    tensors = {
        "wte.lora_embedding_A": DOWN,
        "wte.lora_embedding_B": UP,
        "wte.base_layer.weight": wte,
        "head.weight": head,
    }
    adapter = open_adapter(write(tensors))
    assert list(adapter.infos) == ["wte.weight"]
    assert sorted(adapter.copies) == ["head.weight", "wte.weight"]
    np.testing.assert_array_equal(adapter.copies["wte.weight"].load(), wte)


def test_a_module_may_be_called_after_what_a_factor_is_called(write: Write) -> None:
    adapter = open_adapter(write(pair("net.lora_A.q", 4, 2, 3)))
    assert list(adapter.infos) == ["net.lora_A.q.weight"]


def test_names_come_in_order(write: Write) -> None:
    tensors = {**pair("b", 2, 2, 2), **pair("a", 2, 2, 2), **pair("a.c", 2, 2, 2)}
    assert list(open_adapter(write(tensors)).infos) == ["a.weight", "a.c.weight", "b.weight"]


A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
TENSORS: dict[str, tuple[dict[str, Array], type[TaskbasisError], str]] = {
    "no B": ({"q.lora_A.weight": DOWN}, HeaderError, rf"'{A}' .* \[2, 3\] has no lora_B"),
    "no A": ({"q.lora_B.weight": UP}, HeaderError, rf"'{B}' .* \[4, 2\] has no lora_A"),
    "B of another rank": (
        {"q.lora_A.weight": DOWN, "q.lora_B.weight": UP[:, :1]},
        HeaderError,
        rf"'{B}' .* \[4, 1\] and '{A}' has \[2, 3\]",
    ),
    "another rank than the config's": (
        pair("q", 4, 3, 5),
        HeaderError,
        rf"'{A}' .* shape \[3, 5\], rank 3, but .*adapter_config.json says rank 2",
    ),
    "an embedding and a layer": (
        {**Q, "q.lora_embedding_A": DOWN},
        HeaderError,
        "adapted as an embedding and not",
    ),
    "the parts of two kinds": (
        {"q.lora_A.weight": DOWN, "q.lora_embedding_B": UP},
        HeaderError,
        "adapted as an embedding and not",
    ),
    "DoRA": ({**Q, "q.lora_magnitude_vector": UP[:, 0]}, FileError, "magnitude of DoRA"),
    "a bias of B": ({**Q, "q.lora_B.bias": UP[:, 0]}, FileError, "'.*lora_B.bias' .* not one of"),
    "the adapter's name": (
        {"q.lora_A.default.weight": DOWN, "q.lora_B.default.weight": UP},
        FileError,
        "lora_A.default.weight' .* not one of the two factors",
    ),
    "a third factor": ({**Q, "q.lora_diag": DOWN[0]}, FileError, "'.*lora_diag' .* not one of"),
    "an embedding with .weight": (
        {"q.lora_embedding_A.weight": DOWN, "q.lora_embedding_B.weight": UP},
        FileError,
        "not one of the two factors",
    ),
    "whole tensors only": ({"q.weight": UP}, HeaderError, "holds no lora_A and lora_B"),
    "nothing": ({}, HeaderError, "holds no lora_A and lora_B"),
    "one tensor twice": (
        {**Q, "q.weight": UP, "q.base_layer.weight": UP},
        HeaderError,
        "'base_model.model.q.(weight|base_layer.weight)' are one tensor",
    ),
    "integers": (
        {"q.lora_A.weight": DOWN.astype(np.int32), "q.lora_B.weight": UP},
        HeaderError,
        "holds int32, but factors are floats",
    ),
    "what was not gathered": (
        {"q.lora_A.weight": np.empty(0, np.float32), "q.lora_B.weight": UP},
        HeaderError,
        "saved from one part of a sharded model",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_every_tensor_is_accounted_for(write: Write, case: str) -> None:
    tensors, error, match = TENSORS[case]
    refused(write(tensors), error, match)


def test_names_without_the_prefix_are_refused(write: Write) -> None:
    refused(write(prefix="base_model."), HeaderError, r"'base_model.q.lora_A.weight' .*not called")
    refused(write({**Q, "": UP}, "bare"), FileError, "not one of the two factors")


def test_groups_of_a_convolution_are_refused(write: Write) -> None:
    """PEFT gives B the rank of one group there, and does not merge it either."""
    tensors = {
        "c.lora_A.weight": np.ones((2, 4, 3, 3), np.float32),
        "c.lora_B.weight": np.ones((6, 1, 1, 1), np.float32),
    }
    refused(write(tensors), HeaderError, r"\[6, 1, 1, 1\] and .* \[2, 4, 3, 3\]")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora: DoRA divides by the norms .* merge_and_unload"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "some tokens of a text only"),
    "trained tokens": ({"trainable_token_indices": [0]}, "rows of the embeddings .*; .*merge_and"),
    "token 0": ({"trainable_token_indices": 0}, "rows of the embeddings"),
    "parameters": ({"target_parameters": ["experts.down"]}, "parameters of experts, not modules"),
    "bias of B": ({"lora_bias": True}, "biases were trained as well"),
    "QALoRA": ({"use_qalora": True}, "pools the inputs"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "blocks of its factors"),
    "Arrow": ({"arrow_config": {"top_k": 3}}, "between adapters at run time"),
    "KaSA": ({"kasa_config": {"beta": 1}}, "takes parts out of the base"),
    "VeLoRA": ({"velora_config": {"scale": 1.0}}, "more than two factors"),
    "MonteCLoRA": ({"monteclora_config": {"num_samples": 8}}, "random samples"),
    "replicated": ({"layer_replication": [[0, 2], [1, 2]]}, "more layers than its base"),
    "Megatron": ({"megatron_config": {"a": 1}}, "one part of a sharded layer"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "type 'ADALORA'; only LORA is read"),
    "prefix tuning": ({"peft_type": "PREFIX_TUNING"}, "only LORA is read"),
    "no type": ({"peft_type": None}, "type None"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa', which changes the base"),
    "fast PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight"),
    "OLoRA": ({"init_lora_weights": "olora"}, "changes the base before training"),
    "CorDA": ({"init_lora_weights": "corda"}, "changes the base before training"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "changes the base before training"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "changes the base before training"),
    "an unknown start": ({"init_lora_weights": "next"}, "'next', which changes the base"),
    "a later setting": ({"use_next_lora": True}, "'use_next_lora' to True, which is not known"),
    "a later number": ({"next_scale": 0}, "'next_scale' to 0, which is not known"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_is_not_linear_in_the_factors_is_refused(write: Write, case: str) -> None:
    config, match = SETTINGS[case]
    refused(write(**config), FileError, match)


@pytest.mark.parametrize(
    "config",
    [
        {"init_lora_weights": start}
        for start in (True, False, None, "gaussian", "eva", "orthogonal", "mica", "EVA")
    ]
    + [
        {"use_next_lora": False, "next_config": None, "next_list": [], "next_map": {}},
        {"use_dora": False, "modules_to_save": [], "trainable_token_indices": None},
        {"ensure_weight_tying": True, "lora_dropout": 0.5, "target_modules": "all-linear"},
        {"loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2}, "runtime_config": {"a": 1}},
        {"rank_pattern": None, "alpha_pattern": None},
    ],
)
def test_what_says_nothing_of_the_weights_is_let_pass(write: Write, config: dict[str, Any]) -> None:
    adapter = open_adapter(write(**config))
    np.testing.assert_array_equal(adapter.infos["q.weight"].load(), 3 * UP @ DOWN)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"r": 0}, "the rank 'r' is 0, not a whole number >= 1"),
    "a negative rank": ({"r": -2}, "the rank 'r' is -2"),
    "half a rank": ({"r": 2.0}, "the rank 'r' is 2.0"),
    "a rank that is true": ({"r": True}, "the rank 'r' is True"),
    "no rank": ({"r": None}, "the rank 'r' is None"),
    "no alpha": ({"lora_alpha": None}, "the alpha 'lora_alpha' is None"),
    "an alpha in words": ({"lora_alpha": "16"}, "the alpha 'lora_alpha' is '16'"),
    "an alpha that is true": ({"lora_alpha": True}, "the alpha 'lora_alpha' is True"),
    "NaN": ({"lora_alpha": float("nan")}, "the alpha 'lora_alpha' is nan"),
    "infinity": ({"lora_alpha": float("inf")}, "the alpha 'lora_alpha' is inf"),
    "minus infinity": ({"lora_alpha": -float("inf")}, "the alpha 'lora_alpha' is -inf"),
    "huge": ({"lora_alpha": 10**400}, "the alpha 'lora_alpha' is 1000"),
    "a flag in words": ({"use_rslora": "false"}, "use_rslora is 'false', not true or false"),
    "a flag in numbers": ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1, not true or false"),
    "patterns in a list": ({"rank_pattern": ["q"]}, "rank_pattern is .*not a map from patterns"),
    "a pattern's rank": ({"rank_pattern": {"q": 0.5}}, "the rank 'q' is 0.5"),
    "a pattern's alpha": ({"alpha_pattern": {"q": None}}, "the alpha 'q' is None"),
    "no pattern": ({"alpha_pattern": {"q(": 1}}, r"alpha_pattern 'q\(' is no pattern"),
    "a base that is no name": ({"base_model_name_or_path": 7}, "7, not a name"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_config_that_leaves_the_size_open_is_refused(write: Write, case: str) -> None:
    config, match = DAMAGED[case]
    refused(write(**config), HeaderError, match)


@pytest.mark.parametrize("missing", ["r", "lora_alpha", "peft_type"])
def test_what_is_not_said_is_not_guessed(write: Write, missing: str) -> None:
    start = {key: value for key, value in MINIMAL.items() if key != missing}
    refused(write(start=start), FileError, f"{missing.removeprefix('peft_')}.* None")


@pytest.mark.parametrize("alpha", [0, -3, 1, 0.5])
def test_any_finite_alpha_counts(write: Write, alpha: float) -> None:
    assert scaling(open_adapter(write(lora_alpha=alpha)), "q.weight") == alpha / 2


def test_where_adapters_are_looked_for(write: Write, tmp_path: Path) -> None:
    folder = write(name="outer/math")
    write(name="outer/code")
    assert is_adapter(folder)
    assert is_adapter(str(folder))
    assert not is_adapter(tmp_path / "outer")
    assert not is_adapter(tmp_path / "nowhere")
    assert not is_adapter(folder / "adapter_config.json")
    assert list(open_adapter(folder).infos) == ["q.weight"]
    refused(tmp_path / "outer", FileError, "name one of its folders that do: code, math$")
    refused(tmp_path / "nowhere", FileError, "holds no adapter_config.json$")


def test_a_folder_without_factors(write: Write) -> None:
    folder = write()
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    refused(folder, FileError, "none of adapter_model.safetensors, adapter_model.bin")


def test_the_config_alone(write: Write) -> None:
    path = write(start=AS_SAVED, use_rslora=True, alpha_pattern={"k": 2}) / "adapter_config.json"
    expected = LoraConfig(path, 2, 6.0, True, alphas={"k": 2.0}, base_name="some/base")
    assert read_config(path) == expected


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"adapter_config\.json: cannot be opened: No such file"):
        read_config(tmp_path / "adapter_config.json")
