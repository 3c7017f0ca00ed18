"""The whole story on handwritten digits: fine-tunes in, a judged basis out.

For every seed: a small transformer and its fine-tunes are made (ordinary Hugging Face folders,
kept), their task vectors are stored, every kind of basis is built at half and a quarter of the
tasks, and each is judged where it earns its storage.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis import Construction, solve
from taskbasis.engine import Engine, available_workers
from taskbasis.errors import require
from taskbasis.evaluate import Effort, Model, Yardstick, judge, measure, reference_rows
from taskbasis.evaluate.judge import judge_addition, judge_left_out
from taskbasis.library import Basis, Design, fit
from taskbasis.library.groups import atom_scale
from taskbasis.plot import gram_plot, storage_plot
from taskbasis.report import FULL, Report, Row
from taskbasis.suites.digits import DigitsWorld, prepare
from taskbasis.suites.digits_model import Settings
from taskbasis.suites.world import Tell
from taskbasis.vectors import Checkpoint, EditedModel, TaskVector

DESIGNS: Mapping[str, Design] = {
    "autoencoder": Design(),
    "autoencoder per tensor": Design(granularity="tensor"),
    "pca": Design(method="pca"),
    "svd": Design(method="svd"),
    "cluster": Design(method="cluster"),
    "greedy selection": Design(method="select", options={"strategy": "greedy"}),
    "random selection": Design(method="select", options={"strategy": "random"}),
    "random directions": Design(method="random"),
}
"""What is compared."""

EFFORT = Effort(coarse=(0.0, 0.2, 0.3, 0.4, 0.6, 1.0), per_size=1)

COLUMNS = (
    "addition accuracy",
    "addition normalised",
    "atom sum normalised",
    "subset normalised",
    "recovery normalised",
    "left-out normalised",
    "negation target",
    "negation control",
)


@dataclass(frozen=True)
class Story:
    """How much of the story is told.

    Attributes:
        designs: what is compared, by name.
        shares: sizes of bases, as shares of the tasks.
        effort: how much each is tried.
        settings: how the models are made.
    """

    designs: Mapping[str, Design] = field(default_factory=lambda: DESIGNS)
    shares: Sequence[float] = (0.5, 0.25)
    effort: Effort = EFFORT
    settings: Settings = field(default_factory=Settings)


WHOLE = Story()
"""What the verb tells."""


@dataclass(frozen=True)
class InMemory:
    """A collection of task vectors small enough to hold: the base and [T, d] deltas, flat.

    Attributes:
        names: the tasks.
        storage_bytes: what it takes on the disk.
        base: the base's tensors.
        deltas: [T, d] recovered vectors.
        total: [d] what adding the collection means.
    """

    names: Sequence[str]
    storage_bytes: int
    base: Model
    deltas: NDArray[np.float32]
    total: NDArray[np.float32]

    def combine(self, weights: Mapping[str, float]) -> Model:
        """``base + sum_t weights[t] * tau_hat_t``."""
        total = np.zeros_like(self.total)
        for name, weight in weights.items():
            total += np.float32(weight) * self.deltas[list(self.names).index(name)]
        return self.model(total)

    def add(self, scale: float) -> Model:
        """``base + scale * total``."""
        return self.model(np.float32(scale) * self.total)

    def model(self, delta: NDArray[np.float32]) -> Model:
        """The base plus a flat delta."""
        found, position = {}, 0
        for name, tensor in self.base.items():
            piece = delta[position : position + tensor.size].reshape(tensor.shape)
            found[name] = tensor + piece
            position += tensor.size
        return found


def flat(vector: TaskVector, base: Model) -> NDArray[np.float32]:
    """A task vector as one row, in the order of the base's tensors; absent tensors are zero."""
    tensors = vector.tensors(Engine(workers=1))
    rows = [tensors.get(name, np.zeros_like(tensor)).ravel() for name, tensor in base.items()]
    return np.concatenate(rows).astype(np.float32, copy=False)


def run(folder: Path, seeds: Sequence[int], tell: Tell, story: Story | None = None) -> Report:
    """Make, build and judge everything; returns the rows of all seeds.

    Seeds run side by side, one processor each. Writes ``report.json``, ``report.md``,
    ``accuracy-against-storage.png`` and ``cosines.png`` into ``folder``, beside the models,
    vectors and bases of every seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(run_seed, folder, tell=tell, story=story or WHOLE)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(available_workers(), len(seeds)), context) as pool:
        report = Report(row for rows in pool.map(work, seeds) for row in rows)
    write_results(report, folder, seeds[0])
    return report


def run_seed(folder: Path, seed: int, tell: Tell, story: Story) -> list[Row]:
    """The rows of one seed; linear algebra keeps to one thread, since seeds share the machine."""
    limits = require("threadpoolctl", "demo", "the demo")
    with limits.threadpool_limits(1):
        tell(f"seed {seed}: making the base and its fine-tunes")
        place = folder / f"seed-{seed}"
        world = prepare(place / "models", seed, settings=story.settings)
        return judge_seed(world, place, tell, story)


def write_results(report: Report, folder: Path, seed: int) -> None:
    """The report as JSON and Markdown, and the two pictures; cosines are those of one seed."""
    aggregated = report.aggregate()
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    (folder / "report.md").write_text(aggregated.to_markdown(list(COLUMNS)), encoding="utf-8")
    storage_plot(
        aggregated,
        folder / "accuracy-against-storage.png",
        "subset normalised",
        "Sums of random subsets of the tasks: accuracy / accuracy of the fine-tuned models",
    )
    made = min((folder / f"seed-{seed}" / "bases").iterdir())
    gram_plot(Basis.open(made).cosines, Basis.open(made).names, folder / "cosines.png")


def judge_seed(world: DigitsWorld, place: Path, tell: Tell, story: Story) -> list[Row]:
    """The rows of one seed: references, full task arithmetic, and every basis."""
    base = EditedModel(Checkpoint(world.base)).tensors()
    tuned = {name: EditedModel(Checkpoint(path)).tensors() for name, path in world.tuned.items()}
    yardstick = measure(base, tuned, world.tasks, world.control, world.seed)
    vectors = store_vectors(world, place / "vectors")
    deltas = np.stack([flat(vector, base) for vector in vectors.values()])
    storage = sum(path.stat().st_size for path in (place / "vectors").iterdir())
    full = InMemory(tuple(vectors), storage, base, deltas, deltas.sum(axis=0))
    rows = reference_rows(yardstick, storage)
    rows += judge(full, yardstick, FULL, story.effort)
    rows += judge_left_out(_left_out(full, None), full, yardstick, FULL)
    for label, design in story.designs.items():
        for share in story.shares:
            made = build(vectors, place, label, replace(design, k=share, seed=world.seed))
            tell(f"seed {world.seed}: judging {label} at {share:g} of the tasks")
            judged = judge_basis(made, full, yardstick, label, story.effort)
            rows += [replace(row, extras={**row.extras, "family": label}) for row in judged]
    return rows


def store_vectors(world: DigitsWorld, place: Path) -> dict[str, TaskVector]:
    """The task vectors of a world, stored once and opened."""
    place.mkdir(parents=True, exist_ok=True)
    for name, path in world.tuned.items():
        file = place / f"{name}.safetensors"
        if not file.exists():
            TaskVector(world.base, path).save(file, engine=Engine(workers=1))
    return {name: TaskVector.open(place / f"{name}.safetensors") for name in world.tuned}


def build(vectors: Mapping[str, TaskVector], place: Path, label: str, design: Design) -> Basis:
    """A basis of the vectors under a name that says what it is."""
    folder = place / "bases"
    folder.mkdir(exist_ok=True)
    out = folder / f"{label.replace(' ', '-')}-{design.k}.safetensors"
    return fit(vectors, out, design, replace_used=True, engine=Engine(workers=1))


def judge_basis(
    made: Basis, full: InMemory, yardstick: Yardstick, label: str, effort: Effort
) -> list[Row]:
    """All rows of one basis: the recovered sum and the atom sum are added separately."""
    atoms = made.contents.atoms
    design = Design.recorded(made.contents.options, atoms)
    recovered = np.stack([flat(made[name], full.base) for name in made.names])
    collection = InMemory(made.names, made.nbytes, full.base, recovered, recovered.sum(axis=0))
    summed = flat(made.add_atoms(), full.base) * np.float32(atom_scale(made.contents.groups))
    method = f"{label} k={_wanted(made)}"
    rows = judge(collection, yardstick, method, effort)
    by_atoms = judge_addition(replace(collection, total=summed), yardstick, method)
    rows += [replace(row, metric=row.metric.replace("addition", "atom sum")) for row in by_atoms]
    if len(made.contents.groups) > 1:  # codes of their own per tensor: not projected as one
        return rows
    project = _left_out(full, design) if made.contents.dtype else _recover(collection)
    return rows + judge_left_out(project, collection, yardstick, method)


def _recover(collection: InMemory) -> Callable[[str], Model]:
    """Random directions know no task, so recovering one is projecting it."""
    return lambda name: collection.combine({name: 1.0})


def _wanted(made: Basis) -> int:
    """k as asked for: PCA stores its mean beyond it."""
    return made.contents.atoms - any(group.codes.mean_atom for group in made.contents.groups)


def _left_out(full: InMemory, design: Design | None) -> Callable[[str], Model]:
    """The base plus a task's vector projected onto what is built of the other tasks.

    Atoms are combinations of the other vectors, so the projection needs inner products only.
    Without a design the other vectors themselves are the atoms.
    """
    wide = full.deltas.astype(np.float64)
    gram = wide @ wide.T

    def project(name: str) -> Model:
        out = list(full.names).index(name)
        others = [t for t in range(len(full.names)) if t != out]
        inner = gram[np.ix_(others, others)]
        atoms = np.eye(len(others)) if design is None else _encoder(inner, design)
        weights = np.linalg.pinv(atoms.T @ inner @ atoms) @ (atoms.T @ gram[others, out])
        return full.model((atoms @ weights @ wide[others]).astype(np.float32))

    return project


def _encoder(gram: NDArray[np.float64], design: Design) -> NDArray[Any]:
    kind: Construction = design.construction()
    size = min(int(design.k or 1), len(gram))
    return solve(gram, kind, size, design.normalize)[0].encoder
