"""Inner products and norms, against NumPy's and against exact sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.products import inner_products, magnitude


@settings(deadline=None)
@given(
    st.integers(0, 6),
    st.sampled_from([0, 1, 15, 2047, 2048, 2049, 5000]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_inner_products_are_those_of_a_matrix(
    count: int, size: int, with_base: bool, dtype: type
) -> None:
    random = np.random.default_rng([count, size])
    rows = random.standard_normal((count, size)).astype(dtype)
    base = random.standard_normal(size).astype(dtype) if with_base else None
    found = inner_products(rows, base)
    zeros = np.zeros((1, size)) if base is None else base[None]
    whole = np.concatenate([zeros, rows]).astype(np.float64)
    assert found.shape == (1 + count, 1 + count)
    np.testing.assert_allclose(found, whole @ whole.T, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(found, found.T)


def test_a_product_does_not_depend_on_the_other_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 3000))
    whole = inner_products(rows)
    for chosen in ([4], [3, 0], [2, 1, 4]):
        at = [0, *(c + 1 for c in chosen)]
        assert inner_products(rows[chosen]).tobytes() == whole[np.ix_(at, at)].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 16, 2048, 100_003])
def test_magnitudes_are_summed_in_float64(size: int, dtype: type) -> None:
    row = np.random.default_rng(size).standard_normal(size).astype(dtype)
    exact = math.fsum(abs(float(value)) for value in row)
    assert magnitude(row) == pytest.approx(exact, rel=1e-14)


def test_a_row_of_large_numbers_and_of_none() -> None:
    assert magnitude(np.full(3000, 3e38, np.float32)) == pytest.approx(3000 * 3e38, rel=1e-6)
    assert math.isnan(magnitude(np.array([1.0, np.nan])))
