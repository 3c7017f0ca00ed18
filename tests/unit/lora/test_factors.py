"""Truncated SVDs by three routes, and the errors that are stated of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.lora.factors import (
    Cutoff,
    balanced,
    compressed,
    distance,
    leading,
    product_norm,
    residual,
    squared_norm,
)

Array = NDArray[Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def with_values(seed: int, rows: int, columns: int, values: Array) -> Array:
    left = np.linalg.qr(normal(seed, rows, len(values)))[0]
    right = np.linalg.qr(normal(seed + 1, columns, len(values)))[0]
    return (left * values) @ right.T


def dense_error(matrix: Array, rank: int) -> float:
    """What Eckart and Young say is the least that can be missed."""
    return math.sqrt(sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2))


# How much is kept.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "say how much is kept: a rank such as 16, or an energy such as 0.9"),
        ({"rank": 1.5}, "a rank is a whole number, not 1.5"),
        ({"rank": 0}, "a rank of 0 keeps nothing; use at least 1"),
        ({"energy": 0.0}, "an energy of 0 is no share of the squared norm; use (0, 1]"),
        ({"energy": 1.5}, "an energy of 1.5 is no share of the squared norm; use (0, 1]"),
        ({"energy": math.nan}, "the energy must be a finite number, not nan"),
    ],
)
def test_what_cannot_be_kept_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Cutoff(**options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("cutoff", "count"),
    [
        (Cutoff(rank=2), 2),
        (Cutoff(rank=3), 3),
        (Cutoff(rank=4), None),
        (Cutoff(energy=9 / 14), 1),
        (Cutoff(energy=9.1 / 14), 2),
        (Cutoff(energy=1.0), 3),
        (Cutoff(rank=1, energy=0.9), 1),
        (Cutoff(rank=3, energy=0.9), 2),
    ],
)
def test_counting_by_hand(cutoff: Cutoff, count: int | None) -> None:
    assert cutoff.count(np.array([3.0, 2.0, 1.0]), 14.0) == count


def test_an_energy_that_the_values_do_not_hold_is_not_reached() -> None:
    assert Cutoff(energy=0.9).count(np.array([3.0]), 14.0) is None
    assert Cutoff(rank=5, energy=0.9).count(np.array([3.0]), 14.0) is None


def test_the_largest_rank_is_bounded_by_the_matrix() -> None:
    assert Cutoff(rank=8).most(5, 30) == 5
    assert Cutoff(energy=0.5).most(5, 30) == 5
    assert Cutoff(rank=2).most(5, 30) == 2


def test_a_cutoff_in_words() -> None:
    assert str(Cutoff(rank=8)) == "rank 8"
    assert str(Cutoff(rank=8, energy=0.9)) == "rank 8, energy 0.9"


# The triplets of a matrix.


@pytest.fixture
def projecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random projection of small matrices, too."""
    monkeypatch.setattr("taskbasis.lora.factors._SMALL", 0)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_small_matrices_are_truncated_as_well_as_can_be(shape: tuple[int, int], rank: int) -> None:
    matrix = normal(sum(shape) + rank, *shape)
    found = leading(matrix, Cutoff(rank))
    kept = min(rank, *shape)
    assert found.values.shape == (kept,)
    assert residual(matrix, *balanced(found)) == pytest.approx(dense_error(matrix, kept), abs=1e-6)


@pytest.mark.usefixtures("projecting")
@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
def test_random_projection_finds_a_decaying_spectrum(shape: tuple[int, int]) -> None:
    values = 1 / np.arange(1, 301.0)
    matrix = with_values(3, *shape, values).astype(np.float32)
    found = leading(matrix, Cutoff(rank=12))
    np.testing.assert_allclose(found.values, values[:12], rtol=1e-3)
    assert residual(matrix, *balanced(found)) == pytest.approx(
        math.sqrt(sum(values[12:] ** 2)), rel=1e-4
    )


@pytest.mark.usefixtures("projecting")
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.35])
def test_float32_says_where_to_look_and_float64_what_is_there(ratio: float) -> None:
    """Of a matrix in float32 all but the last turn are in float32: values far below the largest
    are found as exactly as where nothing is."""
    matrix = with_values(3, 300, 250, ratio ** np.arange(250.0)).astype(np.float32)
    found, wide = leading(matrix, Cutoff(12)), leading(matrix.astype(np.float64), Cutoff(12))
    assert found.values == pytest.approx(wide.values, rel=1e-9)
    wanted = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert found.values == pytest.approx(wanted[:12], rel=1e-9)


@pytest.mark.usefixtures("projecting")
@pytest.mark.parametrize("size", [1e-38, 1e37])
def test_what_float32_cannot_multiply_is_multiplied_in_float64(size: float) -> None:
    matrix = (normal(4, 300, 5) @ normal(5, 5, 250)).astype(np.float32)
    found, wanted = leading(matrix * np.float32(size), Cutoff(5)), leading(matrix, Cutoff(5))
    assert found.values / size == pytest.approx(wanted.values, rel=1e-6)


@pytest.mark.usefixtures("projecting")
def test_random_projection_is_near_the_best_of_noise() -> None:
    """The worst case: a spectrum without a gap."""
    matrix = normal(5, 256, 256).astype(np.float32)
    found = residual(matrix, *balanced(leading(matrix, Cutoff(rank=8))))
    best = dense_error(matrix, 8)
    assert best <= found * (1 + 1e-9)
    assert found < 1.003 * best
    exact = np.linalg.svd(matrix, compute_uv=False)[:8]
    assert np.all(leading(matrix, Cutoff(rank=8)).values > 0.98 * exact)


@pytest.mark.usefixtures("projecting")
def test_a_matrix_of_low_rank_is_found_exactly_and_not_padded() -> None:
    matrix = with_values(7, 200, 260, np.array([5.0, 2.0, 0.1])).astype(np.float32)
    found = leading(matrix, Cutoff(rank=10))
    assert len(found.values) == 3  # the rest is what rounding to float32 left
    assert residual(matrix, *balanced(found)) < 1e-6 * 5


@pytest.mark.usefixtures("projecting")
def test_the_factors_are_orthonormal() -> None:
    for matrix in (normal(8, 300, 250), normal(8, 12, 9)):
        found = leading(matrix, Cutoff(rank=6))
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(6), atol=1e-10)
        np.testing.assert_allclose(found.right @ found.right.T, np.eye(6), atol=1e-6)
        assert np.all(np.diff(found.values) <= 0)


@pytest.mark.usefixtures("projecting")
def test_the_same_matrix_gives_the_same_bits_and_a_seed_others() -> None:
    matrix = normal(9, 300, 250).astype(np.float32)
    one, two, other = (leading(matrix, Cutoff(rank=4), seed) for seed in (0, 0, 1))
    assert one.left.tobytes() == two.left.tobytes()
    assert one.left.tobytes() != other.left.tobytes()
    np.testing.assert_allclose(one.values, other.values, rtol=0.05)


@pytest.mark.usefixtures("projecting")
def test_minus_a_matrix_gives_minus_its_product() -> None:
    matrix = normal(10, 300, 250).astype(np.float32)
    plus, minus = (leading(sign * matrix, Cutoff(rank=4)) for sign in (1, -1))
    np.testing.assert_allclose(plus.product(), -minus.product(), atol=1e-9)


@pytest.mark.usefixtures("projecting")
@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(20, 30), (560, 520)])
def test_an_energy_is_kept_by_the_fewest(shape: tuple[int, int], energy: float) -> None:
    values = 0.95 ** np.arange(min(shape))
    matrix = with_values(11, *shape, values)
    found = leading(matrix, Cutoff(energy=energy))
    total = squared_norm(matrix)
    share = 1 - residual(matrix, *balanced(found)) ** 2 / total
    fewest = int(np.searchsorted(np.cumsum(values**2), energy * sum(values**2) * (1 - 1e-12))) + 1
    assert share >= energy - 1e-9
    if energy < 1:
        assert len(found.values) == fewest


@pytest.mark.usefixtures("projecting")
def test_an_energy_takes_no_more_than_the_rank() -> None:
    matrix = normal(12, 400, 400).astype(np.float32)
    assert len(leading(matrix, Cutoff(rank=5, energy=0.9)).values) == 5
    thin = with_values(13, 400, 400, np.array([3.0, 1.0]))
    assert len(leading(thin, Cutoff(rank=5, energy=0.85)).values) == 1


def test_projection_doubles_until_the_energy_is_held() -> None:
    """70 equal values: the first 32 directions do not hold them."""
    matrix = with_values(14, 900, 1000, np.ones(70))
    found = leading(matrix, Cutoff(energy=0.999))
    assert len(found.values) == 70
    assert residual(matrix, *balanced(found)) < 1e-6


# Norms and errors.


def test_residual_by_hand_and_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    up, down = np.array([[1.0], [1.0]]), np.array([[1.0, 2.0]])
    assert residual(matrix, up, down) == pytest.approx(math.sqrt(8))
    assert squared_norm(matrix) == 30
    monkeypatch.setattr("taskbasis.lora.factors._PANEL", 2)  # one row at a time
    assert residual(matrix, up, down) == pytest.approx(math.sqrt(8))
    assert squared_norm(matrix) == 30
    monkeypatch.setattr("taskbasis.lora.factors._PANEL", 1000)  # the last panel has fewer rows
    monkeypatch.setattr("taskbasis.lora.factors._SMALL", 0)
    wide = with_values(1, 302, 250, 2.0 ** -np.arange(20.0))
    np.testing.assert_allclose(leading(wide, Cutoff(rank=3)).values, [1, 0.5, 0.25], rtol=1e-9)


def test_no_factors_miss_everything() -> None:
    matrix = normal(2, 3, 4)
    nothing = residual(matrix, np.zeros((3, 0)), np.zeros((0, 4)))
    assert nothing == pytest.approx(np.linalg.norm(matrix))
    assert product_norm(np.zeros((3, 0)), np.zeros((0, 4))) == 0


def test_balanced_factors_have_equal_norms() -> None:
    up, down = balanced(leading(normal(3, 9, 5), Cutoff(rank=3)))
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), *(st.integers(1, 7) for _ in range(3)))
def test_norms_of_products_are_those_of_dense_arithmetic(
    seed: int, out: int, rank: int, width: int
) -> None:
    up, down = normal(seed, out, rank), normal(seed + 1, rank, width)
    other = normal(seed + 2, out, 2), normal(seed + 3, 2, width)
    assert product_norm(up, down) == pytest.approx(np.linalg.norm(up @ down))
    dense = np.linalg.norm(up @ down - other[0] @ other[1])
    assert distance((up, down), other) == pytest.approx(dense)


# Factors made thinner.


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), *(st.integers(1, 9) for _ in range(4)))
def test_compression_is_the_best_there_is(
    seed: int, out: int, rank: int, width: int, kept: int
) -> None:
    up, down = normal(seed, out, rank), normal(seed + 1, rank, width)
    thin = compressed(up, down, Cutoff(rank=kept))
    assert thin[0].shape[1] == thin[1].shape[0] <= kept
    error = np.linalg.norm(up @ down - thin[0] @ thin[1])
    best = dense_error(up @ down, kept)
    assert error == pytest.approx(best, abs=1e-9 * np.linalg.norm(up @ down))


def test_compression_by_hand() -> None:
    up, down = np.diag([3.0, 4.0]), np.eye(2)
    thin = compressed(up, down, Cutoff(rank=1))
    np.testing.assert_allclose(thin[0] @ thin[1], [[0, 0], [0, 4]], atol=1e-15)
    assert compressed(up, down, Cutoff(energy=16 / 25))[0].shape == (2, 1)
    assert compressed(up, down, Cutoff(energy=17 / 25))[0].shape == (2, 2)


def test_a_sum_that_cancels_has_rank_0() -> None:
    up, down = normal(4, 6, 3), normal(5, 3, 8)
    both = np.concatenate([up, -up], axis=1), np.concatenate([down, down])
    assert compressed(*both, Cutoff(rank=4))[0].shape == (6, 0)
    half = np.concatenate([up, -up[:, :1]], axis=1), np.concatenate([down, down[:1]])
    assert compressed(*half, Cutoff(rank=9))[0].shape == (6, 2)
