import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis.gram import checked, cosine, oriented, rank, root
from taskbasis.errors import UsageError, ValueProblem

RANDOMLY = settings(deadline=None, max_examples=40, derandomize=True)


@RANDOMLY
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(-8, 8))
def test_the_root_has_the_inner_products(tasks, dim, seed, exponent):
    dense = np.random.default_rng(seed).standard_normal((dim, tasks)) * 10.0**exponent
    gram = dense.T @ dense
    small = root(checked(gram))
    np.testing.assert_allclose(small.T @ small, gram, atol=1e-12 * np.trace(gram))
    assert rank(small) == min(dim, tasks)


def test_a_vector_a_million_times_shorter_is_not_rounding():
    dense = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 1e-6, 1e6]
    small = root(dense.T @ dense)
    assert rank(small) == 3
    np.testing.assert_allclose(np.linalg.norm(small, axis=0), np.linalg.norm(dense, axis=0))


def test_duplicates_and_zero_vectors_lower_the_rank():
    dense = np.random.default_rng(0).standard_normal((50, 4))
    dense[:, 2] = dense[:, 0]
    dense[:, 3] = 0.0
    small = root(dense.T @ dense)
    assert rank(small) == 2
    assert not small[:, 3].any()
    np.testing.assert_allclose(small[:, 2], small[:, 0], atol=1e-12)


def test_float32_noise_is_taken_and_made_symmetric():
    gram = np.array([[1.0, 0.5 + 1e-7], [0.5, 1.0]])
    found = checked(gram)
    assert np.array_equal(found, found.T)
    assert checked(np.ones((2, 2), dtype=np.float32)).dtype == np.float64
    noisy = np.ones((3, 3)) + np.diag([0.0, -1e-7, 1e-7])
    assert rank(root(checked(noisy))) >= 1


def test_integers_are_numbers_too():
    assert checked(np.array([[2, 1], [1, 2]])).dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 0), (2, 3), (4,), (2, 2, 2)])
def test_another_shape_is_refused(shape):
    with pytest.raises(UsageError, match="square and not empty"):
        checked(np.zeros(shape))


@pytest.mark.parametrize("dtype", ["complex128", "bool", "object"])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(UsageError, match="real numbers"):
        checked(np.eye(2).astype(dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_the_position_of_the_vector(value):
    gram = np.eye(5)
    gram[3, :] = gram[:, 3] = value
    with pytest.raises(ValueProblem, match=r"NaN or infinity at vector 3 \("):
        checked(gram)
    lonely = np.eye(5)
    lonely[1, 4] = value
    with pytest.raises(ValueProblem, match="at vector 1"):
        checked(lonely)


def test_many_broken_vectors_are_not_all_listed():
    with pytest.raises(ValueProblem, match=r"0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \("):
        checked(np.full((20, 20), np.nan))


@pytest.mark.parametrize("matrix", [[[1, 2], [2, 1]], [[-1, 0], [0, 1]], [[0, 1], [1, 0]]])
def test_what_no_vectors_can_have_is_refused(matrix):
    with pytest.raises(ValueProblem, match="no Gram matrix"):
        checked(np.array(matrix, dtype=float))


def test_an_asymmetric_matrix_is_refused():
    with pytest.raises(ValueProblem, match="not symmetric"):
        checked(np.array([[1.0, 0.5], [0.1, 1.0]]))


def test_signs_do_not_depend_on_rounding():
    half = np.sqrt(0.5)
    for noise in (-1e-15, 0.0, 1e-15):
        rows = oriented(np.array([[-half, half + noise], [half, -half - noise]]))
        assert (rows[:, 0] > 0).all()
    assert oriented(np.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]


def test_the_cosine_of_nothing_is_zero():
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
    assert cosine(np.ones(2), -2 * np.ones(2)) == pytest.approx(-1.0)
