"""Following recipes: mergekit's YAML, resolved against headers, then written as a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.adapters import adapter_leaf
from taskbasis.card import CARD, model_card, portable
from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError
from taskbasis.io.adapter import open_adapter
from taskbasis.io.dtypes import DType, floating
from taskbasis.io.lowrank import LowRank
from taskbasis.io.remote import located, open_anywhere
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD, OutputTensor, Staged
from taskbasis.methods import Method
from taskbasis.passes import rounding, write
from taskbasis.plan import Plan
from taskbasis.recipe import Binding, Combination, Leaf, Term
from taskbasis.recipes import Document, ModelRef, Step, Translation, to_yaml, translate
from taskbasis.recipes.layers import find_towers
from taskbasis.recipes.schema import Location, RecipeFile
from taskbasis.recipes.theirs import THEIRS
from taskbasis.saving import Edit, Saved
from taskbasis.sidefiles import (
    RECIPE_FILE,
    TOKENIZER,
    check_layers,
    copy_side_files,
    copy_tokenizer,
)
from taskbasis.vocabulary import check_vocabularies

CONFIG = "mergekit_config.yml"
"""What a recipe is called beside the weights, as mergekit calls it."""


@dataclass(frozen=True)
class Prepared:
    """A recipe whose models are opened and whose every tensor is accounted for.

    Attributes:
        document: the recipe.
        stores: the models' tensors.
        translation: how every tensor of the output is merged, in our words.
        edits: one for the tensors that share a step, in the order of the steps.
        notes: what the reader of the recipe should know.
        seed: of methods that draw at random.
        made: the names of merges of the same file that it may start from.
    """

    document: Document
    stores: Mapping[ModelRef, TensorStore]
    translation: Translation
    edits: tuple[Edit, ...]
    notes: tuple[str, ...]
    seed: int = 0
    made: frozenset[str] = frozenset()

    @property
    def tokenizer(self) -> TensorStore:
        """The model whose tokenizer the output takes."""
        asked = self.document.tokenizer.source if self.document.tokenizer else None
        return self.stores[asked] if isinstance(asked, ModelRef) else self.donor

    @property
    def parents(self) -> list[str]:
        """The models and adapters that it is made of, but for merges of the same file."""
        own = [ref for ref in self.stores if ref.model.path not in self.made]
        adapters = [str(located(str(ref.lora))) for ref in self.stores if ref.lora is not None]
        return [*(str(self.stores[ref].path) for ref in own), *adapters]

    @property
    def files(self) -> list[Path]:
        """What is read, which no output may touch."""
        return [file for store in self.stores.values() for file in (store.path, *store.files)]

    @property
    def donor(self) -> TensorStore:
        """The model whose config and tokenizer the output takes: the base, or the first."""
        first = self.document.base_model or next(self.document.sources()).model
        return self.stores[first]

    @property
    def dtype(self) -> DType | None:
        """What floats are stored in; None: the widest of what goes into a tensor."""
        name = self.document.out_dtype or self.document.dtype
        return floating(name) if name else None

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """The edits resolved against headers."""
        return tuple(edit.plan(self.dtype) for edit in self.edits)

    @property
    def outputs(self) -> list[OutputTensor]:
        """The tensors of the output, by name."""
        found = []
        for plan in self.plans:
            for merge in plan.merges:
                held = [info for info in (*merge.rows, merge.base) if info is not None]
                # Factors are added to a model's weights; they do not decide how it is stored.
                inputs = [info.dtype for info in held if not isinstance(info.blob, LowRank)]
                own = merge.base.dtype if merge.base is not None else inputs[0]
                dtype = self.dtype or (_widest(inputs) if merge.rows else own)
                found.append(OutputTensor(merge.name, dtype, merge.shape))
            found += [OutputTensor(info.name, info.dtype, info.shape) for info in plan.copies]
        return sorted(found, key=lambda tensor: tensor.name)

    @property
    def layers(self) -> int | None:
        """The number of layers, where it is another than the donor's."""
        ours, theirs = find_towers(t.name for t in self.outputs), find_towers(self.donor)
        if [t.layers for t in ours] == [t.layers for t in theirs]:
            return None
        if len(ours) != 1 or len(theirs) != 1:
            if (self.donor.path / "config.json").exists():
                raise UsageError(
                    f"the layers of one of several towers change, which {self.donor.path}'s "
                    "config.json would not say; take the config out of a copy of the model"
                )
            return None
        return ours[0].layers


def _widest(dtypes: Sequence[DType]) -> DType:
    """What holds all of them: bfloat16 beside float16 takes float32."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    wide = max(dtypes, key=lambda dtype: dtype.itemsize)
    return wide if wide.itemsize > 2 else floating("float32")


def prepare(document: Document, made: Mapping[str, Path] | None = None, seed: int = 0) -> Prepared:
    """Open the models of a recipe, and resolve every tensor; no weights are read.

    Args:
        made: where merges of the same file stand, by name.
        seed: of methods that draw at random.

    Raises:
        UsageError, MismatchError, FileError: the recipe cannot be followed; all of what is wrong
            with its vocabularies, names and shapes is found here.
    """
    stores = {ref: open_location(ref.model, made or {}) for ref in document.references()}
    adapters = {
        ref: adapter_leaf(open_adapter(located(str(ref.lora))), stores[ref])
        for ref in stores
        if ref.lora is not None
    }
    _refuse_templates(document)
    check_vocabularies(document.tokenizer, {str(ref): store for ref, store in stores.items()})
    translation = translate(document, {ref: list(store) for ref, store in stores.items()}, seed)
    _refuse_adapted_bases(translation, adapters)
    edits = tuple(
        _edit(step, names, translation, stores, adapters)
        for step, names in translation.grouped().items()
    )
    notes = translation.notes
    if any(ref.override_architecture for ref in stores):
        notes += ("override_architecture has no effect: tensors are matched by name and shape",)
    prepared = Prepared(document, stores, translation, edits, notes, seed, frozenset(made or ()))
    check_layers(prepared.donor.path, prepared.layers)
    return prepared


def open_location(location: Location, made: Mapping[str, Path]) -> TensorStore:
    if location.path in made:
        return open_anywhere(made[location.path])
    if Path(str(location)).exists():  # a folder whose name has an @
        return open_anywhere(str(location))
    return open_anywhere(location.path, location.revision)


def _refuse_templates(document: Document) -> None:
    if document.chat_template not in (None, "auto"):
        raise UsageError(
            "chat_template: only 'auto' is known yet, which keeps the template of the base model; "
            "remove it, and put the template beside the output"
        )


def _refuse_adapted_bases(translation: Translation, adapters: Mapping[ModelRef, Leaf]) -> None:
    """What is subtracted and added to is read as stored, so it can have no adapter on it."""
    for one in translation.wanted.values():
        if one.base in adapters and THEIRS[one.method].base != "ignored":
            raise UsageError(
                f"base_model {one.base} has an adapter on it; merge that first, by a document of "
                f"its own ('name: adapted', passthrough, 'model: {one.base}'), and start from "
                "'base_model: adapted'"
            )


def _edit(
    step: Step,
    names: Sequence[str],
    translation: Translation,
    stores: Mapping[ModelRef, TensorStore],
    adapters: Mapping[ModelRef, Leaf],
) -> Edit:
    """The edit of tensors that share a step; models are seen under the output's names."""

    def tensor_of(ref: ModelRef, name: str) -> str:
        inputs = translation.wanted[name].inputs
        return next((one.tensor for one in inputs if one.model == ref), name)

    def view(ref: ModelRef) -> TensorStore:
        store, infos = stores[ref], {}
        for name in names:
            infos[name] = replace(store[tensor_of(ref, name)], name=name)
        return TensorStore(store.path, infos, {}, store.files)

    base = view(step.base)
    unchanged = step.method == "passthrough" and step.models == (step.base,) and not step.options
    if unchanged and step.scale == 1 and step.base not in adapters:
        return Edit(base, (), step.build())
    vectors = []
    for ref in step.models:
        seen = view(ref)
        _check_shapes(seen, base, ref)
        floats = {n: info for n, info in seen.items() if info.dtype.mergeable}
        binding = Binding(str(base.path), base)
        terms = [Term(Leaf(str(ref), floats, True, binding, (seen.path, *seen.files)))]
        if ref in adapters:
            own = adapters[ref]
            infos = {n: tensor_of(ref, n) for n in names if tensor_of(ref, n) in own.infos}
            update = {n: replace(own.infos[t], name=n) for n, t in infos.items()}
            terms.append(Term(replace(own, infos=update, base=binding)))
        vectors.append(Combination(tuple(terms)))
    return Edit(
        base,
        tuple(vectors),
        step.build(),
        step.scale,
        weights=step.weights,
        names=tuple(map(str, step.models)),
    )


def _check_shapes(seen: TensorStore, base: TensorStore, ref: ModelRef) -> None:
    for name, info in seen.items():
        if info.dtype.mergeable != base[name].dtype.mergeable:
            raise MismatchError(
                f"{info.where} holds {info.dtype.name} in {ref}, but {base[name].where} holds "
                f"{base[name].dtype.name}; floats and whole numbers cannot be merged"
            )
        if info.shape == base[name].shape:
            continue
        rows = info.shape[1:] == base[name].shape[1:] and len(info.shape) == 2
        hint = "; are they of different vocabularies?" if rows else "; is it of another size?"
        raise MismatchError(
            f"{info.where} has shape {list(info.shape)} in {ref}, but {base[name].where} has "
            f"{list(base[name].shape)}{hint}"
        )


def follow(
    prepared: Prepared,
    out: str | Path,
    *,
    card: bool = True,
    shard_size: int | None = DEFAULT_SHARD,
    replace_used: bool = False,
    engine: Engine | None = None,
    recipe: RecipeFile | None = None,
    inputs: Sequence[Path] = (),
    parents: Sequence[str] = (),
) -> Saved:
    """Write the model that a recipe describes: whole, or not at all.

    Differences and sums are taken in float32 (float64 where weights themselves are mixed),
    whatever ``dtype`` says, and rounded once to what is stored: ``out_dtype``, else ``dtype``, else
    the widest of what goes into a tensor.

    Args:
        card: whether a README.md is written.
        recipe: the whole file that is recorded, where the merge starts from others of it.
        inputs: further files that must not be touched.
        parents: what merges of the same file were made of.

    Raises:
        FileError: the destination is refused. ValueProblem: a value is not finite.
    """
    engine = engine or Engine()
    outputs = prepared.outputs
    text = to_yaml(recipe or RecipeFile((prepared.document,)))
    with Staged(
        out,
        outputs,
        {"format": "pt"},
        shard_size=shard_size,
        replace=replace_used,
        inputs=[*prepared.files, *inputs],
    ) as staged:
        totals: dict[str, NDArray[np.float64]] = {}
        for edit, plan in zip(prepared.edits, prepared.plans, strict=True):
            edit.check(engine)
            former = edit.former(plan, engine)
            totals |= write(plan, staged, former, lambda name: (name,), True, engine)
        left: tuple[str, ...] = ()
        if not staged.is_file:
            record = _record(prepared, text)
            staged.add_file(RECIPE_FILE, (json.dumps(portable(record), indent=2) + "\n").encode())
            staged.add_file(CONFIG, text.encode())
            if card:
                known = list(dict.fromkeys([*prepared.parents, *parents]))
                staged.add_file(CARD, model_card(record, known, _method(prepared)).encode())
            other = prepared.tokenizer is not prepared.donor
            skip = (CONFIG, *TOKENIZER) if other else (CONFIG,)
            left = copy_side_files(
                prepared.donor, staged, prepared.dtype, prepared.layers, skip=skip
            )
            if other:
                copy_tokenizer(prepared.tokenizer, staged)
        staged.commit()
    norm, lost = rounding(totals)
    rules = {
        "merged": tuple(m.name for p in prepared.plans for m in p.merges if m.rows or m.moved),
        "converted": tuple(
            m.name for p in prepared.plans for m in p.merges if not (m.rows or m.moved)
        ),
        "copied": tuple(info.name for plan in prepared.plans for info in plan.copies),
    }
    nbytes = sum(tensor.nbytes for tensor in outputs)
    return Saved(Path(out), nbytes, rules, norm, lost, left)


def _method(prepared: Prepared) -> Method | None:
    """The method of most tensors that are merged; None where all are copied."""
    merged = [(len(edit.base), edit.method) for edit in prepared.edits if edit.vectors]
    return max(merged, key=lambda one: one[0])[1] if merged else None


def _record(prepared: Prepared, text: str) -> dict[str, Any]:
    """What travels with the output."""
    first = prepared.document.base_model or next(prepared.document.sources()).model
    made = first.model.path in prepared.made
    return {
        **({} if made else {"base": str(prepared.donor.path)}),
        "recipe": text,
        "seed": prepared.seed,
        "models": {
            str(ref): str(ref) if ref.model.path in prepared.made else str(store.path)
            for ref, store in prepared.stores.items()
        },
        "notes": list(prepared.notes),
    }


@dataclass(frozen=True)
class Cost:
    """What following a recipe takes, from headers alone.

    Attributes:
        read, written: bytes.
        passes: how often the inputs are read, at most.
        memory: bytes of one worker beside the program.
    """

    read: int
    written: int
    passes: int
    memory: int


def cost(prepared: Prepared) -> Cost:
    """What following a recipe takes."""
    read, passes, memory = 0, 1, 0
    for edit, plan in zip(prepared.edits, prepared.plans, strict=True):
        times = 1 + len(edit.method.stages()) if edit.vectors else 1
        size = sum(merge.size * merge.bytes_per_element for merge in plan.merges)
        read += times * size + sum(info.nbytes for info in plan.copies)
        passes = max(passes, times)
        memory = max(memory, plan.memory(1, edit.method))
    return Cost(read, sum(tensor.nbytes for tensor in prepared.outputs), passes, memory)


def account(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """For every model its tensors that the output does not use."""
    used: dict[ModelRef, set[str]] = {ref: set() for ref in prepared.stores}
    for wanted in prepared.translation.wanted.values():
        for one in wanted.inputs:
            used[one.model].add(one.tensor)
    return {
        str(ref): tuple(sorted(name for name in store if name not in used[ref]))
        for ref, store in prepared.stores.items()
    }
