"""A world of synthetic tasks whose best scales are known by arithmetic."""

from dataclasses import dataclass

import numpy as np
import pytest

from taskbasis.evaluate import Task, measure

NAMES = ("a", "b", "c", "d")
TEST_LOSS = 0.01
"""Scores on test are lower by this, so a test shows which split it saw."""


@dataclass(frozen=True)
class NumpyCollection:
    """T task vectors [T, d] through an encoder [T, M] and a decoder [M, T]."""

    base: np.ndarray
    vectors: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    names: tuple = NAMES

    @property
    def storage_bytes(self):
        return self.encoder.shape[1] * self.vectors.shape[1] * 4

    def combine(self, weights):
        vector = np.array([weights.get(name, 0.0) for name in self.names])
        return {"w": self.base + vector @ (self.encoder @ self.decoder).T @ self.vectors}

    def add(self, scale):
        return {"w": self.base + scale * (self.encoder.sum(1) @ self.vectors)}


def task(place):
    """Half right at the base, right at coordinate 1, wrong at coordinate -1."""

    def score(model, split):
        value = float(np.clip(0.5 + 0.5 * model["w"][place], 0, 1))
        return value - (TEST_LOSS if split == "test" else 0.0)

    return Task(NAMES[place], score)


def control(model, split):
    """Right at the base, and quadratically less right away from it."""
    return max(0.0, 1.0 - 0.3 * float(np.sum(model["w"] ** 2)))


class World:
    """Four orthogonal task vectors of length 1 on a base of zeros."""

    base = np.zeros(4)
    vectors = np.eye(4)
    tasks = [task(place) for place in range(4)]  # noqa: RUF012
    control = Task("control", control)

    def yardstick(self, seed=0):
        tuned = {name: {"w": vector} for name, vector in zip(NAMES, self.vectors, strict=True)}
        return measure({"w": self.base}, tuned, self.tasks, self.control, seed)

    def full(self):
        return NumpyCollection(self.base, self.vectors, np.eye(4), np.eye(4))

    def half(self):
        """Keeps a and b, drops c and d."""
        return NumpyCollection(self.base, self.vectors, np.eye(4)[:, :2], np.eye(4)[:2])


@pytest.fixture
def world():
    return World()
