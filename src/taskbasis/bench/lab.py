"""One seed's models, vectors, scores and bases, and the models that contenders make of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.bench.contenders import LEARNT, Contender, Recipe
from taskbasis.disentangling import disentangle
from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.evaluate import Model, Task
from taskbasis.learn import importance, moments
from taskbasis.library import Basis, Design, fit
from taskbasis.library.groups import atom_scale
from taskbasis.merging import merge
from taskbasis.methods import Method, find_method, method, registered
from taskbasis.scores import Importance, Moments
from taskbasis.suites.world import Tell, World
from taskbasis.vectors import Checkpoint, EditedModel, TaskVector

Line = Callable[[float], Model]
"""The model at a scale."""


def per_task_bytes(shapes: Iterable[tuple[int, ...]], tasks: int, triplets: bool) -> int:
    """Bytes that a model per task takes: one float32 vector and a bit per entry and task, or
    singular triplets of every matrix and task (and whole vectors of the other tensors).

    >>> per_task_bytes([(16, 16)], 2, False), per_task_bytes([(16, 16)], 2, True)
    (1088, 2112)
    """
    total = 0
    for shape in shapes:
        size = math.prod(shape)
        if not triplets:
            total += 4 * size + tasks * -(-size // 8)
        elif len(shape) < 2:
            total += 4 * tasks * size
        else:
            out, rest = shape[0], math.prod(shape[1:])
            total += 4 * tasks * max(1, min(out, rest) // tasks) * (out + rest + 1)
    return total


@dataclass(frozen=True)
class Lab:
    """What contenders are made of.

    Attributes:
        world: base, fine-tunes and tasks.
        place: where vectors, scores and bases are kept.
        samples: training samples that scores and moments are learnt from, per task.
        tell: is told what takes long.
    """

    world: World
    place: Path
    samples: int
    tell: Tell
    _bases: dict[str, Basis] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(task.name for task in self.world.tasks)

    @cached_property
    def engine(self) -> Engine:
        """One thread: seeds share the machine."""
        return Engine(workers=1)

    @cached_property
    def base(self) -> Checkpoint:
        """The base."""
        return Checkpoint(self.world.base)

    @cached_property
    def base_tensors(self) -> Model:
        """The base in memory."""
        return EditedModel(self.base).tensors(self.engine)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What the base and every fine-tune are known by."""
        found = {name: Checkpoint(path).fingerprint for name, path in self.world.tuned.items()}
        return {"base": self.base.fingerprint, **found}

    @cached_property
    def vectors(self) -> dict[str, TaskVector]:
        """The task vectors, stored once."""
        for name, out in self._files.items():
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                TaskVector(self.base, self.world.tuned[name]).save(out, engine=self.engine)
        return {name: TaskVector.open(out) for name, out in self._files.items()}

    @property
    def _files(self) -> dict[str, Path]:
        """Where every vector is stored."""
        folder, known = self.place / "vectors", self.fingerprints
        return {n: folder / f"{n}-{known[n][:12]}.safetensors" for n in self.world.tuned}

    @cached_property
    def storage_bytes(self) -> int:
        """What all vectors take on the disk."""
        return sum(path.stat().st_size for path in self._files.values() if self.vectors)

    def lacks(self, contender: Contender) -> str | None:
        """Why a contender cannot be measured here, as a sentence; None when it can."""
        recipe = contender.recipe
        if recipe.method not in registered():
            return f"{contender.label}: there is no method {recipe.method!r} in this version"
        if recipe.scores or recipe.moments:
            for task in self.world.tasks:
                if task.problem is None:
                    return f"{contender.label}: task {task.name} gives nothing to learn from"
        return None

    def scores(self, name: str, task: str) -> Importance:
        """Importance scores of one task's fine-tune, learnt once."""
        how: dict[str, Any] = {**LEARNT[name], "samples": self.samples, "seed": self.world.seed}
        out = self._file("scores", name, task, how)
        if out.exists():
            return Importance.open(out)
        self.tell(f"seed {self.world.seed}: importance ({name}) for {task}")
        folder = self.world.tuned[task]
        return importance(
            self._problem(task), out, model=folder, base=self.base, engine=self.engine, **how
        )

    def moments(self, task: str) -> Moments:
        """Activation moments of one task's fine-tune, learnt once."""
        how: dict[str, Any] = {"samples": self.samples, "seed": self.world.seed}
        out = self._file("moments", "moments", task, how)
        if out.exists():
            return Moments.open(out)
        self.tell(f"seed {self.world.seed}: moments for {task}")
        folder = self.world.tuned[task]
        return moments(self._problem(task), out, model=folder, engine=self.engine, **how)

    def basis(self, construction: str, share: int) -> Basis:
        """A basis of T / share atoms; the one before it is removed from the disk."""
        key = f"{construction}-{share}"
        if key not in self._bases:
            for old in self._bases.values():
                old.path.unlink(missing_ok=True)
            self._bases.clear()
            options = {"strategy": "greedy"} if construction == "select" else {}
            size = max(1, len(self.names) // share)
            design = Design(size, construction, seed=self.world.seed, options=options)
            out = self.place / f"basis-{key}.safetensors"
            self._bases[key] = fit(self.vectors, out, design, replace_used=True, engine=self.engine)
        return self._bases[key]

    def close(self) -> None:
        """Remove what is not worth keeping."""
        for old in self._bases.values():
            old.path.unlink(missing_ok=True)
        self._bases.clear()

    @cached_property
    def disentangled(self) -> Mapping[str, TaskVector]:
        """The vectors without what all share."""
        return disentangle(self.vectors, engine=self.engine).vectors

    def storage(self, recipe: Recipe) -> int:
        """Bytes that a recipe has to keep."""
        if recipe.per_task:
            shapes = [info.shape for info in self.base.store.values() if info.dtype.mergeable]
            return per_task_bytes(shapes, len(self.names), recipe.method == "tsv_compress")
        if recipe.basis is None:
            return self.storage_bytes
        return self.basis(recipe.basis, recipe.share).nbytes

    def merged(
        self,
        recipe: Recipe,
        density: float | None,
        scale: float,
        names: Sequence[str],
        of: str | None = None,
    ) -> EditedModel:
        """The base plus ``scale`` times what a recipe makes of some tasks' vectors.

        Args:
            of: the task whose own model it is, for recipes with a model per task.
        """
        if recipe.atoms:
            assert recipe.basis is not None
            made = self.basis(recipe.basis, recipe.share)
            summed = made.add_atoms() * atom_scale(made.contents.groups)
            return merge(self.base, [summed], scale=scale)
        return merge(
            self.base,
            [self._vector(recipe, name) for name in names],
            self._method(recipe, density, names.index(of) + 1 if of else 0),
            scale,
            [self.scores(recipe.scores, name) for name in names] if recipe.scores else (),
            [self.moments(name) for name in names] if recipe.moments else (),
        )

    def line(self, recipe: Recipe, density: float | None, names: Sequence[str]) -> Line:
        """The models on the straight line through the base and the recipe's at scale 1.

        For searches: the merged delta does not depend on the scale, so it is found once. What is
        chosen is built anew, at its own scale, before it is tested.
        """
        base = self.base_tensors
        end = self.merged(recipe, density, 1.0, names).tensors(self.engine)
        deltas = {name: end[name] - base[name] for name in base}

        def model(scale: float) -> Model:
            if scale in (0.0, 1.0):
                return end if scale else base
            factor = np.float32(scale)
            return {name: base[name] + factor * deltas[name] for name in base}

        return model

    def task(self, name: str) -> Task:
        """The task of that name."""
        return self.world.tasks[self.names.index(name)]

    def _vector(self, recipe: Recipe, name: str) -> TaskVector:
        if recipe.basis is None:
            return self.disentangled[name] if recipe.disentangled else self.vectors[name]
        return self.basis(recipe.basis, recipe.share)[name]

    def _method(self, recipe: Recipe, density: float | None, task: int = 0) -> Method:
        known = {item.name for item in fields(find_method(recipe.method))}
        options = dict(recipe.options)
        if density is not None and "density" in known:
            options["density"] = density
        if "seed" in known:
            options["seed"] = self.world.seed
        if task:
            options["task"] = task
        return method(recipe.method, **options)

    def _problem(self, task: str) -> Any:
        found = self.task(task).problem
        if found is None:
            raise UsageError(f"task {task!r} gives no problem to learn from")
        return found(self.world.tuned[task])

    def _file(self, kind: str, name: str, task: str, how: dict[str, Any]) -> Path:
        facts = [how, self.fingerprints["base"], self.fingerprints[task]]
        told = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        out = self.place / kind / name.replace(", ", "-") / f"{task}-{told}.safetensors"
        out.parent.mkdir(parents=True, exist_ok=True)
        return out
