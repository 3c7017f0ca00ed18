"""Loops over masks and magnitudes, each against the NumPy expression that it equals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis import counting

scores_and_masks = st.tuples(
    st.integers(1, 4), st.sampled_from([0, 1, 7, 2048, 5000]), st.integers(0, 9)
)


@settings(deadline=None)
@given(scores_and_masks)
def test_only_the_best_keeps_an_entry(drawn: tuple[int, int, int]) -> None:
    """Few different scores, so that many are equal: the first of them wins."""
    count, size, seed = drawn
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (count, size)).astype(np.float32)
    kept = random.random((count, size)) < 0.7
    best = np.argmax(np.where(kept, scores, -1), axis=0) if size else np.zeros(0)
    wanted = kept & (np.arange(count)[:, None] == best)
    counting.leave_best(scores, kept)
    np.testing.assert_array_equal(kept, wanted)
    assert kept.sum(axis=0).max(initial=0) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sum_of_what_masks_keep(dtype: type) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((3, 5000)).astype(dtype)
    rows[:, 5] = -0.0
    kept = random.random((3, 5000)) < 0.5
    wanted = np.zeros(5000, dtype)
    for row, mask in zip(rows, kept, strict=True):
        wanted += np.where(mask, row, 0)
    found = counting.sum_kept(rows, kept)
    assert found.dtype == dtype
    assert found.tobytes() == wanted.tobytes()


def test_squares_are_summed_in_float64() -> None:
    """Squares that float32 cannot hold, and small ones beside large ones."""
    row = np.array([1e25, 1e-25, 3.0, -4.0], np.float32)
    inside, whole = counting.squares(row, np.array([False, True, True, True]))
    exact = row.astype(np.float64) ** 2
    assert inside == pytest.approx(exact[1:].sum(), rel=1e-15)
    assert whole == pytest.approx(exact.sum(), rel=1e-15)
    assert counting.squares(row[:0], np.zeros(0, bool)) == (0.0, 0.0)
