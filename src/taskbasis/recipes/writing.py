"""Recipes as YAML again, which reads back as the same."""

from __future__ import annotations

from typing import Any

import yaml

from taskbasis.recipes.schema import (
    Document,
    Location,
    ModelRef,
    Module,
    RecipeFile,
    Settings,
    Slice,
    Source,
    Tokenizer,
    TokenRule,
    TokenSource,
)


class _Dumper(yaml.SafeDumper):
    """Never aliases: what stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(recipes: RecipeFile) -> str:
    """The text of a file of recipes; mergekit reads it, too.

    >>> from taskbasis.recipes import parse_recipe
    >>> print(to_yaml(parse_recipe("models: [{model: a@v1+b}]\\nmerge_method: passthrough")))
    merge_method: passthrough
    models:
    - model: a@v1+b
    """
    documents = [_document(document) for document in recipes.documents]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _document(document: Document) -> dict[str, Any]:
    tokenizer = document.tokenizer
    return _given(
        name=document.name,
        merge_method=document.merge_method,
        base_model=_ref(document.base_model),
        models=[_source(source) for source in document.models],
        slices=[_slice(piece) for piece in document.slices],
        modules={module.name: _module(module) for module in document.modules},
        parameters=_settings(document.parameters),
        dtype=document.dtype,
        out_dtype=document.out_dtype,
        chat_template=document.chat_template,
    ) | ({} if tokenizer is None else {"tokenizer": _tokenizer(tokenizer)})


def _given(**fields: Any) -> dict[str, Any]:
    """Without what is empty."""
    return {key: value for key, value in fields.items() if value not in (None, [], {})}


def _ref(ref: ModelRef | None) -> Any:
    """A text where that reads back as the same, else a mapping."""
    if ref is None:
        return None
    places = [place for place in (ref.model, ref.lora) if place is not None]
    plain = not any(sign in part for place in places for part in _parts(place) for sign in "@+")
    if plain and ref.override_architecture is None:
        return str(ref)
    return _given(
        model=_location(ref.model),
        lora=_location(ref.lora),
        override_architecture=ref.override_architecture,
    )


def _parts(place: Location) -> list[str]:
    return [place.path, place.revision or ""]


def _location(place: Location | None) -> Any:
    return None if place is None else _given(path=place.path, revision=place.revision)


def _settings(settings: Settings) -> dict[str, Any]:
    found = {}
    for name, rules in settings.items():
        values: list[Any] = [
            list(rule.values) if len(rule.values) > 1 else rule.values[0] for rule in rules
        ]
        if len(rules) == 1 and rules[0].filter is None:
            found[name] = values[0]
            continue
        found[name] = [
            {"value": value} if rule.filter is None else {"filter": rule.filter, "value": value}
            for rule, value in zip(rules, values, strict=True)
        ]
    return found


def _source(source: Source) -> dict[str, Any]:
    layers = None if source.layers is None else list(source.layers)
    return _given(
        model=_ref(source.model), layer_range=layers, parameters=_settings(source.parameters)
    )


def _slice(piece: Slice) -> dict[str, Any]:
    return _given(
        sources=[_source(source) for source in piece.sources],
        base_model=_ref(piece.base_model),
        parameters=_settings(piece.parameters),
    )


def _module(module: Module) -> dict[str, Any]:
    return _given(
        models=[_source(source) for source in module.models],
        slices=[_slice(piece) for piece in module.slices],
        parameters=_settings(module.parameters),
    )


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    source = tokenizer.source
    tokens = {token: _token(rule) for token, rule in tokenizer.tokens.items()}
    return _given(
        source=_ref(source) if isinstance(source, ModelRef) else source,
        tokens=tokens,
        pad_to_multiple_of=tokenizer.pad_to_multiple_of,
    )


def _token(rule: TokenRule) -> dict[str, Any]:
    source = None if rule.source is None else _token_source(rule.source)
    return _given(source=source) | ({"force": True} if rule.force else {})


def _token_source(source: TokenSource) -> Any:
    if source.model is None:
        return {"kind": "zero"}
    if source.token is None and source.token_id is None:
        return _ref(source.model)
    return _given(
        kind="model_token",
        model=_ref(source.model),
        token=source.token,
        token_id=source.token_id,
    )
