"""Diagnosing task vectors: two passes, then arithmetic on their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from taskbasis.basis.disentangling import disentangle
from taskbasis.binding import check_bindings
from taskbasis.blas import one_thread
from taskbasis.diagnosis.origin import origins
from taskbasis.diagnosis.parts import conflicts, cosines, part
from taskbasis.diagnosis.ranks import ranks as effective_ranks
from taskbasis.diagnosis.records import Diagnosis, Pairs, Shared
from taskbasis.diagnosis.rounding import TARGET, Rounding, rounding
from taskbasis.diagnosis.sentences import sentences
from taskbasis.diagnosis.sums import Matrix, Sums, sums_by_tensor
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, ValueProblem, finite
from taskbasis.granularity import group_tensors
from taskbasis.io.dtypes import DType, floating
from taskbasis.io.tensors import TensorStore
from taskbasis.merging import by_name
from taskbasis.plan import Plan, make_plan
from taskbasis.recipe import Binding, Combination
from taskbasis.vectors import Checkpoint, TaskVector

MATRICES = 8
"""How many matrices effective ranks are found of, unless said otherwise."""


@one_thread()
def diagnose(
    vectors: Mapping[str, TaskVector] | Sequence[TaskVector],
    base: Checkpoint | None = None,
    *,
    dtype: str | None = None,
    scale: float = 1.0,
    ranks: int | None = MATRICES,
    target: float = TARGET,
    engine: Engine | None = None,
) -> Diagnosis:
    """What T task vectors look like, alone, together, beside their base, and after rounding.

    Every cut of the vectors and the base is read once for sums in float64 (products in float32
    within blocks of 2,048 entries), and the largest matrices once more for their singular
    values. Numbers depend neither on the number of workers nor on how checkpoints are sharded.

    - What vectors leave unchanged is not part of any number: norms of the base are over the
      tensors that some vector changes.
    - Whether a vector was taken from this base is judged by matrices alone, where there are any:
      the weights of norms are near 1 in every model, so they resemble each other in all of them.
    - Rounding is that of ``base + scale * sum of the vectors`` as it would be saved.
    - Pitfall: a base of the same family (an earlier or a later checkpoint) cannot be told from
      the right one by one vector; several vectors then share what lies between the two bases.

    Args:
        vectors: by name, or in order; they are then called by their numbers.
        base: what they were taken from; by default the one they are differences to. Stored
            vectors without a base have no relative norms, no test of it and no rounding.
        dtype: what the merged model would be stored in; by default as the base.
        scale: lambda.
        ranks: of how many matrices the effective rank is found, the largest first; all for None.
        target: the share of the update's norm that may be lost before float32 is advised.
        engine: how the work is done.

    Raises:
        BaseError: a vector is bound to another base. UsageError: an option means nothing, or a
            dtype is asked for without a base. ValueProblem: there is no vector, or a value is
            not finite.

    >>> folder = getfixture("tiny_checkpoints")
    >>> base = Checkpoint(folder / "base")
    >>> found = diagnose({n: TaskVector(base, folder / n) for n in ("math", "code")}, base)
    >>> found.names, found.whole.norms[0] > 0, found.origins[0].suspicious
    (('math', 'code'), True, False)
    """
    named = by_name(vectors)
    asked = floating(dtype) if dtype is not None else None
    _check(named, scale, ranks, target)
    engine = engine or Engine()
    combinations = [vector.combination for vector in named.values()]
    store = _base(combinations, base, engine)
    if store is None and asked is not None:
        raise UsageError(
            f"what rounding to {asked.name} leaves cannot be told without the base; give it, too"
        )
    plan = make_plan(combinations, store, store)
    sums = sums_by_tensor(plan, scale, asked, engine)
    layers = group_tensors(sums, "layer")
    of_layers = {
        layer: _total([sums[t] for t in tensors], named) for layer, tensors in layers.items()
    }
    whole = _total(list(sums.values()), named)
    known = store is not None
    found = Diagnosis(
        tuple(named),
        str(store.path) if store is not None else None,
        part("model", whole, known),
        tuple(part(layer, total, known) for layer, total in of_layers.items()),
        tuple(part(tensor, total, known) for tensor, total in sums.items()),
        Pairs(cosines(whole), *conflicts(whole)),
        shared(whole.gram[:-1, :-1]) if len(named) > 1 else None,
        effective_ranks(plan, ranks, engine),
        origins(tuple(named), _judged(plan, sums, layers)) if known else (),
        _rounding(plan, sums, layers, asked, scale, target) if known else None,
    )
    return replace(found, sentences=sentences(found))


def _check(named: Mapping[str, TaskVector], scale: float, ranks: int | None, target: float) -> None:
    if not named:
        raise ValueProblem("there is no task vector to diagnose; give at least one")
    finite("the scale", scale)
    if ranks is not None and ranks < 0:
        raise UsageError(f"{ranks} matrices cannot be looked at; use 0 or more")
    if not 0 <= target < 1:
        raise UsageError(f"a target of {target} means nothing; use a share from 0 to below 1")


def _base(
    combinations: Sequence[Combination], base: Checkpoint | None, engine: Engine
) -> TensorStore | None:
    """The base's tensors, where they are at hand; every vector must be bound to it."""
    leaves = [leaf for combination in combinations for leaf in combination.leaves]
    own = next((leaf.base for leaf in leaves if leaf.base.store is not None), None)
    given = Binding(str(base.path), base.store) if base is not None else own
    if given is not None:
        check_bindings(combinations, given, engine)
        return given.store
    check_bindings(combinations, leaves[0].base, engine) if leaves else None
    return None


def _total(parts: Sequence[Sums], named: Mapping[str, TaskVector]) -> Sums:
    return sum(parts, Sums.nothing(len(named)))


def _judged(
    plan: Plan, sums: Mapping[str, Sums], layers: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Sums]]:
    """Per layer the tensors that tell one base from another: matrices, or all without any."""
    matrices = {merge.name for merge in plan.merges if len(merge.shape) > 1}
    telling = {name for name in matrices if sums[name].gram[-1, -1] > 0} or set(sums)
    found = {
        layer: {name: sums[name] for name in tensors if name in telling}
        for layer, tensors in layers.items()
    }
    return {layer: tensors for layer, tensors in found.items() if tensors}


def _rounding(
    plan: Plan,
    sums: Mapping[str, Sums],
    layers: Mapping[str, Sequence[str]],
    asked: DType | None,
    scale: float,
    target: float,
) -> Rounding | None:
    dtypes = {m.name: asked or m.base.dtype for m in plan.merges if m.base is not None}
    others = [info.name for info in plan.copies if info.dtype.mergeable]
    return rounding(sums, dtypes, layers, others, asked, scale, target) if sums else None


def shared(gram: Matrix) -> Shared:
    """What T vectors have in common, from their inner products.

    For the numbers of disentanglement not to depend on how long the vectors are, they are first
    scaled to a mean squared norm of 1.

    >>> shared(np.ones((3, 3))).share, shared(np.eye(3)).share
    (1.0, 0.0)
    """
    count = len(gram)
    square = float(np.trace(gram)) / count
    if not square > 0:
        return Shared(0.0, 0.0, 0.0, 0.0, 0.0)
    mean = float(gram.sum()) / count / square
    found = disentangle(gram / square)
    return Shared(mean, (mean - 1) / (count - 1), found.before, found.after, found.share)
