"""What a recipe wants of every tensor of the output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskbasis.errors import MismatchError, Problems, UsageError
from taskbasis.recipes.groups import Group, groups
from taskbasis.recipes.layers import (
    Tower,
    assign_modules,
    comes_first,
    find_place,
    find_towers,
    only_tower,
)
from taskbasis.recipes.resolving import look_up
from taskbasis.recipes.schema import Document, ModelRef, Module, Settings, Source, Value
from taskbasis.recipes.theirs import THEIRS, Parameter

_Want = Callable[[Group, str, list[str], int | None, int], "Wanted"]

Names = Mapping[ModelRef, Collection[str]]
"""The names of every model's tensors."""


@dataclass(frozen=True)
class Input:
    """A tensor that goes into a merge, and the values of its own that parameters have for it."""

    model: ModelRef
    tensor: str
    values: Mapping[str, Value | None]


@dataclass(frozen=True)
class Wanted:
    """One tensor of the output, in mergekit's words.

    Attributes:
        method: mergekit's name.
        inputs: in the recipe's order, the base model's among them.
        base: the base model; None where there is none.
        shared: the values of parameters that all inputs share.
    """

    method: str
    inputs: tuple[Input, ...]
    base: ModelRef | None
    shared: Mapping[str, Value | None]


def plan(document: Document, names: Names) -> dict[str, Wanted]:
    """What is wanted of each tensor of the output, by its name there.

    - ``models``: the output has the tensors of the base model, or of the first model where there
      is none. A layer's place in its own tower decides on gradients.
    - ``slices``: layers are numbered from 0 in the order of the slices, and a gradient runs over
      each slice. Embeddings come from the first slice's models and everything else outside the
      layers from the last's, at the beginning of its gradients.
    - ``modules``: either of these, for the tensors of each module.

    Filters look at the output's name for shared parameters, and at a model's own name for its.

    Args:
        names: of the tensors of all models that the recipe names.

    Raises:
        UsageError: layers that a model does not have, towers that the recipe does not tell apart,
            or no rule that gives a required value for a tensor.
        MismatchError: a model lacks a tensor that another of its slice has.
        SeveralErrors: several models or parameters are like that.
    """
    parts = document.parts()
    missing: dict[tuple[str, ModelRef | None], UsageError] = {}
    want = partial(_wanted, document, missing)
    found: dict[str, Wanted] = {}
    of_part: dict[str, list[Group]] = {part.name: [] for part in parts}
    for group in groups(document):
        of_part[group.module.name].append(group)
    for part in parts:
        inside = _names_of(part, document, names, of_part)
        pieces = of_part[part.name]
        wanted = _whole(want, pieces[0], inside) if part.models else _sliced(want, pieces, inside)
        found.update(wanted)
    problems = Problems()
    for error in missing.values():
        with problems:
            raise error
    problems.check()
    return found


def _names_of(
    part: Module, document: Document, names: Names, of_part: Mapping[str, list[Group]]
) -> Names:
    """The names that belong to a module, of the models that it is merged from."""
    modules = [module.name for module in document.modules]
    sources = (source for group in of_part[part.name] for source in group.sources)
    refs = dict.fromkeys(source.model for source in sources)
    found = {}
    for ref in refs:
        if ref not in names:
            raise UsageError(f"the tensors of {ref} are not known")
        owners = assign_modules(names[ref], modules) if modules else {}
        found[ref] = [name for name in names[ref] if not modules or owners[name] == part.name]
    return found


def _whole(want: _Want, group: Group, names: Names) -> Iterator[tuple[str, Wanted]]:
    models = [source.model for source in group.sources]
    leader = group.base if group.base in models else models[0]
    assert leader is not None
    own = list(names[leader])
    towers = find_towers(own)
    if not towers and _has_gradient(group):
        raise UsageError(
            f"{leader} has no repeated layers that could be told from the names of its tensors, "
            "so there is nothing for a gradient to run over; give one value"
        )
    problems = Problems()
    for ref in models:
        with problems:
            _check_alike(ref, leader, names)
    problems.check()
    for name in own:
        at = find_place(name, towers)
        layer, layers = (at.layer, at.tower.layers) if at else (None, 0)
        yield name, want(group, name, [name] * len(models), layer, layers)


def _check_alike(ref: ModelRef, leader: ModelRef, names: Names) -> None:
    """Refuse a model of another depth, or one that lacks a tensor of the leader's."""
    ours, theirs = (
        {tower.prefix: tower.layers for tower in find_towers(names[one])} for one in (leader, ref)
    )
    for prefix in sorted(ours.keys() & theirs.keys()):
        if ours[prefix] != theirs[prefix]:
            raise MismatchError(
                f"{leader} has {ours[prefix]} layers {prefix}*, but {ref} has {theirs[prefix]}; "
                "choose equally many of each with slices"
            )
    missing = [name for name in names[leader] if name not in set(names[ref])]
    if missing:
        tied = " (is it tied to the embeddings? save it untied)" if "head" in missing[0] else ""
        raise MismatchError(
            f"{ref} lacks {len(missing)} tensors of {leader}, such as {missing[0]!r}{tied}"
        )


def _has_gradient(group: Group) -> bool:
    scopes = [*group.scopes, *(source.parameters for source in group.sources)]
    rules = (rule for scope in scopes for setting in scope.values() for rule in setting)
    return any(len(rule.values) > 1 for rule in rules)


@dataclass(frozen=True)
class _Layered:
    """A model that can be cut into layers.

    Attributes:
        rests: for each layer the names of its tensors within it.
        outside: the names of all other tensors.
        names: all of them.
    """

    tower: Tower
    rests: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]
    names: frozenset[str]


def _layered(ref: ModelRef, names: Collection[str]) -> _Layered:
    tower = only_tower(names, str(ref))
    rests: list[list[str]] = [[] for _ in range(tower.layers)]
    outside = []
    for name in names:
        place = find_place(name, [tower])
        if place is None:
            outside.append(name)
        else:
            rests[place.layer].append(place.rest)
    return _Layered(tower, tuple(map(tuple, rests)), tuple(outside), frozenset(names))


def _sliced(want: _Want, pieces: list[Group], names: Names) -> Iterator[tuple[str, Wanted]]:
    models = {ref: _layered(ref, own) for ref, own in names.items()}
    for group in pieces:
        for source in group.sources:
            _check_range(source, models[source.model].tower)
    out = models[pieces[0].sources[0].model].tower
    yield from _outside(want, pieces[0], models, first=True)
    known = {frozenset(rests) for rests in models[pieces[0].sources[0].model].rests}
    number = 0
    for group in pieces:
        leader = group.sources[0]
        for step in range(group.layers or 0):
            own = frozenset(models[leader.model].rests[_first(leader) + step])
            if own not in known:
                raise MismatchError(
                    f"layer {_first(leader) + step} of {leader.model} has other tensors than any "
                    f"layer of {pieces[0].sources[0].model}; layers of two architectures make no "
                    "model"
                )
            for rest in models[leader.model].rests[_first(leader) + step]:
                inputs = [
                    models[source.model].tower.name(_first(source) + step, rest)
                    for source in group.sources
                ]
                name = out.name(number, rest)
                _check_held(name, inputs, group, models)
                yield name, want(group, name, inputs, step, group.layers or 0)
            number += 1
    yield from _outside(want, pieces[-1], models, first=False)


def _outside(
    want: _Want, group: Group, models: Mapping[ModelRef, _Layered], first: bool
) -> Iterator[tuple[str, Wanted]]:
    """The tensors before the layers, or after them."""
    for name in models[group.sources[0].model].outside:
        if comes_first(name) == first:
            inputs = [name] * len(group.sources)
            _check_held(name, inputs, group, models)
            yield name, want(group, name, inputs, None, 0)


def _first(source: Source) -> int:
    return source.layers[0] if source.layers else 0


def _check_range(source: Source, tower: Tower) -> None:
    if source.layers is not None and source.layers[1] > tower.layers:
        raise UsageError(
            f"line {source.mark.line}: {source.model} has {tower.layers} layers, numbered from 0; "
            f"layer_range {list(source.layers)} goes beyond"
        )


def _check_held(
    name: str, inputs: list[str], group: Group, models: Mapping[ModelRef, _Layered]
) -> None:
    for source, own in zip(group.sources, inputs, strict=True):
        if own not in models[source.model].names:
            raise MismatchError(
                f"{source.model} has no tensor {own!r}, which tensor {name!r} of the output is "
                f"merged from; {group.sources[0].model} has {inputs[0]!r}"
            )


def _wanted(
    document: Document,
    missing: dict[tuple[str, ModelRef | None], UsageError],
    group: Group,
    name: str,
    inputs: list[str],
    layer: int | None,
    layers: int,
) -> Wanted:
    """What is wanted of one tensor; the first tensor that a parameter is missing for is noted."""
    method = THEIRS[document.merge_method]

    def value_of(parameter: Parameter, scopes: tuple[Settings, ...], *at: Any) -> Value | None:
        try:
            return look_up(parameter, scopes, *at)
        except UsageError as error:
            missing.setdefault((parameter.name, at[3] if len(at) > 3 else None), error)
            return None

    shared = {
        parameter.name: value_of(parameter, group.scopes, name, layer, layers)
        for parameter in method.parameters.values()
        if not parameter.each
    }
    found = []
    for source, own in zip(group.sources, inputs, strict=True):
        scopes: tuple[Settings, ...] = (source.parameters, *group.scopes)
        values = {
            parameter.name: value_of(parameter, scopes, own, layer, layers, source.model)
            for parameter in method.parameters.values()
            if method.has_own(parameter, group.is_base(source))
        }
        found.append(Input(source.model, own, values))
    return Wanted(method.name, tuple(found), group.base, shared)
