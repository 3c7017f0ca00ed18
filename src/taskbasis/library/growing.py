"""Growing a basis by a task, from what is stored and the new vector alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis import Construction, resolve_size
from taskbasis.binding import common_base
from taskbasis.blas import one_thread
from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.granularity import group_tensors
from taskbasis.io.dtypes import floating
from taskbasis.io.writer import DEFAULT_SHARD, Staged
from taskbasis.library.basis import Basis
from taskbasis.library.design import Design, Size
from taskbasis.library.file import Contents, save_basis, write_atoms
from taskbasis.library.fitting import Grams, solve_group, without_unchanged
from taskbasis.library.groups import Group
from taskbasis.passes import Linear, gram_by_tensor
from taskbasis.plan import Plan, make_plan
from taskbasis.vectors import TaskVector


@one_thread()
def update(
    basis: Basis,
    name: str,
    vector: TaskVector,
    out: str | Path,
    k: Size = None,
    *,
    dtype: str | None = None,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine | None = None,
) -> Basis:
    """Add a task to a basis from the stored atoms and the new vector alone.

    Atoms and new vector are recompressed: with D the coordinates of the T old (recovered) tasks
    and the new one in ``[atoms, new]``, and G the Gram matrix of those, the construction is
    solved on ``D' G D`` and the new atoms are ``[atoms, new] D B``. What old tasks lose adds up
    over updates; the errors that are stored are upper bounds (triangle inequality).

    Args:
        k: the size of the new basis, of every group of tensors; by default as many as before.
        dtype: of the stored atoms; by default as before.
        shard_size: bytes per file in a folder.

    Raises:
        UsageError: the name is taken, or the basis has no atoms of its own to recompress.
        BaseError: the vector has another base. ValueProblem: it holds a value that is not finite.

    >>> from taskbasis import Design, fit
    >>> folder, out = getfixture("tiny_checkpoints"), getfixture("tmp_path")
    >>> math, code = (TaskVector(folder / "base", folder / name) for name in ("math", "code"))
    >>> first = fit({"math": math}, out / "lib.safetensors", Design(k=1, method="svd"))
    >>> both = update(first, "code", code, out / "both.safetensors", k=2)
    >>> both.names, max(both.errors.values()) < 1e-6
    (('math', 'code'), True)
    """
    engine = engine or Engine()
    contents, options = basis.contents, basis.contents.options
    if name in basis.names:
        raise UsageError(f"{basis.path} already holds a task {name!r}; choose another name")
    if contents.dtype is None:
        raise UsageError(f"{basis.path} is a random basis, which has no atoms to recompress")
    design = Design.recorded(options, k)
    kind = design.construction()
    sources = [basis.atom(index).combination for index in range(contents.atoms)]
    fresh = without_unchanged(vector.combination, engine)
    base = common_base([fresh, *sources], engine)
    plan = make_plan([*sources, fresh], None, base.store)
    shapes = {merge.name: merge.shape for merge in plan.merges}
    grams = gram_by_tensor(plan, engine)
    groups, encoders = _grow(contents, shapes, grams, kind, design)
    grown = Contents(
        (*basis.names, name),
        shapes,
        tuple(groups),
        base,
        {**options, "k": options.get("k") if k is None else k, "updates": _updates(options) + 1},
        floating(dtype) if dtype else contents.dtype,
    )
    former = Linear(lambda tensor: encoders[tensor].T)
    save_basis(
        grown,
        lambda staged: _atoms(plan, staged, grown, former, engine),
        out,
        shard_size=shard_size,
        replace_used=replace_used,
        inputs=[f for comb in (*sources, fresh) for leaf in comb.leaves for f in leaf.files],
        resume=engine.resume,
    )
    return Basis.open(out)


def _atoms(
    plan: Plan, staged: Staged, grown: Contents, former: Linear, engine: Engine
) -> Sequence[Group]:
    """Write the new atoms; errors stay upper bounds, so what rounding takes is added to them."""
    rounded = write_atoms(plan, staged, grown, former, engine)
    return [
        replace(group, error=(np.sqrt(group.error) + np.sqrt(more)) ** 2)
        for group, more in zip(grown.groups, rounded, strict=True)
    ]


def _updates(options: Mapping[str, Any]) -> int:
    return int(options.get("updates", 0))


def _as_before(old: Group | None, tasks: int) -> int:
    """The k that gives a group as many atoms as it had; one where no task had any extent."""
    kept = old.atoms - old.codes.mean_atom if old is not None else 0
    return min(max(kept, 1), tasks)


def _grow(
    contents: Contents,
    shapes: Mapping[str, tuple[int, ...]],
    grams: Grams,
    kind: Construction,
    design: Design,
) -> tuple[list[Group], dict[str, NDArray[np.float64]]]:
    """The grown groups, and per tensor the encoder of the new atoms over [atoms, new]."""
    groups, encoders = [], {}
    old = {group.name: group for group in contents.groups}
    tasks = len(contents.names)
    for name, tensors in group_tensors(shapes, design.granularity).items():
        summed = np.sum([grams[tensor] for tensor in tensors], axis=0)
        group, encoder = _grow_group(name, tensors, summed, old.get(name), tasks, kind, design)
        groups.append(group)
        encoders.update(dict.fromkeys(tensors, encoder))
    return groups, encoders


def _grow_group(
    name: str,
    tensors: Sequence[str],
    gram: NDArray[np.float64],
    old: Group | None,
    tasks: int,
    kind: Construction,
    design: Design,
) -> tuple[Group, NDArray[np.float64]]:
    sources = len(gram) - 1
    coordinates = np.zeros((sources + 1, tasks + 1))
    coordinates[-1, -1] = 1.0
    known, before = np.zeros((tasks, tasks)), np.zeros(tasks)
    if old is not None:
        coordinates[: old.atoms, :tasks] = old.codes.decoder
        known, before = old.gram[:tasks, :tasks], old.error[:tasks]
    joint = coordinates.T @ gram @ coordinates
    size = (
        _as_before(old, tasks + 1)
        if design.k is None
        else resolve_size(design.k, tasks + 1, joint, kind, design.normalize)
    )
    codes, lost = solve_group(joint, kind, design, size, tasks + 1)
    lost[:tasks] = (np.sqrt(before) + np.sqrt(lost[:tasks])) ** 2
    joint[:tasks, :tasks] = known  # what the originals were, not what is left of them
    return Group(name, tuple(tensors), codes, joint, lost), coordinates @ codes.encoder
