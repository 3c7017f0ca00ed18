"""LoRA adapters from full task vectors: every matrix by its leading singular triplets."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.binding import check_bindings
from taskbasis.engine import Engine, Scratch
from taskbasis.errors import FileError, UsageError, ValueProblem
from taskbasis.io.dtypes import DType, floating
from taskbasis.io.ids import cached_id
from taskbasis.io.regular import read_json
from taskbasis.io.tensors import TensorStore
from taskbasis.lora.factors import Cutoff, balanced, leading, residual, squared_norm
from taskbasis.lora.folder import Head, Module, Pair, check_out, find_targets, stored, write_adapter
from taskbasis.lora.made import Made, Row
from taskbasis.lora.rules import (
    ADAPTED,
    EMBEDDING,
    HEAD,
    LEFT,
    ZERO,
    lying,
    matching,
    module_of,
    modules_of,
    rule_of,
)
from taskbasis.passes.reading import quietly, read_cut, widened
from taskbasis.plan import Cut, Merge, Plan, make_plan
from taskbasis.recipe import Binding, Combination
from taskbasis.vectors import Checkpoint, TaskVector, as_checkpoint

_TASKS = (("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"))
"""What PEFT needs to know to wrap a model; of classifiers it would expect a trained head."""


def extract_lora(
    base: str | Path | Checkpoint,
    vector: TaskVector,
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    fan_in_fan_out: bool | None = None,
    base_name: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    replace_used: bool = False,
    engine: Engine | None = None,
) -> Made:
    """Write the LoRA adapter that is nearest to a task vector, as PEFT loads it.

    The delta D of every linear layer becomes ``B A = U_r S_r V_r^T``, its truncated SVD, the
    nearest product of that rank in Frobenius norm; :func:`~taskbasis.lora.factors.leading` says
    how it is found, and how near. The errors that are stated are measured on the stored factors.
    The scaling is 1. What no such factors can hold (norms, biases; embeddings and head unless
    asked) is not part of the adapter; the result lists it by rule, with the norm it holds.

    Modules are called as the fine-tuned model's files call them. PEFT goes by the names of the
    model in memory; where a loader renames tensors (a few do, such as those of mixtures of
    experts), an adapter made from files does not fit.

    Every worker holds one matrix at a time, and what its SVD takes; the factors are held until the
    last is found.

    Args:
        base: what the vector was taken from.
        vector: the delta.
        out: the folder to write.
        rank: of every module, at most.
        energy: the share of each matrix's squared norm to keep, by the fewest triplets.
        include: patterns (``*``, ``?``) of tensors to adapt; all that can be by default.
        exclude: patterns of tensors not to adapt.
        embeddings, head: whether those are adapted, too.
        fan_in_fan_out: whether linear layers with a bias are [in, out]; None: as biases tell.
        base_name: what the config calls the base; its path by default.
        dtype: the factors are rounded to it; the stated errors include that.
        seed: of the random projection.

    Raises:
        UsageError: rank or energy out of range, a pattern that matches nothing.
        BaseError: the vector was taken from another base.
        ValueProblem: a value is not finite, or nothing is left to adapt.
    """
    engine, cutoff, kind = engine or Engine(), Cutoff(rank, energy), floating(dtype)
    start, combination = as_checkpoint(base), vector.combination
    inputs = [start.path, *(file for leaf in combination.leaves for file in leaf.files)]
    folder = check_out(out, replace_used, inputs)
    check_bindings([combination], Binding(str(start.path), start.store), engine)
    plan = make_plan([combination], None, start.store)
    rules = _ruled(plan, start.store, include, exclude, embeddings, head)
    chosen = [merge for merge in plan.merges if rules[merge.name] == ADAPTED]
    if not chosen:
        raise ValueProblem(
            f"{vector}: nothing can be adapted ({_counted(rules.values())}); "
            "embeddings and head are adapted when that is asked"
        )
    shapes = {merge.name: merge.shape for merge in chosen}
    tables = {n for n, shape in shapes.items() if rule_of(n, shape, start.store) == EMBEDDING}
    conv1d = lying(shapes.keys() - tables, start.store, fan_in_fan_out)
    _check_lying(conv1d, shapes.keys() - tables - conv1d)
    factors = dict(zip(shapes, _factorise(plan, chosen, cutoff, kind, seed, engine), strict=True))
    rules |= {name: ZERO for name, (_, row) in factors.items() if not row.norm}
    called = _names(combination, shapes)
    modules, pairs = list[Module](), dict[str, tuple[Pair, Row]]()
    for name, (pair, row) in factors.items():
        if row.norm:
            module, pair = _module(called[name], shapes[name], pair, name in tables, name in conv1d)
            modules.append(module)
            pairs[module.name] = (pair, replace(row, module=module.name))
    norms = _norms(plan, rules, engine)
    others = modules_of(start.store) - {module_of(n) for n, r in rules.items() if r == ADAPTED}
    about = Head(
        _called(start.path) if base_name is None else base_name,
        find_targets([module.name for module in modules], others),
        bool(conv1d),
        _task_type(combination, start),
    )
    made = Made(folder, 0, (), _listed(rules, combination), norms)
    nbytes, found = write_adapter(
        folder,
        modules,
        lambda module: pairs[module.name],
        about,
        lambda found: _card(replace(made, rows=tuple(found)), cutoff),
        kind,
        replace=replace_used,
        inputs=inputs,
        engine=engine,
    )
    return replace(made, nbytes=nbytes, rows=found)


def _check_lying(conv1d: Collection[str], linear: Collection[str]) -> None:
    if conv1d and linear:
        raise UsageError(
            f"{min(conv1d)!r} is [in, out] (Conv1D) and {min(linear)!r} is [out, in], but an "
            "adapter's config says one of all; leave one kind out with --exclude"
        )


def _module(
    name: str, shape: tuple[int, ...], pair: Pair, table: bool, conv1d: bool
) -> tuple[Module, Pair]:
    """A module and its factors as PEFT stores them: of tables and Conv1D those of the transpose."""
    (height, width), (up, down) = shape, pair
    if table or conv1d:
        height, width, up, down = width, height, down.T, up.T
    return Module(name, up.shape[1], (height,), (width,), table), (up, down)


def _card(made: Made, cutoff: Cutoff) -> str:
    return (
        f"LoRA adapter extracted from a task vector by truncated SVD ({cutoff}).\n\n"
        f"Relative error (Frobenius): {made.error:.3g} of the adapted modules, "
        f"{made.missing:.3g} of the whole delta with what no adapter of them can hold."
    )


def _ruled(
    plan: Plan,
    base: TensorStore,
    include: Sequence[str],
    exclude: Sequence[str],
    embeddings: bool,
    head: bool,
) -> dict[str, str]:
    """The rule of every tensor of the delta."""
    names = [merge.name for merge in plan.merges]
    wanted = matching("--include", include, names) if include else set(names)
    wanted -= matching("--exclude", exclude, names)
    asked = {EMBEDDING} if embeddings else set()
    asked |= {HEAD} if head else set()
    found = {}
    for merge in plan.merges:
        rule = rule_of(merge.name, merge.shape, base)
        possible = rule == ADAPTED or rule in asked
        found[merge.name] = rule if not possible else ADAPTED if merge.name in wanted else LEFT
    return found


def _names(combination: Combination, tensors: Collection[str]) -> dict[str, str]:
    """What the fine-tuned model calls the modules; what the base does, where several differ."""
    found = {}
    for name in tensors:
        called = {
            leaf.infos[name].name if name in leaf.rules.get("renamed", ()) else name
            for leaf in combination.leaves
            if name in leaf.infos
        }
        found[name] = module_of(called.pop() if len(called) == 1 else name)
    return found


def _factorise(
    plan: Plan,
    chosen: Sequence[Merge],
    cutoff: Cutoff,
    dtype: DType,
    seed: int,
    engine: Engine,
) -> list[tuple[Pair, Row]]:
    """The stored factors of every matrix and what they miss; all are held, no matrix is."""
    whole = replace(plan, merges=tuple(chosen), unit="matrix")
    held = sum(cutoff.most(*merge.shape) * sum(merge.shape) * dtype.itemsize for merge in chosen)
    engine = engine.within(whole.memory(0) + max(map(_svd_bytes, chosen)), held)

    def work(cut: Cut, scratch: Scratch) -> tuple[Pair, Row]:
        merge = chosen[cut.index]
        matrix = _delta(merge, cut, scratch).reshape(merge.shape)
        norm = math.sqrt(squared_norm(matrix))
        found = leading(matrix, cutoff, seed)
        up, down = (stored(part, dtype, f"tensor {merge.name!r}") for part in balanced(found))
        return (up, down), Row(merge.name, len(found.values), norm, residual(matrix, up, down))

    cuts = [Cut(index, 0, merge.size) for index, merge in enumerate(chosen)]
    with closing(engine.map(work, cuts, whole.cut_bytes, "factorise")) as results:
        return list(results)


def _svd_bytes(merge: Merge) -> int:
    """What the SVD of a matrix takes in float64: copies of it, and of a Gram matrix."""
    return 8 * (3 * merge.size + 4 * min(merge.shape) ** 2)


def _delta(merge: Merge, cut: Cut, scratch: Scratch) -> NDArray[Any]:
    with quietly():
        return np.asarray(widened(read_cut(merge, cut, scratch))[0])


def _norms(plan: Plan, rules: dict[str, str], engine: Engine) -> dict[str, float]:
    """Per rule the norm of the deltas that are not adapted; those that are zero are marked so."""
    rest = [merge for merge in plan.merges if rules[merge.name] not in (ADAPTED, ZERO)]
    part = replace(plan, merges=tuple(rest), unit="element")

    def work(cut: Cut, scratch: Scratch) -> float:
        return squared_norm(_delta(rest[cut.index], cut, scratch)[None])

    squares, cuts = [0.0] * len(rest), part.cuts()
    engine = engine.within(part.memory(0))
    with closing(engine.map(work, cuts, part.cut_bytes, "norms of the rest")) as results:
        for cut, square in zip(cuts, results, strict=True):
            squares[cut.index] += square
    totals: dict[str, float] = {}
    for merge, square in zip(rest, squares, strict=True):
        if square:
            totals[rules[merge.name]] = totals.get(rules[merge.name], 0.0) + square
        else:
            rules[merge.name] = ZERO
    return {rule: math.sqrt(total) for rule, total in totals.items()}


def _listed(rules: Mapping[str, str], combination: Combination) -> dict[str, tuple[str, ...]]:
    """Names by rule, without those that are adapted, with what the vectors themselves left out."""
    found: dict[str, set[str]] = {}
    for name, rule in rules.items():
        if rule != ADAPTED:
            found.setdefault(rule, set()).add(name)
    for leaf in combination.leaves:
        for rule in ("integer", "excluded", "unchanged"):
            if rule in leaf.rules:
                found.setdefault(rule, set()).update(leaf.rules[rule])
    return {rule: tuple(sorted(names)) for rule, names in sorted(found.items())}


def _counted(rules: Collection[str]) -> str:
    names = sorted(set(rules))
    return ", ".join(f"{list(rules).count(name)} {name}" for name in names) or "it is empty"


def _called(path: Path) -> str:
    """The base's name on the hub, where it is from there; its path elsewhere."""
    found = cached_id(str(path))
    return found.repo if found is not None else str(path)


def _task_type(combination: Combination, base: Checkpoint) -> str | None:
    """PEFT's word for what the fine-tuned model does, as its config says; None if unknown."""
    tuned = [
        leaf.tuned.store.path for leaf in combination.leaves if leaf.tuned and leaf.tuned.store
    ]
    for path in (*tuned, base.path):
        try:
            config = read_json(path / "config.json")
            names = [str(name) for name in config["architectures"]]
        except (FileError, KeyError, TypeError):
            continue  # a bare file, or a config that says nothing of it
        for end, task in _TASKS:
            if names and names[0].endswith(end):
                return task
        if names and names[0].endswith("ForConditionalGeneration"):
            return "SEQ_2_SEQ_LM" if config.get("is_encoder_decoder") is True else None
        return None
    return None
