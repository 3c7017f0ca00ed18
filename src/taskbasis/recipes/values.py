"""Mappings with known keys, texts, and references to models, read from trees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskbasis.errors import nearest
from taskbasis.recipes.problems import Findings
from taskbasis.recipes.schema import Location, ModelRef
from taskbasis.recipes.tree import Tree

_FLAGS = {"random_seed": "it is an option of the command: --random-seed"}
"""What recipes hold that mergekit 0.1.5 does not know either, and what to do."""


def read_fields(
    tree: Tree,
    what: str,
    known: Sequence[str],
    findings: Findings,
    parameters: Iterable[str] = (),
) -> dict[str, Tree]:
    """The known keys of a mapping that have a value; others are noted as wrong.

    Args:
        what: the mapping, in words.
        parameters: names that belong under ``parameters``, as a hint.
    """
    if not isinstance(tree.value, dict):
        keys = ", ".join(known)
        findings.wrong(tree.mark, f"{what} is a mapping of {keys}; got {tree.kind}")
        return {}
    for key, mark in tree.keys.items():
        if key not in known:
            hint = nearest(key, known)
            if key in set(parameters):
                hint = f"write {key!r} under 'parameters:'"
            hint = _FLAGS.get(key, hint)
            findings.wrong(mark, f"{what} has no key {key!r}; {hint}")
    return {
        key: child for key, child in tree.value.items() if key in known and child.value is not None
    }


def parse_text(tree: Tree | None, key: str, findings: Findings, empty: bool = False) -> str | None:
    """A text; None where there is none."""
    if tree is None:
        return None
    if not isinstance(tree.value, str):
        findings.wrong(tree.mark, f"{key} is a text; got {tree.kind}; put it in quotes")
        return None
    if not tree.value.strip() and not empty:
        findings.wrong(tree.mark, f"{key} is empty; leave it out or fill it in")
        return None
    if any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in tree.value):
        findings.wrong(tree.mark, f"{key} has a sign that is no text: {ascii(tree.value)[:60]}")
        return None
    return tree.value


def parse_name(tree: Tree | None, findings: Findings) -> str | None:
    """The name of a document, which may become that of a folder."""
    name = parse_text(tree, "name", findings)
    if tree is None or name is None:
        return None
    long = len(name.encode("utf-8", "replace")) > 100
    if name in (".", "..") or long or any(sign in name for sign in "/\\@+\0"):
        findings.wrong(tree.mark, f"the name {name!r} cannot name a folder; leave out / \\ @ +")
        return None
    return name


def parse_ref(tree: Tree | None, key: str, findings: Findings) -> ModelRef | None:
    """``path[@revision][+lora[@revision]]``, or a mapping of model, lora, override_architecture."""
    if tree is None:
        return None
    if not isinstance(tree.value, dict):
        return _ref_of_text(tree, key, findings)
    known = ("model", "lora", "override_architecture")
    fields = read_fields(tree, f"{key} as a mapping", known, findings)
    if "model" not in fields:
        findings.wrong(tree.mark, f"{key} as a mapping needs model")
    model = _location(fields.get("model"), "model", findings)
    lora = _location(fields.get("lora"), "lora", findings)
    other = parse_text(fields.get("override_architecture"), "override_architecture", findings)
    return None if model is None else ModelRef(model, lora, other)


def _ref_of_text(tree: Tree, key: str, findings: Findings) -> ModelRef | None:
    text = parse_text(tree, key, findings)
    if text is None:
        return None
    parts = text.split("+")
    if len(parts) > 2:
        findings.wrong(
            tree.mark,
            f"{key} {text!r} has more than one '+'; write PATH+LORA, or model and lora apart",
        )
        return None
    places = [_location(Tree(tree.mark, part), key, findings) for part in parts]
    if places[0] is None or places[-1] is None:
        return None
    return ModelRef(places[0], places[1] if len(places) == 2 else None)


def _location(tree: Tree | None, key: str, findings: Findings) -> Location | None:
    if tree is None:
        return None
    if isinstance(tree.value, dict):
        fields = read_fields(tree, f"{key} as a mapping", ("path", "revision"), findings)
        if "path" not in fields:
            findings.wrong(tree.mark, f"{key} as a mapping needs path")
        path = parse_text(fields.get("path"), "path", findings)
        revision = parse_text(fields.get("revision"), "revision", findings)
        return None if path is None else Location(path, revision)
    text = parse_text(tree, key, findings)
    if text is None:
        return None
    path, at, revision = text.partition("@")
    if "@" in revision or not path or bool(at) != bool(revision):
        findings.wrong(tree.mark, f"{key} {text!r} is no model; write PATH or PATH@REVISION")
        return None
    return Location(path, revision or None)
