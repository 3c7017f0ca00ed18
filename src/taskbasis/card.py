"""The card of an output: README.md, saying what it was made of, how, and how to make it again."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from taskbasis._version import __version__
from taskbasis.errors import FileError, UsageError
from taskbasis.io.ids import HubId, cached_id, parse_id
from taskbasis.io.regular import read_regular
from taskbasis.methods import Method
from taskbasis.methods.registry import plain

CARD = "README.md"
_LONGEST_CARD = 10_000_000
_TAGS = ["merge", "task-vector", "taskbasis"]
_LICENCE = ("license", "license_name", "license_link")
_COMMAND_KNOWS = {
    "base",
    "method",
    "options",
    "scale",
    "vectors",
    "weights",
    "names",
    "scores",
    "moments",
    "exclude",
    "stored",
}


def model_card(
    recipe: Mapping[str, Any],
    parents: Sequence[str | Path],
    method: Method | None = None,
    *,
    stored: Sequence[str] = (),
    library_name: str = "transformers",
) -> str:
    """The card of a model that a recipe describes, as Markdown with YAML before it.

    It names parents of the hub as its base models, at the commits that were read; a licence only
    where all parents state the same; and the recipe, in which paths of the hub's cache are
    replaced by the ids that they stand for. It depends on nothing else: no date, no machine.

    Args:
        recipe: what :meth:`taskbasis.saving.Edit.recipe` says, or another one.
        parents: what the model was made of, the base first: paths, or ids of the hub.
        method: how the vectors were merged, where they were.
        stored: the options that say how floats are stored.
        library_name: what the hub says that opens it.

    >>> print(model_card({"base": "base"}, ["owner/base"]).partition("# ")[0])
    ---
    base_model:
    - owner/base
    base_model_relation: merge
    library_name: transformers
    tags:
    - merge
    - task-vector
    - taskbasis
    ---
    <BLANKLINE>
    <BLANKLINE>
    """
    licences = {str(parent): licence(parent) for parent in parents}
    shown = portable(recipe)
    parts = [
        _front(parents, licences, library_name),
        "# A model made of task vectors",
        _opening(shown, method),
        "## Made of\n\n" + "\n".join(_ingredients(shown)),
        *_method(shown, method),
        _licences(licences),
        "## Recipe\n\n" + _fenced(json.dumps(shown, indent=2), "json"),
        "## Make it again\n\n" + _again(shown, method, stored),
    ]
    return "\n\n".join(parts) + "\n"


def _front(
    parents: Sequence[str | Path], licences: Mapping[str, dict[str, Any]], library_name: str
) -> str:
    ids = [found.repo for found in map(hub_id, parents) if found is not None]
    content: dict[str, Any] = {}
    if ids:
        content["base_model"] = list(dict.fromkeys(ids))
        content["base_model_relation"] = "merge"
    content["library_name"] = library_name
    content |= agreed(list(licences.values()))
    content["tags"] = _TAGS
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def hub_id(parent: str | Path) -> HubId | None:
    """Which model of the hub a parent is: by its place in the cache, or by its id.

    >>> hub_id("owner/name@v1"), hub_id("./owner/name")
    (HubId(repo='owner/name', revision='v1', folder=''), None)
    """
    text = str(parent)
    if Path(text).exists():
        return cached_id(text)
    try:
        return cached_id(text) or parse_id(text)
    except UsageError:
        return None


def licence(parent: str | Path) -> dict[str, Any]:
    """What a parent's card says of its licence: ``license``, its name and its link.

    The card is looked for in the folder, or beside the file; nothing where there is none.
    """
    path = Path(parent)
    card = (path if path.is_dir() else path.parent) / CARD
    try:
        text = read_regular(card, _LONGEST_CARD).decode()
        found = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
        front = yaml.safe_load(found[1]) if found else None
    except (FileError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(front, dict) or not _words(front.get("license")):
        return {}
    return {key: front[key] for key in _LICENCE if _words(front.get(key))}


def _words(value: Any) -> bool:
    """Whether it is a text or a list of some; lists in lists may stand for billions of words."""
    several = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(word, str) for word in several)


def agreed(licences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The licence that all state alike; nothing where one states another or none.

    >>> agreed([{"license": "mit"}, {"license": "mit"}]), agreed([{"license": "mit"}, {}])
    ({'license': 'mit'}, {})
    """
    first = dict(licences[0]) if licences else {}
    return first if all(dict(other) == first for other in licences) else {}


def portable(value: Any) -> Any:
    """A recipe whose paths in the hub's cache are the ids that they stand for.

    >>> portable({"base": "/hub/models--owner--name/snapshots/0123abcd"})
    {'base': 'hf://owner/name@0123abcd'}
    """
    if isinstance(value, (str, Path)):
        found = cached_id(value)
        return str(found) if found is not None else str(value)
    if isinstance(value, Mapping):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(part) for part in value]
    return value


def _opening(recipe: Mapping[str, Any], method: Method | None) -> str:
    by = f"by taskbasis {__version__}"
    if method is None:
        return f"Made {by} as the recipe below says."
    if "recipe" in recipe:
        count = len(recipe["models"])
        return (
            f"Made {by} of {count} models, as the recipe of mergekit's kind below says. How well "
            "the model does was not measured."
        )
    onto = recipe.get("onto", recipe.get("base"))
    vectors = len(recipe.get("vectors", ()))
    return (
        f"Made {by}: the weights of {_code(onto)}, plus {recipe.get('scale', 1.0):g} times "
        f"{vectors} task vector{'s' * (vectors != 1)} merged by `{method.name}`. A task vector is "
        "the difference of a fine-tuned model's weights and its base's. What is written here was "
        "read from the recipe; how well the model does was not measured."
    )


def _ingredients(recipe: Mapping[str, Any]) -> list[str]:
    """One line for the base, and one for each vector."""
    lines = [
        f"- {what}: {_code(recipe[key])}"
        for key, what in (("base", "base"), ("onto", "added to"))
        if key in recipe
    ]
    vectors = recipe.get("vectors", ())
    names = recipe.get("names") or [""] * len(vectors)
    weights = recipe.get("weights") or [1.0] * len(vectors)
    for terms, name, weight in zip(vectors, names, weights, strict=True):
        made = " + ".join(_term(term) for term in terms)
        called = f"task vector {_code(name)}" if name else "task vector"
        weighed = f", weight {weight:g}" if weight != 1 else ""
        lines.append(f"- {called}: {made}{weighed}")
    lines += [f"- model: {_code(name)}" for name in recipe.get("models", ())]
    return lines or ["- see the recipe"]


def _term(term: Mapping[str, Any]) -> str:
    number = "" if term["coefficient"] == 1 else f"{term['coefficient']:g} · "
    per_tensor = " (one number per tensor)" if term.get("per_tensor") else ""
    return f"{number}{_code(term['vector'])}{per_tensor}"


def _method(recipe: Mapping[str, Any], method: Method | None) -> list[str]:
    if method is None:
        return []
    about = (inspect.getdoc(type(method)) or "").partition("\n")[0].replace("``", "`")
    options = ", ".join(f"`{f.name}` = {_code(getattr(method, f.name))}" for f in fields(method))
    something = "recipe" in recipe or len(recipe.get("vectors", ()))
    formula = method.formula if something else "nothing was added"
    return [
        f"## Method: {method.name}\n\n{about}\n\n{_fenced(formula, 'text')}\n\n"
        + (f"Options: {options}.\n\n" if options else "")
        + f"Source: {method.source.rstrip('.')}."
    ]


def _licences(licences: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for parent, found in licences.items():
        stated = ", ".join(str(found[key]) for key in _LICENCE if key in found) or "none stated"
        lines.append(f"- {_code(portable(parent))}: {stated}")
    if licences and agreed(list(licences.values())):
        return "## Licence\n\nAll parents state the same.\n\n" + "\n".join(lines)
    return (
        "## Licence\n\nNone is stated, since the parents do not state one and the same; what they "
        "ask holds for this model.\n\n" + "\n".join(lines)
    ).rstrip()


def _again(recipe: Mapping[str, Any], method: Method | None, stored: Sequence[str]) -> str:
    if "recipe" in recipe:
        seed = ["--random-seed", str(recipe["seed"])] if recipe.get("seed") else []
        line = shlex.join(["taskbasis", "merge", "mergekit_config.yml", "merged", *seed, *stored])
        return f"With taskbasis {__version__}, where the models are:\n\n{_fenced(line, 'bash')}"
    words, reason = command(recipe, method, stored)
    if words is None:
        return f"The recipe above says all that is known; it is not one command, since {reason}."
    return f"With taskbasis {__version__}:\n\n{_fenced(shlex.join(words), 'bash')}"


def command(
    recipe: Mapping[str, Any], method: Method | None, stored: Sequence[str] = ()
) -> tuple[list[str] | None, str]:
    """The words of the command that repeats a recipe; or none, and the reason.

    >>> from taskbasis.methods import method
    >>> recipe = {"base": "base", "vectors": [[{"vector": "math", "coefficient": 1.0}]]}
    >>> " ".join(command(recipe, method("average"))[0])
    'taskbasis merge base math --method average --scale 1.0 -o merged'
    """
    strange = sorted(recipe.keys() - _COMMAND_KNOWS)
    if method is None or "base" not in recipe or strange:
        return None, f"it has {', '.join(strange)}" if strange else "nothing was merged"
    vectors, names = recipe.get("vectors", ()), recipe.get("names", ())
    words = ["taskbasis", "merge", recipe["base"]]
    for number, terms in enumerate(vectors):
        (term, *others) = terms
        if others or term["coefficient"] != 1 or term.get("per_tensor"):
            return None, "a vector is itself a sum"
        if " * " in term["vector"] or "=" in term["vector"]:
            return None, f"the vector {term['vector']} is no file"
        words.append(f"{names[number]}={term['vector']}" if names else term["vector"])
    words += ["--method", method.name]
    for option in fields(method):
        value = getattr(method, option.name)
        text = _plain(value)
        if value is None:
            continue
        if text is None:
            return None, f"the option {option.name} cannot be typed"
        words += ["--set", f"{option.name}={text}"]
    weights = recipe.get("weights", ())
    words += [f"--weights={','.join(map(repr, weights))}"] if weights else []
    for kind in ("scores", "moments"):
        for label in recipe.get(kind, ()):
            words += [f"--{kind}", label]
    for pattern in recipe.get("exclude", ()):
        words += ["--exclude", pattern]
    words += stored
    if not all(word.isprintable() for word in words):
        return None, "a name in it cannot be typed"
    return [*words, "--scale", repr(float(recipe.get("scale", 1.0))), "-o", "merged"], ""


def _plain(value: Any) -> str | None:
    """What to type for an option's value; None where nothing would be read as that."""
    text = json.dumps(list(value)) if isinstance(value, tuple) else str(value)
    if isinstance(value, bool):
        text = text.lower()
    try:
        read = plain(text)
    except UsageError:
        return None
    same = tuple(read) == value if isinstance(value, tuple) else read == value
    return text if same else None


def _code(value: object) -> str:
    """Any text as code in a line: backticks and line breaks do no harm."""
    text = " ".join(str(value).encode("utf-8", "backslashreplace").decode().splitlines())
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    shown = text.encode("utf-8", "backslashreplace").decode()
    return f"{fence}{language}\n{shown}\n{fence}"
