"""What mergekit 0.1.5 planned and computed, against what we make of the same recipes.

``planned.json`` is what its planner made of recipes on Llama models with 5 layers and with 1:
for every tensor the inputs, the base, and the values of all parameters. The numbers are those of
``tests/reference/mergekit``, recorded from its methods; here they are asked for by recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import yaml
from numpy.typing import NDArray

from taskbasis import Checkpoint, TaskVector, merge
from taskbasis.errors import TaskbasisError
from taskbasis.recipes import Location, ModelRef, Wanted, parse_recipe, plan, translate

PLANNED = json.loads((Path(__file__).parent / "planned.json").read_text())
FOLDER = Path(__file__).parents[2] / "reference" / "mergekit"
NUMBERS = json.loads((FOLDER / "cases.json").read_text())["cases"]

INSIDE = (
    *(f"self_attn.{part}_proj.weight" for part in "kqvo"),
    *(f"mlp.{part}_proj.weight" for part in ("down", "gate", "up")),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
)
OUTSIDE = ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")


def llama(layers: int) -> list[str]:
    return [*OUTSIDE, *(f"model.layers.{i}.{rest}" for i in range(layers) for rest in INSIDE)]


def planned(text: str) -> dict[str, Wanted]:
    document = parse_recipe(text).documents[0]
    layers: Mapping[str, int] = PLANNED["layers"]
    return plan(document, {ref: llama(layers[str(ref)]) for ref in document.references()})


def shown(wanted: Wanted) -> list[Any]:
    """As it is recorded."""
    return [
        [[str(one.model), one.tensor] for one in wanted.inputs],
        None if wanted.base is None else str(wanted.base),
        dict(wanted.shared),
        {str(one.model): dict(one.values) for one in wanted.inputs},
    ]


MISPLANNED = {"unequal_last"}
"""Where mergekit forgets a model: as many go into the final norm as the first slice has."""


@pytest.mark.parametrize("name", [n for n, case in PLANNED["cases"].items() if "tensors" in case])
def test_every_tensor_gets_what_mergekit_gives_it(name: str) -> None:
    case = PLANNED["cases"][name]
    ours = planned(case["recipe"])
    different = [key for key, row in case["tensors"].items() if shown(ours[key]) != row]
    if name in MISPLANNED:
        assert sorted(different) == ["lm_head.weight", "model.norm.weight"]
        assert all(case["tensors"][key][0][1] == ["c", None] for key in different)
        assert [str(one.model) for one in ours["model.norm.weight"].inputs] == ["b", "c"]
    else:
        assert different == []


@pytest.mark.parametrize("name", [n for n, case in PLANNED["cases"].items() if "error" in case])
def test_what_mergekit_refuses_is_refused(name: str) -> None:
    with pytest.raises(TaskbasisError, match="weight"):
        planned(PLANNED["cases"][name]["recipe"])


def test_recordings_hold_something() -> None:
    rows = [row for case in PLANNED["cases"].values() for row in case.get("tensors", {}).values()]
    assert len(rows) > 200
    assert {name for case in PLANNED["cases"].values() for name in case} == {
        *("recipe", "tensors", "error")
    }


# Numbers


@pytest.fixture(scope="module")
def outputs() -> dict[str, dict[str, Any]]:
    return dict(safetensors.deserialize((FOLDER / "outputs.safetensors").read_bytes()))


def recipe_of(case: Mapping[str, Any]) -> str:
    """The recipe that asks for a recorded case."""
    given = dict(case.get("parameters", {}))
    each = {name: given.pop(name) for name in list(given) if isinstance(given[name], list)}
    models = []
    for at, model in enumerate(case["models"]):
        own = {name: values[at] for name, values in each.items()}
        models.append({"model": model, **({"parameters": own} if own else {})})
    base = case["models"][0] if case["method"] == "slerp" else case.get("base", "base")
    alone = case["method"] in ("linear", "passthrough", "karcher")  # a base would be one more
    return yaml.safe_dump(
        {
            "merge_method": case["method"],
            "models": models,
            **({} if base is None or alone else {"base_model": base}),
            **({"parameters": given} if given else {}),
        }
    )


def merged(text: str, folder: Path) -> dict[str, NDArray[Any]]:
    """What we make of a recipe, tensor by tensor."""
    document = parse_recipe(text).documents[0]

    def at(ref: ModelRef) -> Path:
        return folder / f"{ref}.safetensors"

    names = {
        ref: list(dict(safetensors.deserialize(at(ref).read_bytes())))
        for ref in document.references()
    }
    found = {}
    for step, tensors in translate(document, names).grouped().items():
        base = Checkpoint(at(step.base))
        vectors = [TaskVector(base, at(model)) for model in step.models]
        made = merge(base, vectors, step.build(), step.scale, weights=step.weights).tensors()
        found.update({name: made[name] for name in tensors})
    return found


def bits(row: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers in their order, so that neighbours differ by 1."""
    raw = row.view({4: "<u4", 2: "<u2"}[row.dtype.itemsize]).astype(np.int64)
    sign = 1 << (8 * row.dtype.itemsize - 1)
    return np.where(raw >= sign, sign - raw, raw)


COMPARED = [
    name
    for name, case in NUMBERS.items()
    if case.get("library", "mergekit") == "mergekit"
    and not {"wrong", "seed"}.intersection(case)  # seeds are compared with their masks, elsewhere
    and len(set(case["models"])) == len(case["models"])  # no recipe may name a model twice
]


def test_all_methods_are_compared() -> None:
    assert len({NUMBERS[name]["method"] for name in COMPARED}) == 20


@pytest.mark.parametrize("name", COMPARED)
def test_a_recipe_gives_what_mergekit_computed(
    name: str, recorded_worlds: Path, outputs: dict[str, dict[str, Any]]
) -> None:
    case = NUMBERS[name]
    ours = merged(recipe_of(case), recorded_worlds / case["world"])
    names = case.get("tensors", sorted(ours))
    row = np.concatenate([ours[tensor].reshape(-1) for tensor in names])
    theirs = np.frombuffer(outputs[name]["data"], row.view(f"<u{row.dtype.itemsize}").dtype)
    away = np.abs(bits(row) - bits(theirs))
    assert away.max() <= 1, f"{case}: {away.max()} units, {(away > 1).sum()} entries"


def test_references_are_models() -> None:
    assert (
        ModelRef(Location("a"))
        == parse_recipe("merge_method: passthrough\nmodels: [model: a]")
        .documents[0]
        .models[0]
        .model
    )
