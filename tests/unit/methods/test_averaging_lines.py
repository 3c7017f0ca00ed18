"""LiNeS: another method's delta, scaled by depth."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import group_name
from taskbasis.methods import Chunk, Method, method, parse_method
from taskbasis.methods.averaging.lines import Lines, layer_number

Array = NDArray[Any]

NAMES = ["emb.weight", "layers.0.w", "layers.0.b", "layers.1.w", "layers.2.w", "head.weight"]


def model_merged(of: Method, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The merged deltas of a model [T, n] by tensor, stage by stage."""
    found: list[dict[str, Any]] = []

    def chunk(name: str) -> Chunk:
        vectors = tensors[name]
        return Chunk(vectors.copy(), tensor=name, shape=vectors.shape[1:])

    def state(name: str) -> list[Any]:
        scopes = of.stages()
        return [known[group_name(name, scopes[at])] for at, known in enumerate(found)]

    for stage, scope in enumerate(of.stages()):
        totals: dict[str, Any] = {}
        for name in tensors:
            group, seen = group_name(name, scope), of.observe(stage, chunk(name), state(name))
            totals[group] = totals.get(group, 0) + seen
        alike = [s == scope for s in of.stages()[:stage]]
        found.append(
            {
                group: of.finish(
                    stage,
                    total,
                    [k[group] if same else None for k, same in zip(found, alike, strict=True)],
                )
                for group, total in totals.items()
            }
        )
    return {name: of.apply(chunk(name), state(name)) for name in tensors}


def random_model(count: int = 3, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((count, 7)) for name in NAMES}


def flat(tensors: Mapping[str, Array]) -> Array:
    return np.concatenate([tensors[name] for name in NAMES], axis=-1)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.11.mlp.up.weight", 11),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", 0),
        ("model.layers.3.mlp.experts.1.weight", 3),
        ("layers.0007.weight", 7),
        ("layer4.conv1.weight", None),
        ("embed.weight", None),
        ("table.50000.weight", None),
        ("", None),
    ],
)
def test_the_layer_is_the_first_number_in_the_name(tensor: str, layer: int | None) -> None:
    assert layer_number(tensor) == layer


def test_layers_are_scaled_from_alpha_to_alpha_plus_beta() -> None:
    tensors = random_model()
    of = Lines(alpha=0.2, beta=0.6, by_norm=False)
    found, plain = model_merged(of, tensors), model_merged(method("task_arithmetic"), tensors)
    factors = [0.2, 0.2, 0.2, 0.5, 0.8, 0.2]
    for name, factor in zip(NAMES, factors, strict=True):
        np.testing.assert_allclose(found[name], factor * plain[name])


def test_by_norm_task_arithmetic_begins_at_the_mean() -> None:
    """The sum's own norm is what it is compared with, so r = 1/T."""
    tensors = random_model(4)
    found = model_merged(Lines(beta=0.5), tensors)
    for name, late in (("emb.weight", 0.0), ("layers.0.w", 0.0), ("layers.2.w", 0.5)):
        np.testing.assert_allclose(found[name], (0.25 + late) * tensors[name].sum(axis=0))


def test_by_norm_is_the_ratio_of_l1_norms_over_the_whole_model() -> None:
    tensors = random_model()
    inner = model_merged(parse_method("ties:density=0.3"), tensors)
    of = Lines(inner="ties:density=0.3", alpha=0.7, beta=0.4)
    found = model_merged(of, tensors)
    ratio = np.abs(flat(tensors).sum(axis=0)).sum() / np.abs(flat(inner)).sum() / 3
    np.testing.assert_allclose(found["emb.weight"], 0.7 * ratio * inner["emb.weight"])
    np.testing.assert_allclose(found["layers.1.w"], (0.7 * ratio + 0.2) * inner["layers.1.w"])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["task_arithmetic", "ties", "magmax", "average"]))
@settings(max_examples=15, deadline=None)
def test_by_norm_with_beta_0_has_the_size_of_the_mean_vector(seed: int, inner: str) -> None:
    tensors = random_model(seed=seed)
    found = flat(model_merged(Lines(inner=inner, beta=0.0), tensors))
    assert np.abs(found).sum() == pytest.approx(np.abs(flat(tensors).mean(axis=0)).sum())


@pytest.mark.parametrize(
    "inner", ["task_arithmetic", "ties:density=0.5", "magmax", "sta:density=0.5,scope=layer"]
)
def test_alpha_1_and_beta_0_is_the_inner_method(inner: str) -> None:
    tensors = random_model()
    found = model_merged(Lines(inner=inner, alpha=1.0, beta=0.0, by_norm=False), tensors)
    wanted = model_merged(parse_method(inner), tensors)
    assert flat(found).tolist() == flat(wanted).tolist()


def test_one_task_as_the_released_code_does() -> None:
    """From alpha in the first layer to the whole vector in the last."""
    tensors = random_model(1)
    found = model_merged(Lines(alpha=0.3, beta=0.7, by_norm=False), tensors)
    np.testing.assert_allclose(found["layers.0.w"], 0.3 * tensors["layers.0.w"][0])
    np.testing.assert_allclose(found["layers.2.w"], tensors["layers.2.w"][0])


def test_a_model_of_one_layer_is_scaled_by_alpha() -> None:
    tensors = {"layers.0.w": np.ones((2, 3)), "head.w": np.ones((2, 3))}
    found = model_merged(Lines(alpha=0.5, beta=9.0, by_norm=False), tensors)
    assert found["layers.0.w"].tolist() == found["head.w"].tolist() == [1.0] * 3


def test_layers_that_no_name_has_count_all_the_same() -> None:
    """L is the largest number plus 1: layer 2 of 0..4 is halfway."""
    tensors = {f"layers.{at}.w": np.ones((1, 2)) for at in (0, 2, 4)}
    found = model_merged(Lines(alpha=0.0, beta=1.0, by_norm=False), tensors)
    assert [found[name][0] for name in tensors] == [0.0, 0.5, 1.0]


def test_vectors_that_are_zero_give_zero() -> None:
    tensors = {name: np.zeros((2, 3)) for name in NAMES}
    for inner in ("task_arithmetic", "ties"):
        assert not np.any(flat(model_merged(Lines(inner=inner), tensors)))


def test_a_subtracted_vector_is_scaled_alike() -> None:
    tensors = random_model(1)
    for of in (Lines(), Lines(inner="ties", by_norm=False)):
        added = model_merged(of, tensors)
        subtracted = model_merged(of, {name: -rows for name, rows in tensors.items()})
        assert flat(subtracted).tolist() == (-flat(added)).tolist()


def test_vectors_that_cancel_have_no_size_to_keep() -> None:
    tau = random_model(1)
    pair = {name: np.concatenate([rows, -rows]) for name, rows in tau.items()}
    assert not np.any(flat(model_merged(Lines(), pair)))
    assert not np.any(flat(model_merged(Lines(inner="magmax", beta=0.0), pair)))


def test_float32_stays_float32() -> None:
    tensors = {name: rows.astype(np.float32) for name, rows in random_model().items()}
    found = model_merged(Lines(), tensors)
    assert {rows.dtype for rows in found.values()} == {np.dtype(np.float32)}


def test_it_needs_what_its_inner_method_needs() -> None:
    plain = Lines(by_norm=False)
    assert (plain.unit, plain.base, plain.float_sums, plain.double) == (
        "element",
        "ignored",
        False,
        False,
    )
    assert Lines().float_sums
    assert not Lines.float_sums
    rows = Lines(inner="nuslerp:per=row,space=weights")
    assert (rows.unit, rows.base, rows.takes, rows.double) == ("matrix", "required", (2, 2), True)
    assert (rows.signed, Lines(inner="magmax").ordered) == (False, True)
    assert Lines(inner="sta").scores == "optional"
    assert Lines(inner="regmean").moments == "required"
    assert Lines.unit == "element"


def test_stages_of_the_inner_method_come_first() -> None:
    assert Lines(inner="ties").stages() == ("model", "model", "model")
    assert Lines(inner="nan:scope=layer").stages() == ("layer", "model")
    assert Lines().stages() == ("model",)


def test_stages_are_blind_only_where_none_looks_at_deltas() -> None:
    assert not Lines(inner="sta", by_norm=False).stages_see_deltas()
    assert Lines(inner="sta").stages_see_deltas()
    assert Lines(inner="sta:effect=true", by_norm=False).stages_see_deltas()


def test_it_is_a_record_like_any_other() -> None:
    of = Lines(inner="ties:density=0.5", beta=0.25)
    assert of == parse_method("lines:inner=ties:density=0.5,beta=0.25")
    assert of != replace(of, inner="ties")
    assert replace(of, inner="magmax").ordered
    assert pickle.loads(pickle.dumps(of)) == of
    assert pickle.loads(pickle.dumps(of)).method == parse_method("ties:density=0.5")
    assert repr(of) == "Lines(inner='ties:density=0.5', alpha=1.0, beta=0.25, by_norm=True)"


def test_semicolons_part_the_options_of_the_inner_method() -> None:
    of = parse_method("lines:inner=sta:density=0.5;scope=layer,beta=1")
    assert isinstance(of, Lines)
    assert of.beta == 1
    assert of.method == method("sta", density=0.5, scope="layer")


def test_gain_is_that_of_the_inner_method_at_the_last_layer() -> None:
    assert Lines(alpha=0.5, beta=-2.0, by_norm=False).gain() == 2.5
    assert Lines(inner="slerp", alpha=1.0, beta=1.0, by_norm=False).gain() == (
        2 * method("slerp").gain()
    )
    assert Lines(beta=0.5).gain() == 1.5


def test_it_refuses() -> None:
    with pytest.raises(UsageError, match="there is no method 'tie'; did you mean 'ties'"):
        Lines(inner="tie")
    with pytest.raises(UsageError, match="'ties' has no option 'densty'"):
        Lines(inner="ties:densty=0.5")
    with pytest.raises(UsageError, match="beta nan has no meaning"):
        Lines(beta=float("nan"))
    with pytest.raises(UsageError, match="alpha inf has no meaning"):
        Lines(alpha=float("inf"))
