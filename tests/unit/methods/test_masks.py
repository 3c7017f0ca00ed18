"""Consensus, TALL masks, EMR and MagMax: what is kept of the sum, for all tasks or for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.merging import merge
from taskbasis.methods import Chunk, Method, Selecting, method
from taskbasis.methods.elementwise.consensus import Consensus
from taskbasis.methods.elementwise.emr import Emr
from taskbasis.methods.elementwise.magmax import MagMax
from taskbasis.methods.elementwise.tall import Tall
from taskbasis.testing import Trial, check_method, merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]
Write = Callable[..., Path]

EIGHTHS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(0, 6)), elements=st.integers(-8, 8)
).map(lambda values: values / 8)
"""Small multiples of 1/8: sums are exact, many are equal, some are 0."""


def vectors(T: int, n: int = 200, seed: int = 0) -> Matrix:
    return np.random.default_rng([T, n, seed]).standard_normal((T, n)).astype(np.float32)


def plain(V: Matrix) -> Matrix:
    return merged(method("task_arithmetic"), V)


# TALL masks and consensus


def test_a_tall_mask_by_hand() -> None:
    """The sum is 4, 3, 1; the first vector is in its mask where it is above half of the rest."""
    V = np.array([[1.0, 4.0, 0.0], [3.0, -1.0, 1.0]])
    np.testing.assert_array_equal(merged(Tall(0.5, task=1), V), [0, 3, 0])
    np.testing.assert_array_equal(merged(Tall(0.5, task=2), V), [4, 0, 1])
    np.testing.assert_array_equal(merged(Tall(0.5), V), [4, 3, 1])


def test_an_entry_just_at_the_limit_is_in_no_mask() -> None:
    V = np.array([[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(merged(Tall(0.5, task=1), V), [0, 0])
    np.testing.assert_array_equal(merged(Tall(0.49, task=1), V), [3, 3])


def test_masks_are_of_the_sum_and_not_of_the_vector() -> None:
    V = np.array([[4.0, 0.0], [-1.0, 2.0], [0.5, 0.0]])
    assert merged(Tall(task=1), V)[0] == 3.5
    assert merged(Consensus(agree=1), V)[0] == 3.5


def test_a_factor_for_each_vector() -> None:
    V = np.array([[2.0, 2.0], [1.0, 4.0]])
    for task, lam in ((1, 0.2), (2, 1.5)):
        one = merged(Tall((0.2, 1.5), task), V)
        np.testing.assert_array_equal(one, merged(Tall(lam, task), V))
    np.testing.assert_array_equal(merged(Tall((0.2, 1.5), 2), V), [0, 6])
    np.testing.assert_array_equal(merged(Consensus((0.2, 1.5)), V), [0, 6])
    with pytest.raises(UsageError, match="lam has 2 numbers for 3 vectors"):
        merged(Tall((0.2, 1.5), 1), vectors(3))
    with pytest.raises(UsageError, match="lam has 3 numbers for 2 vectors"):
        merged(Consensus((0.2, 1.5, 1.0)), V)


@pytest.mark.parametrize("T", [2, 3, 5])
def test_consensus_counts_the_tall_masks(T: int) -> None:
    V = vectors(T)
    masks = [merged(Tall(0.7, task), V) != 0 for task in range(1, T + 1)]
    votes = np.sum(masks, axis=0)
    for agree in range(T + 1):
        wanted = np.where(votes >= agree, plain(V), 0)
        np.testing.assert_array_equal(merged(Consensus(0.7, agree), V), wanted)


def test_selfish_and_catastrophic_entries_are_dropped() -> None:
    """One task alone needs the first entry, nobody the second, all the third."""
    V = np.array([[5.0, 1.0, 2.0], [0.1, 1.0, 2.0], [0.1, 1.0, 2.0], [0.0, 1.0, 2.0]])
    V[:, 1] = [1, 1, -1, 1]
    found = merged(Consensus(lam=0.3), V)
    assert found.tolist() == [0, 2, 8]
    assert merged(Consensus(lam=1.5), V).tolist() == [0, 0, 0]
    assert merged(Consensus(lam=1.5, agree=1), V)[0] == pytest.approx(5.2)


def test_one_vector_is_not_wiped_out() -> None:
    """With one vector, no entry can be in two masks."""
    V = vectors(1)
    for agree in (1, 2, 9):
        np.testing.assert_array_equal(merged(Consensus(agree=agree), V), V[0])
    np.testing.assert_array_equal(merged(Tall(task=1), V), V[0])


def test_agree_counts_at_most_all_vectors() -> None:
    V = vectors(3)
    np.testing.assert_array_equal(merged(Consensus(0.2, 9), V), merged(Consensus(0.2, 3), V))


@pytest.mark.parametrize("of", [Tall(), Consensus(agree=0)], ids=repr)
def test_without_masks_it_is_task_arithmetic_bit_for_bit(of: Method) -> None:
    for T in (1, 3, 9):
        V = vectors(T)
        assert merged(of, V).tobytes() == plain(V).tobytes()
        assert of.coefficients(np.full(T, 0.5)).tolist() == [1.0] * T  # type: ignore[union-attr]


def test_masks_are_no_linear_map() -> None:
    assert Tall(task=1).coefficients(np.ones(2)) is None
    assert Consensus().coefficients(np.ones(2)) is None


@given(EIGHTHS, st.integers(0, 3), st.sampled_from([0.0, 0.4, 1.0]))
def test_what_is_selected_is_what_is_summed(V: Matrix, agree: int, lam: float) -> None:
    """Masks can be stored: applied to every vector and summed they give the merged one."""
    for of in (Consensus(lam, agree), Consensus(lam)):
        assert isinstance(of, Selecting)
        mask = of.select(Chunk(V.copy()), ())
        assert (mask.dtype, mask.shape) == (np.dtype(bool), V.shape)
        np.testing.assert_array_equal(of.apply(Chunk(V.copy()), ()), np.where(mask, V, 0).sum(0))
        assert not of.disjoint()


@given(EIGHTHS, st.sampled_from([0.0, 0.4, 1.0]))
def test_the_masks_of_tall_are_for_the_sum(V: Matrix, lam: float) -> None:
    """All tasks' masks, whichever task the method is for; each times the sum is that task's."""
    masks = Tall(lam).select(Chunk(V.copy()), ())
    for task in range(1, len(V) + 1):
        of = Tall(lam, task)
        np.testing.assert_array_equal(of.select(Chunk(V.copy()), ()), masks)
        found = of.apply(Chunk(V.copy()), ())
        np.testing.assert_array_equal(found, np.where(masks[task - 1], V.sum(0), 0))


@given(EIGHTHS, st.sampled_from([0.2, 0.4, 1.0]))
def test_a_larger_factor_keeps_fewer_entries(V: Matrix, lam: float) -> None:
    for task in range(1, len(V) + 1):
        loose, strict = (Tall(f, task).select(Chunk(V), ()) for f in (lam, 2 * lam))
        assert not np.any(strict & ~loose)


def test_masks_do_not_depend_on_the_order_of_the_sum() -> None:
    """In float32 the sum, 4, would be anything from 0 to 4, and with it the number of masks."""
    column = np.array([[2], [1], [1], [2**25], [-(2**25)]], np.float32)
    for places in range(5):
        chunk = Chunk(np.roll(column, places, axis=0))
        assert not Consensus(1.0, agree=2).select(chunk, ()).any()
        assert Consensus(1.0, agree=1).select(chunk, ()).all()
    check_method(Tall(), ordered=False)


# EMR


def test_emr_by_hand() -> None:
    """Signs +, -, -; the second vector is opposed in the second entry only."""
    V = np.array([[1.0, -2.0, 1.0], [3.0, 1.0, -4.0]])
    np.testing.assert_array_equal(merged(Emr(), V), [3, -2, -4])
    np.testing.assert_allclose(merged(Emr(task=1), V), np.array([3, -2, 0]) * 4 / 5)
    np.testing.assert_allclose(merged(Emr(task=2), V), np.array([3, 0, -4]) * 8 / 7)


def test_the_magnitude_is_of_those_who_agree() -> None:
    """The largest magnitude of all, -5, is outvoted."""
    np.testing.assert_array_equal(merged(Emr(), np.array([[-5.0], [3.0], [4.0]])), [4])


def test_where_vectors_cancel_no_sign_is_elected() -> None:
    V = np.array([[1.0, 2.0], [-1.0, 1.0]])
    for task in (0, 1):
        assert merged(Emr(task), V)[0] == 0
        np.testing.assert_array_equal(merged(Emr(task), -V), -merged(Emr(task), V))


def test_emr_of_one_vector_is_the_vector() -> None:
    V = vectors(1)
    np.testing.assert_array_equal(merged(Emr(), V), V[0])
    np.testing.assert_array_equal(merged(Emr(task=1), V, [0, 7, 30, 200]), V[0])


def test_a_task_that_agrees_nowhere_gets_nothing() -> None:
    V = np.array([[1.0, -1.0], [3.0, -4.0], [-2.0, 3.0]])
    np.testing.assert_array_equal(merged(Emr(task=3), V), [0, 0])


@pytest.mark.parametrize("T", [2, 5])
def test_the_scale_restores_the_mean_magnitude(T: int) -> None:
    V = vectors(T).astype(np.float64)
    for task in range(1, T + 1):
        assert np.abs(merged(Emr(task), V)).mean() == pytest.approx(np.abs(V[task - 1]).mean())


def test_the_scale_is_of_means_over_tensors(write_folder: Write) -> None:
    """Of two tensors of 1 and 4 entries the small one counts as much as the large one."""
    base = write_folder("base", {"a": np.zeros(1, np.float32), "b": np.zeros((2, 2), np.float32)})
    first = {"a": np.float32([2]), "b": np.float32([[1, 1], [1, -1]])}
    other = {"a": np.float32([6]), "b": np.float32([[0, 0], [0, 3]])}
    tuned = [TaskVector(base, write_folder(n, d)) for n, d in (("1", first), ("2", other))]
    found = merge(base, tuned, Emr(task=1)).tensors()
    scale = (2 + 4 / 4) / (6 + 3 / 4)
    np.testing.assert_allclose(found["a"], [6 * scale], rtol=1e-6)
    np.testing.assert_allclose(found["b"], np.float32([[1, 1], [1, 0]]) * scale, rtol=1e-6)


def test_only_the_number_of_the_task_depends_on_the_order() -> None:
    check_method(Emr(), ordered=False)
    V = vectors(3)
    for of in (Emr, Tall):
        found = merged(of(task=1), V)
        np.testing.assert_allclose(merged(of(task=3), V[[1, 2, 0]]), found, rtol=1e-6)


@pytest.mark.parametrize("of", [Emr(task=3), Tall(task=3)], ids=repr)
def test_there_must_be_a_vector_of_the_task(of: Method) -> None:
    assert merged(of, vectors(3)).any()
    with pytest.raises(UsageError, match="there is no task 3 of 2 vectors; use 0 to 2"):
        merged(of, vectors(2))


def test_who_makes_models_for_one_task_says_so() -> None:
    assert Tall.identity
    assert Emr.identity
    assert not Consensus.identity


# MagMax


def test_magmax_takes_the_later_of_equals() -> None:
    V = np.array([[1.0, 2.0], [-1.0, -3.0], [1.0, 3.0]])
    np.testing.assert_array_equal(merged(MagMax(), V), [1, 3])
    np.testing.assert_array_equal(merged(MagMax(), V[:2]), [-1, -3])
    assert MagMax.ordered


@given(EIGHTHS)
def test_magmax_has_the_largest_magnitude_and_some_vectors_entry(V: Matrix) -> None:
    found = merged(MagMax(), V)
    np.testing.assert_array_equal(np.abs(found), np.abs(V).max(axis=0))
    assert np.all(np.any(found == V, axis=0))


def test_magmax_takes_vectors_as_they_are_weighted() -> None:
    V = vectors(2)
    trial = Trial(V * np.float32([[1], [-10]]), weights=(1.0, -10.0))
    np.testing.assert_array_equal(trial.merged(MagMax()), merged(MagMax(), trial.vectors))


# all


@given(EIGHTHS)
def test_times_minus_one_is_minus(V: Matrix) -> None:
    """All votes are of signs and sizes, so that nothing prefers plus to minus."""
    for of in (Consensus(), Tall(task=1), Emr(), Emr(task=1)):
        np.testing.assert_array_equal(merged(of, -V), -merged(of, V))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tall", {"lam": -0.1}, "lam -0.1 makes no mask; use 0 or more"),
        ("tall", {"lam": (0.2, float("nan"))}, "makes no mask"),
        ("consensus", {"lam": float("inf")}, "lam inf makes no mask"),
        ("tall", {"task": -1}, "task -1 is none; use 0"),
        ("emr", {"task": -2}, "task -2 is none; use 0"),
        ("emr", {"task": 0.5}, "takes a whole number"),
        ("consensus", {"agree": -1}, "agree -1 counts nothing; use 0 or more"),
        ("magmax", {"density": 0.5}, "has no option 'density'"),
    ],
)
def test_options_that_mean_nothing(name: str, options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method(name, **options)
    assert said in str(caught.value)


def test_numbers_for_each_vector_come_from_recipes_as_lists() -> None:
    assert method("tall", lam=[0.2, 0.4]) == Tall((0.2, 0.4))
