"""The k-th largest by counting bits against sorting, and scores made comparable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.cutoff import (
    Normalize,
    Normalizer,
    check_density,
    check_normalize,
    check_scope,
    count_lower,
    count_rounded,
    count_upper,
    counted,
    find_bins,
    find_cutoffs,
    find_ranks,
)

Matrix = NDArray[Any]
KINDS: tuple[Normalize, ...] = ("mean", "max", "rank")

BITS = st.integers(0, 0x7F7FFFFF) | st.sampled_from([0, 1, 0x7FFFFF, 0x800000, 0x3F800000])
rows_of_bits = arrays.arrays(
    np.uint32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=BITS
)
small = settings(derandomize=True, deadline=None, max_examples=60)


def cutoffs(rows: Matrix, density: float, cuts: list[int]) -> Matrix:
    """By both passes, over stretches."""
    parts = np.split(rows, cuts, axis=1)
    bins = find_bins(np.sum([count_upper(part) for part in parts], axis=0), density)
    return find_cutoffs(np.sum([count_lower(part, bins) for part in parts], axis=0), bins)


@small
@given(rows_of_bits, st.floats(0, 1, exclude_min=True), st.data())
def test_the_kth_largest_is_exact(bits: Matrix, density: float, data: st.DataObject) -> None:
    rows = bits.view(np.float32)
    d = rows.shape[1]
    cuts = sorted(data.draw(st.lists(st.integers(0, d), max_size=3)))
    k = max(1, int(density * d))
    np.testing.assert_array_equal(cutoffs(rows, density, cuts), np.sort(rows)[:, -k])


def test_of_no_numbers_the_cutoff_is_zero() -> None:
    assert cutoffs(np.zeros((2, 0), np.float32), 0.5, []).tolist() == [0, 0]


def test_rows_are_counted_apart_and_columns_of_a_larger_array_too() -> None:
    rows = np.array([[1, 2, 3, 9], [9, 8, 0, 7]], np.float32)
    assert cutoffs(rows[:, :3], 0.34, []).tolist() == [3, 9]
    assert cutoffs(rows[:, 1:], 1.0, [1]).tolist() == [2, 0]


def test_signs_are_no_part_of_a_magnitude() -> None:
    rows = np.array([[-3, 2, -1, 0, -0.0]], np.float32)
    found = [cutoffs(rows, share, [2])[0] for share in (0.2, 0.4, 0.6, 1.0)]
    assert found == [3, 2, 1, 0]


def test_each_row_may_have_its_own_density() -> None:
    rows = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    counts = count_upper(rows)
    bins = find_bins(counts, (0.25, 0.75))
    assert find_cutoffs(count_lower(rows, bins), bins).tolist() == [4, 2]
    with pytest.raises(UsageError, match="density has 3 numbers for 2 vectors"):
        find_bins(counts, (0.1, 0.2, 0.3))


def test_rank_zero_has_an_infinite_cutoff() -> None:
    rows = np.array([[1e38, 3, 2]], np.float32)
    bins = find_bins(count_upper(rows), 0.3, least=0)
    assert find_cutoffs(count_lower(rows, bins), bins).tolist() == [np.inf]


@small
@given(rows_of_bits, st.data())
def test_any_rank_is_found(bits: Matrix, data: st.DataObject) -> None:
    rows = bits.view(np.float32)
    ranks = [data.draw(st.integers(1, rows.shape[1])) for _ in rows]
    bins = find_ranks(count_upper(rows), ranks)
    found = find_cutoffs(count_lower(rows, bins), bins)
    wanted = [np.sort(row)[-rank] for row, rank in zip(rows, ranks, strict=True)]
    np.testing.assert_array_equal(found, wanted)


# What scores are divided by, and ranked among


def rounded(values: Matrix) -> Matrix:
    """To 8 significant bits, halves away from zero, in ordinary arithmetic."""
    mantissas, exponents = np.frexp(values.astype(np.float64))
    return np.ldexp(np.floor(mantissas * 256 + 0.5), exponents - 8)


normal_scores = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.sampled_from([0.0, 0.125, 0.5, 1.0, 1.0001, 3.0, 1e-6, 7e5])
    | st.floats(2.0**-100, 2.0**100, width=32),
)


@small
@given(normal_scores)
def test_what_was_counted(scores: Matrix) -> None:
    values, numbers = counted(count_rounded(scores[None])[0])
    wanted, how_many = np.unique(rounded(scores), return_counts=True)
    np.testing.assert_array_equal(values, wanted)
    np.testing.assert_array_equal(numbers, how_many)


@small
@given(normal_scores)
def test_mean_and_max_are_those_of_the_rounded_scores(scores: Matrix) -> None:
    counts = count_rounded(scores[None])[0]
    for kind, size in (("mean", rounded(scores).mean()), ("max", rounded(scores).max())):
        found = Normalizer(counts, kind)(scores)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, scores / (size or 1), rtol=3e-7, atol=1e-37)
        assert found.dtype == np.float32


@small
@given(normal_scores)
def test_a_rank_is_the_share_of_smaller_scores(scores: Matrix) -> None:
    """Up to those that round to the same 8 bits, among which ranks are spread evenly."""
    found = Normalizer(count_rounded(scores[None])[0], "rank")(scores)
    for score, rank in zip(scores, found, strict=True):
        if score == 0:
            assert rank == 0
            continue
        below = np.mean(rounded(scores) < rounded(score))
        alike = np.mean(rounded(scores) == rounded(score))
        assert below - 1e-6 <= rank <= below + alike + 1e-6


@small
@given(rows_of_bits, st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_neither_order_nor_cuts_matter_and_the_order_of_scores_is_kept(
    bits: Matrix, kind: Normalize, random: Any
) -> None:
    scores = bits[0].view(np.float32)
    order = list(range(len(scores)))
    random.shuffle(order)
    whole = Normalizer(count_rounded(scores[None])[0], kind)
    parts = [count_rounded(part[None])[0] for part in np.array_split(scores[order], 3)]
    other = Normalizer(np.sum(parts, axis=0), kind)
    found = whole(scores)
    assert other(scores).tobytes() == found.tobytes()
    assert found[order].tobytes() == whole(scores[order]).tobytes()
    assert np.all(np.isfinite(found))
    assert np.all(found[scores == 0] == 0)
    assert np.all(np.diff(found[np.argsort(scores)]) >= 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values", [[0, 1e-40, 3e-40], [1e-45, 2e-45], [3.4e38, 1e38], [0, 0], [], [1e-38, 1e38]]
)
def test_nothing_overflows(kind: Normalize, values: list[float]) -> None:
    scores = np.array(values, np.float32)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        found = Normalizer(count_rounded(scores[None])[0], kind)(scores)
    assert found.shape == scores.shape
    assert np.all(np.isfinite(found))


def test_tiny_scores_are_divided_as_others_are() -> None:
    scores = np.array([1, 3], np.float32) * np.float32(2.0**-130)
    counts = count_rounded(scores[None])[0]
    np.testing.assert_allclose(Normalizer(counts, "mean")(scores), [0.5, 1.5], rtol=1e-6)
    largest = np.array([1.7e38, np.finfo(np.float32).max], np.float32)  # rounds to infinity
    counts = count_rounded(largest[None])[0]
    np.testing.assert_allclose(Normalizer(counts, "max")(largest), [0.5, 1], rtol=0.01)
    huge = np.array([1, 3], np.float32) * np.float32(2.0**126)
    counts = count_rounded(huge[None])[0]
    np.testing.assert_allclose(Normalizer(counts, "max")(huge), [1 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("check", "word", "said"),
    [
        (check_scope, "layers", "scope 'layers' is unknown; did you mean 'layer'?"),
        (check_normalize, "mea", "normalize 'mea' is unknown; did you mean 'mean'?"),
        (check_density, 0.0, "a density of 0.0 keeps nothing sensible"),
        (check_density, 1.5, "use (0, 1]"),
        (check_density, (0.5, 1.5), "a density of 1.5"),
        (check_density, float("nan"), "a density of nan"),
    ],
)
def test_what_is_refused(check: Any, word: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(word)
    assert said in str(caught.value)
