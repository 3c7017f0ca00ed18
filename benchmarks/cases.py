"""A collection of task vectors judged case by case: every subset, every task on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from taskbasis import Basis
from taskbasis.demo import InMemory, flat
from taskbasis.evaluate import Effort, Model, Yardstick
from taskbasis.evaluate.judge import (
    Collection,
    draw_subsets,
    judge_addition,
    judge_negation,
    judge_recovery,
)
from taskbasis.report import Row

ADDED, ATOMS = "addition normalised", "atom sum normalised"
SUBSET, RECOVERY = "subset normalised", "recovery normalised"
TARGET, KEPT = "negation target", "negation control"
ERROR, CODES = "relative error", "codes KiB"

Case = tuple[str, str, float]


@dataclass(frozen=True)
class Part:
    """Some tasks of a collection, judged as if they were all of it."""

    whole: Collection
    names: Sequence[str]

    @property
    def storage_bytes(self) -> int:
        """What the whole takes."""
        return self.whole.storage_bytes

    def combine(self, weights: Mapping[str, float]) -> Model:
        """As the whole does."""
        return self.whole.combine(weights)

    def add(self, scale: float) -> Model:
        """The sum of these tasks."""
        return self.whole.combine(dict.fromkeys(self.names, scale))


def judge_cases(collection: Collection, yardstick: Yardstick, effort: Effort) -> list[Case]:
    """What :func:`taskbasis.evaluate.judge` asks, each subset and each task on its own."""
    names = tuple(collection.names)
    found = _added(Part(collection, names), yardstick, ADDED, effort.grid)
    for subset in draw_subsets(names, effort.per_size, yardstick.seed):
        found += _added(Part(collection, subset), yardstick, SUBSET, effort.coarse)
    for name in names:
        one = Part(collection, (name,))
        rows = [*judge_negation(one, yardstick, "", effort), *judge_recovery(one, yardstick, "")]
        wanted = (TARGET, KEPT, RECOVERY)
        found += [(row.metric, name, row.value) for row in rows if row.metric in wanted]
    return found


def _added(part: Part, yardstick: Yardstick, metric: str, grid: Sequence[float]) -> list[Case]:
    rows = judge_addition(part, yardstick, "", grid)
    case = "+".join(part.names)
    return [(metric, case, row.value) for row in rows if row.metric == ADDED]


def judge_basis(
    made: Basis, full: InMemory, yardstick: Yardstick, effort: Effort
) -> tuple[int, list[Case]]:
    """Bytes on the disk, and all cases of one basis."""
    recovered = np.stack([flat(made[name], full.base) for name in made.names])
    size = made.path.stat().st_size
    collection = InMemory(made.names, size, full.base, recovered, recovered.sum(axis=0))
    found = judge_cases(collection, yardstick, effort)
    if made.contents.options["method"] == "svd":  # its atom sum is the recovered sum
        found += [(ATOMS, case, value) for metric, case, value in found if metric == ADDED]
    else:
        total = flat(made.add_atoms(), full.base) * np.float32(len(made.names) / mean_atoms(made))
        rows = judge_addition(replace(collection, total=total), yardstick, "", effort.grid)
        found += [(ATOMS, "+".join(made.names), row.value) for row in rows if row.metric == ADDED]
    found += [(ERROR, name, error) for name, error in made.errors.items()]
    atoms = sum(i.nbytes for name, i in made.store.infos.items() if name.startswith("atom."))
    return size, [*found, (CODES, "", (size - atoms) / 1024)]


def mean_atoms(made: Basis) -> float:
    """Atoms per group: with them the average task enters an atom sum with M/T."""
    return float(np.mean([group.atoms for group in made.contents.groups]))


def rows_of(method: str, size: int, seed: int, cases: Iterable[Case]) -> list[Row]:
    """One row per metric: the mean over its cases."""
    values: dict[str, list[float]] = {}
    for metric, _, value in cases:
        values.setdefault(metric, []).append(value)
    return [
        Row(method, size, metric, float(np.mean(found)), len(found), seed, "test")
        for metric, found in values.items()
    ]
