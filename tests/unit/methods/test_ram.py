"""RAM and RAM+: who changed an entry, and what that does to it."""

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
from taskbasis.methods.elementwise.ram import Ram
from taskbasis.methods.elementwise.ramplus_tl import RamPlus
from taskbasis.testing import Trial, merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]
Write = Callable[..., Path]

EIGHTHS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(0, 6)), elements=st.integers(-2, 2)
).map(lambda values: values / 8)


def sparse(T: int, n: int = 200) -> Matrix:
    rng = np.random.default_rng([T, n])
    return (rng.standard_normal((T, n)) * (rng.random((T, n)) < 0.3)).astype(np.float32)


def test_ram_by_hand() -> None:
    V = np.array([[3.0, 0.0, 2.0, 0.0], [1.0, 4.0, 0.0, 0.0], [-1.0, 0.0, -2.0, 0.0]])
    np.testing.assert_array_equal(merged(Ram(), V), [1, 4, 0, 0])


def test_small_changes_do_not_count_and_are_dropped() -> None:
    V = np.array([[2.0, 1e-6, 1e-5], [1e-6, 1e-6, 3.0]])
    np.testing.assert_array_equal(merged(Ram(), V), [2, 0, 3])
    np.testing.assert_allclose(merged(Ram(epsilon=0), V), [1, 1e-6, 1.5], rtol=1e-5)


def test_what_was_changed_does_not_depend_on_weights() -> None:
    """A weight of a tenth makes an entry smaller than epsilon, but it was changed."""
    vectors = np.array([[3e-5, 1.0], [1e-6, 2.0]])
    weights = (0.1, 100.0)
    trial = Trial(vectors * np.array(weights)[:, None], weights=weights)
    np.testing.assert_allclose(trial.merged(Ram()), [3e-6, (0.1 + 200) / 2])
    np.testing.assert_allclose(trial.merged(RamPlus(r=1, alpha=9)), [2 * 3e-6, (0.1 + 200) / 2])


@given(EIGHTHS)
def test_of_vectors_that_change_other_entries_it_is_the_sum(V: Matrix) -> None:
    V[1:, V[0] != 0] = 0
    V[2:] = 0
    np.testing.assert_array_equal(merged(Ram(), V), V.sum(axis=0))
    np.testing.assert_array_equal(merged(RamPlus(), V), V.sum(axis=0))


@given(EIGHTHS)
def test_of_vectors_that_change_everything_it_is_the_mean(V: Matrix) -> None:
    V[V == 0] = 1
    for of in (Ram(), RamPlus()):
        np.testing.assert_array_equal(merged(of, V), V.sum(axis=0) / len(V))


def test_ramplus_by_hand() -> None:
    """The first vector shares 1 of 3, rho 1/2; the second 1 of 2, rho 1; the third all."""
    V = np.array([[2.0, 1.0, 1.0, 0.0], [2.0, 0.0, 0.0, -1.0], [5.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(merged(RamPlus(r=0.5, alpha=9), V), [3, 1.25, 1.25, -1.5])
    np.testing.assert_allclose(merged(RamPlus(r=0.5, alpha=0.75), V), [3, 1.25, 1.25, -1.375])
    np.testing.assert_allclose(merged(RamPlus(), V), [3, 1.02, 1.02, -1.02])


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_without_r_or_alpha_it_is_ram(T: int, scope: Any) -> None:
    V = sparse(T)
    for of in (RamPlus(r=0, scope=scope), RamPlus(alpha=0, scope=scope)):
        assert merged(of, V).tobytes() == merged(Ram(), V).tobytes()


def test_a_vector_that_shares_nothing_is_not_scaled() -> None:
    V = sparse(1)
    np.testing.assert_array_equal(merged(RamPlus(r=1, alpha=9), V), V[0])


@given(EIGHTHS, st.floats(0, 1), st.floats(0, 5))
def test_unique_entries_are_scaled_and_others_are_not(V: Matrix, r: float, alpha: float) -> None:
    of, plain = RamPlus(r, alpha), merged(Ram(), V)
    found, count = merged(of, V), np.count_nonzero(V, axis=0)
    np.testing.assert_array_equal(found[count > 1], plain[count > 1])
    assert np.all(np.abs(found) >= np.abs(plain))
    assert np.all(np.abs(found) <= of.gain() * np.abs(plain) * (1 + 1e-12))
    np.testing.assert_array_equal(merged(of, -V), -found)


def test_the_scope_of_what_is_counted(write_folder: Write) -> None:
    """In ``h.0.a`` all is shared, in ``h.0.b`` nothing, in ``h.1`` one of two entries."""
    first = {"h.0.a": [1, 1, 1], "h.0.b": [1, 0], "h.1.a": [1, 1]}
    other = {"h.0.a": [1, 1, 1], "h.0.b": [0, 0], "h.1.a": [0, 1]}
    base = write_folder("base", {n: np.zeros(len(v), np.float32) for n, v in first.items()})
    tuned = [
        TaskVector(base, write_folder(name, {n: np.float32(v) for n, v in deltas.items()}))
        for name, deltas in (("1", first), ("2", other))
    ]
    wanted = {"tensor": (0, 1 / 1), "layer": (3 / 1, 1 / 1), "model": (4 / 2, 4 / 2)}
    for scope, rhos in wanted.items():
        of = method("ramplus_tl", r=0.1, alpha=9.0, scope=scope)
        found = merge(base, tuned, of).tensors()
        unique = [found["h.0.b"][0], found["h.1.a"][0]]
        np.testing.assert_allclose(unique, [1 + 0.1 * rho for rho in rhos], rtol=1e-6)


def test_both_compute_in_the_type_of_the_vectors() -> None:
    for dtype in (np.float32, np.float64):
        assert Ram().apply(Chunk(np.ones((2, 3), dtype)), ()).dtype == dtype
        assert merged(RamPlus(), np.ones((2, 3), dtype)).dtype == dtype


@pytest.mark.parametrize("of", [Ram(), RamPlus()], ids=repr)
def test_times_minus_one_is_minus(of: Method) -> None:
    V = sparse(3)
    np.testing.assert_array_equal(merged(of, -V), -merged(of, V))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ram", {"epsilon": -1e-5}, "an epsilon of -1e-05 is no size of a change; use 0 or more"),
        ("ramplus_tl", {"epsilon": float("inf")}, "an epsilon of inf"),
        ("ramplus_tl", {"r": -0.1}, "r -0.1 scales nothing up; use 0 or more"),
        ("ramplus_tl", {"alpha": float("nan")}, "alpha nan scales nothing up"),
        ("ramplus_tl", {"scope": "tensors"}, "did you mean 'tensor'?"),
        ("ram", {"r": 0.1}, "has no option 'r'"),
    ],
)
def test_options_that_mean_nothing(name: str, options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method(name, **options)
    assert said in str(caught.value)
