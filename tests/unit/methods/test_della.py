"""DELLA: chances by rank within rows, and what rescaling keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import method
from taskbasis.methods.electing import elect
from taskbasis.methods.elementwise.della import Della
from taskbasis.methods.elementwise.della_linear import DellaLinear, keep_chances
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.noise import draws
from taskbasis.methods.trimming import row_blocks
from taskbasis.testing import Trial

Matrix = NDArray[Any]

small = settings(derandomize=True, deadline=None, max_examples=60)


def chances(rows: Any, density: float = 0.5, epsilon: float = 0.25) -> list[list[float]]:
    found: list[list[float]] = keep_chances(np.array(rows), density, epsilon).tolist()
    return found


def merged(of: DellaLinear, vectors: Any, shape: tuple[int, ...], **more: Any) -> Matrix:
    rows = np.array(vectors, np.float64).reshape(len(vectors), -1)
    return Trial(rows, shape=shape, **more).merged(of)


# Chances


def test_chances_rise_linearly_with_the_rank_in_the_row() -> None:
    rows = [[1.0, -5.0, 3.0], [70.0, 80.0, -60.0]]
    assert chances(rows) == [[0.25, 0.75, 0.5], [0.5, 0.75, 0.25]]
    assert chances([[4.0, 3.0, 2.0, 1.0, 0.0]], 0.7, 0.1)[0] == pytest.approx(
        [0.8, 0.75, 0.7, 0.65, 0.6]
    )


def test_equal_magnitudes_share_their_mean_rank() -> None:
    assert chances([[2.0, -2.0, 2.0]]) == [[0.5, 0.5, 0.5]]
    assert chances([[0.0, 0.0, 7.0, -0.0, 1.0]]) == [[0.375, 0.375, 0.75, 0.375, 0.625]]


def test_an_entry_alone_in_its_row_has_the_density() -> None:
    """mergekit 0.1.5 and the released code divide 0 by 0 there."""
    assert chances([[1.0], [9.0]]) == [[0.5], [0.5]]
    assert np.isfinite(merged(DellaLinear(), [[1, 2, 3]], (3, 1))).all()
    assert np.isfinite(merged(Della(), [[1]], ())).all()


@small
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(2, 9)),
        elements=st.floats(-9, 9, width=32) | st.sampled_from([0.0, 1.0, -1.0]),
    ),
    st.floats(0.0, 0.4),
)
def test_the_mean_chance_is_the_density_and_larger_entries_have_better_ones(
    rows: Matrix, epsilon: float
) -> None:
    found = keep_chances(rows, 0.5, epsilon)
    np.testing.assert_allclose(found.mean(axis=1), 0.5, rtol=1e-12)
    assert np.all(found >= 0.5 - epsilon - 1e-12)
    assert np.all(found <= 0.5 + epsilon + 1e-12)
    for row, chance in zip(np.abs(rows), found, strict=True):
        order = np.argsort(row)
        assert np.all(np.diff(chance[order]) >= -1e-12)
        for i in range(len(row)):
            assert np.all(chance[row == row[i]] == chance[i])


# What is a row


@pytest.mark.parametrize(
    ("shape", "size", "width"),
    [
        ((), 1, 1),
        ((7,), 7, 7),
        ((2, 6), 12, 6),
        ((2, 3, 4), 24, 12),
        ((0, 5), 0, 0),
        ((5, 0), 0, 0),
    ],
)
def test_rows_are_what_stands_under_the_first_axis(
    shape: tuple[int, ...], size: int, width: int
) -> None:
    found, blocks = row_blocks(shape, size)
    assert found == width
    assert np.concatenate([np.arange(size)[b] for b in blocks] or [[]]).tolist() == [*range(size)]


def test_large_tensors_are_taken_by_some_rows_at_a_time() -> None:
    width, found = row_blocks((1000, 1000), 10**6)
    blocks = list(found)
    assert len(blocks) == 4
    assert all(block.start % width == 0 for block in blocks)
    assert blocks[0].stop == blocks[1].start
    assert blocks[-1].stop == 10**6
    wide, one = row_blocks((2, 10**6), 2 * 10**6)
    assert (wide, len(list(one))) == (10**6, 2)


def test_the_shape_matters_where_rows_do() -> None:
    vector = np.arange(1.0, 401)[None]
    flat, matrix = (merged(DellaLinear(0.5, 0.49), vector, s) for s in ((400,), (20, 20)))
    assert np.count_nonzero(flat[:100]) < 25, "the smallest of the whole are mostly dropped"
    assert 25 < np.count_nonzero(matrix[:100]) < 75, "those of a row by row by their own ranks"


def test_blocks_of_rows_draw_as_the_whole_tensor_does() -> None:
    shape = (700, 500)
    vector = np.random.default_rng(0).standard_normal((1, 350_000))
    found = merged(DellaLinear(0.5, 0.0, rescale=False), vector, shape)
    stays = draws("della_linear/0/0/tensor", 0, 350_000) < 1 << 31
    np.testing.assert_array_equal(found, np.where(stays, vector[0], 0))


# Rescaling


def test_the_expected_value_is_the_sum() -> None:
    """Over many seeds, to within five standard errors."""
    vectors = np.random.default_rng(1).standard_normal((2, 30))
    runs = np.stack(
        [merged(DellaLinear(0.5, 0.3, seed=seed), vectors, (5, 6)) for seed in range(600)]
    )
    error = np.sqrt((vectors**2 * 4).sum(axis=0) / 600)  # p is 0.2 at least: (1 - p) / p <= 4
    assert np.all(np.abs(runs.mean(axis=0) - vectors.sum(axis=0)) < 5 * error)


def test_each_entry_is_divided_by_its_own_chance() -> None:
    vector = np.random.default_rng(2).standard_normal((1, 60))
    found = merged(DellaLinear(0.6, 0.3), vector, (6, 10))
    chance = keep_chances(vector.reshape(6, 10), 0.6, 0.3).reshape(-1)
    kept = found != 0
    assert 0 < kept.sum() < 60
    np.testing.assert_allclose(found[kept], (vector[0] / chance)[kept], rtol=1e-14)
    plain = merged(DellaLinear(0.6, 0.3, rescale=False), vector, (6, 10))
    np.testing.assert_array_equal(plain, np.where(kept, vector[0], 0))


def test_mergekits_rescale_restores_each_vectors_sum_of_magnitudes() -> None:
    vectors = np.random.default_rng(3).standard_normal((2, 60))
    of = DellaLinear(0.6, 0.3, variant="mergekit")
    alone = [merged(of, vectors[t : t + 1], (6, 10), names=(name,)) for t, name in enumerate("ab")]
    for found, vector in zip(alone, vectors, strict=True):
        assert np.abs(found).sum() == pytest.approx(np.abs(vector).sum(), rel=1e-12)
    both = merged(of, vectors, (6, 10), names=("a", "b"))
    np.testing.assert_allclose(both, alone[0] + alone[1], rtol=1e-12)


# Identities


@pytest.mark.parametrize("variant", ["paper", "mergekit"])
def test_at_density_one_nothing_is_dropped(variant: Any) -> None:
    vectors = np.random.default_rng(4).standard_normal((3, 40))
    plain = Trial(vectors).merged(TaskArithmetic())
    of = DellaLinear(1.0, 0.15, variant=variant)
    np.testing.assert_array_equal(merged(of, vectors, (8, 5)), plain)
    assert of.gain() == 1
    assert np.array_equal(of.coefficients(np.ones(3)), np.ones(3))  # type: ignore[arg-type]
    assert DellaLinear().coefficients(np.ones(3)) is None
    assert Della(1.0).coefficients(np.ones(3)) is None, "an election is not linear"
    found = merged(Della(1.0, 0.15, variant=variant), vectors, (8, 5))
    np.testing.assert_array_equal(found, elect(vectors, np.ones(3), variant))


@pytest.mark.parametrize("variant", ["paper", "mergekit"])
def test_signs_are_elected_among_what_is_kept(variant: Any) -> None:
    weights = (1.0, -0.5)
    vectors = np.random.default_rng(5).standard_normal((2, 40)) * np.array([[1.0], [-0.5]])
    of = Della(0.5, 0.2, variant=variant, rescale=False)
    kept = vectors.copy()
    for t in range(2):
        chance = keep_chances(vectors[t].reshape(8, 5), 0.5, 0.2).reshape(-1)
        kept[t, draws(f"della/0/{t}/tensor", 0, 40) / 2**32 >= chance] = 0
    found = merged(of, vectors, (8, 5), weights=weights)
    np.testing.assert_array_equal(found, elect(kept, np.array(weights), variant))


def test_ranks_are_of_magnitudes_so_a_negative_weight_subtracts() -> None:
    vector = np.random.default_rng(6).standard_normal((1, 40))
    for of in (DellaLinear(), Della(), Della(variant="mergekit"), DellaLinear(normalize=True)):
        added = merged(of, vector, (8, 5), weights=(1.0,))
        subtracted = merged(of, -vector, (8, 5), weights=(-1.0,))
        np.testing.assert_array_equal(subtracted, -added)


def test_each_vector_may_have_its_own_density() -> None:
    vectors = np.ones((2, 4000))
    found = merged(DellaLinear((1.0, 0.5), 0.1), vectors, (40, 100))
    assert set(np.unique(found)) == {1, 3}
    assert abs(np.mean(found == 3) - 0.5) < 0.05


def test_the_gain_is_that_of_the_smallest_chance() -> None:
    assert DellaLinear(0.5, 0.25).gain() == 4
    assert DellaLinear(0.5, 0.25, rescale=False).gain() == 1
    assert Della(0.5, 0.25).gain() == 4
    assert Della(0.5, 0.25, variant="mergekit").gain() > 1e20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"density": 0.1, "epsilon": 0.1},
            "an epsilon of 0.1 around the density 0.1 leaves (0, 1]",
        ),
        ({"density": 0.9, "epsilon": 0.2}, "use 0 to 0.1"),
        ({"density": (1.0, 0.95), "epsilon": 0.1}, "around the density 0.95"),
        ({"epsilon": -0.1}, "an epsilon of -0.1"),
        ({"density": 1.0, "epsilon": float("nan")}, "an epsilon of nan"),
        ({"density": 0.0}, "a density of 0.0"),
        ({"variant": "peft"}, "variant 'peft' is unknown; known: paper, mergekit"),
        ({"vote": "x"}, "vote 'x' is unknown"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("della", **options)
    assert said in str(caught.value)
