"""The schema of mergekit 0.1.5, read from trees; every surprise is a sentence with a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from taskbasis.errors import nearest
from taskbasis.recipes.problems import Findings, Mark
from taskbasis.recipes.schema import (
    Document,
    Module,
    Rule,
    Setting,
    Settings,
    Slice,
    Source,
    Value,
)
from taskbasis.recipes.theirs import ALL_PARAMETERS, THEIRS, Parameter, Theirs
from taskbasis.recipes.tokens import parse_tokenizer
from taskbasis.recipes.tree import Tree
from taskbasis.recipes.values import (
    parse_name,
    parse_ref,
    parse_text,
    read_fields,
)

T = TypeVar("T")

TOP = (
    *("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype"),
    *("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
_SHAPES = ("models", "slices", "modules")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_TRUE = {"true", "t", "yes", "y", "on", "1"}
_FALSE = {"false", "f", "no", "n", "off", "0"}
_NO_EFFECT = "changes no result, there or here"


def parse_document(tree: Tree, findings: Findings) -> Document:
    """One document; what is wrong goes to ``findings``, and the rest is read as far as it goes."""
    before = len(findings.problems)
    fields = read_fields(tree, "a recipe", TOP, findings, ALL_PARAMETERS)
    method = _method(tree, fields, findings)
    read = _Reading(findings, method)
    given = [key for key in _SHAPES if key in fields]
    if len(given) != 1:
        where = tree.keys[given[1]] if given else tree.mark
        findings.wrong(where, f"{_listed(given)}; give exactly one of models, slices, modules")
    if "tokenizer" in fields and "tokenizer_source" in fields:
        findings.wrong(
            tree.keys["tokenizer_source"], "give tokenizer or tokenizer_source, not both"
        )
    parameters = read.settings(fields.get("parameters"))
    sound = not findings.since(before)
    models = read.several(fields.get("models"), "models", read.model)
    slices = read.several(fields.get("slices"), "slices", read.slice)
    modules = read.modules(fields.get("modules"))
    source = fields.get("tokenizer")
    old = fields.get("tokenizer_source")
    if source is None and old is not None:
        source = Tree(old.mark, {"source": old}, {"source": old.mark})
    return Document(
        method.name if method else "",
        models,
        slices,
        modules,
        parse_ref(fields.get("base_model"), "base_model", findings),
        parameters,
        _dtype(fields.get("dtype"), "dtype", findings),
        _dtype(fields.get("out_dtype"), "out_dtype", findings),
        None if source is None else parse_tokenizer(source, findings),
        parse_text(fields.get("chat_template"), "chat_template", findings),
        parse_name(fields.get("name"), findings),
        tree.mark,
        sound and method is not None and len(given) == 1,
    )


def _listed(given: Sequence[str]) -> str:
    return f"{' and '.join(given)} stand side by side" if given else "nothing to merge is given"


def _method(tree: Tree, fields: dict[str, Tree], findings: Findings) -> Theirs | None:
    found = fields.get("merge_method")
    if found is None:
        if isinstance(tree.value, dict):
            findings.wrong(tree.mark, "merge_method is missing; say how to merge, as ties")
        return None
    name = parse_text(found, "merge_method", findings)
    if name is not None and name not in THEIRS:
        findings.wrong(
            found.mark, f"there is no merge method {name!r} in mergekit; {nearest(name, THEIRS)}"
        )
    return THEIRS.get(name or "")


def _dtype(tree: Tree | None, key: str, findings: Findings) -> str | None:
    name = parse_text(tree, key, findings)
    if tree is None or name is None:
        return None
    short = name.removeprefix("torch.")
    if short not in _DTYPES:
        hint = nearest(short, _DTYPES)
        findings.wrong(tree.mark, f"{key} {name!r} is no dtype of weights; {hint}")
        return None
    return short


@dataclass(frozen=True)
class _Reading:
    """Reads the parts of one document, whose method says what parameters there are."""

    findings: Findings
    method: Theirs | None

    def several(
        self, tree: Tree | None, what: str, read: Callable[[Tree], T | None]
    ) -> tuple[T, ...]:
        """The items of a list that is not empty."""
        if tree is None:
            return ()
        if not isinstance(tree.value, list):
            self.findings.wrong(
                tree.mark, f"{what} is a list, each item begun by '-'; got {tree.kind}"
            )
            return ()
        if not tree.value:
            self.findings.wrong(tree.mark, f"{what} is empty; give at least one")
        found = [read(item) for item in tree.value]
        return tuple(item for item in found if item is not None)

    def model(self, tree: Tree) -> Source | None:
        """An item of models."""
        return self._source(tree, "an item of models", ("model", "parameters"))

    def layers_of(self, tree: Tree) -> Source | None:
        """An item of sources."""
        return self._source(tree, "an item of sources", ("model", "layer_range", "parameters"))

    def _source(self, tree: Tree, what: str, known: tuple[str, ...]) -> Source | None:
        before = len(self.findings.problems)
        fields = read_fields(tree, what, known, self.findings, ALL_PARAMETERS)
        if isinstance(tree.value, dict):
            for key in known:
                if key != "parameters" and key not in fields:
                    self.findings.wrong(tree.mark, f"{what} needs {key}")
        ref = parse_ref(fields.get("model"), "model", self.findings)
        layers = self._layer_range(fields.get("layer_range"))
        parameters = self.settings(fields.get("parameters"))
        if ref is None:
            return None
        return Source(ref, layers, parameters, tree.mark, not self.findings.since(before))

    def _layer_range(self, tree: Tree | None) -> tuple[int, int] | None:
        if tree is None:
            return None
        items = tree.value if isinstance(tree.value, list) else []
        ends = [item.value for item in items]
        if len(ends) != 2 or not all(type(end) is int for end in ends):
            got = tree.kind if not items else f"[{', '.join(str(end) for end in ends)}]"
            self.findings.wrong(
                tree.mark,
                f"layer_range is two whole numbers, [first, one after the last]; got {got}",
            )
            return None
        start, end = (int(str(number)) for number in ends)
        if not 0 <= start < end:
            self.findings.wrong(
                tree.mark,
                f"layer_range [{start}, {end}] has no layers; it needs 0 <= first < the other",
            )
            return None
        return start, end

    def slice(self, tree: Tree) -> Slice | None:
        """An item of slices."""
        before = len(self.findings.problems)
        known = ("sources", "base_model", "residual_weight", "parameters")
        fields = read_fields(tree, "an item of slices", known, self.findings, ALL_PARAMETERS)
        if isinstance(tree.value, dict) and "sources" not in fields:
            self.findings.wrong(tree.mark, "an item of slices needs sources")
        if "residual_weight" in fields:
            self.findings.note(tree.keys["residual_weight"], f"residual_weight {_NO_EFFECT}")
        sources = self.several(fields.get("sources"), "sources", self.layers_of)
        lengths = {end - start for start, end in (s.layers for s in sources if s.layers)}
        if len(lengths) > 1:
            shown = ", ".join(f"{s.model} {s.layers[1] - s.layers[0]}" for s in sources if s.layers)
            self.findings.wrong(
                tree.mark, f"the sources of a slice need as many layers each: {shown}"
            )
        base = parse_ref(fields.get("base_model"), "base_model", self.findings)
        parameters = self.settings(fields.get("parameters"))
        if not isinstance(tree.value, dict):
            return None
        return Slice(sources, base, parameters, tree.mark, not self.findings.since(before))

    def modules(self, tree: Tree | None) -> tuple[Module, ...]:
        if tree is None:
            return ()
        if not isinstance(tree.value, dict) or not tree.value:
            self.findings.wrong(
                tree.mark, f"modules names each tower with what it is merged from; got {tree.kind}"
            )
            return ()
        return tuple(self._module(name, child) for name, child in tree.value.items())

    def _module(self, name: str, tree: Tree) -> Module:
        what = f"module {name!r}"
        fields = read_fields(
            tree, what, ("models", "slices", "parameters"), self.findings, ALL_PARAMETERS
        )
        given = [key for key in ("models", "slices") if key in fields]
        if len(given) != 1 and isinstance(tree.value, dict):
            self.findings.wrong(
                tree.mark, f"{what}: {_listed(given)}; give exactly one of models, slices"
            )
        return Module(
            name,
            self.several(fields.get("models"), "models", self.model),
            self.several(fields.get("slices"), "slices", self.slice),
            self.settings(fields.get("parameters")),
            tree.mark,
        )

    def settings(self, tree: Tree | None) -> Settings:
        """A mapping under ``parameters``."""
        if tree is None:
            return {}
        if not isinstance(tree.value, dict):
            self.findings.wrong(tree.mark, f"parameters is a mapping, NAME: VALUE; got {tree.kind}")
            return {}
        found: dict[str, Setting] = {}
        for name, child in tree.value.items():
            parameter = self._parameter(name, tree.keys[name])
            if parameter is not None and (rules := self._rules(child, parameter)):
                found[name] = rules
        return found

    def _parameter(self, name: str, mark: Mark) -> Parameter | None:
        if self.method is None:
            if name not in ALL_PARAMETERS:
                self.findings.wrong(
                    mark, f"no method has a parameter {name!r}; {nearest(name, ALL_PARAMETERS)}"
                )
            return None
        known = self.method.parameters
        if name in known:
            if name == "density" and self.method.name == "task_arithmetic":
                self.findings.note(mark, "density has no effect in task_arithmetic; ties has one")
            return known[name]
        if name == "int8_mask":  # what masks are stored in while it works
            self.findings.note(mark, f"int8_mask {_NO_EFFECT}")
            return None
        hint = nearest(name, known) if known else "it has none"
        self.findings.wrong(mark, f"{self.method.name} has no parameter {name!r}; {hint}")
        return None

    def _rules(self, tree: Tree, parameter: Parameter) -> Setting:
        """A setting from a value, a gradient, {filter, value}, or a list of those."""
        items = tree.value if isinstance(tree.value, list) else [tree]
        if not any(isinstance(item.value, dict) for item in items):
            values = self._values(tree, parameter)
            return (Rule(values),) if values else ()
        rules = [self._rule(item, parameter) for item in items]
        for place, rule in enumerate(rules[:-1]):
            if rule is not None and rule.filter is None:
                self.findings.note(
                    items[place + 1].mark,
                    f"this rule of {parameter.name} is never reached: the one before holds for all",
                )
                break
        return tuple(rule for rule in rules if rule is not None)

    def _rule(self, tree: Tree, parameter: Parameter) -> Rule | None:
        if not isinstance(tree.value, dict):
            self.findings.wrong(
                tree.mark,
                f"{parameter.name} mixes values and rules in one list; write '- value: ...' here",
            )
            return None
        fields = read_fields(tree, "a rule", ("filter", "value"), self.findings)
        chosen = parse_text(fields.get("filter"), "filter", self.findings, empty=True)
        if "value" not in fields:
            self.findings.wrong(tree.mark, f"this rule of {parameter.name} needs a value")
            return None
        values = self._values(fields["value"], parameter)
        return Rule(values, None if chosen in (None, "", "*") else chosen) if values else None

    def _values(self, tree: Tree, parameter: Parameter) -> tuple[Value, ...]:
        items = tree.value if isinstance(tree.value, list) else [tree]
        if not items:
            self.findings.wrong(tree.mark, f"{parameter.name} is an empty list; give a value")
        found = [self._value(item, parameter) for item in items]
        return () if None in found else tuple(value for value in found if value is not None)

    def _value(self, tree: Tree, parameter: Parameter) -> Value | None:
        value = _convert(tree.value, parameter.kind)
        name, kinds = parameter.name, {bool: "true or false", int: "a whole number"}
        if value is None:
            wanted = kinds.get(parameter.kind, "a number")
            self.findings.wrong(tree.mark, f"{name} takes {wanted}; got {tree.kind}")
            return None
        if parameter.kind is not bool and not parameter.holds(value):
            hint = parameter.range_text() or "use a finite number"
            self.findings.wrong(tree.mark, f"{name} {tree.value} is out of range; {hint}")
            return None
        return value


def _convert(value: Any, kind: type) -> Value | None:
    """A leaf as a parameter's kind, where it can only mean that."""
    if kind is bool:
        word = str(value).lower() if isinstance(value, (bool, int, str)) else ""
        return True if word in _TRUE else False if word in _FALSE else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if kind is float:
        return number
    return int(number) if math.isfinite(number) and number == int(number) else None
