"""Layers told from names: real names of many architectures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError
from taskbasis.recipes import Tower, find_place, find_towers
from taskbasis.recipes.layers import assign_modules, comes_first, only_tower


def repeated(prefix: str, layers: int, *rests: str) -> list[str]:
    return [f"{prefix}.{i}.{rest}" for i in range(layers) for rest in rests]


MODELS = {
    "llama": (
        [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
            *repeated("model.layers", 12, "mlp.up_proj.weight", "input_layernorm.weight"),
        ],
        [Tower("model.layers", 12)],
    ),
    "gpt2": (
        ["wte.weight", "wpe.weight", "ln_f.bias", *repeated("h", 3, "attn.c_attn.weight")],
        [Tower("h", 3)],
    ),
    "bert": (
        [
            "embeddings.LayerNorm.weight",
            "pooler.dense.weight",
            *repeated("encoder.layer", 4, "attention.self.query.weight", "output.dense.bias"),
        ],
        [Tower("encoder.layer", 4)],
    ),
    "t5": (
        [
            "shared.weight",
            *repeated(
                "decoder.block", 3, "layer.0.layer_norm.weight", "layer.2.DenseReluDense.wi.weight"
            ),
            *repeated("encoder.block", 2, "layer.0.layer_norm.weight", "layer.1.layer_norm.weight"),
        ],
        [Tower("decoder.block", 3), Tower("encoder.block", 2)],
    ),
    "mixtral": (
        repeated(
            "model.layers",
            2,
            "block_sparse_moe.gate.weight",
            *(f"block_sparse_moe.experts.{e}.w1.weight" for e in range(8)),
        ),
        [Tower("model.layers", 2)],
    ),
    "dense first": (
        repeated("model.layers", 1, "mlp.up_proj.weight", "norm.weight")
        + [
            f"model.layers.{i}.{rest}"
            for i in (1, 2)
            for rest in ("mlp.gate.weight", "norm.weight")
        ],
        [Tower("model.layers", 3)],
    ),
    "vlm": (
        [
            "multi_modal_projector.linear_1.weight",
            "language_model.lm_head.weight",
            *repeated("vision_tower.vision_model.encoder.layers", 2, "layer_norm1.bias"),
            *repeated("language_model.model.layers", 4, "mlp.up_proj.weight"),
        ],
        [
            Tower("language_model.model.layers", 4),
            Tower("vision_tower.vision_model.encoder.layers", 2),
        ],
    ),
    "sequential": (["net.0.weight", "net.1.weight", "net.2.weight"], []),
    "with a gap": (["net.0.conv.weight", "net.2.conv.weight"], []),
    "projector": (["mm.0.weight", "mm.2.weight", *repeated("h", 2, "ln.weight")], [Tower("h", 2)]),
    "nothing in common": (["b.0.x.weight", "b.1.y.weight"], []),
    "no layers": (["a.weight", "b"], []),
    "numbers that are none": (["v.01.a.b", "3.a.b", "x.1", "v.٣.a.b", "w.99999999999.a.b"], []),
}


@pytest.mark.parametrize("name", MODELS)
def test_towers(name: str) -> None:
    names, expected = MODELS[name]
    assert list(find_towers(names)) == expected
    assert find_towers(reversed(names)) == find_towers(names)


def test_places() -> None:
    names, _ = MODELS["t5"]
    towers = find_towers(names)
    place = find_place("decoder.block.2.layer.0.layer_norm.weight", towers)
    assert place is not None
    assert (place.tower.prefix, place.layer, place.rest) == (
        "decoder.block",
        2,
        "layer.0.layer_norm.weight",
    )
    assert place.tower.name(1, place.rest) == "decoder.block.1.layer.0.layer_norm.weight"
    assert find_place("decoder.block.3.layer.0.layer_norm.weight", towers) is None
    assert find_place("shared.weight", towers) is None
    assert find_place("model.experts.0.w", towers) is None


@given(st.integers(1, 30), st.permutations(["a.w", "b.c.w", "d.0.e.w"]))
def test_every_tensor_of_a_block_has_its_place(layers: int, rests: list[str]) -> None:
    names = repeated("m.blocks", layers, *rests)
    towers = find_towers(names)
    assert towers == (Tower("m.blocks", layers),)
    for name in names:
        place = find_place(name, towers)
        assert place is not None
        assert place.tower.name(place.layer, place.rest) == name


BEFORE = """
model.embed_tokens.weight bert.embeddings.word_embeddings.weight
bert.embeddings.LayerNorm.bias embeddings.position_ids transformer.embedding.word_embeddings.weight
transformer.rotary_pos_emb.inv_freq transformer.wte.weight transformer.wpe.weight
transformer.word_embeddings.weight embeddings.patch_embedding.bias gpt_neox.embed_in.weight
model.tok_embeddings.weight transformer.relative_pe.slopes class_embedding layernorm_pre.bias
positional_embedding_vlm backbone.embeddings.weight patch_conv.weight ln_pre.weight
transformer.embd.wte.weight visual.patch_embed.proj.weight model.visual.pos_embed.weight
shared.weight embed_positions.weight conv1.bias model.embedding_norm.weight
"""
AFTER = """
model.norm.weight lm_head.weight bert.pooler.dense.weight cls.predictions.bias
cls.predictions.decoder.weight classifier.bias transformer.encoder.final_layernorm.weight
transformer.output_layer.weight vocab_transform.weight vocab_layer_norm.bias vocab_projector.weight
pre_classifier.bias transformer.ln_f.weight post_layernorm.bias gpt_neox.final_layer_norm.bias
embed_out.weight score.weight output.weight layernorm_post.weight backbone.norm_f.weight
lm_head.linear.bias model.final_layernorm.bias lm_head.decoder.weight classifier.out_proj.weight
decoder.final_layer_norm.weight layer_norm.bias vision_adapter.mlp.fc1.weight
"""


@pytest.mark.parametrize("name", BEFORE.split())
def test_what_comes_before_the_layers(name: str) -> None:
    """All names that mergekit's lists of architectures put there, but for projectors."""
    assert comes_first(name)


@pytest.mark.parametrize("name", AFTER.split())
def test_what_comes_after_the_layers(name: str) -> None:
    assert not comes_first(name)


def test_slices_need_one_tower() -> None:
    assert only_tower(MODELS["gpt2"][0], "m") == Tower("h", 3)
    with pytest.raises(UsageError, match=r"m has no repeated layers .* cannot be merged by slices"):
        only_tower(MODELS["sequential"][0], "m")
    with pytest.raises(UsageError, match=r"m has several towers, decoder\.block \(3 layers\), enc"):
        only_tower(MODELS["t5"][0], "m")


def test_modules_of_a_model_that_sees() -> None:
    names = [
        "model.visual.blocks.0.norm1.weight",
        "model.visual.merger.norm.weight",
        "model.visual.deepstack_merger_list.0.norm.weight",
        "model.language_model.layers.0.norm.weight",
        "lm_head.weight",
    ]
    modules = ["text_decoder", "multi_modal_projector", "vision_tower"]
    found = assign_modules(names, modules)
    assert list(found.values()) == [
        "vision_tower",
        "multi_modal_projector",
        "multi_modal_projector",
        "text_decoder",
        "text_decoder",
    ]


def test_modules_may_be_named_by_their_prefix() -> None:
    names = ["encoder.block.0.w", "decoder.block.0.encoder_attn.w", "shared.weight"]
    found = assign_modules(names, ["decoder.block", "encoder", "default"])
    assert list(found.values()) == ["encoder", "decoder.block", "default"]


def test_modules_hold_everything_and_something() -> None:
    names = ["encoder.block.0.w", "decoder.block.0.w"]
    with pytest.raises(UsageError, match=r"module 'encodr' holds no tensor .* mean 'encoder'\?"):
        assign_modules(names, ["encodr", "decoder", "default"])
    with pytest.raises(UsageError) as caught:
        assign_modules(names, ["encoder"])
    assert str(caught.value) == (
        "1 tensors belong to no module of the recipe, such as 'decoder.block.0.w'; "
        "add a module 'default' for them"
    )
