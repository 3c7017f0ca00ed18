"""Task vectors to try a basis on, drawn in float64 and small enough to be kept dense."""

from collections.abc import Callable

import numpy as np
import pytest

KINDS = ("orthogonal", "common", "clustered", "opposed", "decaying")


def draw_vectors(kind: str, tasks: int, seed: int = 0, dim: int = 400) -> np.ndarray:
    """V [dim, tasks] with norms between 1 and 3 and the cosines that `kind` says."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((dim, tasks)) / np.sqrt(dim)
    if kind == "common":
        vectors += 0.5 * generator.standard_normal((dim, 1)) / np.sqrt(dim)
    if kind == "clustered":
        centres = generator.standard_normal((dim, max(2, tasks // 4))) / np.sqrt(dim)
        vectors = 0.6 * vectors + centres[:, np.arange(tasks) % centres.shape[1]]
    if kind == "opposed":
        vectors -= 0.9 * vectors.mean(axis=1, keepdims=True)
        vectors[:, 0] = -vectors[:, -1] + 0.1 * vectors[:, 0]
    if kind == "decaying":
        vectors = vectors @ np.diag(0.7 ** np.arange(tasks)) @ generator.normal(size=(tasks, tasks))
    return vectors * generator.uniform(1, 3, tasks)


@pytest.fixture(scope="session")
def vectors() -> Callable[..., np.ndarray]:
    return draw_vectors


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
