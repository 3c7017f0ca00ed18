"""What a recipe wants of every tensor (test_recorded.py compares it with mergekit's plans)."""

from __future__ import annotations

import pytest

from taskbasis.errors import MismatchError, UsageError
from taskbasis.recipes import Location, ModelRef, Wanted, parse_recipe, plan

REST = ("attn.q.weight", "mlp.up.weight")


def decoder(layers: int, *more: str, prefix: str = "h") -> list[str]:
    inner = [f"{prefix}.{i}.{rest}" for i in range(layers) for rest in REST]
    return ["wte.weight", *inner, "ln_f.weight", *more]


def ref(name: str) -> ModelRef:
    return ModelRef(Location(name))


def planned(text: str, **models: list[str]) -> dict[str, Wanted]:
    document = parse_recipe(text).documents[0]
    return plan(document, {ref(name): names for name, names in models.items()})


def inputs(wanted: Wanted) -> list[str]:
    return [f"{one.model}:{one.tensor}" for one in wanted.inputs]


FRANKEN = """\
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 3], parameters: {scale: [{filter: h.2, value: 5}]}}]
"""


def test_layers_are_numbered_again() -> None:
    found = planned(FRANKEN, a=decoder(2), b=decoder(3))
    assert [inputs(found[f"h.{i}.mlp.up.weight"])[0] for i in range(4)] == [
        "a:h.0.mlp.up.weight",
        "a:h.1.mlp.up.weight",
        "b:h.1.mlp.up.weight",
        "b:h.2.mlp.up.weight",
    ]
    assert len(found) == 2 + 4 * len(REST)


def test_embeddings_come_from_the_first_slice_and_the_rest_from_the_last() -> None:
    found = planned(FRANKEN, a=decoder(2, "lm_head.weight"), b=decoder(3))
    assert inputs(found["wte.weight"]) == ["a:wte.weight"]
    assert inputs(found["ln_f.weight"]) == ["b:ln_f.weight"]
    assert "lm_head.weight" not in found  # b, which the end comes from, has none


def test_filters_see_the_name_in_the_model() -> None:
    found = planned(FRANKEN, a=decoder(2), b=decoder(3))
    scales = [found[f"h.{i}.mlp.up.weight"].inputs[0].values["scale"] for i in range(4)]
    assert scales == [None, None, None, 5]


def test_sources_may_have_other_prefixes() -> None:
    text = """\
merge_method: slerp
base_model: a
slices:
- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
parameters: {t: [0, 1]}
"""
    found = planned(text, a=decoder(2), b=decoder(3, prefix="model.h"))
    assert inputs(found["h.1.mlp.up.weight"]) == [
        "a:h.1.mlp.up.weight",
        "b:model.h.2.mlp.up.weight",
    ]
    assert [found[f"h.{i}.mlp.up.weight"].shared["t"] for i in range(2)] == [0.0, 1.0]
    assert found["ln_f.weight"].shared["t"] == 0.0
    assert found["ln_f.weight"].base == ref("a")


def test_layers_that_a_model_has_not() -> None:
    with pytest.raises(UsageError) as caught:
        planned(FRANKEN, a=decoder(2), b=decoder(2))
    assert str(caught.value) == (
        "line 4: b has 2 layers, numbered from 0; layer_range [1, 3] goes beyond"
    )


def test_tensors_that_a_model_has_not() -> None:
    text = """\
merge_method: linear
parameters: {weight: 1}
slices:
- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
"""
    short = [name for name in decoder(2) if name != "h.1.mlp.up.weight"]
    with pytest.raises(MismatchError) as caught:
        planned(text, a=decoder(2), b=short)
    assert str(caught.value) == (
        "b has no tensor 'h.1.mlp.up.weight', which tensor 'h.1.mlp.up.weight' of the output is "
        "merged from; a has 'h.1.mlp.up.weight'"
    )
    with pytest.raises(MismatchError, match=r"b has no tensor 'ln_f\.weight'"):
        planned(text, a=decoder(2), b=[name for name in decoder(2) if name != "ln_f.weight"])


def test_gradients_run_over_each_tower() -> None:
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}}]\n"
    names = decoder(3) + [f"vision.blocks.{i}.norm.weight" for i in range(2)]
    found = planned(text, a=names)
    weights = {name: one.inputs[0].values["weight"] for name, one in found.items()}
    assert [weights[f"h.{i}.mlp.up.weight"] for i in range(3)] == [0, 0.5, 1]
    assert [weights[f"vision.blocks.{i}.norm.weight"] for i in range(2)] == [0, 1]
    assert weights["ln_f.weight"] == 0
    assert list(found) == names


def test_a_gradient_needs_layers() -> None:
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, 2]}}]\n"
    with pytest.raises(UsageError, match=r"a has no repeated layers .* nothing for a gr"):
        planned(text, a=["x.weight"])
    assert planned(text.replace("[1, 2]", "2"), a=["x.weight"])["x.weight"].shared == {
        "normalize": True
    }


def test_the_output_has_the_tensors_of_the_base() -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    found = planned(text, a=decoder(1, "extra"), b=decoder(1))
    assert list(found) == decoder(1)
    one = found["ln_f.weight"]
    assert inputs(one) == ["a:ln_f.weight", "b:ln_f.weight"]
    assert dict(one.inputs[0].values) == {"weight": 1.0, "density": 1.0}
    assert dict(one.inputs[1].values) == {}
    assert one.shared == {"int8_mask": False, "normalize": True, "rescale": False, "lambda": 1.0}


def test_several_towers_need_modules() -> None:
    names = decoder(2) + [f"vision_tower.blocks.{i}.norm.weight" for i in range(2)]
    with pytest.raises(UsageError, match=r"a has several towers, h \(2 layers\), vision_tower"):
        planned(FRANKEN, a=names, b=names)
    text = """\
merge_method: linear
modules:
  vision_tower:
    slices:
    - sources: [{model: a, layer_range: [1, 2]}]
    - sources: [{model: a, layer_range: [0, 1]}]
  text_decoder:
    models: [{model: a}]
    parameters: {weight: [1, 2]}
parameters: {weight: 9}
"""
    found = planned(text, a=names)
    assert sorted(found) == sorted(names)
    assert inputs(found["vision_tower.blocks.0.norm.weight"]) == [
        "a:vision_tower.blocks.1.norm.weight"
    ]
    weights = [found[f"h.{i}.mlp.up.weight"].inputs[0].values["weight"] for i in range(2)]
    assert weights == [1, 2]
    assert found["vision_tower.blocks.1.norm.weight"].inputs[0].values["weight"] == 9


def test_the_names_of_all_models_are_needed() -> None:
    with pytest.raises(UsageError, match="the tensors of b are not known"):
        planned(FRANKEN, a=decoder(3))
