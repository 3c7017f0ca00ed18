"""Recipes written as YAML read back as the same."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskbasis.recipes import Location, ModelRef, RecipeFile, parse_recipe, to_yaml
from taskbasis.recipes.schema import (
    Document,
    Module,
    Rule,
    Settings,
    Slice,
    Source,
    Tokenizer,
    TokenRule,
    TokenSource,
)
from taskbasis.recipes.theirs import THEIRS, Parameter

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=9)
words = st.text("abcxyz/.-_", min_size=1, max_size=9) | st.sampled_from(["null", "1.5", "yes", "~"])
locations = st.builds(Location, words | st.sampled_from(["a+b", "c@d"]), st.none() | words)
refs = st.builds(
    ModelRef, locations, st.none() | locations, st.none() | st.just("LlamaForCausalLM")
)


def values(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.kind is bool:
        return st.booleans()
    if parameter.kind is int:
        return st.integers(max(0, int(max(parameter.least, 0))), 99)
    least, most = max(parameter.least, -9.0), min(parameter.most, 9.0)
    return st.floats(least, most, exclude_min=parameter.open_least, exclude_max=parameter.open_most)


@st.composite
def rules(draw: st.DrawFn, parameter: Parameter) -> tuple[Rule, ...]:
    """A value, a gradient, or rules that end with one for all."""

    def one(chosen: str | None) -> Rule:
        return Rule(tuple(draw(st.lists(values(parameter), min_size=1, max_size=4))), chosen)

    filters = draw(st.lists(st.sampled_from(["mlp", "self_attn", "lm_head", "null"]), max_size=2))
    return (*map(one, filters), one(None))


@st.composite
def parameters(draw: st.DrawFn, name: str, required: bool) -> Settings:
    """Those that a document must give, and some others."""
    return {
        parameter.name: draw(rules(parameter))
        for parameter in THEIRS[name].parameters.values()
        if (required and parameter.required) or draw(st.booleans())
    }


tokenizers = st.builds(
    Tokenizer,
    st.just("union") | refs,
    st.dictionaries(
        texts,
        st.just(TokenRule()) | st.builds(TokenRule, st.just(TokenSource()), st.booleans()),
        max_size=2,
    ),
    st.none() | st.integers(1, 512),
)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Documents that are right: of any method, in all three forms."""
    name = draw(st.sampled_from(sorted(THEIRS)))
    method = THEIRS[name]
    least, most = method.inputs
    count = most or max(least, draw(st.integers(2, 4)))
    if method.others[1]:
        count = method.others[1] + 1
    models = draw(st.lists(refs, min_size=count, max_size=count, unique=True))
    base = None if method.base == "ignored" else models[0]
    form = draw(st.sampled_from(["models", "slices", "modules"]))

    def sources(layers: tuple[int, int] | None) -> tuple[Source, ...]:
        return tuple(Source(ref, layers, draw(parameters(name, False))) for ref in models)

    whole = sources(None)
    pieces = tuple(
        Slice(sources((start, start + 2)), parameters=draw(parameters(name, False)))
        for start in draw(st.lists(st.integers(0, 9), min_size=1, max_size=2))
    )
    rest: dict[str, Any] = {
        "base_model": base,
        "parameters": draw(parameters(name, True)),
        "dtype": draw(st.none() | st.just("bfloat16")),
        "out_dtype": draw(st.none() | st.just("float32")),
        "tokenizer": draw(st.none() | tokenizers),
        "chat_template": draw(st.none() | texts),
    }
    if form == "models":
        return Document(name, whole, **rest)
    if form == "slices":
        return Document(name, slices=pieces, **rest)
    parts = (Module("encoder", whole), Module("decoder", (), pieces, draw(parameters(name, False))))
    return Document(name, modules=parts, **rest)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(documents())
def test_what_is_written_reads_back_as_the_same(document: Document) -> None:
    recipes = RecipeFile((document,))
    text = to_yaml(recipes)
    assert parse_recipe(text) == recipes
    assert to_yaml(parse_recipe(text)) == text


def test_several_documents_are_written() -> None:
    text = (
        "name: middle\nmerge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight: 1.0\n"
        "---\nmerge_method: passthrough\nmodels:\n- model: middle\n"
    )
    assert to_yaml(parse_recipe(text)) == text


def test_gradients_and_rules_are_written_as_people_do() -> None:
    text = """\
merge_method: slerp
base_model: a
models:
- model: b@v1+c
parameters:
  t:
  - filter: mlp
    value: [0, 1e-1]
  - value: 0.5
"""
    found = yaml.safe_load(to_yaml(parse_recipe(text)))
    assert found["parameters"] == {"t": [{"filter": "mlp", "value": [0.0, 0.1]}, {"value": 0.5}]}
    assert found["models"] == [{"model": "b@v1+c"}]


def test_tokens_are_written() -> None:
    text = """\
merge_method: linear
models: [{model: a, parameters: {weight: 1}}]
tokenizer:
  source: a
  tokens:
    x: {source: {kind: model_token, model: a, token_id: 0}, force: true}
    y: {source: {kind: model_token, model: a, token: z}}
    z: {source: a}
    w: {source: {kind: zero}}
    v: {}
"""
    recipes = parse_recipe(text)
    assert parse_recipe(to_yaml(recipes)) == recipes
    assert yaml.safe_load(to_yaml(recipes))["tokenizer"] == yaml.safe_load(text)["tokenizer"]
