"""Philox in loops, held against NumPy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis import philox


def numpys(key: int, first: int, blocks: int) -> NDArray[np.uint32]:
    """Some whole blocks of words, by the generator that NumPy has."""
    found = [
        np.random.Philox(key=key, counter=[0, block, 0, 0]).random_raw(philox.BLOCK // 2)
        for block in range(first, first + blocks)
    ]
    return np.concatenate(found).astype("<u8").view("<u4")


keys = st.integers(0, 2**128 - 1) | st.sampled_from([0, 1, 2**64 - 1, 2**64, 2**128 - 1])


@settings(deadline=None)
@given(keys, st.integers(0, 2 * philox.BLOCK), st.integers(0, 9000), st.integers(0, 2**30))
def test_the_words_are_those_of_numpy(key: int, start: int, count: int, block: int) -> None:
    whole = numpys(key, block, 3)
    found = philox.words(key, block * philox.BLOCK + start, count)
    assert found.dtype == np.uint32
    assert found.tobytes() == whole[start : start + count].tobytes()


@settings(deadline=None)
@given(
    keys,
    st.integers(0, philox.BLOCK + 20),
    st.integers(0, 20_000),
    st.sampled_from([0, 1, 2**30, 2**31 + 12345, 2**32 - 1, 2**32]),
    st.sampled_from([np.float32, np.float64]),
)
def test_entries_are_multiplied_as_by_booleans(
    key: int, start: int, count: int, bound: int, dtype: type
) -> None:
    """Dropped entries become zeros of their sign, and what is no number stays none."""
    row = np.random.default_rng(0).standard_normal(count).astype(dtype)
    row[::97], row[::101], row[::103] = np.nan, np.inf, -0.0
    expected = row.copy()
    with np.errstate(invalid="ignore"):
        expected *= numpys(key, 0, 3)[start : start + count] < np.uint64(bound)
    philox.keep_below(row, key, start, bound)
    # The sign of what inf * 0 makes is the machine's own.
    np.testing.assert_array_equal(np.isnan(row), np.isnan(expected))
    real = ~np.isnan(row)
    assert row[real].tobytes() == expected[real].tobytes()


@pytest.mark.parametrize(("bound", "kept"), [(0, 0.0), (2**32, 1.0)])
def test_the_bounds_that_keep_none_and_all(bound: int, kept: float) -> None:
    row = np.ones(2 * philox.BLOCK + 3, np.float32)
    philox.keep_below(row, 7, 5, bound)
    assert np.all(row == kept)


def test_the_share_that_is_kept() -> None:
    row = np.ones(1 << 20, np.float32)
    philox.keep_below(row, 7, 0, 2**32 // 5)
    assert abs(row.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / row.size)
