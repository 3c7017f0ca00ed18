"""Electing signs: who votes, what a tie is, who is averaged; entry by entry, by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError, check_word
from taskbasis.kernels import BLOCK
from taskbasis.methods.electing import Variant, Vote, elect

Matrix = NDArray[Any]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
VOTES: tuple[Vote, ...] = get_args(Vote)
small = settings(derandomize=True, deadline=None, max_examples=60)


def weighted(vectors: Matrix, weights: tuple[float, ...]) -> Matrix:
    return np.array(vectors, np.float64) * np.array(weights)[:, None]


def elected(
    vectors: Any, weights: tuple[float, ...], variant: Variant, **options: Any
) -> list[float]:
    found = elect(weighted(vectors, weights), np.array(weights), variant, **options)
    return [round(float(x), 12) for x in found]


X_AND_Y = [[1, -2, 3, 0], [-4, 1, 3, 0]]


def test_the_three_functions_of_one_name() -> None:
    """Weights .9 and .1 at density 1: the first vote goes by weight, or it does not."""
    assert elected(X_AND_Y, (0.9, 0.1), "mergekit") == [1, -2, 3, 0]
    assert elected(X_AND_Y, (0.9, 0.1), "peft") == [-0.4, -1.8, 1.5, 0]
    assert elected(X_AND_Y, (0.9, 0.1), "paper") == [0.9, -1.8, 1.5, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_normalize_those_who_agree_are_summed(variant: Variant) -> None:
    found = elected([[1, 2], [2, 1], [-1, -9]], (1, 1, 1), variant, normalize=False)
    assert found == [3, -9]


def test_a_tie_elects_plus_or_nobody() -> None:
    opposite = [[2, -3, 0], [-2, 3, 0]]
    assert elected(opposite, (1, 1), "paper") == [0, 0, 0]
    for variant in ("mergekit", "peft"):
        assert elected(opposite, (1, 1), variant) == [2, 3, 0]  # type: ignore[arg-type]


def test_a_tie_of_values_is_one_whatever_the_weights_were() -> None:
    """Taking a weight out of a product again rounds: 0.9 * x / 0.9 is not quite x."""
    values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    for weights in ((0.9, 0.1), (0.3, -0.7), (0.5, 2.0)):
        rows = np.stack([np.float32(weights[0]) * values, np.float32(weights[1]) * -values])
        for order in ([0, 1], [1, 0]):
            found = elect(rows[order], np.array(weights)[order], "peft")
            plus = np.where(values > 0, rows[0], rows[1])
            np.testing.assert_array_equal(found, plus)


def test_an_almost_tie_is_none() -> None:
    """Weights of 1 round nothing, so the last bit decides."""
    rows = np.array([[1.0], [-np.nextafter(np.float32(1), np.float32(0))]], np.float32)
    for variant in VARIANTS:
        assert elect(rows, np.ones(2), variant).tolist() == [1]


def test_votes_are_not_rounded_to_the_rows_type() -> None:
    """In float32 1e8 + 1 - 1e8 is 0."""
    rows = np.array([[1e8], [1], [-1e8]], np.float32)
    assert elect(rows, np.ones(3), "paper").tolist() == [5e7]


@small
@given(
    st.lists(
        st.tuples(*[st.sampled_from([0.0, 1e-45, 1.2e-38, 1.0, 1 + 2**-23, 3.4e38, 0.1])] * 2),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([(1.0, -1.0), (1.0, 1.0), (0.5, -0.25), (0.3, -3.0)]),
    st.sampled_from(VARIANTS),
)
def test_of_two_float32_vectors_the_exact_sum_elects(
    pairs: list[tuple[float, float]], weights: tuple[float, float], variant: Variant
) -> None:
    """And who agrees alone is divided by its share as in float64, rounded once."""
    rows = (np.array(pairs).T * np.sign(weights)[:, None]).astype(np.float32)
    found = elect(rows, np.array(weights), variant)
    sizes = np.abs(weights) if variant == "mergekit" else np.ones(2)
    for column, entry in zip(rows.T, found, strict=True):
        votes = [Fraction(float(x)) for x in column]
        sign = 1
        if variant == "peft":
            votes = [vote / Fraction(w) for vote, w in zip(votes, weights, strict=True)]
        if sum(votes) or variant == "paper":
            sign = (sum(votes) > 0) - (sum(votes) < 0)
        sides = np.sign(weights) if variant == "peft" else np.ones(2)
        agree = [x * side * sign > 0 for x, side in zip(column, sides, strict=True)]
        with np.errstate(over="ignore"):
            total = np.float32(0)
            for x, yes in zip(column, agree, strict=True):
                total += x if yes else np.float32(0)
            share = sizes[agree].sum() if any(agree) else 1.0
            wanted = np.float32(np.float64(total) / share)
        rounded = variant == "peft" and 0.3 in weights  # whose votes are products that were rounded
        near = abs(sum(votes)) < 1e-6 * max(map(abs, votes))
        assert entry == wanted or (rounded and near)


def test_signs_may_be_counted_instead() -> None:
    many_small = [[9, 0], [-1, 3], [-1, 0]]
    for variant in VARIANTS:
        assert elected(many_small, (1, 1, 1), variant, vote="frequency") == [-1, 3]
        assert elected(many_small, (1, 1, 1), variant) == [9, 3]
    # By what the vector says, or by what its weight makes of it.
    assert elected([[5], [-1]], (1, -1), "peft", vote="frequency") == [5]
    assert elected([[5], [-1]], (1, -1), "mergekit", vote="frequency") == [3]


def test_small_entries_are_as_good_as_none() -> None:
    rows = np.array([[5, 1, -2.0], [-3, -3, 2]])
    cutoffs = np.array([2, 3], np.float32)
    for variant in VARIANTS:
        assert elect(rows, np.ones(2), variant, cutoffs=cutoffs).tolist() == [5, -3, -2]
    none = np.array([np.inf, np.inf], np.float32)
    assert elect(rows, np.ones(2), cutoffs=none).tolist() == [0, 0, 0]


# Weights of either sign


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.3, 2.5])
def test_a_negative_weight_subtracts(
    variant: Variant, vote: Vote, normalize: bool, weight: float
) -> None:
    """Dividing by signed weights would add what is to be subtracted."""
    vector = np.random.default_rng(1).standard_normal((1, 50))
    added, subtracted = (
        elect(vector * w, np.array([w]), variant, vote, normalize) for w in (weight, -weight)
    )
    np.testing.assert_array_equal(subtracted, -added)
    size = 1.0 if variant == "mergekit" and normalize else weight
    np.testing.assert_allclose(added, size * vector[0], rtol=1e-14)


def test_weights_that_nearly_cancel_do_not_blow_up() -> None:
    """Both push up, the second as -0.9 * -1; the signed sum of weights would be 0.1."""
    rows = np.array([[1.0], [0.9]])
    assert elect(rows, np.array([1, -0.9]), "mergekit").tolist() == [1.0]


numbers = st.integers(-4, 4).map(lambda n: n / 4)
weights_of_two_signs = st.sampled_from([1.0, -1.0, 0.5, -0.25, 0.9, -0.9, 3.0])


@small
@given(
    st.lists(
        st.tuples(st.lists(numbers, min_size=5, max_size=5), weights_of_two_signs),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(VARIANTS),
    st.sampled_from(VOTES),
)
def test_no_entry_is_larger_than_the_largest_vector(
    given_: Any, variant: Variant, vote: Vote
) -> None:
    """A mean by weight of tau_t, or of w_t tau_t, is never beyond the largest of them."""
    vectors = np.array([row for row, _ in given_])
    weights = np.array([w for _, w in given_])
    rows = vectors * weights[:, None]
    found = np.abs(elect(rows, weights, variant, vote))
    bound = np.abs(vectors if variant == "mergekit" else rows).max(axis=0)
    assert np.all(found <= bound * (1 + 1e-12))
    summed = np.abs(elect(rows, weights, variant, vote, normalize=False))
    assert np.all(summed <= np.abs(rows).sum(axis=0) * (1 + 1e-12))


@small
@given(
    st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from(VARIANTS),
    st.sampled_from(VOTES),
)
def test_all_winners_agree_and_are_averaged(
    vectors: list[list[float]], variant: Variant, vote: Vote
) -> None:
    """In exact fractions, all weights 1."""
    found = elect(np.array(vectors), np.ones(len(vectors)), variant, vote)
    for entry, column in zip(found, zip(*vectors, strict=True), strict=True):
        balance = sum(Fraction((x > 0) - (x < 0) if vote == "frequency" else x) for x in column)
        if balance == 0 and variant == "paper":
            assert entry == 0
            continue
        winners = [Fraction(x) for x in column if x and (x > 0) == (balance >= 0)]
        wanted = sum(winners) / len(winners) if winners else 0
        assert entry == pytest.approx(float(wanted), rel=1e-15)


# Arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_any_length_and_type_and_column_by_column(dtype: Any, length: int) -> None:
    rows = np.random.default_rng(2).standard_normal((11, length)).astype(dtype)
    weights = np.resize([1.0, 0.3, -0.6], 11)
    for variant in VARIANTS:
        whole = elect(rows, weights, variant)
        assert (whole.dtype, whole.shape) == (dtype, (length,))
        parts = [elect(np.ascontiguousarray(part), weights, variant) for part in cut(rows)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def cut(rows: Matrix) -> list[Matrix]:
    return np.split(rows, [1, 2, 100], axis=1)


def test_rows_are_left_as_they_are() -> None:
    rows = np.array([[1.0, -2.0], [3.0, 1.0]])
    elect(rows, np.ones(2), cutoffs=np.array([2, 2], np.float32))
    assert rows.tolist() == [[1, -2], [3, 1]]


@pytest.mark.parametrize(
    ("option", "word", "words", "said"),
    [
        ("variant", "mergkit", Variant, "variant 'mergkit' is unknown; did you mean 'mergekit'?"),
        ("vote", "x", Vote, "vote 'x' is unknown; known: total, frequency"),
    ],
)
def test_words_that_are_unknown(option: str, word: str, words: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_word(option, word, words)
    assert str(caught.value) == said
