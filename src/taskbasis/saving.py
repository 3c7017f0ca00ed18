"""Writing what recipes describe: task vectors, edited models, and models in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import stored
from taskbasis.difference import changed_only
from taskbasis.engine import Engine
from taskbasis.errors import BaseError, FileError, ValueProblem
from taskbasis.io.dtypes import F32, F64, DType
from taskbasis.io.folder import INDEX_SUFFIX, WEIGHT_SUFFIXES
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD, MemorySink, OutputTensor, Staged
from taskbasis.methods import Method
from taskbasis.passes import Former, Linear, Merged, rounding, run_stages, write
from taskbasis.plan import Plan, make_plan
from taskbasis.recipe import Binding, Combination

RECIPE_FILE = "taskbasis_recipe.json"
_NOT_COPIED = ("README.md", RECIPE_FILE)


@dataclass(frozen=True)
class Saved:
    """What was written and what became of every tensor.

    Attributes:
        path: where it stands.
        nbytes: bytes of tensors.
        rules: tensor names by what was done with them.
        norm: the Euclidean norm of the delta.
        rounding: the norm of what rounding to the stored dtype took from the delta.
        left: files of the base's folder that were not copied: its card, and other weights.
    """

    path: Path
    nbytes: int
    rules: Mapping[str, tuple[str, ...]] = field(repr=False)
    norm: float
    rounding: float
    left: tuple[str, ...] = ()

    @property
    def lost(self) -> float:
        """The share of the delta's norm that rounding took; 0 for a zero delta."""
        return self.rounding / self.norm if self.norm else 0.0


def check_bindings(combinations: Sequence[Combination], base: Binding, engine: Engine) -> None:
    """Refuse vectors that were taken from another base, reading the base only where needed.

    Raises:
        BaseError: naming the vector, both bases, and tensors that differ.
    """
    for combination in combinations:
        for leaf in combination.leaves:
            if leaf.base.same_as(base):
                continue
            theirs, ours = stored.bind(leaf.base, engine), stored.bind(base, engine)
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


def save_vector(
    combination: Combination,
    out: str | Path,
    dtype: DType,
    *,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine,
) -> Saved:
    """Write a task vector: only tensors that differ from the base's, bound to its fingerprint."""
    combination, rules = _without_unchanged(combination, engine)
    base = common_base([combination], engine)
    plan = make_plan([combination], None, base.store)
    tensors = [OutputTensor(merge.name, dtype, merge.shape) for merge in plan.merges]
    made = {"base": stored.encode_binding(base), "dtype": dtype.name, "made": describe(combination)}
    files = [file for leaf in combination.leaves for file in leaf.files]
    with Staged(
        out,
        tensors,
        stored.encode(stored.VECTOR, made),
        shard_size=shard_size,
        replace=replace_used,
        inputs=files,
        stem=stored.VECTOR,
    ) as staged:
        former = Linear(lambda name: np.ones((1, 1)))
        totals = write(plan, staged, former, lambda name: (name,), False, engine)
        staged.commit()
    norm, lost = rounding(totals)
    rules = {"stored": tuple(merge.name for merge in plan.merges), **rules}
    return Saved(Path(out), sum(t.nbytes for t in tensors), rules, norm, lost)


def _without_unchanged(
    combination: Combination, engine: Engine
) -> tuple[Combination, dict[str, tuple[str, ...]]]:
    kept = {id(leaf): changed_only(leaf, engine)[0] for leaf in combination.leaves}
    rules: dict[str, tuple[str, ...]] = {}
    for leaf in kept.values():
        for rule, names in leaf.rules.items():
            rules[rule] = tuple(sorted({*rules.get(rule, ()), *names}))
    terms = tuple(replace(term, leaf=kept[id(term.leaf)]) for term in combination.terms)
    return Combination(terms), rules


def describe(combination: Combination) -> list[dict[str, Any]]:
    """A combination as plain data: what the recipe that travels with an output says."""
    return [
        {
            "vector": term.leaf.label,
            "coefficient": term.coefficient,
            **({"per_tensor": True} if term.per_tensor is not None else {}),
        }
        for term in combination.terms
    ]


@dataclass(frozen=True)
class Edit:
    """Weights plus merged task vectors: what an edited model is made of.

    Attributes:
        base: the weights.
        vectors: the T task vectors.
        method: how they are merged.
        scale: what multiplies the merged delta.
    """

    base: TensorStore
    vectors: tuple[Combination, ...]
    method: Method
    scale: float = 1.0

    def plan(self, dtype: DType | None = None) -> Plan:
        """The edit resolved against headers; ``dtype`` is what floats are stored in."""
        return make_plan(self.vectors, self.base, self.base, dtype)

    def former(self, plan: Plan, engine: Engine) -> Former:
        """What forms the weights; a method's stages are run here."""
        if not self.vectors:
            return Linear(lambda name: np.zeros((1, 0)))
        weights = self.method.weights(len(self.vectors))
        if weights is not None:
            row = self.scale * np.asarray(weights, np.float64)[None]
            return Linear(lambda name: row)
        members = range(len(self.vectors))
        state = run_stages(plan, self.method, members, engine)
        return Merged([(self.method, members, state)], self.scale)

    def recipe(self) -> dict[str, Any]:
        """The edit as plain data."""
        options = {f.name: getattr(self.method, f.name) for f in fields(self.method)}
        return {
            "base": str(self.base.path),
            "method": self.method.name,
            "options": options,
            "scale": self.scale,
            "vectors": [describe(vector) for vector in self.vectors],
        }


def save_model(
    edit: Edit,
    out: str | Path,
    dtype: DType | None,
    *,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine,
) -> Saved:
    """Write an edited model in the layout of its base, with the base's side files."""
    check_bindings(edit.vectors, Binding(str(edit.base.path), edit.base), engine)
    plan = edit.plan(dtype)
    tensors = _model_tensors(edit.base, dtype)
    files = [file for vector in edit.vectors for leaf in vector.leaves for file in leaf.files]
    with Staged(
        out,
        tensors,
        {"format": "pt"},
        shard_size=shard_size,
        replace=replace_used,
        inputs=[edit.base.path, *files],
    ) as staged:
        former = edit.former(plan, engine)
        totals = write(plan, staged, former, lambda name: (name,), True, engine)
        left: tuple[str, ...] = ()
        if not staged.is_file:
            recipe = json.dumps(edit.recipe(), indent=2) + "\n"
            staged.add_file(RECIPE_FILE, recipe.encode())
            left = _copy_side_files(edit.base, staged, dtype)
        staged.commit()
    norm, lost = rounding(totals)
    rules = {
        "merged": tuple(merge.name for merge in plan.merges if merge.rows),
        "converted": tuple(merge.name for merge in plan.merges if not merge.rows),
        "copied": tuple(info.name for info in plan.copies),
    }
    return Saved(Path(out), sum(t.nbytes for t in tensors), rules, norm, lost, left)


def model_in_memory(edit: Edit, engine: Engine) -> dict[str, NDArray[Any]]:
    """An edited model's tensors as NumPy arrays, in the base's dtypes."""
    check_bindings(edit.vectors, Binding(str(edit.base.path), edit.base), engine)
    plan = edit.plan()
    sink = MemorySink(_model_tensors(edit.base, None))
    write(plan, sink, edit.former(plan, engine), lambda name: (name,), True, engine)
    return sink.arrays()


def vector_in_memory(combination: Combination, engine: Engine) -> dict[str, NDArray[Any]]:
    """A task vector's tensors as NumPy arrays: float32, or float64 where the inputs are."""
    base = common_base([combination], engine)
    plan = make_plan([combination], None, base.store)
    sink = MemorySink(
        OutputTensor(merge.name, F64 if merge.double else F32, merge.shape) for merge in plan.merges
    )
    former = Linear(lambda name: np.ones((1, 1)))
    write(plan, sink, former, lambda name: (name,), False, engine)
    return sink.arrays()


def _model_tensors(base: TensorStore, dtype: DType | None) -> list[OutputTensor]:
    """The base's tensors; those that hold floats in the dtype asked for."""
    return [
        OutputTensor(info.name, dtype if dtype and info.dtype.mergeable else info.dtype, info.shape)
        for info in base.values()
    ]


def _copy_side_files(base: TensorStore, staged: Staged, dtype: DType | None) -> tuple[str, ...]:
    """Copy config, tokenizer and other files of the base's folder; returns what was left.

    Weights elsewhere in the folder may be another copy of the model that was edited, so they are
    left, except in the module folders that a sentence-transformers model lists.
    """
    folder, left = base.path, []
    if not folder.is_dir():
        return ()
    modules = _module_folders(folder)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        weights = name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))
        if name in _NOT_COPIED or (
            weights and not modules & {p.as_posix() for p in relative.parents}
        ):
            merged = path in base.files or name.endswith(INDEX_SUFFIX)
            left += [] if merged or name == RECIPE_FILE else [name]
            continue
        change = (lambda raw: _config_dtype(raw, dtype, folder)) if name == "config.json" else None
        staged.copy_file(name, path, change)
    return tuple(left)


def _module_folders(folder: Path) -> set[str]:
    """Subfolders that a sentence-transformers model lists as its own modules."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in modules if module["path"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()  # no such file, or not one of theirs: nothing is listed


def _config_dtype(raw: bytes, dtype: DType | None, base: Path) -> bytes:
    """The config with the output's dtype under whichever key the base used."""
    if dtype is None:
        return raw
    try:
        config = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FileError(f"{base / 'config.json'}: is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise FileError(f"{base / 'config.json'}: is not a JSON object")
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = dtype.name
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
