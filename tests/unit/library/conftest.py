"""Task vectors on the disk and, beside them, as one dense matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis import Basis, Checkpoint, TaskVector

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (9, 6),
    "layers.0.attn.weight": (6, 7),
    "layers.0.attn.bias": (7,),
    "layers.1.attn.weight": (6, 7),
    "layers.1.scale": (),
    "norm.weight": (6,),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
Matrix = NDArray[np.float64]


def split(column: NDArray[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """A vector cut into tensors."""
    found, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = np.asarray(column[at : at + size], np.float32).reshape(shape).copy()
        at += size
    return found


def join(
    tensors: Mapping[str, NDArray[Any]], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Matrix:
    """The tensors of the given names as one vector; absent ones are zero."""
    parts = [
        np.asarray(tensors[name], np.float64).reshape(-1)
        if name in tensors
        else np.zeros(int(np.prod(shapes[name])))
        for name in names
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Tasks:
    """T fine-tunes of a base of zeros, so that V holds exactly what was asked for."""

    folder: Path
    names: tuple[str, ...]
    matrix: Matrix
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def base(self) -> Checkpoint:
        return Checkpoint(self.folder / "base")

    @property
    def vectors(self) -> dict[str, TaskVector]:
        base = self.base
        return {name: TaskVector(base, self.folder / name) for name in self.names}

    def dense(self, tensors: Sequence[str] | None = None) -> Matrix:
        """V, or its rows that belong to the given tensors."""
        columns = [split(column, self.shapes) for column in self.matrix.T]
        chosen = list(self.shapes) if tensors is None else list(tensors)
        return np.stack([join(column, chosen, self.shapes) for column in columns], axis=1)

    def flat(self, vector: TaskVector, tensors: Sequence[str] | None = None) -> Matrix:
        """A task vector as one dense column."""
        chosen = list(self.shapes) if tensors is None else list(tensors)
        return join(vector.tensors(), chosen, self.shapes)

    def recovered(self, basis: Basis) -> Matrix:
        """[d, T] every task of a basis, recovered through files."""
        return np.stack([self.flat(basis[name]) for name in basis.names], axis=1)


def make_tasks(
    folder: Path,
    matrix: NDArray[Any],
    names: Sequence[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Tasks:
    """Write a base of zeros and one fine-tune per column."""
    shapes = SHAPES if shapes is None else shapes
    exact = np.asarray(matrix, np.float32)
    names = tuple(names or (f"task{number}" for number in range(exact.shape[1])))
    everyone = {"base": np.zeros(len(exact)), **dict(zip(names, exact.T, strict=True))}
    for name, column in everyone.items():
        (folder / name).mkdir(parents=True)
        save_file(split(column, shapes), folder / name / "model.safetensors", {"format": "pt"})
    return Tasks(folder, names, exact.astype(np.float64), shapes)


def draw_matrix(seed: int, tasks: int, common: float = 0.5) -> Matrix:
    """Columns of unlike length that share a direction."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal((SIZE, 1))
    own = random.standard_normal((SIZE, tasks))
    return 0.01 * (common * shared + own) * random.uniform(1, 3, tasks)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    """Five ordinary tasks."""
    return make_tasks(tmp_path_factory.mktemp("tasks"), draw_matrix(0, 5), list("abcde"))


@dataclass(frozen=True)
class Toolbox:
    """The functions above, for tests that make tasks of their own."""

    make = staticmethod(make_tasks)
    draw = staticmethod(draw_matrix)
    split = staticmethod(split)
    join = staticmethod(join)
    shapes = SHAPES
    size = SIZE


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    return Toolbox()
