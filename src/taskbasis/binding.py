"""Who belongs to whom: vectors to their base, scores and moments to their model."""

from __future__ import annotations

from collections.abc import Sequence

from taskbasis import stored
from taskbasis.engine import Engine
from taskbasis.errors import BaseError, MismatchError, UsageError, ValueProblem
from taskbasis.methods import Method
from taskbasis.recipe import Binding, Combination, Learnt


def check_bindings(combinations: Sequence[Combination], base: Binding, engine: Engine) -> None:
    """Refuse vectors that were taken from another base, reading the base only where needed.

    Raises:
        BaseError: naming the vector, both bases, and tensors that differ.
    """
    for combination in combinations:
        for leaf in combination.leaves:
            for bound in (leaf.base, *leaf.also):
                if bound.same_as(base):
                    continue
                theirs, ours = stored.bind(bound, engine), stored.bind(base, engine)
                if theirs.fingerprint != ours.fingerprint:
                    raise BaseError(_other_base(leaf.label, theirs, ours))


def _other_base(label: str, theirs: Binding, ours: Binding) -> str:
    names = sorted(theirs.digests.keys() | ours.digests.keys())
    unlike = [n for n in names if theirs.digests.get(n) != ours.digests.get(n)]
    detail = f"; {len(unlike)} tensors differ, e.g. {unlike[0]!r}" if unlike else ""
    return (
        f"{label} was taken from the base {theirs.name} ({theirs.fingerprint}), not from "
        f"{ours.name} ({ours.fingerprint}){detail}. Apply it to its own base"
    )


def check_learnt(
    method: Method,
    vectors: Sequence[Combination],
    scores: Sequence[Learnt],
    moments: Sequence[Learnt],
    engine: Engine,
) -> None:
    """Refuse scores and moments that a method does not take, or that are of other models.

    Raises:
        UsageError: the method takes none, needs them, or there is not one for every vector.
        MismatchError: they were learnt of another model than the vector was taken from.
    """
    for what, parts, need in (
        ("scores", scores, method.scores),
        ("moments", moments, method.moments),
    ):
        if parts and need == "ignored":
            raise UsageError(
                f"method {method.name!r} takes no {what}; leave them out, or use another"
            )
        if vectors and not parts and need == "required":
            raise UsageError(f"method {method.name!r} needs {what}, one file for every vector")
        if parts and len(parts) != len(vectors):
            raise UsageError(
                f"{len(vectors)} vectors need as many files of {what}, not {len(parts)}"
            )
        for vector, learnt in zip(vectors, parts, strict=bool(parts)):
            _check_model(vector, learnt, what, engine)


def _check_model(vector: Combination, learnt: Learnt, what: str, engine: Engine) -> None:
    for leaf in vector.leaves:
        if leaf.tuned is None or learnt.model is None or leaf.tuned.same_as(learnt.model):
            continue
        ours, theirs = stored.bind(leaf.tuned, engine), stored.bind(learnt.model, engine)
        if ours.fingerprint != theirs.fingerprint:
            raise MismatchError(
                f"the {what} {learnt.label} were learnt of the model {theirs.name} "
                f"({theirs.fingerprint}), but {leaf.label} was taken from {ours.name} "
                f"({ours.fingerprint}); give every vector the {what} of its own model"
            )


def check_count(method: Method, count: int) -> None:
    """Refuse a number of vectors that a method does not take.

    Raises:
        UsageError: naming both numbers.
    """
    least, most = method.takes
    if count and (count < least or (most is not None and count > most)):
        raise UsageError(f"method {method.name!r} takes {method.count_text()}, not {count}")


def common_base(combinations: Sequence[Combination], engine: Engine) -> Binding:
    """The one base all vectors are bound to, with its fingerprint.

    Raises:
        BaseError: the vectors are bound to several bases.
        ValueProblem: there is no vector.
    """
    leaves = [leaf for combination in combinations for leaf in combination.leaves]
    if not leaves:
        raise ValueProblem("an empty sum of task vectors has no base; add at least one vector")
    stores = [leaf.base for leaf in leaves if leaf.base.store is not None]
    base = stored.bind((stores or [leaves[0].base])[0], engine)
    check_bindings(combinations, base, engine)
    return base
