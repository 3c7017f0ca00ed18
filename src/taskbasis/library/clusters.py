"""Atoms that a method makes of each cluster (TVB v1's inner merge)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from taskbasis.basis import Codes, refit
from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import Staged
from taskbasis.library.file import Contents, atom_leaves, write_atoms
from taskbasis.library.groups import Group, squared_losses
from taskbasis.methods import Method
from taskbasis.passes import Merged, gram_by_tensor, run_stages
from taskbasis.plan import Plan, make_plan
from taskbasis.recipe import Binding, Combination, Term


def room_for_atoms(groups: Sequence[Group], inner: Method) -> list[Group]:
    """The groups with room for the inner products of tasks and atoms, which are not linear.

    Raises:
        UsageError: the codes are not shared by the whole model, or the method needs more than
            vectors, or another number of them than a cluster may have.
    """
    needs = [what for what in ("base", "scores", "moments") if getattr(inner, what) == "required"]
    if needs or inner.takes != (1, None):
        why = f"needs {needs[0]}" if needs else f"takes {inner.count_text()}"
        raise UsageError(f"{inner.name} {why}, so it cannot merge clusters; use another method")
    if len(groups) != 1 or groups[0].name != "model":
        raise UsageError(
            f"an inner merge by {inner.name} needs --granularity model; mean and sum take any"
        )
    group = groups[0]
    encoder = np.pad(group.codes.encoder, ((0, group.atoms), (0, 0)))
    gram = np.pad(group.gram, (0, group.atoms))
    return [replace(group, codes=replace(group.codes, encoder=encoder), gram=gram)]


def merge_clusters(
    plan: Plan, staged: Staged, contents: Contents, inner: Method, engine: Engine
) -> list[Group]:
    """Atoms by a merge of each cluster, and the decoder that recovers best.

    The merge is not linear in the tasks, so the inner products of tasks and atoms take a pass of
    their own over the atoms just written. The encoder records who is in which cluster.
    """
    (group,) = contents.groups  # room_for_atoms has refused any other number
    labels = np.argmax(group.codes.encoder[: plan.vectors] != 0, axis=1)
    clusters = [np.flatnonzero(labels == label).tolist() for label in range(group.atoms)]
    under = plan.under(inner)
    parts = [(inner, c, run_stages(under, inner, c, engine)) for c in clusters]
    write_atoms(under, staged, contents, Merged(under, parts), engine)
    atoms = _staged_atoms(staged, contents)
    return [_refitted(plan, group, atoms, contents.base, engine)]


def _staged_atoms(staged: Staged, contents: Contents) -> list[Combination]:
    shards = [open_tensors(path) for path in sorted(staged.hidden.glob("*.safetensors"))]
    infos = {name: info for shard in shards for name, info in shard.items()}
    store = TensorStore(staged.out, infos, {}, tuple(file for s in shards for file in s.files))
    return [Combination((Term(leaf),)) for leaf in atom_leaves(store, contents)]


def _refitted(
    plan: Plan, group: Group, atoms: Sequence[Combination], base: Binding, engine: Engine
) -> Group:
    joint = make_plan([*plan.combinations, *atoms], None, base.store)
    summed = np.sum(list(gram_by_tensor(joint, engine).values()), axis=0)
    tasks = plan.vectors
    encoder = np.eye(len(summed))[:, tasks:]
    decoder = refit(summed, encoder, tasks)
    lost = squared_losses(summed, Codes(encoder, decoder, np.ones(len(atoms))))
    codes = Codes(encoder, decoder, np.ones(len(atoms)))
    return replace(group, codes=codes, gram=summed, error=lost)
