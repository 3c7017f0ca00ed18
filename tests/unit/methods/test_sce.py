"""SCE: select, calculate, erase; and what becomes of vectors that it has nothing to compare."""

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
from taskbasis.methods import method
from taskbasis.methods.elementwise.sce import Sce
from taskbasis.testing import Trial, merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]
Write = Callable[..., Path]

EIGHTHS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.integers(-8, 8)
).map(lambda values: values / 8)


def vectors(T: int, n: int = 200) -> Matrix:
    return np.random.default_rng([T, n]).standard_normal((T, n)).astype(np.float32)


def test_by_hand() -> None:
    """Mean squares 10/4 and 5/4; the second entry of the second vector is erased."""
    V = np.array([[1.0, 3.0, 0.0, 0.0], [2.0, -1.0, 0.0, 0.0]])
    wanted = [(10 * 1 + 5 * 2) / 15, 3, 0, 0]
    np.testing.assert_allclose(merged(Sce(), V), wanted)


def test_selection_by_hand() -> None:
    """Standard deviations 1/2, 2, 0, 1: of the three that vary the largest, then two."""
    V = np.array([[1.0, 3.0, 5.0, 0.0], [2.0, -1.0, 5.0, 2.0]])
    np.testing.assert_allclose(merged(Sce(0.5), V), [0, 3, 0, 0])
    np.testing.assert_allclose(merged(Sce(0.7), V), [0, 3, 0, 2])
    np.testing.assert_allclose(merged(Sce(0.99), V), [0, 3, 0, 2])


def test_weights_are_of_what_was_selected() -> None:
    """The large equal entries would make the weights nearly equal, and the mean 2."""
    V = np.array([[100.0, 3.0, 1.0], [100.0, 1.0, 2.0]])
    np.testing.assert_allclose(merged(Sce(0.5), V), [0, (9 * 3 + 1 * 1) / 10, 0])
    assert merged(Sce(), V)[1] == pytest.approx(2, abs=1e-2)


def test_entries_as_large_as_the_last_that_is_kept_are_kept_too() -> None:
    V = np.array([[1.0, 2.0, 3.0, 9.0], [0.0, 1.0, 2.0, 9.5]])
    np.testing.assert_array_equal(merged(Sce(0.3), V) != 0, [True, True, True, False])


def test_equal_entries_do_not_vary_by_the_rounding_of_their_mean() -> None:
    """The mean of three times 0.1 is not 0.1; of two entries that vary one is kept."""
    V = np.array([[0.1, 1.0, 0.0], [0.1, 2.0, 0.0], [0.1, 4.0, 1.0]])
    np.testing.assert_array_equal(merged(Sce(0.99), V) != 0, [False, True, False])


@pytest.mark.parametrize("topk", [1.0, 0.5, 0.01])
def test_one_vector_and_equal_ones_are_left_as_they_are(topk: float) -> None:
    """They vary nowhere; mergekit keeps nothing of them below 1."""
    V = vectors(1)
    for T in (1, 3):
        found = merged(Sce(topk), np.repeat(V, T, axis=0))
        np.testing.assert_allclose(found, V[0], rtol=1e-6)


def test_short_tensors_keep_their_most_varying_entry() -> None:
    """A tenth of five entries is none; mergekit returns the base."""
    V = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(merged(Sce(0.1), V), [0, 0, 0, 0, 5])


@pytest.mark.parametrize("size", [1e-24, 1e-4, 1.0, 1e6])
def test_weights_do_not_depend_on_the_size_of_all(size: float) -> None:
    """mergekit weighs small vectors equally."""
    V = np.array([[3.0, 1.0], [1.0, 1.0]]) * size
    np.testing.assert_allclose(merged(Sce(), V) / size, [(10 * 3 + 2 * 1) / 12, 1])
    np.testing.assert_allclose(merged(Sce(0.5), V) / size, [3 * 9 / 10 + 1 / 10, 0])


def test_where_vectors_cancel_no_sign_is_elected() -> None:
    V = np.array([[1.0, 2.0], [-1.0, 1.0]])
    for signed in (V, -V):
        assert merged(Sce(), signed)[0] == 0


def test_tensors_are_weighed_each_for_itself(write_folder: Write) -> None:
    """The first vector did more in one tensor, the second in the other."""
    first = {"a": np.float32([3, 1]), "b": np.float32([1, 1])}
    other = {"a": np.float32([1, 1]), "b": np.float32([2, 0])}
    base = write_folder("base", {n: np.zeros(2, np.float32) for n in first})
    tuned = [TaskVector(base, write_folder(n, d)) for n, d in (("1", first), ("2", other))]
    for of in (Sce(), Sce(0.5)):
        found = merge(base, tuned, of).tensors()
        for name in first:
            wanted = merged(of, np.stack([first[name], other[name]]))
            np.testing.assert_array_equal(found[name], wanted)
    np.testing.assert_allclose(merge(base, tuned).tensors()["a"], [4, 2])


@given(EIGHTHS, st.sampled_from([1.0, 0.5, 0.1]))
def test_a_mean_of_those_who_agree(V: Matrix, topk: float) -> None:
    found, total = merged(Sce(topk), V), V.sum(axis=0)
    assert np.all(found * total >= 0)
    agreeing = np.where(V * total > 0, np.abs(V), 0)
    assert np.all(np.abs(found) <= agreeing.max(axis=0) * (1 + 1e-12))
    np.testing.assert_array_equal(merged(Sce(topk), -V), -found)


def test_vectors_count_as_they_are_weighted() -> None:
    V = vectors(2)
    trial = Trial(V * np.float32([[1], [0.5]]), weights=(1.0, 0.5))
    np.testing.assert_array_equal(trial.merged(Sce(0.5)), merged(Sce(0.5), trial.vectors))


@pytest.mark.parametrize("topk", [0.0, -0.5, 1.5, float("nan")])
def test_options_that_mean_nothing(topk: float) -> None:
    with pytest.raises(UsageError, match=r"a select_topk of .* selects nothing; use \(0, 1\]"):
        method("sce", select_topk=topk)
