"""Resolving combinations of task vectors against headers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from taskbasis.errors import MismatchError, ValueProblem
from taskbasis.io.storing import AS_IT_IS, Storing
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.methods.base import Method
from taskbasis.plan.cutting import Plan
from taskbasis.plan.tensors import Companion, Merge
from taskbasis.recipe import Combination, Leaf, Learnt, excluded_names, shape_check


def make_plan(
    combinations: Sequence[Combination],
    add_to: TensorStore | None,
    origin: TensorStore | None,
    storing: Storing = AS_IT_IS,
    scores: Sequence[Learnt] = (),
    moments: Sequence[Learnt] = (),
    watch: TensorStore | None = None,
    method: Method | None = None,
    weights: tuple[float, ...] = (),
    names: tuple[str, ...] = (),
) -> Plan:
    """Resolve combinations against headers.

    Args:
        combinations: the T task vectors, each multiplied by its weight.
        add_to: the weights that the result is added to; None when the result is a delta.
        origin: the base that differences are taken from; None when there are none.
        storing: what weights are stored in; float tensors of another dtype that no vector touches
            are converted, not copied.
        scores, moments: one per vector, or none.
        watch: the base whose unchanged tensors stages see; ``add_to`` by default.
        method: what decides what is never cut, whether float64 is computed in, and whether the
            base is looked at.
        weights, names: of the vectors, for the method.

    Raises:
        MismatchError: a vector holds a tensor that the base lacks, or shapes differ.
        ValueProblem: there is nothing to combine.
    """
    if not combinations and add_to is None:
        raise ValueProblem("there is no task vector to work on")
    scores, moments = (
        [learnt.of(comb) for learnt, comb in zip(parts, combinations, strict=bool(parts))]
        for parts in (scores, moments)
    )
    leaves = _leaves(combinations)
    tensors = sorted({name for leaf in leaves for name in leaf.infos})
    merges = [
        replace(
            _merge(name, combinations, leaves, add_to, origin),
            scores=_scores(name, combinations, scores),
            moments=tuple(_companion(learnt, name) for learnt in moments),
        )
        for name in tensors
    ]
    kept = [merge for merge in merges if merge.rows]
    merged = {merge.name for merge in kept}
    rest = [] if add_to is None else [i for n, i in add_to.items() if n not in merged]
    moving, copies = method is not None and not method.keeps_base, []
    for info in rest:
        moved = moving and info.dtype.mergeable and info.name not in excluded_names(leaves)
        if moved or storing.of(info.name, info.dtype) != info.dtype:
            kept.append(_of_base_alone(info, len(combinations), moved))
        else:
            copies.append(info)
    watched = _watched(merged, scores, leaves, watch if watch is not None else add_to)
    if method is not None and method.base != "ignored":
        watched = tuple(_with_base(merge, add_to) for merge in watched)
    plan = Plan(tuple(kept), tuple(copies), tuple(combinations), watched, "element", weights, names)
    return plan if method is None else plan.under(method)


def _with_base(merge: Merge, base: TensorStore | None) -> Merge:
    return merge if base is None else replace(merge, base=base[merge.name])


def _companion(learnt: Learnt, name: str) -> Companion | None:
    if name not in learnt.infos:
        return None
    return Companion(learnt.infos[name], learnt.numbers[name], name in learnt.transposed)


def _scores(
    name: str, combinations: Sequence[Combination], scores: Sequence[Learnt]
) -> tuple[Companion | None, ...]:
    """The scores of a tensor, one per vector; a vector that changes it must have them."""
    for combination, learnt in zip(combinations, scores, strict=bool(scores)):
        changes = [term.leaf for term in combination.terms if name in term.leaf.infos]
        if changes and name not in learnt.infos:
            raise MismatchError(
                f"{learnt.label} holds no scores of tensor {name!r}, which {changes[0].label} "
                "may change; score it too, or leave it out of the vector with --exclude"
            )
        holders = [leaf.infos[name] for leaf in _leaves(combinations) if name in leaf.infos]
        if name in learnt.infos:  # also of a vector that does not change it: both are cut alike
            shape_check(learnt.infos[name], holders[0])
    return tuple(_companion(learnt, name) for learnt in scores)


def _watched(
    merged: set[str], scores: Sequence[Learnt], leaves: Sequence[Leaf], base: TensorStore | None
) -> tuple[Merge, ...]:
    """Tensors that no vector changes: those that have scores, or without scores the base's floats.

    What is known of the whole model must depend neither on whether unchanged tensors were stored
    nor on the output's dtype.
    """
    excluded = excluded_names(leaves)
    if scores:
        names = {name for learnt in scores for name in learnt.infos}
        known = base if base is not None else {n for leaf in leaves for n in leaf.base.digests}
        names &= set(known)
    else:
        floats = base.values() if base is not None else ()
        names = {info.name for info in floats if info.dtype.mergeable}
    found = []
    for name in sorted(names - merged - excluded):
        companions = tuple(_companion(learnt, name) for learnt in scores)
        shapes = {c.info.shape for c in companions if c is not None}
        shapes |= {base[name].shape} if base is not None else set()
        if len(shapes) == 1:  # others are heads of their own, which no vector can change
            empty = np.zeros((max(len(scores), 1), 0))
            found.append(Merge(name, shapes.pop(), None, (), (), empty, scores=companions))
    return tuple(found)


def _of_base_alone(info: TensorInfo, count: int, moved: bool) -> Merge:
    """A tensor that no vector changes: converted, or moved by a method that scales the base."""
    return Merge(info.name, info.shape, info, (), (), np.zeros((count, 0)), moved=moved)


def _leaves(combinations: Iterable[Combination]) -> list[Leaf]:
    found = {id(leaf): leaf for comb in combinations for leaf in comb.leaves}
    return list(found.values())


def _merge(
    name: str,
    combinations: Sequence[Combination],
    leaves: Sequence[Leaf],
    add_to: TensorStore | None,
    origin: TensorStore | None,
) -> Merge:
    values = [combination.coefficients(name) for combination in combinations]
    nonzero = {key for row in values for key, value in row.items() if value != 0.0}
    used = [leaf for leaf in leaves if name in leaf.infos and id(leaf) in nonzero]
    holders = used or [leaf for leaf in leaves if name in leaf.infos]
    shape = holders[0].infos[name].shape
    for leaf in holders[1:]:
        shape_check(leaf.infos[name], holders[0].infos[name])
    base = _base_tensor(name, holders[0], add_to, origin, any(leaf.difference for leaf in used))
    place = {id(leaf): r for r, leaf in enumerate(used)}
    mixing = np.zeros((len(combinations), len(used)))
    for t, row in enumerate(values):
        for key in row.keys() & place.keys():
            mixing[t, place[key]] = row[key]
    return Merge(
        name,
        shape,
        base,
        tuple(leaf.infos[name] for leaf in used),
        tuple(leaf.difference for leaf in used),
        mixing,
        tuple(leaf.masks.get(name, ()) for leaf in used),
    )


def _base_tensor(
    name: str, leaf: Leaf, add_to: TensorStore | None, origin: TensorStore | None, subtract: bool
) -> TensorInfo | None:
    store = add_to if add_to is not None else (origin if subtract else None)
    if store is None:
        return None
    if name not in store:
        raise MismatchError(
            f"{leaf.infos[name].where} has no counterpart in the base {store.path}; "
            "was the vector taken from another architecture?"
        )
    shape_check(leaf.infos[name], store[name])
    if not store[name].dtype.mergeable:
        raise MismatchError(
            f"{store[name].where} holds {store[name].dtype.name}, which nothing is added to, but "
            f"{leaf.label} has a delta for it"
        )
    return store[name]
