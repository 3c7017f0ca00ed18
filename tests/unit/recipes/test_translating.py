"""mergekit's methods in our words (test_recorded.py compares the numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from taskbasis.errors import UsageError
from taskbasis.methods import method
from taskbasis.recipes import Location, ModelRef, Step, Translation, parse_recipe, translate
from taskbasis.recipes.theirs import THEIRS

TENSORS = ["embed.weight", *(f"h.{i}.mlp.up.weight" for i in range(3)), "norm.weight"]


def ref(name: str) -> ModelRef:
    return ModelRef(Location(name))


def translated(text: str, seed: int = 0) -> Translation:
    document = parse_recipe(text).documents[0]
    return translate(document, dict.fromkeys(document.references(), TENSORS), seed)


def recipe(name: str, models: dict[str, str], base: str | None = "base", shared: str = "") -> str:
    listed = [f"- {{model: {model}, parameters: {{{own}}}}}" for model, own in models.items()]
    lines = [f"merge_method: {name}", "models:", *listed, f"parameters: {{{shared}}}"]
    return "\n".join([*lines, *([f"base_model: {base}"] if base else [])]) + "\n"


def only(text: str, seed: int = 0) -> Step:
    """The one step of all tensors."""
    (step,) = translated(text, seed).grouped()
    return step


def step(
    name: str,
    options: dict[str, Any],
    models: str = "ab",
    weights: Sequence[float] = (),
    scale: float = 1.0,
    base: str = "base",
) -> Step:
    """A step, by its models' letters."""
    refs = tuple(map(ref, models))
    return Step(
        name, tuple(options.items()), ref(base), refs, tuple(weights) or (1.0,) * len(refs), scale
    )


def same(found: Step, expected: Step) -> None:
    """Whatever the order of the options."""
    assert dict(found.options) == dict(expected.options)
    kept = ("method", "base", "models", "weights", "scale")
    assert {key: getattr(found, key) for key in kept} == {
        key: getattr(expected, key) for key in kept
    }


TWO = {"a": "weight: 0.5", "b": "weight: 2"}
W = (0.5, 2.0)
KIT = {"variant": "mergekit"}
DELLA = {"a": "weight: 0.5, density: 0.5", "b": "weight: 2, density: 0.5"}

CASES = [
    (recipe("task_arithmetic", TWO), step("task_arithmetic", {"normalize": False}, weights=W)),
    (
        recipe("task_arithmetic", TWO, shared="lambda: 0.3, normalize: true"),
        step("task_arithmetic", {"normalize": True}, weights=W, scale=0.3),
    ),
    (
        recipe("ties", TWO, shared="density: 0.2, int8_mask: true"),
        step("ties", {"density": 0.2, "normalize": True, **KIT}, weights=W),
    ),
    (
        recipe("ties", {"a": "weight: 0.5, density: 0.1", "b": "weight: 2"}, shared="normalize: 0"),
        step("ties", {"density": (0.1, 1.0), "normalize": False, **KIT}, weights=W),
    ),
    (
        recipe("dare_ties", TWO, shared="density: 0.5"),
        step(
            "dare_ties",
            {"density": 0.5, "rescale": True, "seed": 7, "normalize": False, **KIT},
            weights=W,
        ),
    ),
    (
        recipe("dare_linear", TWO, shared="density: 0.5, rescale: false"),
        step(
            "dare_linear",
            {"density": 0.5, "rescale": False, "seed": 7, "normalize": False, **KIT},
            weights=W,
        ),
    ),
    (
        recipe("della", DELLA, shared="epsilon: 0.1"),
        step(
            "della",
            {"density": 0.5, "epsilon": 0.1, "rescale": True, "seed": 7, "normalize": True, **KIT},
            weights=W,
        ),
    ),
    (
        recipe("della_linear", DELLA),
        step(
            "della_linear",
            {
                "density": 0.5,
                "epsilon": 0.15,
                "rescale": True,
                "seed": 7,
                "normalize": False,
                **KIT,
            },
            weights=W,
        ),
    ),
    (
        recipe("breadcrumbs", TWO, shared="density: 0.9, gamma: 0.05"),
        step("breadcrumbs", {"density": 0.9, "gamma": 0.05, "normalize": False}, weights=W),
    ),
    (
        recipe("breadcrumbs_ties", {"a": "weight: 0.5, gamma: 0", "b": "weight: 2"}),
        step(
            "breadcrumbs_ties",
            {"density": 1.0, "gamma": (0.0, 0.01), "normalize": False, **KIT},
            weights=W,
        ),
    ),
    (recipe("linear", TWO, None), step("linear", {}, weights=W, base="a")),
    (
        recipe("linear", {**TWO, "base": "weight: 1"}),
        Step("linear", (), ref("base"), (ref("a"), ref("b"), ref("base")), (0.5, 2.0, 1.0)),
    ),
    (
        recipe("linear", TWO, None, "normalize: false"),
        step("linear", {"normalize": False}, weights=W, base="a"),
    ),
    (
        recipe("linear", {"a": "weight: 3", "b": "weight: -1"}, None),
        step("linear", {"normalize": False}, weights=(1.5, -0.5), base="a"),
    ),
    (
        recipe("slerp", {"a": ""}, shared="t: 0.3"),
        step("slerp", {"t": 0.3, "threshold": 0.9995}, "a"),
    ),
    (
        recipe("nuslerp", TWO),
        step("nuslerp", {"space": "deltas", "per": "tensor"}, weights=W),
    ),
    (
        recipe("nuslerp", TWO, None, "nuslerp_flatten: false"),
        step("nuslerp", {"space": "weights", "per": "row"}, weights=W, base="a"),
    ),
    (
        recipe("nuslerp", TWO, shared="nuslerp_flatten: false, nuslerp_row_wise: true"),
        step("nuslerp", {"space": "deltas", "per": "column"}, weights=W),
    ),
    (recipe("multislerp", TWO), step("multislerp", {"space": "deltas"}, weights=W)),
    (
        recipe("multislerp", TWO, shared="normalize_weights: false"),
        step("multislerp", {"space": "deltas"}, weights=W, scale=2.5),
    ),
    (
        recipe("multislerp", TWO, None),
        step("multislerp", {"space": "weights"}, weights=W, base="a"),
    ),
    (
        recipe("karcher", {"a": "", "b": ""}, None, "max_iter: 3"),
        step("karcher", {"max_iter": 3, "tol": 1e-5}, base="a"),
    ),
    (
        recipe("karcher", {"a": "", "b": ""}),
        Step(
            "karcher",
            (("max_iter", 10), ("tol", 1e-5)),
            ref("base"),
            (ref("a"), ref("b"), ref("base")),
            (1.0, 1.0, 1.0),
        ),
    ),
    (
        recipe("model_stock", {"a": "", "b": ""}, shared="filter_wise: true"),
        step("model_stock", {"filter_wise": True}),
    ),
    (recipe("nearswap", {"a": ""}, shared="t: 1e-3"), step("nearswap", {"t": 0.001}, "a")),
    (recipe("arcee_fusion", {"a": ""}), step("arcee_fusion", {}, "a")),
    (
        recipe("sce", {"a": "", "b": ""}, shared="select_topk: 0.1, int8_mask: true"),
        step("sce", {"select_topk": 0.1}),
    ),
    (recipe("ram", {"a": "", "b": ""}), step("ram", {"epsilon": 1e-5})),
    (
        recipe("ramplus_tl", {"a": "", "b": ""}, shared="r: 0.2"),
        step("ramplus_tl", {"r": 0.2, "alpha": 0.2, "epsilon": 1e-5}),
    ),
    (recipe("passthrough", {"a": ""}, None), step("passthrough", {}, "a", base="a")),
    (
        recipe("passthrough", {"a": "scale: 0"}, None),
        step("passthrough", {"scale": 0.0}, "a", base="a"),
    ),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=range(len(CASES)))
def test_translations(text: str, expected: Step) -> None:
    found = only(text, seed=7)
    same(found, expected)
    assert found.build() == method(expected.method, **dict(expected.options))


def test_every_method_of_theirs_is_translated() -> None:
    names = {text.split("\n")[0].removeprefix("merge_method: ") for text, _ in CASES}
    assert names == set(THEIRS)


# Weights of 0, and of a vector nothing: never passed on


@pytest.mark.parametrize("name", ["ties", "dare_ties", "task_arithmetic", "dare_linear", "linear"])
def test_a_weight_of_0_leaves_a_model_out(name: str) -> None:
    base = None if name == "linear" else "base"
    found = only(recipe(name, {"a": "weight: 0", "b": "weight: 2", "c": "weight: 1"}, base))
    assert (found.models, found.weights) == ((ref("b"), ref("c")), (2.0, 1.0))


def test_a_density_of_0_leaves_a_model_out() -> None:
    models = {"a": "weight: 1, density: 0", "b": "weight: 2, density: 0.5"}
    found = only(recipe("ties", models))
    assert (found.models, dict(found.options)["density"]) == ((ref("b"),), 0.5)
    with pytest.raises(UsageError, match="a density of 0 keeps nothing of a vector whose weight"):
        only(recipe("dare_linear", models, shared="normalize: true"))


@pytest.mark.parametrize(
    "text",
    [
        recipe("ties", {"a": "weight: 0"}),
        recipe("ties", {"a": "weight: 1"}, shared="lambda: 0"),
        recipe("dare_ties", {"a": "weight: 1, density: 0"}),
        recipe("ties", {"base": ""}),
        recipe("ram", {"base": ""}),
    ],
)
def test_where_nothing_is_left_the_base_stays(text: str) -> None:
    same(only(text), Step("passthrough", (), ref("base"), (ref("base"),), (1.0,)))


def test_gradients_make_a_step_for_each_layer() -> None:
    found = translated(recipe("ties", {"a": "weight: [0, 1]", "b": "weight: 1"}))
    weights = {name: one.weights for name, one in found.steps.items()}
    assert weights == {
        "embed.weight": (1.0,),
        "h.0.mlp.up.weight": (1.0,),
        "h.1.mlp.up.weight": (0.5, 1.0),
        "h.2.mlp.up.weight": (1.0, 1.0),
        "norm.weight": (1.0,),
    }
    groups = found.grouped()
    assert sorted(map(len, groups.values())) == [1, 1, 3]
    assert sorted(name for names in groups.values() for name in names) == sorted(TENSORS)


# Signs


NORMALISED = ["ties", "della", "dare_ties", "breadcrumbs_ties", "task_arithmetic", "dare_linear"]


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize(
    ("weights", "words"), [((-1, -1), "a negative weight"), ((1, -0.9), "weights of both signs")]
)
def test_where_mergekit_loses_signs_a_note_says_so(
    name: str, weights: tuple[float, float], words: str
) -> None:
    models = {"a": f"weight: {weights[0]}", "b": f"weight: {weights[1]}"}
    found = translated(recipe(name, models, shared="normalize: true"))
    assert len(found.notes) == 1
    assert found.notes[0].startswith(words)
    assert all(one.weights == weights for one in found.steps.values())
    assert translated(recipe(name, models, shared="normalize: false")).notes == ()


def test_notes_of_other_methods() -> None:
    signed = {"a": "weight: 1", "b": "weight: -0.9"}
    for name in ("nuslerp", "multislerp"):
        assert translated(recipe(name, signed)).notes[0].startswith("weights of both signs")
    mean = translated(recipe("linear", {**signed, "base": "weight: 1"}))
    assert mean.notes[0].startswith("weights of both signs")
    rows = translated(recipe("nuslerp", TWO, shared="nuslerp_row_wise: true"))
    assert rows.notes[0] == "nuslerp_row_wise has no effect unless nuslerp_flatten is false"
    assert "where one model equals the base mergekit adds" in rows.notes[1]
    tiny = translated(recipe("multislerp", TWO, shared="eps: 1e-4"))
    assert tiny.notes[0].startswith("eps has no effect here")
    stock = translated(recipe("model_stock", {"a": "", "b": ""}, shared="filter_wise: true"))
    assert stock.notes[0].startswith("model_stock: where updates point apart")
    assert stock.notes[1].startswith("filter_wise: mergekit takes the last axis alone")
    sums = translated(recipe("sce", {"a": "", "b": ""}))
    assert sums.notes[0].startswith("sce: mergekit weighs all models alike")
    for name in ("ties", "dare_linear", "task_arithmetic", "linear", "multislerp"):
        assert translated(recipe(name, {**TWO}, None if name == "linear" else "base")).notes == ()


def test_the_end_of_an_arc_is_a_model() -> None:
    found = only(recipe("nuslerp", {"a": "weight: 0", "b": "weight: 3"}))
    same(found, step("passthrough", {}, "b"))
    turned = only(recipe("nuslerp", {"a": "weight: 0", "b": "weight: -3"}))
    same(turned, step("task_arithmetic", {}, "b", (-1.0,)))
    alone = only(recipe("nuslerp", {"a": "weight: 0", "b": "weight: 3"}, None))
    same(alone, step("passthrough", {}, "b", base="b"))


def test_vectors_on_a_sphere_are_stretched_by_the_sizes_of_their_weights() -> None:
    models = {"a": "weight: 3", "b": "weight: -1"}
    found = only(recipe("multislerp", models, shared="normalize_weights: false"))
    assert (found.scale, found.weights) == (4.0, (3.0, -1.0))


def test_one_vector_on_a_sphere_is_not_stretched() -> None:
    found = only(recipe("multislerp", {"a": "weight: 3"}, shared="normalize_weights: false"))
    assert found.scale == 1.0


# What cannot be had


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            recipe("ties", TWO, shared="density: 0.5, rescale: true"),
            "rescale: true is not available",
        ),
        (
            recipe(
                "della", {"a": "weight: 1, epsilon: 0.1", "b": "weight: 1"}, shared="density: 0.5"
            ),
            "epsilon differs between the models",
        ),
        (recipe("della", TWO, shared="density: 0.1"), "an epsilon of 0.15 around the density 0.1"),
        (recipe("linear", {"a": "weight: 0"}, None), "all weights are 0, which leaves nothing"),
        (
            recipe("linear", {"a": "weight: 1", "b": "weight: -1"}, None),
            r"weights \[1.0, -1.0\] cancel, and their mean has no meaning",
        ),
        (
            recipe("nuslerp", {"a": "weight: 0", "b": "weight: 0"}),
            "all weights are 0, which prefers",
        ),
        (
            recipe("nuslerp", {"a": "weight: 1", "b": "weight: -1"}, None),
            "a negative weight subtracts from a base; give base_model, too",
        ),
        (
            recipe("multislerp", TWO, None, "normalize_weights: false"),
            "weights that sum to 2.5 and are not normalised multiply whole models",
        ),
    ],
)
def test_what_cannot_be_had_is_said_with_its_tensor(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        translated(text)
    assert "tensor 'embed.weight': " in str(caught.value)


def test_rescaling_what_is_whole_changes_nothing() -> None:
    assert only(recipe("ties", TWO, shared="rescale: true")).method == "ties"
    found = only(recipe("task_arithmetic", TWO, shared="rescale: true, density: 0.5"))
    assert dict(found.options) == {"normalize": False}


def test_epsilons_of_whole_vectors_do_not_count() -> None:
    models = {"a": "weight: 1, epsilon: 0.1, density: 0.5", "b": "weight: 1, epsilon: 0.3"}
    assert dict(only(recipe("della", models)).options)["epsilon"] == 0.1
    assert dict(only(recipe("della", TWO)).options)["epsilon"] == 0.0
