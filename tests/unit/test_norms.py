"""Sums of magnitudes, against exact ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taskbasis.norms import magnitude


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 16, 2048, 100_003])
def test_magnitudes_are_summed_in_float64(size: int, dtype: type) -> None:
    row = np.random.default_rng(size).standard_normal(size).astype(dtype)
    exact = math.fsum(abs(float(value)) for value in row)
    assert magnitude(row) == pytest.approx(exact, rel=1e-14)


def test_a_row_of_large_numbers_and_of_none() -> None:
    assert magnitude(np.full(3000, 3e38, np.float32)) == pytest.approx(3000 * 3e38, rel=1e-6)
    assert math.isnan(magnitude(np.array([1.0, np.nan])))
