"""Building a basis in two streaming passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis import Codes, Construction, allocate, resolve_size, solve
from taskbasis.binding import common_base
from taskbasis.blas import one_thread
from taskbasis.difference import changed_only
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, ValueProblem
from taskbasis.granularity import group_tensors
from taskbasis.io.dtypes import floating
from taskbasis.io.writer import DEFAULT_SHARD, Staged
from taskbasis.library.basis import Basis
from taskbasis.library.clusters import merge_clusters, room_for_atoms
from taskbasis.library.design import Design, Size
from taskbasis.library.file import Contents, noise_leaf, save_basis, write_atoms
from taskbasis.library.groups import Group, group_grams, squared_losses
from taskbasis.passes import Linear, gram_by_tensor
from taskbasis.plan import Plan, make_plan
from taskbasis.recipe import Binding, Combination, Term
from taskbasis.vectors import TaskVector

Grams = dict[str, NDArray[np.float64]]


@one_thread()
def fit(
    vectors: Mapping[str, TaskVector],
    out: str | Path,
    design: Design | None = None,
    *,
    dtype: str = "float32",
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine | None = None,
) -> Basis:
    """Build a basis of task vectors and store it.

    Pass one sums the Gram matrix of every tensor; the codes are solved for in float64, T x T;
    pass two writes all atoms at once. Memory: a few cuts times T, whatever the model's size.

    Args:
        vectors: the tasks by name.
        out: a ``.safetensors`` file, or a folder of shards for any other name.
        design: how to make it.
        dtype: of the stored atoms.

    Returns:
        The basis, opened from where it was written.

    Raises:
        UsageError: an option means nothing. BaseError: the vectors have different bases.
        ValueProblem: a vector holds a value that is not finite, or there is none.

    >>> folder, out = getfixture("tiny_checkpoints"), getfixture("tmp_path")
    >>> vectors = {n: TaskVector(folder / "base", folder / n) for n in ("math", "code")}
    >>> library = fit(vectors, out / "lib.safetensors", Design(k=2, method="svd"))
    >>> library.names, max(library.errors.values()) < 1e-6
    (('math', 'code'), True)
    >>> library["code"].apply_to(folder / "base").tensors()["bias"].round(5)
    array([1., 2.], dtype=float32)
    """
    design, engine = design or Design(), engine or Engine()
    if not vectors:
        raise ValueProblem("a basis needs at least one task vector")
    kind, stored_as = design.construction(), floating(dtype)
    tasks = [without_unchanged(vector.combination, engine) for vector in vectors.values()]
    base = common_base(tasks, engine)
    plan = make_plan(tasks, None, base.store)
    shapes = {merge.name: merge.shape for merge in plan.merges}
    if not shapes:
        raise ValueProblem("all task vectors are zero: no tensor differs from the base")
    engine.within(plan.memory(_atoms_foreseen(design, len(tasks))))
    grams = gram_by_tensor(plan, engine)
    if kind.joint:
        plan, grams = _with_noise(tasks, design, shapes, base, engine)
    groups = _solve(grams, shapes, kind, design, len(tasks))
    if design.inner is not None:
        groups = room_for_atoms(groups, design.inner)
    contents = Contents(
        tuple(vectors),
        shapes,
        tuple(groups),
        base,
        design.described(),
        None if kind.joint else stored_as,
    )
    save_basis(
        contents,
        lambda staged: _atoms(plan, staged, contents, design, engine),
        out,
        shard_size=shard_size,
        replace_used=replace_used,
        inputs=[file for task in tasks for leaf in task.leaves for file in leaf.files],
        resume=engine.resume,
    )
    return Basis.open(out)


def _atoms(
    plan: Plan, staged: Staged, contents: Contents, design: Design, engine: Engine
) -> Sequence[Group]:
    """Write the atoms; the groups with what their rounding adds to the errors."""
    if design.inner is not None:
        return merge_clusters(plan, staged, contents, design.inner, engine)
    if contents.dtype is None:
        return contents.groups
    rounded = write_atoms(plan, staged, contents, Linear(_encoders(contents)), engine)
    return [
        replace(group, error=group.error + more)
        for group, more in zip(contents.groups, rounded, strict=True)
    ]


def without_unchanged(combination: Combination, engine: Engine) -> Combination:
    """The combination without tensors that equal the base's."""
    return Combination(
        tuple(replace(term, leaf=changed_only(term.leaf, engine)[0]) for term in combination.terms)
    )


def _with_noise(
    tasks: Sequence[Combination],
    design: Design,
    shapes: Mapping[str, tuple[int, ...]],
    base: Binding,
    engine: Engine,
) -> tuple[Plan, Grams]:
    """The plan and Gram matrices of the tasks followed by k seeded random vectors."""
    count = resolve_size(design.k, len(tasks)) if not _by_error(design.k) else len(tasks)
    noise = [noise_leaf(index, design.seed, shapes, base) for index in range(count)]
    plan = make_plan([*tasks, *(Combination((Term(leaf),)) for leaf in noise)], None, base.store)
    return plan, gram_by_tensor(plan, engine)


def _atoms_foreseen(design: Design, tasks: int) -> int:
    """How many atoms the last pass writes, as far as that is known before the first."""
    if _by_error(design.k) or design.construction().joint:
        return 0
    return resolve_size(design.k, tasks)


def _by_error(k: Size) -> bool:
    return isinstance(k, str) and k.strip().startswith("error=")


def _solve(
    grams: Grams,
    shapes: Mapping[str, tuple[int, ...]],
    kind: Construction,
    design: Design,
    tasks: int,
) -> list[Group]:
    """Codes for every group of tensors."""
    members = group_tensors(shapes, design.granularity)
    summed = group_grams(grams, members)
    sizes = _sizes(summed, members, shapes, kind, design, tasks)
    groups = []
    for (name, tensors), gram, size in zip(members.items(), summed, sizes, strict=True):
        codes, lost = solve_group(gram, kind, design, size, tasks)
        groups.append(Group(name, tuple(tensors), codes, gram, lost))
    return groups


def _sizes(
    summed: Sequence[NDArray[np.float64]],
    members: Mapping[str, Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
    kind: Construction,
    design: Design,
    tasks: int,
) -> list[int]:
    if design.budget == "even" or kind.joint:
        return [resolve_size(design.k, tasks, gram, kind, design.normalize) for gram in summed]
    if design.budget != "spectrum":
        raise UsageError(f"the budget {design.budget!r} is unknown; known: even, spectrum")
    params = [sum(math.prod(shapes[name]) for name in group) for group in members.values()]
    whole = np.sum(summed, axis=0)
    per_model = resolve_size(design.k, tasks, whole, kind, design.normalize)
    return allocate(summed, per_model * sum(params), [max(size, 1) for size in params])


def solve_group(
    gram: NDArray[np.float64], kind: Construction, design: Design, size: int, tasks: int
) -> tuple[Codes, NDArray[np.float64]]:
    """Codes of ``size`` atoms for one group, and [T] the squared norm each task then loses."""
    if size == 0:
        codes = Codes(np.zeros((len(gram), 0)), np.zeros((0, tasks)), np.zeros(0))
        return codes, np.diag(gram)[:tasks].copy()
    codes, _ = solve(gram, kind, size, design.normalize, tasks)
    return codes, squared_losses(gram, codes)


def _encoders(contents: Contents) -> Callable[[str], NDArray[np.float64]]:
    groups = contents.group_of()
    return lambda tensor: groups[tensor].codes.encoder.T
