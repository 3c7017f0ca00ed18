"""Following recipes: what mergekit's YAML describes is written as a model; and what that takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.card import CARD, model_card, portable
from taskbasis.difference import twins
from taskbasis.engine import Engine
from taskbasis.io.gathered import Gathered
from taskbasis.io.storing import AS_IT_IS, Storing
from taskbasis.io.writer import DEFAULT_SHARD, Staged
from taskbasis.methods import Method
from taskbasis.passes import numbers, rounding, write
from taskbasis.plan import Plan
from taskbasis.preparing import Prepared, donor_of
from taskbasis.recipes import ModelRef, to_yaml
from taskbasis.recipes.schema import RecipeFile
from taskbasis.saving import Saved
from taskbasis.sidefiles import RECIPE_FILE, copy_side_files
from taskbasis.vocabulary import TOKENIZER

CONFIG = "mergekit_config.yml"
"""What a recipe is called beside the weights, as mergekit calls it."""


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
    storing: Storing = AS_IT_IS,
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
        storing: which tensors are stored in float32 whatever the recipe says, and how values are
            rounded; the dtype is the recipe's.

    Raises:
        FileError: the destination is refused. ValueProblem: a value is not finite.
        UsageError: a pattern of ``storing`` matches no tensor.
    """
    engine = engine or Engine()
    if storing.seed is not None:
        storing = replace(storing, twins=twins(prepared.donor))
    prepared = replace(prepared, beside=storing)
    outputs = prepared.outputs
    storing.check(tensor.name for tensor in outputs if tensor.dtype.mergeable)
    text = to_yaml(recipe or RecipeFile((prepared.document,)))
    with Staged(
        out,
        outputs,
        {"format": "pt"},
        shard_size=shard_size,
        replace=replace_used,
        inputs=[*prepared.files, *inputs],
        recipe=[
            *(text, prepared.seed, prepared.lora_dtype, repr(storing)),
            *(*map(numbers, prepared.plans), *_look_ups(prepared.plans)),
        ],
        resume=engine.resume,
    ) as staged:
        totals: dict[str, NDArray[np.float64]] = {}
        for edit, plan in zip(prepared.edits, prepared.plans, strict=True):
            edit.check(engine)
            former = edit.former(plan, engine)
            names, how = lambda name: (name,), prepared.storing
            totals |= write(plan, staged, former, names, True, engine, how)
        left: tuple[str, ...] = ()
        if not staged.is_file:
            left = _write_beside(prepared, staged, text, parents if card else None)
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


def _write_beside(
    prepared: Prepared, staged: Staged, text: str, parents: Sequence[str] | None
) -> tuple[str, ...]:
    """Recipe, record, card, config and tokenizer; returns what was left of the donor's files.

    Args:
        parents: what merges of the same file were made of; None: no card is written.
    """
    record = _record(prepared, text)
    staged.add_file(RECIPE_FILE, (json.dumps(portable(record), indent=2) + "\n").encode())
    staged.add_file(CONFIG, text.encode())
    if parents is not None:
        known = list(dict.fromkeys([*prepared.parents, *parents]))
        used, words = _method(prepared), prepared.beside.options
        staged.add_file(CARD, model_card(record, known, used, stored=words).encode())
    skip = (CONFIG, *TOKENIZER, *prepared.tokens)
    config = prepared.config if prepared.changed else None
    left = copy_side_files(prepared.donor, staged, prepared.dtype, config, skip=skip)
    for name, raw in prepared.tokens.items():
        staged.add_file(name, raw)
    return left


def _method(prepared: Prepared) -> Method | None:
    """The method of most tensors that are merged; None where all are copied."""
    merged = [(len(edit.base), edit.method) for edit in prepared.edits if edit.vectors]
    return max(merged, key=lambda one: one[0])[1] if merged else None


def _look_ups(plans: Sequence[Plan]) -> list[str]:
    """What rows of vocabularies go where: a tokenizer that changed makes another output."""
    merges = [merge for plan in plans for merge in plan.merges]
    blobs = [info.blob for m in merges for info in (*m.rows, m.base) if info is not None]
    return [blob.key for blob in blobs if isinstance(blob, Gathered)]


def _record(prepared: Prepared, text: str) -> dict[str, Any]:
    """What travels with the output."""
    made = donor_of(prepared.document).model.path in prepared.made
    return {
        **({} if made else {"base": str(prepared.donor.path)}),
        "recipe": text,
        "seed": prepared.seed,
        **({"lora_merge_dtype": prepared.lora_dtype} if prepared.lora_dtype else {}),
        "models": {
            str(ref): str(ref) if ref.model.path in prepared.made else str(store.path)
            for ref, store in prepared.stores.items()
        },
        "notes": list(prepared.notes),
        **({"stored": prepared.beside.record} if prepared.beside.record else {}),
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
