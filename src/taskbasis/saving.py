"""Writing what recipes describe: task vectors, edited models, and models in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import notebook, stored
from taskbasis.binding import check_bindings, check_count, check_learnt, common_base
from taskbasis.card import CARD, model_card, portable
from taskbasis.difference import changed_only, twins
from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.io.dtypes import F32, F64
from taskbasis.io.storing import AS_IT_IS, Storing
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD, MemorySink, OutputTensor, Staged
from taskbasis.methods import Method, Selecting
from taskbasis.passes import (
    Former,
    Kept,
    Linear,
    Merged,
    Tally,
    numbers,
    rounding,
    run_stages,
    write,
)
from taskbasis.plan import Plan, make_plan
from taskbasis.recipe import Binding, Combination, Learnt, excluded_names
from taskbasis.sidefiles import RECIPE_FILE, copy_side_files


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
        kept: what a method that selects entries kept of every vector.
    """

    path: Path
    nbytes: int
    rules: Mapping[str, tuple[str, ...]] = field(repr=False)
    norm: float
    rounding: float
    left: tuple[str, ...] = ()
    kept: Kept | None = None

    @property
    def lost(self) -> float:
        """The share of the delta's norm that rounding took; 0 for a zero delta."""
        return self.rounding / self.norm if self.norm else 0.0

    def _repr_html_(self) -> str:
        numbers = {"norm of the delta": self.norm, "lost to rounding": f"{self.lost:.3%}"}
        return notebook.of_output(self.path, self.nbytes, self.rules, numbers)


def save_vector(
    combination: Combination,
    out: str | Path,
    storing: Storing,
    *,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine,
) -> Saved:
    """Write a task vector: only tensors that differ from the base's, bound to its fingerprint.

    It is stored in float32 where ``storing`` names no dtype.
    """
    storing.check({name for leaf in combination.leaves for name in leaf.infos})
    combination, rules = _without_unchanged(combination, engine)
    base = common_base([combination], engine)
    plan = make_plan([combination], None, base.store)
    if storing.seed is not None and base.store is not None:
        storing = replace(storing, twins=twins(base.store))
    dtype = storing.dtype or F32
    tensors = [OutputTensor(m.name, storing.of(m.name, dtype), m.shape) for m in plan.merges]
    excluded = sorted(excluded_names(combination.leaves))
    made = {
        "base": stored.encode_binding(base),
        "tuned": _tuned(combination, engine),
        "dtype": dtype.name,
        **storing.record,
        "made": describe(combination),
        **({"excluded": excluded} if excluded else {}),
    }
    files = [file for leaf in combination.leaves for file in leaf.files]
    with Staged(
        out,
        tensors,
        stored.encode(stored.VECTOR, made),
        shard_size=shard_size,
        replace=replace_used,
        inputs=files,
        stem=stored.VECTOR,
        recipe=[made, repr(storing), numbers(plan)],
        resume=engine.resume,
    ) as staged:
        former = Linear(lambda name: np.ones((1, 1)))
        totals = write(plan, staged, former, lambda name: (name,), False, engine, storing)
        staged.commit()
    norm, lost = rounding(totals)
    rules = {"stored": tuple(merge.name for merge in plan.merges), **rules}
    return Saved(Path(out), sum(t.nbytes for t in tensors), rules, norm, lost)


def _tuned(combination: Combination, engine: Engine) -> dict[str, Any] | None:
    """The one fine-tuned model that a vector is the whole difference to, if it is that."""
    if len(combination.terms) != 1:
        return None
    (term,) = combination.terms
    whole = term.coefficient == 1 and term.per_tensor is None and not term.leaf.masks
    if not whole or term.leaf.tuned is None:
        return None
    tuned = stored.bind(term.leaf.tuned, engine)
    return {"name": tuned.name, "fingerprint": tuned.fingerprint}


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
        scores, moments: what was learnt of the vectors' tasks, one each, or none.
        onto: the weights that are added to, where they are not the base: a model merged on it.
        weights: what the vectors are multiplied by; none means 1.
        names: what the vectors are called; none means by their numbers.
    """

    base: TensorStore
    vectors: tuple[Combination, ...]
    method: Method
    scale: float = 1.0
    scores: tuple[Learnt, ...] = ()
    moments: tuple[Learnt, ...] = ()
    onto: TensorStore | None = None
    weights: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def target(self) -> TensorStore:
        """The weights that are added to."""
        return self.base if self.onto is None else self.onto

    def plan(self, storing: Storing = AS_IT_IS) -> Plan:
        """The edit resolved against headers; ``storing`` says what floats are stored in."""
        weights = self.weights or (1.0,) * len(self.vectors)
        return make_plan(
            [vector.scaled(w) for vector, w in zip(self.vectors, weights, strict=True)],
            self.target,
            self.base,
            storing,
            self.scores,
            self.moments,
            method=self.method,
            weights=self.weights,
            names=self.names,
        )

    def check(self, engine: Engine) -> None:
        """Refuse vectors of another base, and scores or moments of other models."""
        check_bindings(self.vectors, Binding(str(self.base.path), self.base), engine)
        check_learnt(self.method, self.vectors, self.scores, self.moments, engine)
        check_count(self.method, len(self.vectors))
        if self.onto is not None and self.method.base != "ignored":
            raise UsageError(
                f"method {self.method.name!r} looks at the base's weights, so it cannot be added "
                f"to {self.target.path}; merge on the base itself"
            )
        leaves = [leaf for vector in self.vectors for leaf in vector.leaves]
        for leaf in leaves if self.onto is not None else ():
            if leaf.difference:  # its base would be read where the target is
                raise UsageError(
                    f"{leaf.label} is a checkpoint; extract its task vector first, then add that "
                    f"to {self.target.path}"
                )

    @property
    def row(self) -> NDArray[np.float64] | None:
        """[1, T] what the vectors are multiplied by, where their merge is a weighted sum."""
        if not self.vectors:
            return np.zeros((1, 0))
        given = np.asarray(self.weights or np.ones(len(self.vectors)), np.float64)
        found = self.method.coefficients(given)
        return None if found is None else self.scale * np.asarray(found, np.float64)[None]

    def former(self, plan: Plan, engine: Engine) -> Former:
        """What forms the weights; a method's stages are run here."""
        row = self.row
        if row is not None:
            return Linear(lambda name: row)
        members = range(len(self.vectors))
        found = run_stages(plan, self.method, members, engine)
        tally = Tally(len(members)) if isinstance(self.method, Selecting) else None
        return Merged(plan, [(self.method, members, found)], self.scale, tally)

    @property
    def inputs(self) -> list[Path]:
        """The files it is made of, which no output may touch."""
        leaves = [leaf.files for vector in self.vectors for leaf in vector.leaves]
        learnt = [part.files for part in (*self.scores, *self.moments)]
        return [self.base.path, *(file for files in (*leaves, *learnt) for file in files)]

    @property
    def parents(self) -> list[str]:
        """What it is made of: the base, what is added to, and the fine-tuned models."""
        leaves = [leaf for vector in self.vectors for leaf in vector.leaves]
        tuned = [leaf.tuned.name if leaf.tuned else leaf.label for leaf in leaves]
        onto = [str(self.onto.path)] if self.onto is not None else []
        return list(dict.fromkeys([str(self.base.path), *onto, *tuned]))

    def recipe(self) -> dict[str, Any]:
        """The edit as plain data."""
        options = {f.name: getattr(self.method, f.name) for f in fields(self.method)}
        excluded = sorted(excluded_names([leaf for v in self.vectors for leaf in v.leaves]))
        return {
            "base": str(self.base.path),
            **({"onto": str(self.onto.path)} if self.onto is not None else {}),
            "method": self.method.name,
            "options": options,
            "scale": self.scale,
            "vectors": [describe(vector) for vector in self.vectors],
            **({"weights": list(self.weights)} if self.weights else {}),
            **({"names": list(self.names)} if self.names else {}),
            **({"exclude": excluded} if excluded else {}),
            **{
                name: [learnt.label for learnt in parts]
                for name, parts in (("scores", self.scores), ("moments", self.moments))
                if parts
            },
        }


def save_model(
    edit: Edit,
    out: str | Path,
    storing: Storing,
    *,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine,
) -> Saved:
    """Write an edited model in the layout of its base, with the base's side files."""
    edit.check(engine)
    plan = edit.plan(storing)
    return save_with(
        plan,
        edit.target,
        lambda: edit.former(plan, engine),
        edit.recipe(),
        out,
        storing,
        parents=edit.parents,
        method=edit.method,
        inputs=edit.inputs,
        shard_size=shard_size,
        replace_used=replace_used,
        engine=engine,
    )


def save_with(
    plan: Plan,
    base: TensorStore,
    make_former: Callable[[], Former],
    recipe: Mapping[str, Any],
    out: str | Path,
    storing: Storing,
    *,
    inputs: Sequence[Path],
    shard_size: int | None,
    replace_used: bool,
    engine: Engine,
    parents: Sequence[str] = (),
    method: Method | None = None,
) -> Saved:
    """Write what a plan and a former make of ``base``, in its layout and with its side files.

    Args:
        make_former: called once the destination is accepted, since stages read everything.
        recipe: plain data saying how it was made, put beside the weights of a folder.
        inputs: further files that must not be touched.
    """
    storing.check(info.name for info in base.values() if info.dtype.mergeable)
    if storing.seed is not None:
        storing = replace(storing, twins=twins(base))
    tensors = _model_tensors(base, storing)
    with Staged(
        out,
        tensors,
        {"format": "pt"},
        shard_size=shard_size,
        replace=replace_used,
        inputs=[base.path, *inputs],
        recipe=[recipe, repr(storing), numbers(plan)],
        resume=engine.resume,
    ) as staged:
        former = make_former()
        totals = write(plan, staged, former, lambda name: (name,), True, engine, storing)
        left: tuple[str, ...] = ()
        if not staged.is_file:
            recipe = {**recipe, **({"stored": storing.record} if storing.record else {})}
            text = json.dumps(portable(recipe), indent=2) + "\n"
            staged.add_file(RECIPE_FILE, text.encode())
            card = model_card(recipe, parents, method, stored=storing.options)
            staged.add_file(CARD, card.encode())
            left = copy_side_files(base, staged, storing.dtype)
        staged.commit()
    norm, lost = rounding(totals)
    factored = tuple(merge.name for merge in plan.merges if merge.factored)
    rules = {
        "merged": tuple(m.name for m in plan.merges if (m.rows and not m.factored) or m.moved),
        **({"merged as factors": factored} if factored else {}),
        "converted": tuple(
            merge.name for merge in plan.merges if not merge.rows and not merge.moved
        ),
        "copied": tuple(info.name for info in plan.copies),
    }
    nbytes = sum(t.nbytes for t in tensors)
    return Saved(Path(out), nbytes, rules, norm, lost, left, _kept(former))


def _kept(former: Former) -> Kept | None:
    """What a selecting method kept, once its outputs are written."""
    tally = former.tally if isinstance(former, Merged) else None
    return tally.kept_shares() if tally is not None else None


def model_in_memory(edit: Edit, engine: Engine) -> dict[str, NDArray[Any]]:
    """An edited model's tensors as NumPy arrays, in the base's dtypes."""
    edit.check(engine)
    plan = edit.plan()
    sink = MemorySink(_model_tensors(edit.target, AS_IT_IS))
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


def _model_tensors(base: TensorStore, storing: Storing) -> list[OutputTensor]:
    """The base's tensors; those that hold floats in the dtypes asked for."""
    return [
        OutputTensor(info.name, storing.of(info.name, info.dtype), info.shape)
        for info in base.values()
    ]
