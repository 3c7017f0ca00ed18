import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis.descent import minimise


def rosenbrock(x):
    a, b = 1 - x[:-1], x[1:] - x[:-1] ** 2
    slope = np.zeros_like(x)
    slope[:-1] = -2 * a - 400 * b * x[:-1]
    slope[1:] += 200 * b
    return float(np.sum(a**2 + 100 * b**2)), slope


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_a_quadratic_is_solved(size, seed):
    generator = np.random.default_rng(seed)
    shape = generator.standard_normal((size, size))
    curvature = shape @ shape.T + np.eye(size)
    aim = generator.standard_normal(size)

    def quadratic(x):
        return float(0.5 * (x - aim) @ curvature @ (x - aim)), curvature @ (x - aim)

    point, value = minimise(quadratic, np.zeros(size), 500)
    assert value < 1e-7
    np.testing.assert_allclose(point, aim, atol=1e-3)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_a_bent_valley_is_followed_to_its_end(size):
    point, value = minimise(rosenbrock, np.zeros(size), 500)
    assert value < 1e-9
    np.testing.assert_allclose(point, 1.0, atol=1e-3)


def test_it_never_goes_up_and_stops_when_told():
    start = np.array([-1.2, 1.0])
    values = [minimise(rosenbrock, start, count)[1] for count in range(30)]
    assert values[0] == rosenbrock(start)[0]
    assert all(after <= before for before, after in itertools.pairwise(values))


def test_it_stays_where_there_is_nothing_to_gain():
    point, value = minimise(lambda x: (1.0, np.zeros(2)), np.array([3.0, 4.0]), 10)
    assert point.tolist() == [3.0, 4.0]
    assert value == 1.0


def test_a_function_whose_gradient_lies_is_left_at_the_start():
    point, value = minimise(lambda x: (float(x @ x), -2 * x), np.array([1.0, 1.0]), 10)
    assert point.tolist() == [1.0, 1.0]
    assert value == 2.0


def test_downward_curvature_is_not_remembered():
    """cos has a hill and valleys: the step over the hill's flank must not spoil the model."""
    point, value = minimise(lambda x: (float(np.cos(x).sum()), -np.sin(x)), np.array([0.1]), 50)
    assert value == pytest.approx(-1.0)
    assert point[0] == pytest.approx(np.pi, abs=1e-4)
