"""Spectral methods: worked examples, identities, and what the sources leave open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import Method, method, parse_method
from taskbasis.testing import merged

Matrix = NDArray[Any]

ALL = ["tsv_merge", "tsv_compress", "iso_c", "iso_cts", "cart", "star", "knots", "core_space"]
ALL += ["svc"]


def drawn(T: int, *shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng([seed, T, *shape]).standard_normal((T, *shape))


def low_rank(T: int, out: int, inputs: int, rank: int) -> Matrix:
    return drawn(T, out, rank) @ drawn(T, rank, inputs, seed=1)


def made(of: Method | str, taus: Any, **more: Any) -> Matrix:
    """The method on whole tensors [T, ...]."""
    of = parse_method(of) if isinstance(of, str) else of
    taus = np.asarray(taus, more.pop("dtype", np.float64))
    result = merged(of, taus.reshape(len(taus), -1), shape=taus.shape[1:], **more)
    return result.reshape(taus.shape[1:])


def close(found: Matrix, wanted: Matrix, tolerance: float = 1e-9) -> None:
    scale = np.max(np.abs(wanted), initial=1e-30)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


def diagonals(*rows: list[float]) -> Matrix:
    return np.stack([np.diag(row).astype(float) for row in rows])


def values(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False))


# One vector, copies, order of axes, weights: what holds for all of them.


@pytest.mark.parametrize(
    "of", ["tsv_merge", "tsv_compress", "cart", "star:energy=1", "knots", "core_space", "svc"]
)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 3, 2)])
def test_one_vector_comes_back(of: str, shape: tuple[int, ...]) -> None:
    inner = {"knots": ":inner=ties:density=1", "core_space": ":inner=ties:density=1"}
    tau = drawn(1, *shape)
    close(made(of + inner.get(of, ""), tau), tau[0])


@pytest.mark.parametrize("of", ALL)
def test_tensors_of_more_axes_are_matrices(of: str) -> None:
    taus = drawn(3, 6, 4, 2)
    close(made(of, taus), made(of, taus.reshape(3, 6, 8)).reshape(6, 4, 2))


@pytest.mark.parametrize("of", ["tsv_merge", "iso_c", "iso_cts", "cart", "star"])
def test_tensors_that_are_no_matrices_get_the_mean(of: str) -> None:
    taus = drawn(3, 11)
    close(made(of, taus), taus.mean(axis=0))
    np.testing.assert_array_equal(made(of, taus, borders=[0, 4, 11]), made(of, taus))


@pytest.mark.parametrize("of", ALL)
@pytest.mark.parametrize("exact", [False, True])
def test_a_weight_of_minus_1_gives_minus_the_result(of: str, exact: bool) -> None:
    tau = drawn(1, 8, 5)
    plus = made(method(of, exact=exact), tau, weights=(1.0,))
    minus = made(method(of, exact=exact), -tau, weights=(-1.0,))
    if exact:
        close(minus, -plus)
    else:
        np.testing.assert_array_equal(minus, -plus)


@pytest.mark.parametrize("of", ALL)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 7), (7, 1)])
def test_empty_and_thin_matrices_are_nothing_special(of: str, shape: tuple[int, int]) -> None:
    for taus in (drawn(3, *shape), np.zeros((3, *shape))):
        found = made(of, taus)
        assert found.shape == shape
        assert np.all(np.isfinite(found))
        assert np.any(taus) or not np.any(found)


@pytest.mark.parametrize("of", ALL)
def test_a_vector_of_zeros_among_others_spoils_nothing(of: str) -> None:
    taus = np.concatenate([drawn(2, 6, 7), np.zeros((1, 6, 7))])
    assert np.all(np.isfinite(made(of, taus)))
    close(made(of, taus[[2, 0, 1]]), made(of, taus))


@pytest.mark.parametrize("of", ALL)
def test_exact_or_not_makes_no_difference_that_float32_could_hold(of: str) -> None:
    taus = drawn(3, 16, 24)
    close(made(method(of, exact=True), taus), made(method(of), taus), 1e-8)
    found = made(of, taus, dtype=np.float32)
    assert found.dtype == np.float32
    close(found, made(of, taus.astype(np.float32)), 1e-5)


@pytest.mark.parametrize("of", ["tsv_merge", "iso_c", "iso_cts"])
def test_low_rank_stays_low_rank(of: str) -> None:
    """No direction comes up that no task has, as rounding would make it in LAPACK's SVD."""
    taus = low_rank(3, 30, 40, 2)
    for given_taus in (taus, taus.astype(np.float32).astype(float)):
        found = made(of, given_taus)
        assert np.linalg.matrix_rank(found, tol=1e-4 * np.linalg.norm(found)) <= 6
        columns = np.linalg.svd(np.concatenate(list(taus), axis=1))[0][:, :6]
        close(columns @ (columns.T @ found), found, 1e-5)


# TSV-Merge.


def test_tsv_merge_of_tasks_without_common_directions_is_the_sum_of_their_first_triplets() -> None:
    taus = diagonals([5, 1, 0, 0], [0, 0, 4, 3])
    close(made("tsv_merge", taus), np.diag([5.0, 1, 4, 3]))
    close(made("tsv_merge:rank_share=0.25", taus), np.diag([5.0, 0, 4, 0]))


def test_tsv_merge_counts_equal_vectors_once() -> None:
    tau = diagonals([4, 2])[0]
    close(made("tsv_merge:rank_share=1", [tau, tau, tau]), tau)


def test_tsv_merge_by_hand() -> None:
    """Two tasks, each of one triplet; the left vectors at 60 degrees, the right ones at 90.

    The nearest orthonormal pair to two unit vectors lies symmetric about their bisector, so that
    each turns by 15 degrees.
    """
    at = np.radians([0, 60, -15, 75])
    u, v, u_turned, v_turned = np.stack([np.cos(at), np.sin(at)], axis=1)
    e1, e2 = np.eye(2)
    taus = [3 * np.outer(u, e1), 2 * np.outer(v, e2)]
    wanted = 3 * np.outer(u_turned, e1) + 2 * np.outer(v_turned, e2)
    close(made("tsv_merge", taus), wanted)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_tsv_merge_keeps_the_kept_singular_values(T: int, out: int, d: int, seed: int) -> None:
    taus = drawn(T, out, d, seed=seed)
    each = min(out, d) // T
    if each:
        wanted = np.sort(np.concatenate([values(tau)[:each] for tau in taus]))[::-1]
        close(values(made("tsv_merge", taus))[: len(wanted)], wanted, 1e-6)


def test_tsv_merge_keeps_a_triplet_of_each_task_where_they_are_more_than_rows() -> None:
    taus = drawn(5, 3, 40)
    found = made("tsv_merge", taus)
    assert np.linalg.norm(found) > 0.1 * np.linalg.norm(taus)
    assert np.linalg.norm(found) <= sum(np.linalg.norm(tau) for tau in taus)
    assert np.linalg.matrix_rank(found) == 3


# TSV-Compress.


def test_tsv_compress_keeps_a_share_of_each_task() -> None:
    taus = diagonals([5, 1, 0, 2], [0, 3, 4, 1])
    close(made("tsv_compress:task=1", taus), np.diag([5.0, 0, 0, 2]))
    close(made("tsv_compress:task=2", taus), np.diag([0.0, 3, 4, 0]))
    close(made("tsv_compress", taus), np.diag([5.0, 3, 4, 2]))
    close(made("tsv_compress:task=2,rank_share=0.25", taus), np.diag([0.0, 0, 4, 0]))
    close(made("tsv_compress:rank_share=1", taus), taus.sum(axis=0))


def test_tsv_compress_leaves_tensors_that_are_no_matrices_whole() -> None:
    taus = drawn(3, 11)
    np.testing.assert_array_equal(made("tsv_compress:task=2", taus), taus[1])
    close(made("tsv_compress", taus), taus.sum(axis=0))


def test_tsv_compress_refuses_a_task_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="task 3 of 2 vectors; use 1 to 2"):
        made("tsv_compress:task=3", drawn(2, 4, 4))
    with pytest.raises(UsageError, match="task 3 of 2 vectors"):
        made("tsv_compress:task=3", drawn(2, 4))
    with pytest.raises(UsageError, match="task -1 is none"):
        method("tsv_compress", task=-1)


# Iso-C and Iso-CTS.


def test_iso_c_makes_all_singular_values_their_mean() -> None:
    close(made("iso_c", diagonals([5, 1, 0], [0, 1, 2])), np.diag([3.0, 3, 3]))
    taus = drawn(3, 6, 9)
    close(values(made("iso_c", taus)), np.full(6, values(taus.sum(axis=0)).mean()))


def test_iso_c_fills_only_the_directions_of_the_sum() -> None:
    close(made("iso_c", diagonals([5, 1, 0, 0])), np.diag([3.0, 3, 0, 0]))
    cancelling = drawn(1, 4, 4)
    assert not made("iso_c", np.concatenate([cancelling, -cancelling])).any()


def test_iso_c_of_a_rotated_sum_is_rotated() -> None:
    taus, Q = drawn(2, 5, 5), np.linalg.qr(drawn(1, 5, 5)[0])[0]
    close(made("iso_c", [Q @ tau for tau in taus]), Q @ made("iso_c", taus))


@pytest.mark.parametrize("common", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(6, 9), (10, 4), (3, 3)])
def test_iso_cts_of_one_vector_is_iso_c(common: float, shape: tuple[int, int]) -> None:
    tau = drawn(1, *shape)
    close(made(method("iso_cts", common=common), tau), made("iso_c", tau))


def test_iso_cts_with_nothing_specific_is_iso_c() -> None:
    taus = drawn(3, 10, 7)
    close(made("iso_cts:common=1", taus), made("iso_c", taus))
    few = drawn(3, 2, 7)  # one direction is left, too few for three tasks
    close(made("iso_cts:common=0.5", few), made("iso_c", few))


def test_iso_cts_by_hand() -> None:
    """Of four directions two are the sum's; the tasks each add their first that these lack."""
    taus = diagonals([9, 0, 1, 0], [0, 8, 0, 2])
    close(made("iso_cts:common=0.5", taus), 5 * np.eye(4))
    more = diagonals([9, 0, 1, 0], [0, 8, 1.5, 1])
    # Task 2's first direction beside the common ones is task 1's own: they share it, and none is
    # left for the fourth; two equal columns count half each.
    mean = (9 + 8 + 1 + 1.5) / 4
    close(made("iso_cts:common=0.5", more), mean * np.diag([1.0, 1, 1, 0]))


def test_iso_cts_rounds_what_each_task_adds() -> None:
    """Three of five directions are left for two tasks: two for each, and one less in common."""
    taus = diagonals([9, 0, 3, 2, 0], [0, 8, 0, 0, 4])
    close(made("iso_cts:common=0.4", taus), (9 + 3 + 2 + 8 + 4) / 5 * np.eye(5))


def test_iso_cts_fills_only_directions_that_are_there() -> None:
    close(
        made("iso_cts:common=0.5", diagonals([9, 0, 0, 0], [0, 8, 0, 0])),
        8.5 * np.diag([1.0, 1, 0, 0]),
    )


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1))
def test_iso_cts_has_equal_singular_values(T: int, rank: int, common: float) -> None:
    taus = drawn(T, rank, 12)
    found = values(made(method("iso_cts", common=common), taus))
    close(found, np.full(rank, found.mean()), 1e-6)


@pytest.mark.parametrize("common", [-0.1, 1.1, float("nan")])
def test_iso_cts_refuses_a_common_share_that_is_none(common: float) -> None:
    with pytest.raises(UsageError, match=r"common .* use \[0, 1\]"):
        method("iso_cts", common=common)


# CART.


def test_cart_by_hand() -> None:
    taus = diagonals([8, 2, 0], [0, 2, 4])
    # The mean is (4, 2, 2); the first task lies (4, 0, -2) off it, the second (-4, 0, 2). Of each
    # the first triplet is kept, and these cancel.
    close(made("cart", taus), np.diag([4.0, 2, 2]))
    three = diagonals([9, 0, 0], [0, 6, 0], [0, 0, 3])
    # Off the mean (3, 2, 1): (6, -2, -1), (-3, 4, -1), (-3, -2, 2).
    close(made("cart:strength=0.5", three), np.diag([3 + (6 - 3) / 2, 2 + 4 / 2, 1]))


@pytest.mark.parametrize("strength", [0.0, 0.5, 10.0])
def test_cart_of_whole_rank_or_without_strength_is_the_mean(strength: float) -> None:
    taus = drawn(4, 7, 9)
    close(made(method("cart", rank_share=1.0, strength=strength), taus), taus.mean(axis=0))
    close(made("cart:strength=0", taus), taus.mean(axis=0))


def test_cart_moves_with_all_its_vectors() -> None:
    taus, same = drawn(3, 8, 8), drawn(1, 8, 8, seed=5)
    close(made("cart:rank_share=0.3", taus + same), made("cart:rank_share=0.3", taus) + same[0])


def test_cart_keeps_its_word_on_the_size_of_the_result() -> None:
    assert method("cart", strength=0.3).gain() == 1
    assert method("cart", strength=-4.0).gain() == 8
    tau = diagonals([1, 0])[0]
    pair = np.stack([tau, -tau])
    for strength in (0.2, 3.0):
        of = method("cart", strength=strength, rank_share=1.0)
        assert np.linalg.norm(made(of, pair)) <= of.gain() * 2


@pytest.mark.parametrize("options", [{"rank_share": 0.0}, {"rank_share": 1.5}])
def test_cart_refuses_a_share_that_keeps_nothing(options: Any) -> None:
    with pytest.raises(UsageError, match=r"rank_share .* keeps nothing sensible"):
        method("cart", **options)


def test_cart_refuses_an_endless_strength() -> None:
    with pytest.raises(UsageError, match="the strength of cart must be a finite number"):
        method("cart", strength=float("inf"))


# STAR.


def test_star_by_hand() -> None:
    tau = diagonals([5, 3, 2])
    close(made("star:energy=0.5", tau), np.diag([10.0, 0, 0]))  # the share is met exactly
    close(made("star:energy=0.51", tau), np.diag([6.25, 3.75, 0]))
    close(made("star:energy=0.8", tau), np.diag([6.25, 3.75, 0]))
    close(made("star:energy=0.81", tau), tau[0])
    pair = diagonals([5, 3, 2], [0, 0, 4])
    close(made("star:energy=0.5", pair), np.diag([5.0, 0, 2]))


@given(st.integers(1, 4), st.integers(1, 8), st.floats(0.05, 1), st.integers(0, 9))
def test_star_keeps_the_nuclear_norm(out: int, d: int, energy: float, seed: int) -> None:
    tau = drawn(1, out, d, seed=seed)
    found = made(method("star", energy=energy), tau)
    np.testing.assert_allclose(values(found).sum(), values(tau[0]).sum(), rtol=1e-9)
    bound = method("star", energy=energy).gain() * np.linalg.norm(tau)
    assert np.linalg.norm(found) <= bound * (1 + 1e-9)


def test_star_with_all_energy_is_the_mean() -> None:
    taus = drawn(4, 7, 9)
    close(made("star:energy=1", taus), taus.mean(axis=0))


@pytest.mark.parametrize("energy", [0.0, 40.0])
def test_star_refuses_a_share_that_is_none(energy: float) -> None:
    with pytest.raises(UsageError, match=r"energy .* use \(0, 1\]"):
        method("star", energy=energy)


@pytest.mark.parametrize("of", ["tsv_merge", "tsv_compress"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_tsv_refuses_a_share_that_is_none(of: str, share: float) -> None:
    with pytest.raises(UsageError, match=r"rank_share .* use \(0, 1\], or 0 for 1/T"):
        method(of, rank_share=share)
