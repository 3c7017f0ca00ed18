"""YAML as plain trees whose every part knows its line, and nothing that could harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from taskbasis.recipes.problems import NOWHERE, Findings, Mark

MOST_CHARACTERS = 4_000_000
MOST_NODES = 100_000
"""Of all documents, aliases counted as often as they stand for something."""
MOST_DEPTH = 50

_MERGE = "tag:yaml.org,2002:merge"
_LEAVES = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Tree:
    """A mapping, a list, or a leaf.

    Attributes:
        mark: where it begins.
        value: a dict of trees by key, a list of trees, or a scalar.
        keys: of a mapping, where each key stands.
    """

    mark: Mark
    value: dict[str, Tree] | list[Tree] | Scalar
    keys: dict[str, Mark] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What it is, in words for a message."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        shown = repr(self.value)
        short = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return "nothing" if self.value is None else short


class _Stop(Exception):
    """Reading cannot go on; what is wrong has been noted."""


def read_trees(text: str, findings: Findings) -> list[Tree]:
    """The documents of a text that are not empty; what is wrong goes to ``findings``.

    Refused are tags (``!!python/...``, ``!include``), keys that stand twice or are no text,
    nesting beyond 50 and more than 100,000 nodes. Aliases and merge keys (``<<``) are read.

    >>> trees = read_trees("a: 1\\nb: [x, 1e-3]\\n", Findings())
    >>> trees[0].value["b"].mark, trees[0].value["b"].value[1].value
    (Mark(line=2, column=4), '1e-3')
    """
    if len(text) > MOST_CHARACTERS:
        findings.wrong(NOWHERE, f"longer than {MOST_CHARACTERS:,} characters; this is no recipe")
        return []
    try:
        _check_events(text, findings)
        documents = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
        builder = _Builder(findings)
        trees = [builder.build(node, 1) for node in documents]
        return [tree for tree in trees if tree.value is not None]
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        where = _mark(error.problem_mark or error.context_mark)
        words = " ".join(str(part) for part in (error.context, error.problem) if part)
        findings.wrong(where, f"this is not YAML: {words}")
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line = before.count("\n") + 1
        mark = Mark(line, error.position - (before.rfind("\n") + 1) + 1)
        findings.wrong(mark, f"the character {chr(error.character)!r} cannot stand in YAML")
    except yaml.YAMLError as error:
        findings.wrong(NOWHERE, f"this is not YAML: {error}")
    return []


def _mark(mark: Any) -> Mark:
    return NOWHERE if mark is None else Mark(mark.line + 1, mark.column + 1)


def _check_events(text: str, findings: Findings) -> None:
    """Before anything is composed: depth, number and tags."""
    depth = count = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        mark = _mark(event.start_mark)
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        count += isinstance(event, yaml.NodeEvent)
        tag = getattr(event, "tag", None)
        if tag is not None:
            findings.wrong(mark, f"the tag {tag!r} is not allowed in a recipe; write a plain value")
        _check_size(count, depth, mark, findings)


def _check_size(count: int, depth: int, mark: Mark, findings: Findings) -> None:
    if depth > MOST_DEPTH:
        findings.wrong(mark, f"nested deeper than {MOST_DEPTH} levels; this is no recipe")
        raise _Stop
    if count > MOST_NODES:
        findings.wrong(mark, f"more than {MOST_NODES:,} values; this is no recipe")
        raise _Stop


@dataclass
class _Builder:
    """Trees from YAML nodes, aliases written out; counts what it builds."""

    findings: Findings
    count: int = 0
    constructor: yaml.SafeLoader = field(default_factory=lambda: yaml.SafeLoader(""))

    def build(self, node: yaml.Node, depth: int) -> Tree:
        mark = _mark(node.start_mark)
        self.count += 1
        _check_size(self.count, depth - 1, mark, self.findings)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, mark, depth)
        if isinstance(node, yaml.SequenceNode):
            return Tree(mark, [self.build(child, depth + 1) for child in node.value])
        return Tree(mark, self._leaf(node))

    def _leaf(self, node: yaml.Node) -> Scalar:
        if node.tag not in _LEAVES:
            return str(node.value)  # a date is a word here
        try:
            value: Scalar = self.constructor.construct_object(node)
        except (ValueError, OverflowError):
            return str(node.value)
        if isinstance(value, int) and value.bit_length() > 1024:
            return str(node.value)  # no number that Python would print
        return value

    def _mapping(self, node: yaml.MappingNode, mark: Mark, depth: int) -> Tree:
        found: dict[str, Tree] = {}
        keys: dict[str, Mark] = {}
        merged: list[Tree] = []
        for key, child in node.value:
            place = _mark(key.start_mark)
            tree = self.build(child, depth + 1)
            if key.tag == _MERGE:
                merged += self._sources(tree)
                continue
            name = self._leaf(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                shown = getattr(key, "value", None)
                shown = shown if isinstance(shown, str) else "a list or mapping"
                self.findings.wrong(place, f"the key {shown!r} is no text; put it in quotes")
            elif name in found:
                first = keys[name]
                self.findings.wrong(place, f"the key {name!r} stands twice, first in {first}")
            else:
                found[name], keys[name] = tree, place
        for source in merged:
            assert isinstance(source.value, dict)
            for name, tree in source.value.items():
                if name not in found:
                    found[name], keys[name] = tree, source.keys[name]
        return Tree(mark, found, keys)

    def _sources(self, tree: Tree) -> Iterator[Tree]:
        """The mappings that a merge key takes over."""
        several = tree.value if isinstance(tree.value, list) else [tree]
        for source in several:
            if isinstance(source.value, dict):
                yield source
            else:
                self.findings.wrong(
                    source.mark, f"the key '<<' takes a mapping to merge, not {source.kind}"
                )
