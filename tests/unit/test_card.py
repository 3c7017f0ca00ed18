"""The card of an output: what the hub reads of it, what people read, and whether it is true."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from taskbasis import card as card_module
from taskbasis.card import agreed, command, hub_id, licence, model_card, portable
from taskbasis.cli import run
from taskbasis.io.ids import HubId
from taskbasis.methods import Method, method, registered
from taskbasis.sidefiles import RECIPE_FILE

SHA = "c" * 40
NAMES = ("base", "math", "code")


def term(vector: str, coefficient: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [{"vector": vector, "coefficient": coefficient, **more}]


def recipe_of(of: Method, **more: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {
        "base": "base",
        "method": of.name,
        "options": {f.name: getattr(of, f.name) for f in fields(of)},
        "scale": 1.0,
        "vectors": [term("math"), term("code")],
        **more,
    }


def front(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    content = yaml.safe_load(found[1])
    assert isinstance(content, dict)
    return content


def section(card: str, title: str) -> str:
    found = re.search(
        rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE
    )
    assert found is not None, title
    return found[1].strip()


def fenced(text: str) -> str:
    found = re.search(r"^(`{3,})\w*\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and two fine-tunes in the current folder, as the hub's cache and as plain folders."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    base = {f"layers.{n}.w": random.standard_normal((8, 6)).astype("f4") for n in range(2)}
    for number, name in enumerate(NAMES):
        folder = tmp_path / name
        folder.mkdir()
        moved = {k: v + np.float32(number) * v[::-1] for k, v in base.items()}
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)


# What the hub reads


def test_the_front_matter() -> None:
    parents = ["owner/base", "hf://owner/math@v1", "owner/code@main", "owner/base"]
    said = front(model_card(recipe_of(method("ties")), parents, method("ties")))
    assert said == {
        "base_model": ["owner/base", "owner/math", "owner/code"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "task-vector", "taskbasis"],
    }


def test_the_hubs_own_library_reads_it(models: Path) -> None:
    for name in NAMES:
        state(models / name, "---\nlicense: apache-2.0\n---\n")
    parents = ["owner/base", *NAMES]
    text = model_card(recipe_of(method("ties")), parents[1:], method("ties"))
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["merge", "task-vector", "taskbasis"]
    assert card.data.base_model is None, "no local path is a model of the hub"
    assert ModelCard(model_card({}, parents[:1])).data.base_model == ["owner/base"]


def test_local_parents_are_no_base_models(models: Path) -> None:
    said = front(model_card(recipe_of(method("ties")), list(NAMES), method("ties")))
    assert "base_model" not in said
    assert "base_model_relation" not in said


def test_a_local_folder_that_is_called_like_a_model(models: Path) -> None:
    (models / "owner" / "name").mkdir(parents=True)
    assert hub_id("owner/name") is None
    assert hub_id("owner/other") == HubId("owner/other")
    assert hub_id("hf://datasets/a/b") is None
    assert hub_id("/no/such/path") is None


def test_parents_in_the_cache_of_the_hub(models: Path) -> None:
    snapshot = models / "hub" / "models--owner--name" / "snapshots" / SHA
    (snapshot / "text").mkdir(parents=True)
    assert hub_id(snapshot) == HubId("owner/name", SHA)
    assert hub_id(snapshot / "text") == HubId("owner/name", SHA, "text")
    recipe = {**recipe_of(method("ties")), "base": str(snapshot)}
    text = model_card(recipe, [snapshot], method("ties"))
    assert front(text)["base_model"] == ["owner/name"]
    assert str(models) not in text, "no path of this machine where there is an id"
    assert json.loads(fenced(section(text, "Recipe")))["base"] == f"hf://owner/name@{SHA}"
    assert f"hf://owner/name@{SHA}" in fenced(section(text, "Make it again"))


def test_another_library() -> None:
    assert front(model_card({}, [], library_name="open_clip"))["library_name"] == "open_clip"


# Licences


def test_one_licence(models: Path) -> None:
    for name in NAMES:
        state(models / name, "---\nlicense: mit\ntags: [x]\n---\n# card")
    text = model_card(recipe_of(method("ties")), list(NAMES), method("ties"))
    assert front(text)["license"] == "mit"
    assert section(text, "Licence") == (
        "All parents state the same.\n\n- `base`: mit\n- `math`: mit\n- `code`: mit"
    )


def test_licences_that_differ(models: Path) -> None:
    state(models / "base", "---\nlicense: mit\n---\n")
    state(models / "math", "---\nlicense: llama3\n---\n")
    text = model_card(recipe_of(method("ties")), list(NAMES), method("ties"))
    assert "license" not in front(text)
    assert section(text, "Licence") == (
        "None is stated, since the parents do not state one and the same; what they ask holds for "
        "this model.\n\n- `base`: mit\n- `math`: llama3\n- `code`: none stated"
    )


def test_a_licence_of_its_own(models: Path) -> None:
    own = "---\nlicense: other\nlicense_name: own\nlicense_link: https://x\n---\n"
    for name in NAMES:
        state(models / name, own)
    said = front(model_card({}, list(NAMES)))
    assert (said["license"], said["license_name"], said["license_link"]) == (
        "other",
        "own",
        "https://x",
    )
    state(models / "code", own.replace("own\n", "another\n"))
    assert "license" not in front(model_card({}, list(NAMES)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front",
        "---\n: [\n---\n",
        "---\nx: 1\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: mit",
    ],
)
def test_cards_that_state_none(models: Path, text: str) -> None:
    state(models / "base", text)
    assert licence(models / "base") == {}
    assert licence(models / "base" / "model.safetensors") == {}


def test_a_card_beside_the_file(models: Path) -> None:
    state(models / "base", "---\r\nlicense: mit\r\n---\r\n".replace("\r", ""))
    assert licence(models / "base" / "model.safetensors") == {"license": "mit"}
    assert licence("owner/name") == {}


def test_agreement_of_none() -> None:
    assert agreed([]) == {}
    assert agreed([{}, {}]) == {}


# What people read


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_method_is_cited(name: str) -> None:
    of = method(name)
    text = section(model_card(recipe_of(of), [], of), f"Method: {name}")
    assert fenced(text) == of.formula
    assert of.source.rstrip(".") in text
    for option, value in recipe_of(of)["options"].items():
        assert f"`{option}` = `{value}`" in text


def test_what_it_is_made_of() -> None:
    of = method("ties")
    recipe = recipe_of(
        of,
        scale=0.5,
        names=["maths", "code"],
        weights=[1.0, -0.25],
        vectors=[term("math"), [*term("code", 2.0), *term("more", -1.0, per_tensor=True)]],
    )
    text = model_card(recipe, [], of)
    assert section(text, "Made of") == (
        "- base: `base`\n"
        "- task vector `maths`: `math`\n"
        "- task vector `code`: 2 · `code` + -1 · `more` (one number per tensor), weight -0.25"
    )
    assert "the weights of `base`, plus 0.5 times 2 task vectors merged by `ties`" in text


def test_added_to_another_model() -> None:
    recipe = recipe_of(method("ties"), onto="merged")
    text = model_card(recipe, [], method("ties"))
    assert "- added to: `merged`" in text
    assert "the weights of `merged`, plus 1 times" in text


def test_a_recipe_without_a_method() -> None:
    recipe = {"restored": {"model": "m", "base": "base", "mask": "masks:math"}}
    text = model_card(recipe, ["base"])
    assert "## Method" not in text
    assert json.loads(fenced(section(text, "Recipe"))) == recipe
    assert section(text, "Make it again") == (
        "The recipe above says all that is known; it is not one command, since it has restored."
    )


def test_nothing_but_the_recipe_counts() -> None:
    of = method("ties")
    assert model_card(recipe_of(of), ["a/b"], of) == model_card(recipe_of(of), ["a/b"], of)


NASTY = ["`tick`", "``", "a\n# title", "\udcff", "<b>", "---", "```\n"]


@pytest.mark.parametrize("name", NASTY)
def test_names_do_no_harm(name: str) -> None:
    recipe = recipe_of(method("ties"), base=name, vectors=[term(name)], names=[name])
    text = model_card(recipe, [name], method("ties"))
    text.encode()
    assert "\n# title" not in text
    assert json.loads(fenced(section(text, "Recipe")))["base"] == name
    assert front(text)["tags"] == ["merge", "task-vector", "taskbasis"]


@given(st.text())
def test_code_of_any_text(text: str) -> None:
    shown = card_module._code(text)
    ticks = re.match("`+", shown)
    assert ticks is not None
    assert shown.endswith(ticks[0])
    inside = shown[len(ticks[0]) : -len(ticks[0])]
    assert ticks[0] not in re.findall("`+", inside)
    assert "\n" not in shown


def test_paths_deep_in_a_recipe() -> None:
    here = f"/x/models--o--n/snapshots/{SHA}"
    there = f"hf://o/n@{SHA}"
    assert portable({"a": [here, {"b": Path(here)}], "c": 1, "d": None, "e": "plain"}) == {
        "a": [there, {"b": there}],
        "c": 1,
        "d": None,
        "e": "plain",
    }


# Whether it is true


def merge(*words: str) -> None:
    assert run(["merge", *words, "-q"]) == 0


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (method("ties", density=0.4), ["--scale", "0.7"]),
        (method("task_arithmetic"), ["--weights", "0.3,-0.6"]),
        (method("dare_ties", density=0.5), []),
        (method("breadcrumbs"), ["--weights", "code=2"]),
        (method("slerp", t=0.25), []),
        (method("iso_c"), ["--scale", "1.3"]),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_the_command_makes_it_again(models: Path, of: Method, words: list[str]) -> None:
    """The card of a real output, its command run, and the bytes compared."""
    settings = [f"--set={k}={v}" for k, v in recipe_of(of)["options"].items() if v is not None]
    merge("base", "math", "code", "--method", of.name, *settings, *words, "-o", "first")
    recipe = json.loads((models / "first" / RECIPE_FILE).read_text())
    text = model_card(recipe, list(NAMES), of)
    (line,) = fenced(section(text, "Make it again")).splitlines()
    program, *arguments = shlex.split(line)
    assert program == "taskbasis"
    assert run([*arguments, "-q"]) == 0
    assert weights(models / "merged") == weights(models / "first")
    assert json.loads((models / "merged" / RECIPE_FILE).read_text()) == recipe


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_stored_dtype_is_part_of_the_command(models: Path) -> None:
    merge("base", "math", "code", "--method", "average", "--dtype", "bfloat16", "-o", "first")
    recipe = json.loads((models / "first" / RECIPE_FILE).read_text())
    text = model_card(recipe, list(NAMES), method("average"), stored=["--dtype", "bfloat16"])
    assert run([*shlex.split(fenced(section(text, "Make it again")))[1:], "-q"]) == 0
    assert weights(models / "merged") == weights(models / "first")


def test_exclusions_where_the_recipe_has_them(models: Path) -> None:
    words = ["--method", "average", "--exclude", "layers.0.*"]
    merge("base", "math", "code", *words, "-o", "first")
    recipe = json.loads((models / "first" / RECIPE_FILE).read_text())
    text = model_card({**recipe, "exclude": ["layers.0.*"]}, [], method("average"))
    assert run([*shlex.split(fenced(section(text, "Make it again")))[1:], "-q"]) == 0
    assert weights(models / "merged") == weights(models / "first")


@pytest.mark.parametrize("name", sorted(registered()))
def test_the_options_of_every_method_can_be_typed(name: str) -> None:
    from taskbasis.cli.parsing import parse_settings

    of = method(name)
    words, reason = command(recipe_of(of), of)
    assert words is not None, reason
    typed = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    assert method(name, **parse_settings(typed)) == of


def test_one_number_for_each_vector() -> None:
    of = method("della", density=(0.5, 0.25))
    words, _ = command(recipe_of(of), of)
    assert words is not None
    assert "density=[0.5, 0.25]" in words


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"vectors": [term("a", 2.0)]}, "a vector is itself a sum"),
        ({"vectors": [[*term("a"), *term("b")]]}, "a vector is itself a sum"),
        ({"vectors": [term("a", per_tensor=True)]}, "a vector is itself a sum"),
        ({"vectors": [term("masks:a * a")]}, "the vector masks:a * a is no file"),
        ({"vectors": [term("x=a")]}, "the vector x=a is no file"),
        ({"base": "a\nb"}, "a name in it cannot be typed"),
        ({"base": "\udcff"}, "a name in it cannot be typed"),
        ({"onto": "other"}, "it has onto"),
        ({"tokenizer": 1, "layers": 2}, "it has layers, tokenizer"),
    ],
)
def test_what_is_not_one_command(more: dict[str, Any], reason: str) -> None:
    """A command that makes something else would be worse than none."""
    of = method("ties")
    assert command(recipe_of(of, **more), of) == (None, reason)
    text = section(model_card(recipe_of(of, **more), [], of), "Make it again")
    assert text.endswith(f"it is not one command, since {reason}.")


def test_scores_and_moments_are_part_of_it(write_folder: Callable[..., Path]) -> None:
    of = method("regmean")
    words, _ = command(recipe_of(of, moments=["a.safetensors", "b.safetensors"]), of)
    assert words is not None
    joined = " ".join(words)
    assert "--moments a.safetensors --moments b.safetensors" in joined
