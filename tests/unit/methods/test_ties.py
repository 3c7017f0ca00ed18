"""TIES: the scope and count of its trimming in each variant, and the identities it keeps."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.merging import merge
from taskbasis.methods import method
from taskbasis.methods.electing import Variant
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.testing import Trial
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
small = settings(derandomize=True, deadline=None, max_examples=40)


def merged(of: Ties, vectors: Any, weights: tuple[float, ...] = ()) -> Matrix:
    rows = np.array(vectors, np.float32)
    if weights:
        rows *= np.array(weights, np.float32)[:, None]
    return Trial(rows, weights=weights).merged(of)


@pytest.mark.parametrize(("variant", "kept"), [("paper", 4), ("mergekit", 8), ("peft", 8)])
def test_what_is_trimmed_together(variant: Variant, kept: int, write_folder: Any) -> None:
    """A tensor of small changes beside one of large ones: trimmed away, or by itself."""
    large, small_ = np.arange(1, 11), np.arange(1, 11) / 1000
    base = write_folder("base", {n: np.zeros(10, np.float32) for n in ("a", "b")})
    tuned = write_folder("t", {"a": large.astype(np.float32), "b": small_.astype(np.float32)})
    of = Ties(0.4 if variant != "paper" else 0.2, variant)
    found = merge(base, [TaskVector(base, tuned)], of).tensors()
    assert sum(np.count_nonzero(array) for array in found.values()) == kept
    assert np.count_nonzero(found["b"]) == (0 if variant == "paper" else 4)
    assert found["a"].tolist() == [0] * 6 + [7, 8, 9, 10]


def test_how_many_are_kept_of_few() -> None:
    vector = [[5, 4, 3, 2, 1]]
    for variant, kept in (("paper", 1), ("mergekit", 1), ("peft", 0)):
        found = merged(Ties(0.1, variant), vector)  # type: ignore[arg-type]
        assert np.count_nonzero(found) == kept
    for variant in VARIANTS:
        assert merged(Ties(0.59, variant), vector).tolist() == [5, 4, 0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_magnitudes_at_the_cutoff_are_all_kept(variant: Variant) -> None:
    found = merged(Ties(0.4, variant), [[3, -2, 2, 1, 2]])
    assert found.tolist() == [3, -2, 2, 0, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_constant_vector_is_kept_whole(variant: Variant) -> None:
    signs = np.sign(np.random.default_rng(0).standard_normal((1, 40)))
    np.testing.assert_array_equal(merged(Ties(0.2, variant), signs), signs[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros_are_no_votes_and_no_voters(variant: Variant) -> None:
    """More zeros than are dropped: the cutoff is 0, and they are not counted in the mean."""
    found = merged(Ties(0.9, variant), [[4, 0, 0, 0], [0, 2, 0, 0], [2, 0, 0, -1]])
    assert found.tolist() == [3, 2, 0, -1]


def test_each_vector_may_have_its_own_density() -> None:
    vectors = [[4, 3, 2, 1], [10, 20, 30, 40]]
    assert merged(Ties((1.0, 0.25)), vectors).tolist() == [4, 3, 2, 20.5]
    with pytest.raises(UsageError, match="density has 2 numbers for 1 vectors"):
        merged(Ties((1.0, 0.25)), vectors[:1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_density_one_reads_the_vectors_once(variant: Variant) -> None:
    of = Ties(1.0, variant)
    assert of.stages() == ()
    vectors = np.random.default_rng(1).standard_normal((3, 60))
    by_two_passes = merged(Ties((1.0, 1.0, 1.0), variant), vectors)
    np.testing.assert_array_equal(merged(of, vectors), by_two_passes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_all_agree_and_nothing_is_trimmed_it_is_the_mean(variant: Variant) -> None:
    vectors = np.abs(np.random.default_rng(2).standard_normal((4, 50)))
    mean = merged(Ties(1.0, variant), vectors)
    np.testing.assert_allclose(mean, vectors.mean(axis=0), rtol=1e-6)
    total = merged(Ties(1.0, variant, normalize=False), vectors)
    plain = Trial(vectors.astype(np.float32)).merged(TaskArithmetic())
    np.testing.assert_allclose(total, plain, rtol=1e-6)


@pytest.mark.parametrize("of", [Ties(0.3, variant) for variant in VARIANTS], ids=repr)
def test_weights_are_of_either_sign(of: Ties) -> None:
    """mergekit 0.1.5 gives the same for -1 as for +1."""
    vector = np.random.default_rng(3).standard_normal((1, 80))
    np.testing.assert_array_equal(merged(of, vector, (-1.0,)), -merged(of, vector, (1.0,)))
    pair = np.random.default_rng(4).standard_normal((2, 400))
    found = np.abs(merged(of, pair, (1.0, -0.9)))
    largest = np.abs(pair).max(axis=0)
    assert np.all(found <= largest * (1 + 1e-6))


def test_in_the_paper_a_weight_is_what_multiplying_beforehand_is() -> None:
    vectors = np.random.default_rng(5).standard_normal((2, 50)).astype(np.float32)
    weights = (2.0, -0.5)
    scaled = vectors * np.array(weights, np.float32)[:, None]
    for of in (Ties(0.5), Ties(0.5, vote="frequency"), Ties(0.5, normalize=False)):
        np.testing.assert_array_equal(merged(of, vectors, weights), merged(of, scaled))
    mean_by_weight = Ties(0.5, "mergekit")
    assert np.any(merged(mean_by_weight, vectors, weights) != merged(mean_by_weight, scaled))


@small
@given(
    st.lists(st.lists(st.integers(-50, 50), min_size=6, max_size=6), min_size=1, max_size=4),
    st.floats(0.01, 1),
    st.sampled_from(VARIANTS),
    st.sampled_from([0.25, 2.0, 64.0]),
)
def test_it_grows_with_its_vectors(
    vectors: Any, density: float, variant: Variant, factor: float
) -> None:
    """By a power of two, which changes no rounding, and by -1, where no tie elects plus."""
    of = Ties(density, variant)
    rows = np.array(vectors, np.float32)
    found = merged(of, rows)
    np.testing.assert_array_equal(merged(of, factor * rows), factor * found)
    if variant == "paper":
        np.testing.assert_array_equal(merged(of, -rows), -found)


def test_a_density_for_each_vector_can_be_written_in_a_recipe() -> None:
    assert method("ties", density=[0.1, 0.5]) == Ties((0.1, 0.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "mergkit"}, "variant 'mergkit' is unknown; did you mean 'mergekit'?"),
        ({"vote": "sum"}, "vote 'sum' is unknown; known: total, frequency"),
        ({"density": (0.2, 0.0)}, "a density of 0.0 keeps nothing sensible; use (0, 1]"),
        ({"density": [0.2, "x"]}, "takes a number"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("ties", **options)
    assert said in str(caught.value)
