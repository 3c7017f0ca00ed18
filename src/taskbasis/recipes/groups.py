"""Which models meet in a merge, and where their parameters are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taskbasis.recipes.problems import Findings, Mark
from taskbasis.recipes.schema import (
    Document,
    ModelRef,
    Module,
    Settings,
    Source,
)
from taskbasis.recipes.theirs import THEIRS, Theirs


@dataclass(frozen=True)
class Group:
    """The models that are merged together: all of a model, or a slice of its layers.

    Attributes:
        module: the module it belongs to.
        sources: in the recipe's order; where ``models`` are given, a base model that is not among
            them comes last.
        base: the base model; None where there is none.
        scopes: settings, the closest first: of the slice, the module and the document.
        layers: how many layers a slice has; None where it is all.
    """

    module: Module
    sources: tuple[Source, ...]
    base: ModelRef | None
    scopes: tuple[Settings, ...]
    layers: int | None
    mark: Mark
    sound: bool = True

    def is_base(self, source: Source) -> bool:
        return source.model == self.base


def groups(document: Document) -> Iterator[Group]:
    """The groups of a document, in order: one for each module or slice."""
    for part in document.parts():
        if part.models:
            sources, base = part.models, document.base_model
            if base is not None and base not in [source.model for source in sources]:
                sources += (Source(base, mark=document.mark),)
            outer = (part.parameters, document.parameters)
            yield Group(part, sources, base, outer, None, part.mark)
        for piece in part.slices:
            base = piece.base_model or document.base_model
            scopes = (piece.parameters, part.parameters, document.parameters)
            ranges = [source.layers for source in piece.sources if source.layers]
            count = ranges[0][1] - ranges[0][0] if ranges else 0
            yield Group(part, piece.sources, base, scopes, count, piece.mark, piece.sound)


def check_document(document: Document, findings: Findings) -> None:
    """Note what the method needs and the recipe does not give, and what has no effect."""
    method = THEIRS.get(document.merge_method)
    if method is not None:
        for group in groups(document):
            if group.sound and group.sources:
                _check_inputs(method, group, findings)
                _check_parameters(method, group, document, findings)
    _check_tokenizer(document, findings)


def _check_inputs(method: Theirs, group: Group, findings: Findings) -> None:
    models = [source.model for source in group.sources]
    for place, source in enumerate(group.sources):
        if source.model in models[:place]:
            findings.wrong(source.mark, f"{source.model} stands twice in one merge; name it once")
    name = method.name
    given = group.base is not None
    if method.base == "required" and not given:
        findings.wrong(group.mark, f"{name} needs base_model: the model that the others start from")
        return
    if given and method.base != "ignored" and group.base not in models:
        findings.wrong(
            group.mark, f"{name} needs layers of the base model {group.base} among the sources, too"
        )
        return
    count = len(group.sources)
    beside = count - (given and method.base != "ignored")
    if not _within(count, method.inputs):
        if name == "passthrough" and given and group.layers is None:
            what = f"base_model {group.base} would be one more; remove it"
        else:
            what = "the base model counts" if given else "there is no base model"
        wanted = _count_text(method.inputs, "model")
        findings.wrong(group.mark, f"{name} takes {wanted}, not {count}; {what}")
    elif not _within(beside, method.others):
        wanted = _count_text(method.others, "model")
        findings.wrong(group.mark, f"{name} takes {wanted} beside the base model, not {beside}")


def _within(count: int, limits: tuple[int, int | None]) -> bool:
    return limits[0] <= count and (limits[1] is None or count <= limits[1])


def _count_text(limits: tuple[int, int | None], what: str) -> str:
    least, most = limits
    several = what if least == 1 else f"{what}s"
    return f"{least} {several}" if least == most else f"at least {least} {several}"


def _check_parameters(method: Theirs, group: Group, document: Document, findings: Findings) -> None:
    for source in group.sources:
        is_base = group.is_base(source)
        for name, rules in source.parameters.items():
            parameter = method.parameters[name]
            if not parameter.each:
                findings.note(
                    source.mark,
                    f"{name} under one model has no effect; it belongs to the parameters of all",
                )
            elif not method.has_own(parameter, is_base) and rules:
                findings.note(
                    source.mark,
                    f"{name} of the base model {source.model} has no effect in {method.name}",
                )
        if not source.sound or not document.sound:
            continue
        for parameter in method.parameters.values():
            scopes = (source.parameters, *group.scopes)
            if not parameter.required or any(parameter.name in scope for scope in scopes):
                continue
            if method.has_own(parameter, is_base):
                added = "" if source.mark != document.mark else ", which is one of its models"
                findings.wrong(
                    source.mark, f"{method.name} needs a {parameter.name} for {source.model}{added}"
                )
    for parameter in method.parameters.values():
        missing = not any(parameter.name in scope for scope in group.scopes)
        if parameter.required and not parameter.each and missing and document.sound:
            findings.wrong(group.mark, f"{method.name} needs the parameter {parameter.name}")


def _check_tokenizer(document: Document, findings: Findings) -> None:
    tokenizer = document.tokenizer
    if tokenizer is None:
        return
    if tokenizer.source == "base" and document.base_model is None:
        findings.wrong(
            document.mark, "the tokenizer is to be the base's, but there is no base_model"
        )
    merged = {document.base_model, *(source.model for source in document.sources())}
    for token, rule in tokenizer.tokens.items():
        model = rule.source.model if rule.source is not None else None
        if model is not None and model not in merged:
            findings.wrong(
                document.mark, f"token {token!r} is to come from {model}, which is not merged here"
            )
