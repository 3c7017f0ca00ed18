"""A small world: a base, fine-tunes of it, and the same as dense arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.vectors import Checkpoint, TaskVector

Arrays = dict[str, NDArray[Any]]

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (60, 50),
    "layers.0.w": (20, 12),
    "layers.0.b": (2049,),
    "layers.1.w": (12, 5, 4),
    "norm": (40,),
    "one": (),
    "none": (0, 3),
}


@dataclass(frozen=True)
class World:
    """A base and fine-tunes, on disk and as the deltas they are."""

    base: Checkpoint
    weights: Arrays
    vectors: dict[str, TaskVector]
    deltas: dict[str, Arrays]
    folders: dict[str, Path]


@pytest.fixture
def world(write_folder: Callable[..., Path]) -> Callable[..., World]:
    """``world(tasks, dtype, size, base_dtype)``: three fine-tunes unless said otherwise."""

    def make(
        tasks: tuple[str, ...] = ("math", "code", "law"),
        dtype: Any = np.float32,
        size: float = 0.05,
        base_dtype: Any = None,
    ) -> World:
        random = np.random.default_rng(7)

        def draw(scale: float) -> Arrays:
            return {n: np.asarray(scale * random.standard_normal(s)) for n, s in SHAPES.items()}

        weights = {n: v.astype(base_dtype or dtype) for n, v in draw(1.0).items()}
        base = Checkpoint(write_folder("base", weights))
        folders, deltas = {}, {}
        for task in tasks:
            tuned = {
                n: np.asarray(weights[n].astype(np.float64) + d, dtype)
                for n, d in draw(size).items()
            }
            folders[task] = write_folder(task, tuned)
            deltas[task] = {
                n: tuned[n].astype(np.float64) - weights[n].astype(np.float64) for n in SHAPES
            }
        vectors = {task: TaskVector(base, folder) for task, folder in folders.items()}
        return World(base, weights, vectors, deltas, folders)

    return make
