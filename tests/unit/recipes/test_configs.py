"""Configs of other layers: counts, lists and numbers of layers; and what configs disagree on."""

from __future__ import annotations

from typing import Any

import pytest

from taskbasis.errors import UsageError
from taskbasis.recipes.configs import Origin, differences, relayered
from taskbasis.recipes.layers import Tower

DECODER = Tower("model.layers", 4)


def origins(config: Any, *layers: int, tower: Tower = DECODER, model: str = "a") -> list[Origin]:
    return [Origin(model, config, tower, layer) for layer in layers]


def changed(config: Any, *layers: int, tower: Tower = DECODER) -> Any:
    return relayered(config, tower, origins(config, *layers, tower=tower), "x/config.json")[0]


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_the_number_of_layers(key: str) -> None:
    config = {"model_type": "x", key: 4, "other": 4}
    assert changed(config, 0, 1, 1, 2, 2, 3) == config | {key: 6}
    assert config[key] == 4


NESTED = {
    "text_config": {"num_hidden_layers": 4, "layer_types": list("wxyz")},
    "vision_config": {"num_hidden_layers": 4, "depth": 4, "out_layers": [3]},
    "audio_config": {"encoder_layers": 4},
}


@pytest.mark.parametrize(("prefix", "section", "wanted"), [
    ("model.language_model.layers", "text_config",
     {"num_hidden_layers": 2, "layer_types": ["w", "z"]}),
    ("model.visual.blocks", "vision_config",
     {"num_hidden_layers": 2, "depth": 2, "out_layers": [1]}),
    ("vision_model.encoder.layers", "vision_config",
     {"num_hidden_layers": 2, "depth": 2, "out_layers": [1]}),
    ("audio_tower.layers", "audio_config", {"encoder_layers": 2}),
])  # fmt: skip
def test_the_tower_whose_layers_change(prefix: str, section: str, wanted: Any) -> None:
    """All towers are equally deep, so only their names tell them apart."""
    assert changed(NESTED, 0, 3, tower=Tower(prefix, 4)) == NESTED | {section: wanted}


@pytest.mark.parametrize(("prefix", "config", "wanted"), [
    ("encoder.block", {"num_layers": 4, "num_decoder_layers": 4}, {"num_layers": 2}),
    ("decoder.block", {"num_layers": 4, "num_decoder_layers": 4}, {"num_decoder_layers": 2}),
    ("model.encoder.layers", {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
     {"encoder_layers": 2, "num_hidden_layers": 2}),
    ("model.decoder.layers", {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
     {"decoder_layers": 2}),
    ("bert.encoder.layer", {"num_hidden_layers": 4}, {"num_hidden_layers": 2}),
    ("model.decoder.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 2}),
    ("vision_model.encoder.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 2}),
])  # fmt: skip
def test_encoders_and_decoders(prefix: str, config: Any, wanted: Any) -> None:
    """As T5, BART, BERT, OPT and CLIP's vision tower alone have them."""
    assert changed(config, 0, 3, tower=Tower(prefix, 4)) == config | wanted


def test_a_list_with_an_entry_for_each_layer_follows_them() -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "few": [1]}
    assert changed(config, 3, 1, 1)["layer_types"] == ["d", "b", "b"]
    assert changed(config, 1, 0, 3, 2)["layer_types"] == ["b", "a", "d", "c"]  # as many as before
    assert changed(config, 3, 1, 1)["few"] == [1]


def test_entries_come_from_the_model_that_a_layer_comes_from() -> None:
    ours = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "mlp_only_layers": [0]}
    theirs = {"n_layer": 3, "layer_types": ["x", "y", "z"], "mlp_only_layers": [2]}
    layers = origins(ours, 0, 1) + origins(theirs, 1, 2, tower=Tower("h", 3), model="b")
    found, notes = relayered(ours, DECODER, layers, "config")
    assert found["layer_types"] == ["a", "b", "y", "z"]
    assert found["mlp_only_layers"] == [0, 3]
    assert notes == ()


@pytest.mark.parametrize("theirs", [None, {"num_hidden_layers": 4}, {"layer_types": list("abcd")}])
def test_a_model_that_says_nothing_of_its_layers(theirs: Any) -> None:
    ours = {"num_hidden_layers": 4, "layer_types": list("abcd")}
    layers = [*origins(ours, 0, 1), *origins(theirs, 0, model="b")]
    with pytest.raises(UsageError) as caught:
        relayered(ours, DECODER, layers, "a/config.json")
    assert str(caught.value) == (
        "a/config.json: 'layer_types' has an entry for each layer, but the config of b has none "
        "for its 4 layers; remove it from a copy of the first, and say it again in the output"
    )


@pytest.mark.parametrize(("key", "value", "wanted"), [
    ("mlp_only_layers", [0, 3], [0, 2]),
    ("cross_attention_layers", [2], []),
    ("full_attn_idxs", [1], [1]),
    ("moe_layer_indices", [], []),
    ("eos_token_id", [1, 2], [1, 2]),
    ("no_rope_layers", [0, 1, 1, 1], [0, 1, 1]),
    ("architectures", ["A", "B", "C", "D"], ["A", "B", "C", "D"]),
    ("bos_token_ids", [0, 1, 2, 3], [0, 1, 2, 3]),
    ("sizes", [0, 2], [0, 2]),
])  # fmt: skip
def test_other_lists(key: str, value: Any, wanted: Any) -> None:
    """Layers 0, 1 and 3 stay: numbers of layers get their new numbers, other lists stay."""
    assert changed({"num_hidden_layers": 4, key: value}, 0, 1, 3)[key] == wanted


def test_one_layer_and_one_architecture() -> None:
    config = {"architectures": ["A"], "num_hidden_layers": 1}
    assert changed(config, 0, 0, tower=Tower("h", 1)) == config | {"num_hidden_layers": 2}


@pytest.mark.parametrize("key", [
    "max_window_layers", "first_k_dense_replace", "sliding_window_pattern", "moe_layer_freq",
])  # fmt: skip
def test_numbers_that_count_layers_otherwise_are_told(key: str) -> None:
    config = {"text_config": {"num_hidden_layers": 4, key: 3}}
    found, notes = relayered(config, DECODER, origins(config, 0, 1), "a/config.json")
    assert found["text_config"] == {"num_hidden_layers": 2, key: 3}
    said = f"a/config.json: text_config.{key}: 3 may speak of layers and stay as they are"
    assert notes == (said,)


@pytest.mark.parametrize("config", [
    {"layer_norm_eps": 1, "layer_scale_init": 3, "layernorm": 1, "layerdrop": 1, "layers": True},
    {"decoder_layers": 3, "num_decoder_layers": 3},
])  # fmt: skip
def test_other_numbers_are_not(config: Any) -> None:
    config = {"num_hidden_layers": 4} | config
    assert relayered(config, DECODER, origins(config, 0, 1), "x")[1] == ()


@pytest.mark.parametrize("config", [
    {}, {"num_hidden_layers": "4"}, {"num_hidden_layers": 5}, {"num_hidden_layers": True},
    {"vision_config": {"num_hidden_layers": 4}},
])  # fmt: skip
def test_a_config_that_hides_the_number_of_layers(config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        changed(config, 0, 1)
    assert str(caught.value) == (
        "x/config.json: says the 4 layers model.layers* under none of num_hidden_layers, n_layer, "
        "n_layers, num_layers, so it cannot be told that there are 2 now; take the config out of "
        "a copy of the model"
    )


def test_another_tower_s_count_is_left_alone() -> None:
    with pytest.raises(UsageError, match=r"under none of .*depth"):
        changed({"text_config": {"num_hidden_layers": 4}}, 0, tower=Tower("visual.blocks", 4))


# What configs disagree on.


@pytest.mark.parametrize(("one", "two", "said"), [
    ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, "rms_norm_eps: 1e-05 (a), 1e-06 (b)"),
    ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, 'hidden_act: "silu" (a), "gelu" (b)'),
    ({"rope_theta": 1e4}, {"rope_theta": 5e5}, "rope_theta: 10000.0 (a), 500000.0 (b)"),
    ({"rope_theta": 1e4, "rope_scaling": None},
     {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
     'rope_scaling: null (a), {"factor": 2.0, "rope_type": "linear"} (b)'),
    ({"text_config": {"vocab_size": 8}}, {"text_config": {"vocab_size": 9}},
     "text_config.vocab_size: 8 (a), 9 (b)"),
    ({"num_attention_heads": 4}, {"num_attention_heads": 8}, "num_attention_heads: 4 (a), 8 (b)"),
])  # fmt: skip
def test_what_weights_do_not_show(one: Any, two: Any, said: str) -> None:
    wanted = f"the configs differ in {said}; the output has a's"
    assert differences({"a": one, "b": two, "c": None}, "a") == (wanted,)


@pytest.mark.parametrize(("one", "two"), [
    ({"rope_theta": 1e4}, {}),
    ({"rope_theta": 10000, "rope_scaling": None},
     {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}),
    ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}},
     {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2}}),
    ({"transformers_version": "4"}, {"transformers_version": "5"}),
    ({"num_hidden_layers": 4}, {"num_hidden_layers": 5}),
])  # fmt: skip
def test_what_makes_no_difference(one: Any, two: Any) -> None:
    """A default that is not said, the words of another version of transformers, depth."""
    assert differences({"a": one, "b": two}, "a") == ()


def test_long_values_are_cut() -> None:
    long = {"rope_scaling": {"type": "longrope", "factors": list(range(99))}}
    (said,) = differences({"a": long, "b": {"rope_scaling": None}}, "a")
    assert len(said) < 160
    assert "... (a), null (b)" in said


def test_strange_configs_are_no_matter() -> None:
    assert differences({"a": {"rope_scaling": 3}, "b": {"rope_scaling": 3}}, "a") == ()
    deep: dict[str, Any] = {"vocab_size": 1}
    for _ in range(50):
        deep = {"in": deep}
    assert differences({"a": deep, "b": {}}, "a") == ()
