"""The aggregators of one-shot federated learning: FedNova, FedGMA, median and clipping."""

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
from taskbasis.methods import Chunk, Method, method
from taskbasis.methods.federated.cclip import CClip
from taskbasis.methods.federated.fedgma import FedGma
from taskbasis.methods.federated.fednova import FedNova
from taskbasis.methods.federated.median import Median
from taskbasis.testing import Trial, merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]
Write = Callable[..., Path]

EIGHTHS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 20), st.integers(0, 6)), elements=st.integers(-8, 8)
).map(lambda values: values / 8)


def vectors(T: int, n: int = 200) -> Matrix:
    return np.random.default_rng([T, n]).standard_normal((T, n)).astype(np.float32)


# FedNova


def test_fednova_by_hand() -> None:
    """The mean is 200 steps: 2 times the first, 2/3 of the second, then the mean."""
    V = np.array([[1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(merged(FedNova((100.0, 300.0)), V), [1, 1])


def test_only_ratios_of_steps_count() -> None:
    V = vectors(3)
    found = merged(FedNova((1.0, 2.0, 4.0)), V)
    np.testing.assert_array_equal(merged(FedNova((256.0, 512.0, 1024.0)), V), found)
    np.testing.assert_array_equal(merged(FedNova(7.0), V), merged(FedNova(), V))
    np.testing.assert_allclose(merged(FedNova(), V), V.mean(axis=0), atol=1e-6)


def test_every_step_counts_alike() -> None:
    """Vectors that are steps times one direction each come out the same."""
    steps = np.array([10.0, 40.0, 100.0])
    V = steps[:, None] * np.eye(3)
    np.testing.assert_allclose(merged(FedNova(tuple(steps)), V), [50 / 3] * 3)


@pytest.mark.parametrize("steps", [1.0, (5.0, 50.0, 45.0), (1.0, 1.0, 1000.0)])
def test_fednova_is_linear_and_bounded_by_its_gain(steps: Any) -> None:
    of, V = FedNova(steps), vectors(3).astype(np.float64)
    coefficients = of.coefficients(np.array([1.0, -2.0, 0.5]))
    np.testing.assert_allclose(merged(of, V), coefficients @ V)
    assert max(coefficients) <= of.gain() * (1 + 1e-12)
    np.testing.assert_array_equal(coefficients, of.coefficients(np.ones(3)))


def test_one_vector_is_left_as_it_is() -> None:
    V = vectors(1)
    for of in (FedNova(3.0), FedNova((7.0,)), FedGma(1.0), Median("lower"), CClip()):
        np.testing.assert_array_equal(merged(of, V), V[0])


def test_steps_are_one_number_for_each_vector() -> None:
    with pytest.raises(UsageError, match="steps has 2 numbers for 3 vectors; give one for each"):
        merged(FedNova((1.0, 2.0)), vectors(3))


# FedGMA


def test_fedgma_by_hand() -> None:
    """Agreement 1, 1/2 and 0: above rho the sum, below it weakened, and nothing."""
    V = np.array([[1.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 4.0, -1.0], [3.0, -1.0, -4.0]])
    np.testing.assert_array_equal(merged(FedGma(0.9), V), [7, 0.5 * 8, 0 * -2])
    np.testing.assert_array_equal(merged(FedGma(0.5), V), [7, 8, 0])
    np.testing.assert_array_equal(merged(FedGma(0.0), V), [7, 8, -2])


def test_an_entry_that_one_of_two_changes_is_half_agreed() -> None:
    V = np.array([[4.0], [0.0]])
    assert merged(FedGma(), V) == 4
    assert merged(FedGma(0.51), V) == 2


def test_the_limit_itself_is_agreement() -> None:
    """3 of 5 is exactly 0.6 in the same rounding."""
    V = np.array([[1.0], [1.0], [1.0], [1.0], [-1.0]])
    assert merged(FedGma(0.6), V) == 3


def test_without_a_limit_it_is_task_arithmetic_bit_for_bit() -> None:
    V = vectors(5)
    assert merged(FedGma(0.0), V).tobytes() == merged(method("task_arithmetic"), V).tobytes()
    assert FedGma(0.0).coefficients(np.ones(2)).tolist() == [1, 1]  # type: ignore[union-attr]
    assert FedGma().coefficients(np.ones(2)) is None


def test_weights_vote_by_their_signs_alone() -> None:
    V = np.array([[1.0], [1.0], [-1.0]])
    trial = Trial(V * np.array([[0.1], [0.1], [5.0]]), weights=(0.1, 0.1, 5.0))
    np.testing.assert_allclose(trial.merged(FedGma(0.9)), [(0.2 - 5) / 3])
    np.testing.assert_allclose(trial.negated().merged(FedGma(0.9)), [(5 - 0.2) / 3])


@given(EIGHTHS, st.floats(0, 1))
def test_fedgma_is_between_nothing_and_the_sum(V: Matrix, rho: float) -> None:
    found, total = merged(FedGma(rho), V), V.sum(axis=0)
    assert np.all(np.abs(found) <= np.abs(total))
    assert np.all(found * total >= 0)


# the median


@given(EIGHTHS)
def test_the_median_of_any_number_of_vectors(V: Matrix) -> None:
    """Up to 20: few rows and many are sorted in two ways."""
    ordered, T = np.sort(V, axis=0), len(V)
    wanted = {
        "lower": ordered[(T - 1) // 2],
        "upper": ordered[T // 2],
        "mean": np.median(V, axis=0),
    }
    for middle, values in wanted.items():
        np.testing.assert_array_equal(merged(method("median", middle=middle), V), values)


def test_the_middles_of_an_even_number() -> None:
    V = np.array([[1.0], [2.0], [9.0], [4.0]])
    found = {middle: merged(method("median", middle=middle), V)[0] for middle in ("mean", "lower")}
    assert found == {"mean": 3, "lower": 2}
    assert merged(Median("upper"), V) == 4
    assert Median() == Median("mean")


def test_only_the_mean_of_both_is_odd() -> None:
    """The released code's lower middle makes of negated vectors another model."""
    V = vectors(4)
    np.testing.assert_array_equal(merged(Median(), -V), -merged(Median(), V))
    np.testing.assert_array_equal(merged(Median("lower"), -V), -merged(Median("upper"), V))
    assert np.all(merged(Median("lower"), V) < merged(Median(), V))


def test_outliers_do_not_count() -> None:
    V = vectors(5)
    V[4] = 1e6
    found = merged(Median(), V)
    V[4] = 1e3
    np.testing.assert_array_equal(merged(Median(), V), found)
    assert np.max(np.abs(found)) < 10


def test_the_mean_of_huge_middles_is_finite() -> None:
    V = np.full((2, 1), np.finfo(np.float32).max)
    np.testing.assert_array_equal(merged(Median(), V), V[0])


# clipping


def test_cclip_by_hand() -> None:
    """Norms 5 and 1; their median is 3."""
    V = np.array([[3.0, 4.0], [0.6, 0.8]])
    np.testing.assert_allclose(merged(CClip(2.0), V), [1.8, 2.4])
    np.testing.assert_allclose(merged(CClip(0.5), V), [0.6, 0.8])
    np.testing.assert_allclose(merged(CClip(9.0), V), [3.6, 4.8])
    np.testing.assert_allclose(merged(CClip(), V), [2.4, 3.2])


def test_no_vector_counts_for_more_than_rho() -> None:
    V = np.eye(3)[:, :] * np.array([[100.0], [2.0], [0.5]])
    np.testing.assert_allclose(merged(CClip(1.5), V), [1.5, 1.5, 0.5])
    np.testing.assert_allclose(merged(CClip(), V), [2, 2, 0.5])


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1e20])
def test_the_median_norm_scales_with_the_vectors(size: float) -> None:
    V = vectors(4).astype(np.float64)
    np.testing.assert_allclose(merged(CClip(), size * V), size * merged(CClip(), V), rtol=1e-10)


def test_long_enough_it_is_task_arithmetic() -> None:
    V = vectors(3)
    np.testing.assert_allclose(merged(CClip(1e9), V), V.sum(axis=0), rtol=1e-5, atol=1e-6)


def test_vectors_that_change_nothing_do_not_count_for_the_median() -> None:
    """The median of all norms would be 0, and nothing be left of the others."""
    V = np.zeros((5, 2))
    np.testing.assert_array_equal(merged(CClip(), V), [0, 0])
    V[0] = 3, 4
    np.testing.assert_array_equal(merged(CClip(), V), [3, 4])
    np.testing.assert_allclose(merged(CClip(1.0), V), [0.6, 0.8])
    V[1] = 0.6, 0.8
    np.testing.assert_allclose(merged(CClip(), V), [2.4, 3.2])


def test_the_norm_is_of_the_whole_model(write_folder: Write) -> None:
    base = write_folder("base", {n: np.zeros(2, np.float32) for n in "ab"})
    first = {"a": np.float32([3, 0]), "b": np.float32([0, 4])}
    tuned = [TaskVector(base, write_folder("1", first))]
    found = merge(base, tuned, CClip(2.0)).tensors()
    np.testing.assert_allclose(found["a"], [1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [0, 1.6], rtol=1e-6)


def test_clipping_sees_the_weighted_vectors() -> None:
    trial = Trial(np.array([[-6.0, 8.0]]), weights=(-2.0,))
    np.testing.assert_allclose(trial.merged(CClip(5.0)), [-3, 4])


# all


@pytest.mark.parametrize("of", [FedNova(), FedGma(0.8), Median(), CClip(3.0)], ids=repr)
def test_times_minus_one_is_minus(of: Method) -> None:
    V = vectors(4)
    np.testing.assert_array_equal(merged(of, -V), -merged(of, V))


@pytest.mark.parametrize("of", [FedNova(), FedGma(), Median()], ids=repr)
def test_computed_in_the_type_of_the_vectors(of: Method) -> None:
    for dtype in (np.float32, np.float64):
        assert of.apply(Chunk(np.ones((4, 3), dtype)), ()).dtype == dtype


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fednova", {"steps": 0.0}, "0.0 steps train nothing; use positive numbers"),
        ("fednova", {"steps": (1.0, float("inf"))}, "steps train nothing"),
        ("fednova", {"steps": "many"}, "takes a number"),
        ("fedgma", {"rho": 1.1}, "a rho of 1.1 is no share of agreeing signs; use [0, 1]"),
        ("fedgma", {"rho": -0.1}, "a rho of -0.1"),
        ("median", {"middle": "low"}, "middle 'low' is unknown; did you mean 'lower'?"),
        ("cclip", {"rho": -1.0}, "a rho of -1.0 is no length; use a positive one"),
        ("cclip", {"rho": float("inf")}, "0 for the median norm"),
    ],
)
def test_options_that_mean_nothing(name: str, options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method(name, **options)
    assert said in str(caught.value)
