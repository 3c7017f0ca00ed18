"""PCB merging: which entries win, by how much, and where the numbers for that come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.merging import merge
from taskbasis.methods import Chunk, method
from taskbasis.methods.elementwise.pcb import Pcb
from taskbasis.testing import merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]
Write = Callable[..., Path]


def vectors(T: int, n: int = 300, size: float = 1e-2) -> Matrix:
    V = np.random.default_rng([T, n]).standard_normal((T, n)) * size
    return V.astype(np.float32)


def test_by_hand() -> None:
    """Magnitudes 0.5 to 4 and 0.5 to 3; the last entry of the first vector is opposed."""
    V = np.array([[4.0, 1.0, -2.0, 0.5], [2.0, 3.0, 0.5, -2.5]])

    def score(norm: float, product: float) -> float:
        return math.exp(2 * norm**2) * math.tanh(product)

    first = [score(1, 24), score(1 / 7, 4), score(3 / 7, 3)]
    second = [score(0.6, 12), score(1, 12), 0, score(0.8, 5)]
    shares = [[s / first[0] for s in first], [s / second[1] for s in second]]
    wanted = [
        (4 * shares[0][0] + 2 * shares[1][0]) / (shares[0][0] + shares[1][0]),
        (1 * shares[0][1] + 3 * shares[1][1]) / (shares[0][1] + shares[1][1]),
        -2.0,  # the other is opposed to the sum, -1.5
        -2.5,
    ]
    np.testing.assert_allclose(merged(Pcb(density=1.0, clip=0.0), V), wanted, rtol=1e-6)


def test_the_largest_score_that_is_dropped_is_where_shares_begin() -> None:
    """One of three entries is kept; and two of four, of either vector the first two."""
    V = np.array([[3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(merged(Pcb(density=0.4, clip=0.0), V), [3, 0, 0])
    V = np.array([[2.0, 1.0, 0.5, 0.25], [1.5, 1.0, 0.125, 0.5]])
    norms = (V - V.min(1)[:, None]) / np.ptp(V, axis=1)[:, None]
    scores = np.exp(2 * norms**2) * np.tanh(V * V.sum(0))
    dropped, top = np.sort(scores, axis=1)[:, 1], scores.max(axis=1)
    shares = np.maximum(scores - dropped[:, None], 0) / (top - dropped)[:, None]
    wanted = (shares * V).sum(0) / np.maximum(shares.sum(0), 1e-9)
    found = merged(Pcb(density=0.5, clip=0.0), V)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found[2] == 0
    assert V[1, 0] < found[0] < V[0, 0]


@pytest.mark.parametrize("n", [1, 2, 300])
def test_one_vector_of_density_one_gives_itself(n: int) -> None:
    V = vectors(1, n)
    np.testing.assert_array_equal(merged(Pcb(density=1.0, clip=0.0), V), V[0])


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_of_one_vector_the_largest_entries_are_kept(density: float) -> None:
    V = vectors(1)
    found = merged(Pcb(density, clip=0.0), V)
    kept = np.argsort(-np.abs(V[0]))[: int(density * 300)]
    assert set(np.flatnonzero(found)) == set(kept)
    np.testing.assert_array_equal(found[kept], V[0][kept])


@pytest.mark.parametrize("T", [1, 3])
def test_the_density_is_of_each_vector(T: int) -> None:
    """Vectors on entries of their own do not compete: each keeps its own share."""
    V = np.zeros((T, 100 * T), np.float32)
    for t in range(T):
        V[t, t::T] = vectors(1, 100)[0] * 10.0**t
    found = merged(Pcb(density=0.1, clip=0.0), V)
    for t in range(T):
        assert np.count_nonzero(found[t::T]) == 10 * T


def test_an_outlier_is_cut() -> None:
    V = vectors(2, 1000)
    V[:, 7] = 1e6, 0
    second = np.sort(np.abs(V[0]))[-2]
    assert merged(Pcb(density=0.1, clip=0.001), V)[7] == pytest.approx(second)
    assert merged(Pcb(density=0.1, clip=0.0), V)[7] == pytest.approx(1e6)


def test_small_magnitudes_are_not_raised() -> None:
    """The clip lifts them in the scores only; an entry of the mean is never enlarged."""
    V = np.array([[1e-3, 1.0, 2.0, 3.0, 4.0, 5.0]])
    found = merged(Pcb(density=1.0, clip=0.2), V)
    assert 0 <= found[0] <= 1e-3
    assert found[5] == pytest.approx(4)


def test_entries_opposed_to_the_sum_never_count() -> None:
    V = np.array([[3.0, 1.0], [-1.0, 2.0]])
    assert merged(Pcb(density=1.0, clip=0.0), V)[0] == 3
    V = np.array([[3.0, 3.0], [-1.0, -1.0]])
    np.testing.assert_array_equal(merged(Pcb(density=1.0, clip=0.0), V), [3, 3])


def test_magnitudes_at_both_ends_count_as_the_next() -> None:
    """Clipped to 2 to 4, magnitudes 2, 3, 4 are norms 0, 1/2, 1 in the first vector."""
    V = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 2.0, 1.0, 1.0]])
    scores = np.exp(2 * np.array([0, 0, 0.25, 1, 1])) * np.tanh(V[0] * V.sum(axis=0))
    second = np.exp([0, 0, 0, 0, 0]) * np.tanh(V[1] * V.sum(axis=0))
    shares = scores / scores.max(), second / second.max()
    cut = np.minimum(V[0], 4), np.minimum(V[1], 1)
    wanted = (shares[0] * cut[0] + shares[1] * cut[1]) / (shares[0] + shares[1])
    np.testing.assert_allclose(merged(Pcb(density=1.0, clip=0.2), V), wanted, rtol=1e-6)


def test_where_all_that_is_kept_scores_alike_shares_are_equal() -> None:
    V = np.full((2, 6), 0.5)
    np.testing.assert_array_equal(merged(Pcb(density=0.3), V), V[0])
    V[1] = [0.5, -0.5, 0.5, 0.5, 0.5, 0.5]
    assert merged(Pcb(density=0.3), V)[1] == 0


def test_many_vectors_do_not_overflow() -> None:
    """exp(T) leaves float64 at T = 710; here all shares are exp(-T) times that."""
    T = 800
    V = np.full((T, 2), 1.0)
    V[:, 1] = np.linspace(0.5, 1, T)
    ends = [np.zeros(T), np.ones(T)]
    found = Pcb().apply(Chunk(V.copy()), [None, ends, None, ends])
    assert found[0] == 1
    assert 0.99 < found[1] <= 1


def test_all_three_numbers_are_of_the_whole_model(write_folder: Write) -> None:
    """Cut into tensors, the vectors give what they give as one; and workers make no difference."""
    V = vectors(3, 240)
    parts = {"a.0.w": slice(0, 100), "a.1.w": slice(100, 101), "b": slice(101, 240)}
    base = write_folder(
        "base", {n: np.zeros(p.stop - p.start, np.float32) for n, p in parts.items()}
    )
    tuned = [
        TaskVector(base, write_folder(f"t{t}", {n: row[p] for n, p in parts.items()}))
        for t, row in enumerate(V)
    ]
    found = merge(base, tuned, Pcb(clip=0.01)).tensors()
    whole = np.concatenate([found[name] for name in parts])
    np.testing.assert_array_equal(whole, merged(Pcb(clip=0.01), V))


@given(st.integers(1, 4), st.integers(1, 40), st.floats(0.01, 1), st.sampled_from([0, 0.01, 0.2]))
def test_a_mean_of_those_who_agree_with_the_sum(
    T: int, n: int, density: float, clip: float
) -> None:
    V = vectors(T, n)
    found, total = merged(Pcb(density, clip), V), V.sum(axis=0, dtype=np.float64)
    assert np.all(found * total >= 0)
    agreeing = np.where(V * total > 0, np.abs(V), 0)
    assert np.all(np.abs(found) <= agreeing.max(axis=0) * (1 + 1e-6))
    np.testing.assert_array_equal(merged(Pcb(density, clip), -V), -found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.0}, "a density of 0.0"),
        ({"density": 1.5}, "use (0, 1]"),
        ({"clip": -0.1}, "a clip of -0.1 leaves no magnitudes; use [0, 0.5)"),
        ({"clip": 0.5}, "a clip of 0.5"),
        ({"ratio": 0.1}, "has no option 'ratio'"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("pcb", **options)
    assert said in str(caught.value)
