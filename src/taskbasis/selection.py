"""Selecting entries once, as masks in a file, and taking a task out of a fused model again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels, stored
from taskbasis.binding import check_learnt, common_base
from taskbasis.engine import Engine, Scratch
from taskbasis.errors import BaseError, MismatchError, UsageError
from taskbasis.io.storing import AS_IT_IS
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.io.writer import DEFAULT_SHARD, OutputTensor, Staged
from taskbasis.masks import BITS, Mask, Masks, mask_key, packed_size
from taskbasis.methods import Selecting
from taskbasis.methods.learnt.sta import Sta
from taskbasis.passes import Found, Kept, Tally, run_stages
from taskbasis.passes.reading import Stretch, apply_mask, chunk, quietly, read_cut
from taskbasis.plan import Cut, Merge, Plan, make_plan
from taskbasis.recipe import Binding, Learnt, shape_check
from taskbasis.saving import Saved, save_with
from taskbasis.scores import Importance
from taskbasis.vectors import Checkpoint, TaskVector, as_checkpoint


@dataclass(frozen=True)
class Selected:
    """Masks that were written, and what they keep of every vector."""

    masks: Masks
    kept: Kept


def select(
    vectors: Mapping[str, TaskVector],
    out: str | Path,
    method: Selecting | None = None,
    scores: Iterable[Importance] = (),
    *,
    base: str | Path | Checkpoint | None = None,
    shard_size: int | None = DEFAULT_SHARD,
    replace: bool = False,
    engine: Engine | None = None,
) -> Selected:
    """Write the masks that a selecting method chooses for each of the vectors, one bit an entry.

    ``sum_t mask_t * tau_t`` is then what the method merges them to, bit for bit (masks of ``tall``
    are for the sum of all vectors instead). Each mask can be used alone, with any vector of the
    same base: to forget a task, to weigh tasks otherwise, to merge what is kept by another method,
    or to build a basis of it.

    Args:
        vectors: by task name.
        out: a ``.safetensors`` file, or a folder of shards for any other name.
        method: what selects; :class:`~taskbasis.methods.learnt.sta.Sta` with its defaults.
        scores: one for each vector, in their order; magnitudes where there are none.
        base: what the vectors were taken from, for cutoffs of layers or the model by magnitude:
            its unchanged tensors count, and stored vectors do not know their sizes.

    Raises:
        BaseError: the vectors are of several bases. MismatchError: scores of another model, or
            tensors without scores. UsageError: there are not as many scores as vectors.

    >>> folder, out = getfixture("tiny_checkpoints"), getfixture("tmp_path")
    >>> vectors = {n: TaskVector(folder / "base", folder / n) for n in ("math", "code")}
    >>> made = select(vectors, out / "masks.safetensors", Sta(density=0.5, exclusive=True))
    >>> made.masks.names, made.masks["code"].entries("bias").tolist()
    (('math', 'code'), [False, True])
    >>> fused = Checkpoint(folder / "base") + made.masks["math"] * vectors["math"]
    """
    engine, method = engine or Engine(), method or Sta()
    if not isinstance(method, Selecting):
        raise UsageError(f"method {method.name!r} selects no entries; use one that does, like sta")
    combinations = [vector.combination for vector in vectors.values()]
    learnt = [importance.learnt for importance in scores]
    bound = common_base(combinations, engine)
    check_learnt(method, combinations, learnt, (), engine)
    store = _base_store(bound, base, method, learnt, engine)
    plan = make_plan(
        combinations,
        None,
        bound.store,
        scores=learnt,
        watch=store,
        method=method,
        names=tuple(vectors),
    )
    found = run_stages(plan, method, range(len(combinations)), engine)
    made = {
        "method": method.name,
        **asdict(method),
        "exclusive": method.disjoint() and len(vectors) > 1,
        "scores": [part.label for part in learnt],
    }
    tensors = [
        OutputTensor(mask_key(index, merge.name), BITS, (packed_size(merge.shape),))
        for index in range(len(combinations))
        for merge in plan.merges
    ]
    inputs = [f for comb in combinations for leaf in comb.leaves for f in leaf.files]
    with Staged(
        out,
        tensors,
        _record(bound, vectors, plan, made),
        shard_size=shard_size,
        replace=replace,
        inputs=[*inputs, *(f for part in learnt for f in part.files)],
        stem=stored.MASK,
    ) as staged:
        tally = _write_masks(plan, method, found, staged, engine)
        staged.commit()
    return Selected(Masks.open(out), tally.kept_shares())


def _record(
    base: Binding, names: Iterable[str], plan: Plan, made: Mapping[str, Any]
) -> dict[str, str]:
    """What a file of masks says of itself."""
    shapes = {merge.name: list(merge.shape) for merge in plan.merges}
    content = {"names": list(names), "shapes": shapes, "options": dict(made)}
    return stored.encode(stored.MASK, {"base": stored.encode_binding(base), **content})


def _base_store(
    bound: Binding,
    base: str | Path | Checkpoint | None,
    method: Selecting,
    learnt: Sequence[Learnt],
    engine: Engine,
) -> TensorStore | None:
    """The base whose unchanged tensors count; the one given must be that of the vectors."""
    if base is None:
        if bound.store is None and not learnt and set(method.stages()) - {"tensor"}:
            raise UsageError(
                "cutoffs of layers or the model count the base's unchanged tensors, whose sizes "
                "stored vectors do not know; give the base, scores, or scope tensor"
            )
        return bound.store
    store = as_checkpoint(base).store
    ours = stored.bind(Binding(str(store.path), store), engine)
    if ours.fingerprint != bound.fingerprint:
        raise BaseError(f"the vectors were taken from {bound.name}, not from {ours.name}")
    return store


def _write_masks(
    plan: Plan, method: Selecting, found: Found, staged: Staged, engine: Engine
) -> Tally:
    def work(cut: Cut, scratch: Scratch) -> Any:
        merge = plan.merges[cut.index]
        with quietly():
            seen = chunk(read_cut(merge, cut, scratch), plan, method)
        kept = method.select(seen, found.of(merge.name))
        for index, row in enumerate(kept):
            bits = np.packbits(row, bitorder="little")
            staged.write(mask_key(index, merge.name), cut.start // 8, bits)
        return Tally.count(seen.deltas, kept)

    tally, cuts = Tally(plan.vectors), plan.cuts()
    engine = engine.within(plan.memory(0, method))
    with closing(engine.map(work, cuts, plan.cut_bytes, "select")) as notes:
        for note in notes:
            tally.collect(note)
    return tally


def restore(
    merged: str | Path | Checkpoint,
    base: str | Path | Checkpoint,
    mask: Mask,
    out: str | Path,
    *,
    shard_size: int | None = DEFAULT_SHARD,
    replace: bool = False,
    engine: Engine | None = None,
) -> Saved:
    """Take a task out of a fused model: the entries that its mask keeps become the base's again.

    Where the fused model's masks exclude each other this is exactly the model fused without the
    task: no entry of another task is touched, and none of this one is left, whatever the scale
    and however the weights were rounded.

    Args:
        merged: the fused model.
        base: what it was fused on.
        mask: the task's mask, of masks that exclude each other.
        out: where to write the model, in the dtypes of ``merged``.

    Raises:
        UsageError: other masks of the file may keep some of the entries.
        BaseError: the masks were made from vectors of another base.
        MismatchError: the model and its base do not have the same tensors.

    >>> folder, out = getfixture("tiny_checkpoints"), getfixture("tmp_path")
    >>> vectors = {n: TaskVector(folder / "base", folder / n) for n in ("math", "code")}
    >>> made = select(vectors, out / "masks.safetensors", Sta(density=0.5, exclusive=True)).masks
    >>> fused = sum((made[n] * v for n, v in vectors.items()), Checkpoint(folder / "base"))
    >>> saved = fused.save(out / "fused")
    >>> done = restore(out / "fused", folder / "base", made["code"], out / "without-code")
    >>> [Checkpoint(out / n).store["bias"].load().tolist() for n in ("fused", "without-code")]
    [[1.0, 2.0], [1.0, 0.0]]
    """
    if not mask.exclusive:
        raise UsageError(
            f"{mask.label} may share entries with other masks of its file, so putting them back "
            "would take from other tasks; subtract the masked vector instead"
        )
    engine = engine or Engine()
    model, origin = as_checkpoint(merged), as_checkpoint(base)
    ours = stored.bind(Binding(str(origin.path), origin.store), engine)
    if mask.base.fingerprint != ours.fingerprint:
        raise BaseError(
            f"{mask.label} belongs to the base {mask.base.name} ({mask.base.fingerprint}), not to "
            f"{ours.name} ({ours.fingerprint})"
        )
    plan = _restoring_plan(model.store, origin.store, mask)
    recipe = {"restored": {"model": str(model.path), "base": str(origin.path), "mask": mask.label}}
    return save_with(
        plan,
        model.store,
        lambda: _Restored(mask.infos),
        recipe,
        out,
        AS_IT_IS,
        inputs=[origin.path, *origin.store.files, *mask.files],
        shard_size=shard_size,
        replace_used=replace,
        engine=engine,
    )


def _restoring_plan(model: TensorStore, base: TensorStore, mask: Mask) -> Plan:
    merges = []
    for name in sorted(mask.infos):
        for store in (model, base):
            if name not in store:
                raise MismatchError(f"{store.path} lacks tensor {name!r} of {mask.label}")
        shape_check(model[name], base[name])
        if base[name].shape != tuple(mask.shapes[name]):
            raise MismatchError(
                f"{base[name].where} has shape {list(base[name].shape)}, but {mask.label} is for "
                f"{list(mask.shapes[name])}"
            )
        merges.append(
            Merge(name, base[name].shape, model[name], (base[name],), (False,), np.ones((1, 1)))
        )
    known = {merge.name for merge in merges}
    return Plan(tuple(merges), tuple(i for n, i in model.items() if n not in known), ())


@dataclass(frozen=True)
class _Restored:
    """Forms the model's words, and the base's where the mask says so."""

    masks: Mapping[str, TensorInfo]

    def form(
        self, stretch: Stretch, add_base: bool, out: NDArray[Any], stats: NDArray[np.float64]
    ) -> None:
        del add_base
        scratch, cut, compute = stretch.scratch, stretch.cut, stretch.rows.dtype
        size = cut.stop - cut.start
        values = [scratch.array(f"values {at}", (size,), compute) for at in range(2)]
        for words, row in zip((stretch.base, stretch.words[0]), values, strict=True):
            kernels.decode(words, row)
        kept = scratch.array("kept", (size,), np.float32)
        kept[:] = 1
        apply_mask(self.masks[stretch.merge.name], cut, kept, scratch)
        again = scratch.array("again", (1, size), out.dtype)
        rows = scratch.array("restored rows", kernels.scratch_rows(1), compute)
        one = np.ones((1, 1), compute)
        kernels.form(None, stretch.words, False, one, False, again, rows, np.zeros((1, 2)))
        out[0] = np.where(kept != 0, again[0], stretch.base)
        again_values = scratch.array("again values", (size,), compute)
        kernels.decode(again[0], again_values)
        for column, (one_side, other) in enumerate(
            ((values[1], values[0]), (again_values, values[1]))
        ):
            changed = (kept != 0) & (one_side != other)
            moved = np.where(changed, one_side, 0).astype(np.float64) - np.where(changed, other, 0)
            stats[0, column] += np.square(moved).sum()

    def collect(self, note: Any) -> None:
        pass
