"""The basis as people hold it: a few atoms and codes that stand in for many task vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskbasis import notebook
from taskbasis.binding import check_bindings
from taskbasis.blas import one_thread
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, finite, nearest
from taskbasis.io.dtypes import F32
from taskbasis.io.remote import open_anywhere
from taskbasis.io.tensors import TensorStore
from taskbasis.library.file import Contents, atom_leaves, noise_leaf, parse
from taskbasis.library.groups import loss_and_bound, relative_errors, sum_cosines
from taskbasis.passes import gram_by_tensor
from taskbasis.plan import make_plan
from taskbasis.recipe import Combination, Leaf, Term
from taskbasis.units import bytes_text
from taskbasis.vectors import TaskVector

DROPPED = 0.9
"""A task whose relative error is at least this has been dropped: little of it is left."""


@dataclass(frozen=True)
class Neighbour:
    """How close a vector is to something a basis holds."""

    name: str
    cosine: float


@dataclass(frozen=True, eq=False)
class Basis:
    """M atoms, the codes, the Gram matrix and the task names: stands in for T task vectors.

    Open one with :meth:`open`, make one with :func:`taskbasis.library.fit`. Every operation
    gives a :class:`~taskbasis.vectors.TaskVector`, which is not computed until it is saved.

    Attributes:
        path: where it is stored.
        contents: names, groups, codes and how it was made.
        sources: what its vectors are read from: stored atoms, or seeded noise.
    """

    path: Path
    store: TensorStore = field(repr=False)
    contents: Contents = field(repr=False)
    sources: tuple[Leaf, ...] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Basis:
        """A stored basis; only codes are read.

        Raises:
            HeaderError: the file is not a basis, or is damaged.
        """
        store = open_anywhere(path)
        contents = parse(store)
        if contents.dtype is None:
            seed = int(contents.options["seed"])
            count = contents.groups[0].codes.encoder.shape[0] - len(contents.names)
            leaves = [noise_leaf(i, seed, contents.shapes, contents.base) for i in range(count)]
        else:
            leaves = atom_leaves(store, contents)
        return cls(Path(path), store, contents, tuple(leaves))

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return self.contents.names

    @property
    def errors(self) -> dict[str, float]:
        """Per task ``||recovered - original|| / ||original||``; near 1 it has been dropped.

        After an update it is an upper bound, by the triangle inequality.
        """
        found = relative_errors(self.contents.groups)
        return dict(zip(self.names, map(float, found), strict=True))

    @property
    def norms(self) -> dict[str, float]:
        """Per task the norm of its original vector."""
        squares = np.sum([np.diag(g.gram)[: len(self.names)] for g in self.contents.groups], axis=0)
        return dict(zip(self.names, map(float, np.sqrt(squares)), strict=True))

    @property
    def cosines(self) -> NDArray[np.float64]:
        """[T, T] cosines of the original task vectors; zero vectors have cosine 0 to all.

        After an update, those between old and new tasks are taken from what is recovered.
        """
        count = len(self.names)
        gram = np.sum([group.gram[:count, :count] for group in self.contents.groups], axis=0)
        norms = np.sqrt(np.diag(gram))
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        return np.asarray(gram * scale[:, None] * scale[None])

    @property
    def loss_and_bound(self) -> tuple[float, float]:
        """What all tasks lose together, and the least any atoms of these sizes could lose.

        ``||V_hat - V||^2 / T^2`` and its spectral bound; after an update the first is an upper
        bound, as the errors are.
        """
        return loss_and_bound(self.contents.groups)

    @property
    def sum_cosines(self) -> tuple[float, float]:
        """Cosines to the sum of all original vectors: of the atoms' sum, of the recovered sum."""
        return sum_cosines(self.contents.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of atoms and codes on the disk."""
        return self.store.nbytes

    @property
    def full_nbytes(self) -> int:
        """Bytes that the T vectors would take, stored in the atoms' dtype (float32 for noise)."""
        size = sum(math.prod(shape) for shape in self.contents.shapes.values())
        return size * len(self.names) * (self.contents.dtype or F32).itemsize

    def _repr_html_(self) -> str:
        errors, norms = self.errors, self.norms
        sizes = f"{bytes_text(self.nbytes)} instead of {bytes_text(self.full_nbytes)}"
        title = (
            f"basis {self.path}: {len(self.names)} tasks in {self.contents.atoms} atoms, {sizes}"
        )
        rows = [[name, norms[name], errors[name]] for name in self.names]
        return notebook.table(title, ["task", "norm", "relative error"], rows)

    def number(self, name: str) -> int:
        """The place of a task.

        Raises:
            UsageError: no such task; the message names the nearest.
        """
        if name not in self.names:
            raise UsageError(f"{self.path} has no task {name!r}; {nearest(name, self.names)}")
        return self.names.index(name)

    def __getitem__(self, name: str) -> TaskVector:
        """One task, recovered: ``sum_m W[m, t] * atom m``."""
        return self.add({name: 1.0})

    def dropped(self, name: str) -> bool:
        """Whether so little of a task is left that negating it does next to nothing."""
        self.number(name)
        return self.errors[name] >= DROPPED

    def add(self, weights: Mapping[str, float] | None = None) -> TaskVector:
        """The recovered sum ``sum_t a_t * tau_hat_t``.

        Args:
            weights: a_t by name, 0 for the tasks that are not named; all ones when None.

        Raises:
            UsageError: there is no such task, or a weight is not a finite number.
        """
        vector = np.ones(len(self.names)) if weights is None else np.zeros(len(self.names))
        for name, weight in (weights or {}).items():
            vector[self.number(name)] = finite("the weight of a task", weight)
        return self._from_atoms([group.codes.decoder @ vector for group in self.contents.groups])

    def add_atoms(self) -> TaskVector:
        """The sum of the atoms, as the paper adds a basis.

        It is not the recovered sum: for the autoencoder the atoms are averages of tasks, so a
        task's coefficient is about M/T, and the best scale is larger by about T/M.
        """
        return self._from_atoms([group.codes.addition for group in self.contents.groups])

    def atom(self, index: int) -> TaskVector:
        """One atom.

        Raises:
            UsageError: there is no such atom.
        """
        if not 0 <= index < self.contents.atoms:
            raise UsageError(f"{self.path} has atoms 0 to {self.contents.atoms - 1}, not {index}")
        return self._from_atoms(
            [
                np.eye(group.atoms)[:, index] if index < group.atoms else np.zeros(group.atoms)
                for group in self.contents.groups
            ]
        )

    def negate(self, name: str) -> TaskVector:
        """Minus one recovered task; see :meth:`dropped` before trusting it."""
        return -self[name]

    @one_thread()
    def _from_atoms(self, weights: list[NDArray[np.float64]]) -> TaskVector:
        """The vector with the given weights of atoms in every group."""
        rows = [self._source_weights(g, row) for g, row in enumerate(weights)]
        terms = []
        for index, leaf in enumerate(self.sources):
            values = {
                tensor: float(row[index])
                for group, row in zip(self.contents.groups, rows, strict=True)
                for tensor in group.tensors
                if index < len(row) and row[index] != 0.0
            }
            terms.append(Term(leaf, 1.0, values))
        return TaskVector.of(Combination(tuple(terms)))

    def _source_weights(self, number: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of atoms as weights of what is read: random atoms are made of noise."""
        if self.contents.dtype is not None:
            return weights
        encoder = self.contents.groups[number].codes.encoder
        return np.asarray(encoder[len(self.names) :] @ weights)

    @one_thread()
    def nearest(
        self, vector: TaskVector, engine: Engine | None = None
    ) -> tuple[list[Neighbour], list[Neighbour], float]:
        """What a vector from outside is close to.

        Returns:
            Atoms and recovered tasks, each from the largest cosine down, and the share of the
            vector's norm that no combination of atoms explains, each group by its own.

        Source: choosing the nearest basis for a held-out task is TVB v1's procedure.
        """
        engine = engine or Engine()
        count = self.contents.atoms
        atoms = [self.atom(index) for index in range(count)]
        tasks = [self[name] for name in self.names]
        grams = inner_products([*atoms, *tasks, vector], engine)
        gram = np.sum(list(grams.values()), axis=0)
        norms = np.sqrt(np.diag(gram))
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        cosines = gram[-1] * scale * scale[-1]
        labels = [f"atom {index}" for index in range(count)] + list(self.names)
        found = [Neighbour(n, float(c)) for n, c in zip(labels, cosines[:-1], strict=True)]

        def closest(items: list[Neighbour]) -> list[Neighbour]:
            return sorted(items, key=lambda item: (-item.cosine, item.name))

        groups: dict[str, NDArray[np.float64]] = {}
        home = {t: group.name for group in self.contents.groups for t in group.tensors}
        for tensor, inner in grams.items():
            name = home.get(tensor, tensor)
            groups[name] = groups.get(name, 0.0) + inner
        outside = sum(_outside(inner, count) for inner in groups.values())
        share = math.sqrt(outside / gram[-1, -1]) if gram[-1, -1] else 0.0
        return closest(found[:count]), closest(found[count:]), share


def _outside(gram: NDArray[np.float64], atoms: int) -> float:
    """The squared norm of the last vector that lies outside the span of the first ``atoms``."""
    cross = gram[:atoms, -1]
    explained = float(cross @ np.linalg.pinv(gram[:atoms, :atoms], hermitian=True) @ cross)
    return max(0.0, float(gram[-1, -1]) - explained)


def inner_products(vectors: list[TaskVector], engine: Engine) -> dict[str, NDArray[np.float64]]:
    """Per tensor, [T, T] inner products of task vectors, streamed.

    Raises:
        BaseError: the vectors have different bases.
    """
    combinations = [vector.combination for vector in vectors]
    leaves = [leaf for combination in combinations for leaf in combination.leaves]
    origin = next((leaf.base for leaf in leaves if leaf.base.store is not None), leaves[0].base)
    check_bindings(combinations, origin, engine)
    return gram_by_tensor(make_plan(combinations, None, origin.store), engine)
