"""Singular triplets, polar factors and shared bases against LAPACK, and how far they may be off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import Chunk
from taskbasis.methods.matrices import (
    RESOLUTION,
    Triplets,
    check_share,
    common_basis,
    flat,
    is_matrix,
    matrices,
    mean,
    polar,
    rank_of_share,
    shape_of,
    svd,
)

Matrix = NDArray[Any]

shapes = st.tuples(st.integers(0, 9), st.integers(0, 9))


def drawn(shape: tuple[int, int], seed: int = 0) -> Matrix:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def orthogonal(size: int, seed: int = 0) -> Matrix:
    return np.asarray(np.linalg.qr(drawn((size, size), seed))[0])


def with_values(values: Any, out: int, inputs: int) -> Matrix:
    """A matrix of known singular values, the same for the same shape."""
    count = len(values)
    left, right = orthogonal(out, 1)[:, :count], orthogonal(inputs, 2)[:count]
    return np.asarray((left * np.asarray(values)) @ right)


def off_orthonormal(rows: Matrix) -> float:
    return float(np.max(np.abs(rows @ rows.T - np.eye(len(rows))), initial=0))


@given(shapes, st.integers(0, 99), st.booleans())
def test_all_triplets_make_the_matrix(shape: tuple[int, int], seed: int, exact: bool) -> None:
    M = drawn(shape, seed)
    found = svd(M, exact=exact)
    np.testing.assert_allclose(found.product(), M, rtol=0, atol=1e-13)
    assert len(found.values) == min(shape)
    np.testing.assert_allclose(found.values, np.linalg.svd(M, compute_uv=False), rtol=0, atol=1e-8)
    assert off_orthonormal(found.left.T) < 1e-9
    assert off_orthonormal(found.right) < 1e-9


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_the_first_triplets_are_the_nearest_matrix_of_their_rank(
    shape: tuple[int, int], exact: bool
) -> None:
    M = drawn(shape)
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    found = svd(M, 3, exact)
    np.testing.assert_allclose(found.product(), (U[:, :3] * s[:3]) @ Vt[:3], atol=1e-12)
    np.testing.assert_allclose(found.values, s[:3])
    assert found.left.shape == (shape[0], 3)
    assert svd(M, 0, exact).product().shape == shape
    assert not svd(M, 0, exact).product().any()
    assert len(svd(M, 100, exact).values) == min(shape)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (12, 12)])
def test_small_values_are_within_the_stated_bound(shape: tuple[int, int]) -> None:
    wanted = 10.0 ** -np.linspace(0, 6, 12)
    M = with_values(wanted, *shape)
    found = svd(M)
    assert np.max(np.abs(found.values - wanted)) < 1e-8
    np.testing.assert_allclose(found.product(), M, rtol=0, atol=1e-14)
    near, far = (found.left.T, found.right) if shape[0] <= shape[1] else (found.right, found.left.T)
    assert off_orthonormal(near) < 1e-13
    bound = 1e-16 * np.outer(1 / wanted, 1 / wanted)
    assert np.all(np.abs(far @ far.T - np.eye(12)) < 100 * bound + 1e-13)
    exact = svd(M, exact=True)
    np.testing.assert_allclose(exact.values, wanted, rtol=1e-9)
    assert max(off_orthonormal(exact.left.T), off_orthonormal(exact.right)) < 1e-13


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_the_default_is_off_less_than_float32_weights_are(shape: tuple[int, int]) -> None:
    """Of the polar factor, which takes small values for as much as large ones."""
    wanted = 10.0 ** -np.linspace(0, 5, 12)
    M = with_values(wanted, *shape)
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    Us, _, Vts = np.linalg.svd(M.astype(np.float32).astype(float), full_matrices=False)
    rounded = np.linalg.norm(Us @ Vts - U @ Vt)
    assert np.linalg.norm(polar(M) - U @ Vt) < rounded / 10
    assert np.linalg.norm(polar(M, exact=True) - U @ Vt) < 1e-9


@pytest.mark.parametrize("exact", [False, True])
def test_values_that_count_as_0_are_left_out(exact: bool) -> None:
    M = with_values([1, 1e-3, 3 * RESOLUTION, RESOLUTION / 3, 1e-12, 0], 8, 10)
    assert len(svd(M, exact=exact).values) == 3
    assert len(svd(M.T, exact=exact).values) == 3
    assert len(svd(1e30 * M, exact=exact).values) == 3
    assert len(svd(M, exact=exact, floor=1e-2).values) == 1
    assert len(svd(np.zeros((3, 4)), exact=exact).values) == 0
    assert len(svd(M, exact=exact, floor=2.0).values) == 0


@pytest.mark.parametrize("size", [30, 200])
def test_a_matrix_of_low_rank_has_no_more_triplets_than_its_rank(size: int) -> None:
    M = drawn((size, 4)) @ drawn((4, size + 7))
    for rounded in (M, M.astype(np.float32).astype(float)):
        assert len(svd(rounded).values) == 4
        assert len(svd(rounded, exact=True).values) == 4


@given(shapes, st.integers(0, 99))
def test_minus_a_matrix_has_the_same_left_vectors_and_values(
    shape: tuple[int, int], seed: int
) -> None:
    M = drawn(shape, seed)
    plus, minus = svd(M), svd(-M)
    near = "left" if shape[0] <= shape[1] else "right"
    np.testing.assert_array_equal(getattr(plus, near), getattr(minus, near))
    np.testing.assert_array_equal(plus.values, minus.values)
    np.testing.assert_array_equal(plus.product(), -minus.product())


def test_first_takes_the_first() -> None:
    found = Triplets(np.eye(3), np.array([3.0, 2.0, 1.0]), np.eye(3)).first(2)
    assert found.product().tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 0]]


@given(shapes, st.integers(0, 99), st.booleans())
def test_the_polar_factor_is_orthonormal_and_nearest(
    shape: tuple[int, int], seed: int, exact: bool
) -> None:
    M = drawn(shape, seed)
    P = polar(M, exact)
    assert P.shape == shape
    short = P if shape[0] <= shape[1] else P.T
    assert off_orthonormal(short) < 1e-8
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    np.testing.assert_allclose(P, U @ Vt, atol=1e-7)


def test_equal_columns_share_a_direction_of_the_polar_factor() -> None:
    u = np.array([[0.6], [0.8], [0.0]])
    np.testing.assert_allclose(polar(np.hstack([u, u])), np.hstack([u, u]) / np.sqrt(2))
    np.testing.assert_allclose(polar(np.hstack([u, -u])), np.hstack([u, -u]) / np.sqrt(2))


def test_the_polar_factor_has_only_directions_that_the_matrix_has() -> None:
    M = drawn((20, 3)) @ drawn((3, 8))
    P = polar(M)
    np.testing.assert_allclose(P @ P.T @ P, P, atol=1e-10)
    assert np.linalg.matrix_rank(P) == 3
    np.testing.assert_allclose(P, M @ np.linalg.pinv(M) @ P, atol=1e-10)


@given(
    st.integers(1, 8),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_common_basis_holds_all_columns(
    rows: int, widths: list[int], seed: int, exact: bool
) -> None:
    parts = [drawn((rows, width), seed + t) for t, width in enumerate(widths)]
    U = common_basis(parts, exact)
    assert U.shape == (rows, min(rows, sum(widths)))
    assert off_orthonormal(U.T) < 1e-12
    for part in parts:
        np.testing.assert_allclose(U @ (U.T @ part), part, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("width", [2, 9])
def test_a_common_basis_is_the_left_singular_vectors_with_fixed_signs(
    width: int, exact: bool
) -> None:
    parts = [drawn((7, width), t) for t in range(3)]
    U = common_basis(parts, exact)
    wanted = np.linalg.svd(np.hstack(parts), full_matrices=False)[0]
    np.testing.assert_allclose(np.abs(U), np.abs(wanted), atol=1e-9)
    largest = np.argmax(np.abs(U), axis=0)
    assert np.all(U[largest, np.arange(U.shape[1])] > 0)
    np.testing.assert_allclose(common_basis(parts[::-1], exact), U, atol=1e-9)
    np.testing.assert_allclose(common_basis([-part for part in parts], exact), U, atol=1e-9)


def test_of_entries_that_are_equal_to_within_rounding_the_first_is_positive() -> None:
    for off in (-1e-9, 0.0, 1e-9):
        column = np.array([[-1.0], [1.0 + off]])
        assert common_basis([column])[0, 0] > 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_common_basis_leaves_out_what_counts_as_0(exact: bool) -> None:
    M = with_values([1, 1e-3, RESOLUTION / 3], 5, 12)
    assert common_basis([M, 2 * M], exact).shape == (5, 2)
    assert common_basis([np.zeros((5, 12))], exact).shape == (5, 0)
    assert common_basis([np.zeros((0, 3))], exact).shape == (0, 0)
    assert common_basis([np.zeros((3, 0))], exact).shape == (3, 0)


def test_thin_factors_keep_even_tiny_directions() -> None:
    """Since what multiplies them may be as large."""
    B = with_values([1, 1e-9], 20, 2)
    U = common_basis([B, B])
    assert U.shape == (20, 2)
    np.testing.assert_allclose(U @ U.T @ B, B, rtol=0, atol=1e-22 + 1e-13)


def test_tensors_as_matrices() -> None:
    deltas = np.arange(24, dtype=np.float32).reshape(2, 12)
    chunk = Chunk(deltas, shape=(3, 2, 2))
    assert is_matrix(chunk)
    assert shape_of(chunk) == (3, 4)
    first, second = matrices(chunk)
    assert first.dtype == np.float64
    np.testing.assert_array_equal(second, deltas[1].reshape(3, 4))
    result = flat(second, chunk)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, deltas[1])
    assert mean(chunk).tolist() == (deltas.sum(axis=0) / 2).tolist()
    assert [not is_matrix(Chunk(deltas, shape=shape)) for shape in ((12,), ())] == [True, True]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3)])
def test_empty_tensors_are_matrices_without_entries(shape: tuple[int, ...]) -> None:
    chunk = Chunk(np.zeros((2, 0), np.float32), shape=shape)
    for M in matrices(chunk):
        assert M.shape == shape_of(chunk)
        assert flat(svd(M).product(), chunk).shape == (0,)


def test_a_share_is_rounded_down_but_never_to_nothing() -> None:
    M = np.zeros((7, 9))
    assert [rank_of_share(share, M) for share in (0.01, 0.5, 1.0)] == [1, 3, 7]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"energy .* use \(0, 1\]"):
        check_share("energy", share)
    check_share("energy", 1.0)
