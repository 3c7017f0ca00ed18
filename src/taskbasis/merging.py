"""Merging task vectors onto a base: what people call, in one function each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from taskbasis.errors import UsageError
from taskbasis.methods import Method
from taskbasis.methods.registry import as_method
from taskbasis.scores import Importance, Moments
from taskbasis.vectors import Checkpoint, EditedModel, TaskVector, as_checkpoint

T = TypeVar("T")


def by_name(vectors: Mapping[str, T] | Iterable[T]) -> dict[str, T]:
    """Vectors, or whatever stands for them, by name; without names by their numbers.

    >>> by_name(["x", "y"])
    {'0': 'x', '1': 'y'}
    """
    if isinstance(vectors, Mapping):
        return dict(vectors)
    return {str(number): vector for number, vector in enumerate(vectors)}


def merge(
    base: str | Path | Checkpoint,
    vectors: Iterable[TaskVector] | Mapping[str, TaskVector],
    method: str | Method = "task_arithmetic",
    scale: float = 1.0,
    scores: Iterable[Importance] = (),
    moments: Iterable[Moments] = (),
    onto: str | Path | Checkpoint | None = None,
    weights: Sequence[float] = (),
) -> EditedModel:
    """The weights ``base + scale * method(weights * vectors)``, not computed yet.

    Args:
        base: the weights that are added to.
        vectors: the T task vectors, by name or in order. Methods that draw at random do so by
            the names, so that their order does not matter; without names by their numbers.
        method: how they are merged, also as ``NAME`` or ``NAME:OPTION=VALUE,...``; the sum unless
            said otherwise.
        scale: lambda.
        scores, moments: what was learnt of each vector's task, in the order of the vectors, for
            methods that take it.
        onto: the weights that are added to instead: a model that was merged on the base.
        weights: one per vector, of either sign, for methods that weigh them; a weight of -1
            subtracts.

    Raises:
        UsageError: there are not as many weights as vectors, or one is 0; no method is called so.

    >>> folder = getfixture("tiny_checkpoints")
    >>> vectors = [TaskVector(folder / "base", folder / name) for name in ("math", "code")]
    >>> merge(folder / "base", vectors, "average").tensors()["bias"]
    array([1. , 1.5], dtype=float32)
    """
    names = tuple(vectors) if isinstance(vectors, Mapping) else ()
    return EditedModel(
        as_checkpoint(base),
        tuple(vectors.values() if isinstance(vectors, Mapping) else vectors),
        as_method(method),
        scale,
        tuple(scores),
        tuple(moments),
        as_checkpoint(onto) if onto is not None else None,
        tuple(map(float, weights)),
        names,
    )


def analogy(plus: Iterable[TaskVector], minus: TaskVector) -> TaskVector:
    """C + (B - A): the sum of ``plus`` less ``minus``, for a fourth task nobody trained.

    Source: Ilharco et al., ICLR 2023.

    Raises:
        UsageError: there is nothing to add. BaseError: the vectors are of several bases.

    >>> folder = getfixture("tiny_checkpoints")
    >>> math, code = (TaskVector(folder / "base", folder / name) for name in ("math", "code"))
    >>> analogy([math, code], minus=math).apply_to(folder / "base").tensors()["bias"]
    array([1., 2.], dtype=float32)
    """
    vectors = list(plus)
    if not vectors:
        raise UsageError("an analogy needs at least one vector to add")
    return sum(vectors[1:], vectors[0]) - minus
