"""Model Breadcrumbs: both ends of every tensor are cut off, exactly and out of core."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.merging import merge
from taskbasis.methods import method
from taskbasis.methods.electing import elect
from taskbasis.methods.elementwise.breadcrumbs import Breadcrumbs
from taskbasis.methods.elementwise.breadcrumbs_ties import BreadcrumbsTies
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.testing import Trial
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]

small = settings(derandomize=True, deadline=None, max_examples=80)
TEN = [[1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10]]


def merged(of: Breadcrumbs, vectors: Any, shape: tuple[int, ...] | None = None) -> Matrix:
    rows = np.array(vectors, np.float32)
    return Trial(rows.reshape(len(rows), -1), shape=shape).merged(of)


def test_the_largest_and_the_smallest_are_removed() -> None:
    found = merged(Breadcrumbs(0.5, 0.2), TEN)
    assert found.tolist() == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]


def test_vectors_are_masked_apart_and_summed() -> None:
    found = merged(Breadcrumbs(0.5, 0.25), [[1, 2, 3, 4], [40, -30, 20, 10]])
    assert found.tolist() == [0, 2 - 30, 3 + 20, 0]


def test_a_gamma_of_less_than_one_entry_removes_none_and_zeroes_nothing() -> None:
    """A slice up to minus zero is empty: so whole tensors were zeroed in some mergekits."""
    found = merged(Breadcrumbs(0.5, 0.05), TEN)
    assert found.tolist() == [0, 0, 0, 0, 0, -6, 7, -8, 9, -10]


def test_tensors_of_less_than_one_over_density_entries_keep_one() -> None:
    """mergekit 0.1.5 zeroes them: floor(0.2 * 3) is none."""
    assert merged(Breadcrumbs(0.2, 0.0), [[1, 3, 2]]).tolist() == [0, 3, 0]
    assert merged(Breadcrumbs(0.2, 0.4), [[1, 3, 2]]).tolist() == [0, 0, 2]
    assert merged(Breadcrumbs(0.2, 0.4), [[5]]).tolist() == [5]


def test_outliers_stay_where_the_density_needs_them() -> None:
    assert merged(Breadcrumbs(0.9, 0.5), TEN).tolist() == [*TEN[0][:9], 0]


def test_equal_magnitudes_are_never_told_apart() -> None:
    found = merged(Breadcrumbs(0.25, 0.25), [[2, -2, 2, 2, 9, 1, 1, -9]])
    assert found.tolist() == [2, -2, 2, 2, 0, 0, 0, 0]
    constant = merged(Breadcrumbs(0.2, 0.3), [[1, -1, 1, -1]])
    assert constant.tolist() == [1, -1, 1, -1]


magnitudes = st.sampled_from([0.0, 1.0, -1.0, 1.0000001, 3e-39, 5.0]) | st.floats(-9, 9, width=32)


@small
@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 25)), elements=magnitudes
    ),
    st.floats(0.01, 1),
    st.floats(0, 0.99),
    st.data(),
)
def test_against_sorting_wherever_it_is_cut(
    rows: Matrix, density: float, gamma: float, data: st.DataObject
) -> None:
    n = rows.shape[1]
    inner = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    found = Trial(rows).merged(Breadcrumbs(density, gamma), borders=[0, *inner, n])
    kept = max(1, int(density * n))
    removed = max(0, min(int(gamma * n), n - kept))
    wanted = np.zeros(n, np.float32)
    for row in rows:
        ordered = np.sort(np.abs(row))[::-1]
        inside = (np.abs(row) <= ordered[removed]) & (np.abs(row) >= ordered[removed + kept - 1])
        wanted += np.where(inside, row, 0)
        distinct = len(np.unique(np.abs(row))) == n
        assert not distinct or inside.sum() == kept
    np.testing.assert_array_equal(found, wanted)


# Rows


def test_rows_have_ends_of_their_own() -> None:
    matrix = [[[1, 2, 3, 4], [400, 300, 200, 100]]]
    found = merged(Breadcrumbs(0.5, 0.25, rows=True), matrix, (2, 4))
    assert found.tolist() == [0, 2, 3, 0, 0, 300, 200, 0]
    whole = merged(Breadcrumbs(0.5, 0.25), matrix, (2, 4))
    assert whole.tolist() == [0, 0, 3, 4, 0, 0, 200, 100]


def test_of_one_axis_rows_are_the_tensor() -> None:
    vector = np.random.default_rng(0).standard_normal((2, 60))
    for density, gamma in ((0.3, 0.1), (0.9, 0.3), (1.0, 0.0)):
        whole, rows = (merged(Breadcrumbs(density, gamma, r), vector) for r in (False, True))
        np.testing.assert_array_equal(whole, rows)


def test_many_rows_are_taken_block_by_block() -> None:
    matrix = np.random.default_rng(1).standard_normal((1, 3000, 100)).astype(np.float32)
    found = merged(Breadcrumbs(0.5, 0.1, rows=True), matrix, (3000, 100)).reshape(3000, 100)
    assert np.all(np.count_nonzero(found, axis=1) == 50)
    assert np.abs(found).max() < np.abs(matrix).max()


def test_only_rows_need_whole_tensors() -> None:
    assert Breadcrumbs().unit == "element"
    assert Breadcrumbs(rows=True).unit == "tensor"
    assert Breadcrumbs(rows=True).stages() == ()
    assert Breadcrumbs(rows=True) == Breadcrumbs(rows=True) != Breadcrumbs()


def test_tensors_are_cut_apart_from_each_other(write_folder: Any) -> None:
    base = write_folder("base", {n: np.zeros(10, np.float32) for n in ("a", "b")})
    ten = np.array(TEN[0], np.float32)
    tuned = write_folder("t", {"a": ten, "b": ten / 1000})
    found = merge(base, [TaskVector(base, tuned)], Breadcrumbs(0.5, 0.2)).tensors()
    np.testing.assert_array_equal(found["a"], merged(Breadcrumbs(0.5, 0.2), TEN))
    np.testing.assert_array_equal(found["b"], found["a"] / np.float32(1000))


# Identities


def test_at_density_one_it_is_task_arithmetic() -> None:
    vectors = np.random.default_rng(2).standard_normal((3, 50)).astype(np.float32)
    of = Breadcrumbs(1.0, 0.3)
    assert merged(of, vectors).tobytes() == Trial(vectors).merged(TaskArithmetic()).tobytes()
    assert (of.stages(), np.unique(of.coefficients(np.ones(3)))) == ((), 1)  # type: ignore[arg-type]
    assert Breadcrumbs(0.5).coefficients(np.ones(3)) is None
    assert BreadcrumbsTies(1.0).coefficients(np.ones(3)) is None, "an election is not linear"
    by_two_passes = merged(Breadcrumbs((1.0, 1.0, 1.0), 0.3), vectors)
    np.testing.assert_array_equal(by_two_passes, merged(of, vectors))


def test_without_outliers_breadcrumbs_ties_is_mergekits_ties() -> None:
    vectors = np.random.default_rng(3).standard_normal((3, 80)).astype(np.float32)
    for normalize in (True, False):
        found = merged(BreadcrumbsTies(0.3, 0, normalize=normalize, variant="mergekit"), vectors)
        ties = Trial(vectors).merged(Ties(0.3, "mergekit", normalize=normalize))
        np.testing.assert_array_equal(found, ties)


@pytest.mark.parametrize("variant", ["paper", "mergekit", "peft"])
def test_signs_are_elected_among_what_is_kept(variant: Any) -> None:
    weights = (0.5, -1.5, 1.0)
    vectors = np.random.default_rng(4).standard_normal((3, 80)) * np.array(weights)[:, None]
    kept = np.stack([Trial(row[None]).merged(Breadcrumbs(0.5, 0.1)) for row in vectors])
    found = Trial(vectors, weights=weights).merged(BreadcrumbsTies(0.5, 0.1, variant=variant))
    np.testing.assert_array_equal(found, elect(kept, np.array(weights), variant))


def test_a_negative_weight_subtracts() -> None:
    vector = np.random.default_rng(5).standard_normal((1, 40))
    for of in (
        Breadcrumbs(0.5, normalize=True),
        BreadcrumbsTies(0.5, variant="mergekit"),
        BreadcrumbsTies(0.5, variant="peft"),
    ):
        added = Trial(vector, weights=(1.0,)).merged(of)
        subtracted = Trial(-vector, weights=(-1.0,)).merged(of)
        np.testing.assert_array_equal(subtracted, -added)


def test_each_vector_may_have_its_own_shares() -> None:
    found = merged(Breadcrumbs((0.5, 1.0), (0.25, 0.0)), [[1, 2, 3, 4], [10, 10, 20, 10]])
    assert found.tolist() == [10, 12, 23, 10]
    with pytest.raises(UsageError, match="gamma has 2 numbers for 1 vectors"):
        merged(Breadcrumbs(0.5, (0.1, 0.1)), TEN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.0}, "a gamma of 1.0 removes no sensible share; use [0, 1)"),
        ({"gamma": (0.1, -0.1)}, "a gamma of -0.1"),
        ({"gamma": float("nan")}, "a gamma of nan"),
        ({"density": 0.0}, "a density of 0.0"),
        ({"variant": "papers"}, "variant 'papers' is unknown; did you mean 'paper'?"),
        ({"vote": "totals"}, "did you mean 'total'?"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("breadcrumbs_ties", **options)
    assert said in str(caught.value)
