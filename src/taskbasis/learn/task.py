"""``hf:MODEL_FOLDER:DATA``: a model's own architecture, head and question, as a task for others.

The tensors of any model of the same shape are put into the folder's architecture; the head stays
the folder's. A classifier scores its accuracy, a language model its mean probability per token
(the geometric mean, ``exp(-loss)``), so that a higher score is better and lies from 0 to 1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.errors import FileError, MismatchError, UsageError, nearest
from taskbasis.evaluate.task import Model, Split, Task
from taskbasis.io.folder import open_tensors
from taskbasis.learn.coding import Encoded
from taskbasis.learn.data import WHOLE
from taskbasis.learn.gradients import groups_of
from taskbasis.learn.huggingface import (
    CAUSAL,
    MASKED,
    Asked,
    Reading,
    as_problem,
    open_model,
    read,
)
from taskbasis.learn.losses import logits
from taskbasis.learn.problem import Problem
from taskbasis.learn.runtime import looking_at
from taskbasis.learn.weights import Weights
from taskbasis.recipe import Naming, find_naming

_BATCH = 32

HELD_OUT = 0.1
"""The share of a training split that becomes validation, where there is none."""


def open_tasks(rest: str) -> list[Task]:
    """The task of ``MODEL_FOLDER:DATA``: what ``hf:MODEL_FOLDER:DATA`` means.

    Raises:
        UsageError: there is no colon. FileError: no folder stands before one.
    """
    parts = rest.split(":")
    for at in range(1, len(parts)):
        folder, data = ":".join(parts[:at]), ":".join(parts[at:])
        if Path(folder).is_dir() and data:
            return [hf_task(folder, data)]
    if len(parts) < 2:
        raise UsageError(f"'hf:{rest}' names no model and data; write hf:MODEL_FOLDER:DATA")
    raise FileError(f"{parts[0]}: no such model folder; write hf:MODEL_FOLDER:DATA")


def hf_task(
    folder: str | Path, data: Any, name: str | None = None, reading: Reading | None = None
) -> Task:
    """A task that scores any model in a folder's architecture, with the folder's head.

    Data with splits is used as it says: ``validation`` and ``test``, and ``train`` to learn from.
    Where validation is missing it is a tenth of train. Rows without splits are split in half by
    seed 0 into validation and test, and what is learnt is learnt from validation.

    Args:
        folder: a Hugging Face folder; opened when it is first scored.
        data: a path or a sequence of dicts.
        name: of the task; the folder's by default.
        reading: how the data is read.
    """
    scorer = _Scorer(Path(folder), data, reading or Reading())
    return Task(name or Path(folder).name, scorer.score, scorer.problem)


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Scores models one after the other in one module."""

    folder: Path
    data: Any
    reading: Reading

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _asked(self) -> Asked:
        return open_model(self.folder, self.reading)

    @cached_property
    def _splits(self) -> Mapping[str, Encoded]:
        return _shared_out(read(self._asked, self.data, self.reading))

    def score(self, model: Model, split: Split) -> float:
        """The accuracy on a split; of language models, the mean probability per token."""
        with self._lock:
            problem = as_problem(self._asked, self._splits[split])
            naming = find_naming(model, self._asked.skeleton.store)
            put_model(problem.module, problem.names, model, naming)
            with looking_at(problem.module) as torch, torch.no_grad():
                if self._asked.kind in (CAUSAL, MASKED):
                    return math.exp(-_mean_loss(problem))
                return _accuracy(problem)

    def problem(self, folder: Path) -> Problem:
        """The model of another folder, under this one's head, with the training data."""
        asked = open_model(self.folder, self.reading)
        splits = _shared_out(read(asked, self.data, self.reading))
        store = open_tensors(folder)
        naming = find_naming(store, asked.skeleton.store)
        problem = as_problem(asked, splits["train"])
        own = {name: naming.to_base(stored) for name, stored in problem.names.items()}
        weights = Weights(own, store)
        weights.check(problem.module)
        weights.put(problem.module)
        return replace(problem, names=own)


def _shared_out(found: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """``train``, ``validation`` and ``test`` from what there is."""
    splits = dict(found)
    if "test" in splits and "train" in splits and "validation" not in splits:
        splits["validation"], splits["train"] = _cut(splits["train"], HELD_OUT)
    elif not {"validation", "test"} <= splits.keys():
        rest = [splits[name] for name in (WHOLE, "validation", "test") if name in splits]
        if not rest:
            source = next(iter(found.values())).rows.source
            raise UsageError(
                f"{source}: has the splits {', '.join(found)}; a task needs validation and test"
            )
        splits["validation"], splits["test"] = _cut(rest[0], 0.5)
    for name in ("validation", "test"):
        if not len(splits[name]):
            raise UsageError(f"{splits[name].rows.source}: has no rows for {name}; give more")
    return {"train": splits["validation"], **splits}


def _cut(encoded: Encoded, share: float) -> tuple[Encoded, Encoded]:
    """A share of the rows, drawn by seed 0, and the rest."""
    order = np.random.default_rng(0).permutation(len(encoded))
    middle = round(share * len(order))
    first, second = (sorted(map(int, part)) for part in (order[:middle], order[middle:]))
    rows = encoded.rows
    return replace(encoded, rows=rows.only(first)), replace(encoded, rows=rows.only(second))


def put_model(module: Any, names: Mapping[str, str], model: Model, naming: Naming) -> None:
    """Give a module the tensors of a model, by their names in the folder's file.

    Raises:
        MismatchError: one is missing or of another shape; the message names it.
    """
    parameters = dict(module.named_parameters())
    for name, own in names.items():
        stored = naming.to_base(own)
        if stored not in model:
            raise MismatchError(
                f"the model has no tensor {stored!r}, which the task needs; "
                f"{nearest(stored, model)}"
            )
        place, array = parameters[name].data, model[stored]
        if np.shape(array) != tuple(place.shape):
            raise MismatchError(
                f"tensor {stored!r} has shape {list(np.shape(array))}, not {list(place.shape)}"
            )
        place.copy_(place.new_tensor(np.asarray(array, np.float32)))
    for name, buffer in module.named_buffers():  # running statistics are the model's, too
        values = model.get(naming.to_base(name))
        if (
            values is not None
            and buffer.is_floating_point()
            and values.shape == tuple(buffer.shape)
        ):
            buffer.data.copy_(buffer.new_tensor(np.asarray(values, np.float32)))


def _accuracy(problem: Problem) -> float:
    right = 0
    for group in groups_of(problem, range(len(problem.samples)), _BATCH):
        found = logits(problem.module, group.batch)
        if not bool(found.isfinite().all()):
            return math.nan
        right += int((found.argmax(1) == group.batch["labels"]).sum())
    return right / len(problem.samples)


def _mean_loss(problem: Problem) -> float:
    total = 0.0
    for group in groups_of(problem, range(len(problem.samples)), _BATCH):
        total += float(problem.loss(problem.module, group.batch).double().sum())
    return total / len(problem.samples)
