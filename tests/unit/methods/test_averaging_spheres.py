"""Slerp, NuSLERP, Multi-SLERP and Karcher means: by hand, by identities, and where they end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import Chunk, Method, method
from taskbasis.methods.averaging.karcher import Karcher
from taskbasis.methods.averaging.multislerp import MultiSlerp
from taskbasis.methods.averaging.nuslerp import NuSlerp
from taskbasis.methods.averaging.slerp import Slerp
from taskbasis.methods.mixing import Mixing, angle, between, directed, length, points
from taskbasis.testing import Trial

Array = NDArray[Any]

SEEDS = st.integers(0, 2**32 - 1)
SPHERES: list[Mixing] = [
    Slerp(),
    NuSlerp(),
    NuSlerp(space="weights"),
    NuSlerp(per="row"),
    NuSlerp(space="weights", per="column"),
    MultiSlerp(),
    MultiSlerp(space="weights"),
    Karcher(),
]


def models_of(of: Method, base: Any, models: Any, **more: Any) -> Array:
    """The merged model of two or more models upon a base."""
    base = np.array(base, float)
    vectors = np.array(models, float) - base
    return base + Trial(vectors, base=base, **more).merged(of)


def weighted(of: Method, base: Array, vectors: Array, weights: tuple[float, ...]) -> Array:
    """The merged delta of weighted vectors."""
    trial = Trial(np.array(weights)[:, None] * vectors, base=base, weights=weights)
    return trial.merged(of)


def random_pair(seed: int, size: int = 12) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    return random.standard_normal(size), 0.3 * random.standard_normal((2, size))


# Coordinates


def test_lengths_and_angles_are_those_of_the_vectors_themselves() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((3, 7))
    gram, (first, second) = rows @ rows.T, points(2)
    one, two = first @ rows, second @ rows
    assert length(gram, first) == pytest.approx(np.linalg.norm(rows[0] + rows[1]))
    (u, size), (v, _) = directed(gram, first), directed(gram, second)
    assert size == pytest.approx(np.linalg.norm(one))
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert float(angle(gram, u, v)) == pytest.approx(np.arccos(cosine))


def test_the_angle_of_almost_equal_models_is_not_lost_in_rounding() -> None:
    """The cosine of 1e-9 is 1 in float64, and its arc cosine 0."""
    base, tau = np.array([1.0, 0.0]), np.array([0.0, 1e-9])
    rows = np.stack([base, tau])
    gram, model = rows @ rows.T, points(1)[0]
    found = angle(gram, directed(gram, np.array([1.0, 0.0]))[0], directed(gram, model)[0])
    assert float(found) == pytest.approx(1e-9, rel=1e-9)
    assert np.arccos(gram[0, 0] / np.sqrt(1 + 1e-18)) == 0


def test_a_point_of_length_zero_has_no_direction() -> None:
    direction, size = directed(np.zeros((2, 2)), np.array([1.0, 1.0]))
    assert size == 0
    assert direction.tolist() == [0.0, 0.0]


def test_points_are_models_or_vectors() -> None:
    assert points(2, "weights").tolist() == [[1, 1, 0], [1, 0, 1]]
    assert points(2, "deltas").tolist() == [[0, 1, 0], [0, 0, 1]]


def test_the_excess_is_what_the_two_numbers_are_above_one_even_where_one_hides_it() -> None:
    for turn in (1.0, 1e-3, 1e-7):
        rows = np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
        gram = np.eye(2)  # the rows are given by their coordinates themselves
        a, b, excess = between(gram, rows[0], rows[1], 0.3)
        assert float(excess) == pytest.approx(float(a + b - 1), abs=1e-15)
        assert float(excess) == pytest.approx(0.3 * 0.7 * turn**2 / 2, rel=turn**2 + 1e-6, abs=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_between_is_exact_at_its_ends(t: float) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((2, 5))
    a, b, excess = between(rows @ rows.T, np.array([1.0, 0.0]), np.array([0.0, 1.0]), t)
    assert (float(a), float(b), float(excess)) == (1 - t, t, 0.0)


# Slerp


def test_slerp_by_hand_between_orthogonal_models() -> None:
    """A third of a right angle is 30 degrees: sin 60 and sin 30 of the two."""
    found = models_of(Slerp(t=1 / 3), [0, 0], [[2, 0], [0, 2]])
    np.testing.assert_allclose(found, [np.sqrt(3), 1.0])


def test_slerp_keeps_a_common_length_where_the_mean_loses_it() -> None:
    found = models_of(Slerp(), [0, 0], [[3, 0], [0, 3]])
    assert np.linalg.norm(found) == pytest.approx(3)
    mean = models_of(method("average"), [0, 0], [[3, 0], [0, 3]])
    assert np.linalg.norm(mean) == pytest.approx(3 / np.sqrt(2))


def test_slerp_of_one_vector_goes_from_the_base_to_the_model() -> None:
    found = models_of(Slerp(t=1 / 3), [2, 0], [[0, 2]])
    np.testing.assert_allclose(found, [np.sqrt(3), 1.0])


def test_slerp_does_not_normalise_lengths() -> None:
    """Both are multiplied by sin 45 as they are."""
    found = models_of(Slerp(), [0, 0], [[1, 0], [0, 5]])
    np.testing.assert_allclose(found, np.sqrt(0.5) * np.array([1, 5]))


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_slerp_is_exact_at_its_ends(seed: int) -> None:
    base, (first, second) = random_pair(seed)
    both = Trial(np.stack([first, second]), base=base)
    assert both.merged(Slerp(t=0)).tolist() == first.tolist()
    assert both.merged(Slerp(t=1)).tolist() == second.tolist()
    alone = Trial(first[None], base=base)
    assert alone.merged(Slerp(t=0)).tolist() == [0.0] * len(base)
    assert alone.merged(Slerp(t=1)).tolist() == first.tolist()


@given(SEEDS, st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_slerp_turned_around_is_itself_from_the_other_end(seed: int, t: float) -> None:
    base, pair = random_pair(seed)
    there = Trial(pair, base=base).merged(Slerp(t=t))
    back = Trial(pair[::-1].copy(), base=base).merged(Slerp(t=1 - t))
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-13)


def test_slerp_of_equal_models_is_that_model() -> None:
    found = models_of(Slerp(t=0.3), [1, 2], [[4, 5], [4, 5]])
    np.testing.assert_allclose(found, [4, 5], rtol=1e-15)


@pytest.mark.parametrize("far", [1e-3, 1e-6, 1e-9])
def test_slerp_of_close_models_is_linear_to_second_order(far: float) -> None:
    random = np.random.default_rng(3)
    base, delta = random.standard_normal(50), far * random.standard_normal(50)
    found = Trial(delta[None], base=base).merged(Slerp(t=0.4))
    assert np.max(np.abs(found - 0.4 * delta)) < 4 * far**2


def test_slerp_beside_the_threshold_of_mergekit() -> None:
    """Cosine 0.9998: linear with the threshold, and 3e-5 of the weights longer without."""
    turn = np.arccos(0.9998)
    base, model = [1.0, 0.0], [[np.cos(turn), np.sin(turn)]]
    linear = models_of(Slerp(threshold=0.9995), base, model)
    np.testing.assert_allclose(linear, [(1 + np.cos(turn)) / 2, np.sin(turn) / 2], rtol=1e-14)
    exact = models_of(Slerp(), base, model)
    np.testing.assert_allclose(exact, [np.cos(turn / 2), np.sin(turn / 2)], rtol=1e-14)
    assert 4e-5 < np.linalg.norm(exact - linear) < 1.3e-4


def test_slerp_next_to_opposite_models_as_mergekit_gives_it() -> None:
    """Cosine -0.9992 and -0.9998; mergekit 0.1.5 gives these numbers."""
    found = models_of(Slerp(), [0, 0], [[1, 0], [-2, 0.08]])
    np.testing.assert_allclose(found, [-25.0156, 2.0012], rtol=1e-4)
    found = models_of(Slerp(), [0, 0], [[1, 0], [-2, 0.04]])
    np.testing.assert_allclose(found, [-0.5, 0.02])


def test_slerp_of_a_base_that_is_zero_is_linear() -> None:
    """Biases often begin at 0; mergekit 0.1.5 gives 0.7071 instead of 0.5."""
    assert models_of(Slerp(t=0.5), [0, 0], [[1, 1]]).tolist() == [0.5, 0.5]


def test_slerp_of_a_subtracted_vector_is_towards_base_minus_tau() -> None:
    base, (tau, _) = random_pair(5)
    found = weighted(Slerp(t=0.3), base, tau[None], (-1.0,))
    np.testing.assert_allclose(found, Trial(-tau[None], base=base).merged(Slerp(t=0.3)))


def test_slerp_refuses() -> None:
    with pytest.raises(UsageError, match=r"t 1.5 is beyond the two models; use \[0, 1\]"):
        Slerp(t=1.5)
    with pytest.raises(UsageError, match="t nan"):
        Slerp(t=float("nan"))
    with pytest.raises(UsageError, match=r"above 0.0 alone; use \(0, 1\]"):
        Slerp(threshold=0.0)


# NuSLERP


def test_nuslerp_by_hand() -> None:
    """Weights of 2 and 1 are a third of the way; their sizes alone do not matter."""
    base, tau = np.ones(2), np.array([[2.0, 0.0], [0.0, 2.0]])
    found = weighted(NuSlerp(), base, tau, (2.0, 1.0))
    np.testing.assert_allclose(found, [np.sqrt(3), 1.0])
    np.testing.assert_allclose(weighted(NuSlerp(), base, tau, (0.2, 0.1)), found)


def test_nuslerp_of_models_is_slerp() -> None:
    base, pair = random_pair(6)
    found = weighted(NuSlerp(space="weights"), base, pair, (0.75, 0.25))
    wanted = Trial(pair, base=base).merged(Slerp(t=0.25))
    np.testing.assert_allclose(found, wanted, atol=1e-14)


def test_nuslerp_of_deltas_does_not_see_the_base() -> None:
    base, pair = random_pair(7)
    of = NuSlerp()
    assert of.base == "ignored"
    assert NuSlerp(space="weights").base == "required"
    np.testing.assert_array_equal(
        Trial(pair, base=base).merged(of), Trial(pair, base=9 * base).merged(of)
    )


def test_nuslerp_per_row_and_per_column_are_other_functions() -> None:
    """Rows are parallel here, and their mean is linear; columns are not."""
    first, second = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[2.0, 4.0], [0.0, 3.0]])
    pair = np.stack([first.ravel(), second.ravel()])
    rows = Trial(pair, shape=(2, 2)).merged(NuSlerp(per="row"))
    np.testing.assert_allclose(rows, pair.mean(axis=0))
    columns = Trial(pair, shape=(2, 2)).merged(NuSlerp(per="column")).reshape(2, 2)
    for j in range(2):
        wanted = Trial(np.stack([first[:, j], second[:, j]])).merged(NuSlerp())
        np.testing.assert_allclose(columns[:, j], wanted)
    assert np.abs(columns - rows.reshape(2, 2)).max() > 1e-3


@pytest.mark.parametrize("per", ["row", "column"])
def test_nuslerp_takes_flat_tensors_whole_whatever_is_asked(per: Any) -> None:
    base, pair = random_pair(8)
    found = Trial(pair, base=base).merged(NuSlerp(per=per), borders=[0, 5, 12])
    np.testing.assert_allclose(found, Trial(pair, base=base).merged(NuSlerp()), rtol=1e-13)


def test_nuslerp_takes_all_axes_behind_the_first_for_a_row() -> None:
    random = np.random.default_rng(9)
    pair = random.standard_normal((2, 24))
    deep = Trial(pair, shape=(2, 3, 4)).merged(NuSlerp(per="row"))
    flat = Trial(pair, shape=(2, 12)).merged(NuSlerp(per="row"))
    assert deep.tolist() == flat.tolist()


def test_nuslerp_asks_for_whole_matrices_only_where_it_must() -> None:
    assert NuSlerp().unit == "element"
    assert NuSlerp(per="row").unit == NuSlerp(per="column").unit == "matrix"
    assert NuSlerp.unit == "element"
    assert replace(NuSlerp(per="row"), per="tensor").unit == "element"


def test_nuslerp_of_signed_weights_turns_a_vector_and_stays_between() -> None:
    """mergekit 0.1.5: 1 and -1 give what 1 and 1 give, and 1 and -0.9 give (0, -4), t = -9."""
    base, tau = np.zeros(2), np.array([[4.0, 0.0], [0.0, 4.0]])
    side = 4 * np.sqrt(0.5)
    np.testing.assert_allclose(weighted(NuSlerp(), base, tau, (1.0, -1.0)), [side, -side])
    found = weighted(NuSlerp(), base, tau, (1.0, -0.9))
    assert np.linalg.norm(found) == pytest.approx(4)
    assert found[0] > -found[1] > 0


def test_nuslerp_of_a_vector_and_the_same_subtracted_is_linear() -> None:
    """1 and -0.9 of one vector: opposite, and (1 - 0.9) / 1.9 of it is left."""
    tau = np.array([[3.0, -1.0], [3.0, -1.0]])
    found = weighted(NuSlerp(), np.zeros(2), tau, (1.0, -0.9))
    np.testing.assert_allclose(found, 0.1 / 1.9 * tau[0])


def test_nuslerp_refuses() -> None:
    with pytest.raises(UsageError, match="space 'weight' is unknown; did you mean 'weights'"):
        NuSlerp(space="weight")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="per 'rows' is unknown; did you mean 'row'"):
        NuSlerp(per="rows")  # type: ignore[arg-type]


# Multi-SLERP


def test_multislerp_by_hand() -> None:
    """Directions (1, 0) and (0, 1), mean direction (1, 1) / sqrt 2, mean length (6 + 2) / 2."""
    found = Trial(np.array([[6.0, 0.0], [0.0, 2.0]])).merged(MultiSlerp())
    np.testing.assert_allclose(found, 4 / np.sqrt(2) * np.ones(2))


def test_multislerp_weighs_by_sizes_and_turns_by_signs() -> None:
    """Mean (3, -1) / 4 of the directions; mean length (3 * 6 + 1 * 2) / 4."""
    tau = np.array([[6.0, 0.0], [0.0, 2.0]])
    found = weighted(MultiSlerp(), np.zeros(2), tau, (3.0, -1.0))
    np.testing.assert_allclose(found, 5 / np.sqrt(10) * np.array([3, -1]))


def test_multislerp_of_models_by_hand() -> None:
    found = models_of(MultiSlerp(space="weights"), [9, 9], [[6, 0], [0, 2]])
    np.testing.assert_allclose(found, 4 / np.sqrt(2) * np.ones(2))


def test_multislerp_of_two_of_one_length_is_slerp() -> None:
    turn = 0.7
    pair = 2 * np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
    np.testing.assert_allclose(Trial(pair).merged(MultiSlerp()), Trial(pair).merged(NuSlerp()))


def test_multislerp_of_directions_that_cancel_is_the_linear_mean() -> None:
    """Three at 120 degrees, which mergekit refuses, and two opposite ones."""
    turns = np.array([0, 2, 4]) * np.pi / 3
    three = np.stack([np.cos(turns), np.sin(turns)], axis=1) * np.array([[3.0], [1.0], [1.0]])
    np.testing.assert_allclose(Trial(three).merged(MultiSlerp()), three.mean(axis=0))
    two = np.array([[3.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(Trial(two).merged(MultiSlerp()), [1.0, 0.0])


def test_multislerp_counts_the_length_of_a_vector_that_is_zero() -> None:
    found = Trial(np.array([[3.0, 4.0], [0.0, 0.0]])).merged(MultiSlerp())
    np.testing.assert_allclose(found, [1.5, 2.0])


def test_multislerp_refuses() -> None:
    with pytest.raises(UsageError, match="space 'delta' is unknown; did you mean 'deltas'"):
        MultiSlerp(space="delta")  # type: ignore[arg-type]


# Karcher means


def test_karcher_of_two_is_the_middle_of_their_arc() -> None:
    found = models_of(Karcher(), [7, 7], [[2, 0], [0, 4]])
    np.testing.assert_allclose(found, 3 / np.sqrt(2) * np.ones(2))


def test_karcher_of_two_of_one_length_is_slerp() -> None:
    turn = 1.2
    pair = 2 * np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
    base = np.array([0.5, -0.5])
    np.testing.assert_allclose(
        models_of(Karcher(), base, pair), models_of(Slerp(), base, pair), rtol=1e-9
    )


def test_karcher_on_a_great_circle_is_the_mean_of_the_angles() -> None:
    """Multi-SLERP is not: it takes the mean of the chords."""
    turns = np.array([0.0, 0.2, 1.3])
    models = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    found = models_of(Karcher(max_iter=50, tol=1e-12), [3, 3], models)
    np.testing.assert_allclose(found, [np.cos(0.5), np.sin(0.5)])
    weighted_found = weighted(Karcher(max_iter=50, tol=1e-12), np.zeros(2), models, (1.0, 1.0, 2.0))
    np.testing.assert_allclose(weighted_found, [np.cos(0.7), np.sin(0.7)])
    chords = models_of(MultiSlerp(space="weights"), [3, 3], models)
    assert np.abs(chords - found).max() > 1e-2


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_karcher_has_no_nearer_point_beside_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    models = random.standard_normal(6) + 0.5 * random.standard_normal((4, 6))
    found = models_of(Karcher(max_iter=100, tol=1e-12), np.zeros(6), models)

    def spread(point: Array) -> float:
        cosines = models @ point / np.linalg.norm(point) / np.linalg.norm(models, axis=1)
        return float(np.sum(np.arccos(np.clip(cosines, -1, 1)) ** 2))

    for aside in random.standard_normal((5, 6)):
        assert spread(found) <= spread(found + 1e-3 * aside)


def test_karcher_without_steps_is_multislerp() -> None:
    random = np.random.default_rng(11)
    base, taus = random.standard_normal(9), random.standard_normal((3, 9))
    trial = Trial(taus, base=base)
    np.testing.assert_allclose(
        trial.merged(Karcher(max_iter=0)), trial.merged(MultiSlerp(space="weights")), atol=1e-13
    )


def test_karcher_is_there_after_one_step_on_a_great_circle() -> None:
    """The mean of the arcs is exact there; a step off the sphere, or one that counts a model of
    length 0 for a direction, is not."""
    turns = np.array([0.0, 0.2, 2.0])
    models = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    mean = np.array([np.cos(turns.mean()), np.sin(turns.mean())])
    one = Karcher(max_iter=1)
    np.testing.assert_allclose(models_of(one, [3, 3], models), mean, rtol=1e-12)
    with_zero = models_of(one, [3, 3], [*models, [0, 0]])
    np.testing.assert_allclose(with_zero, 0.75 * mean, rtol=1e-12)


def test_karcher_of_opposite_models_does_not_choose_the_first() -> None:
    found = models_of(Karcher(), [0, 0], [[3, 0], [-1, 0]])
    np.testing.assert_allclose(found, [1.0, 0.0])
    np.testing.assert_allclose(models_of(Karcher(), [0, 0], [[-1, 0], [3, 0]]), found)


def test_karcher_is_not_pulled_by_a_model_opposite_to_the_mean() -> None:
    """Rounding would give the way to it a direction, and its length is half a turn."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        base, model = random.standard_normal((2, 9))
        found = models_of(Karcher(), base, [model, model, -model])
        np.testing.assert_allclose(found, model)


def test_karcher_counts_the_length_of_a_model_that_is_zero_not_its_direction() -> None:
    found = models_of(Karcher(), [1, 1], [[2, 0], [0, 2], [0, 0]])
    np.testing.assert_allclose(found, 4 / 3 * np.sqrt(0.5) * np.ones(2))


def test_karcher_resolves_close_models() -> None:
    """In float64 the arc cosine of such angles is noise of 1e-8; the mean is right to 1e-15."""
    random = np.random.default_rng(12)
    base, taus = random.standard_normal(40), 1e-7 * random.standard_normal((3, 40))
    found = Trial(taus, base=base).merged(Karcher())
    np.testing.assert_allclose(found, taus.mean(axis=0), atol=1e-13)


def test_karcher_refuses() -> None:
    with pytest.raises(UsageError, match="-1 steps cannot be taken"):
        Karcher(max_iter=-1)
    with pytest.raises(UsageError, match=r"tol of 0.0 never ends"):
        Karcher(tol=0.0)
    with pytest.raises(UsageError, match="tol of nan"):
        Karcher(tol=float("nan"))


# All of them


@pytest.mark.parametrize("of", SPHERES, ids=repr)
def test_vectors_that_are_zero_leave_the_base_to_the_bit(of: Mixing) -> None:
    for seed in range(10):
        base = np.random.default_rng(seed).standard_normal(12)
        for shape in ((12,), (3, 4)):
            nothing = Trial(np.zeros((2, 12)), base=base, shape=shape, weights=(0.3, 0.9))
            assert nothing.merged(of).tolist() == [0.0] * 12


@pytest.mark.parametrize("of", [NuSlerp(per="row"), NuSlerp(space="weights", per="column")])
def test_a_row_that_no_vector_moves_stays_to_the_bit(of: Mixing) -> None:
    random = np.random.default_rng(14)
    base, pair = random.standard_normal(12), random.standard_normal((2, 3, 4))
    pair[:, 1] = 0
    pair[:, :, 2] = 0
    found = Trial(pair.reshape(2, -1), base=base, shape=(3, 4)).merged(of).reshape(3, 4)
    still = found[1] if of.per_group() == "row" else found[:, 2]
    assert not np.any(still)
    assert np.any(found)


@pytest.mark.parametrize("of", [MultiSlerp(), MultiSlerp(space="weights"), Karcher()], ids=repr)
def test_one_vector_gives_itself_and_minus_one_subtracts_it(of: Mixing) -> None:
    base, (tau, _) = random_pair(15)
    assert weighted(of, base, tau[None], (1.0,)).tolist() == tau.tolist()
    assert weighted(of, base, tau[None], (-1.0,)).tolist() == (-tau).tolist()
    np.testing.assert_allclose(weighted(of, base, tau[None], (0.2,)), tau)


@pytest.mark.parametrize("of", SPHERES, ids=repr)
@given(seed=SEEDS, share=st.floats(-1, 1))
@settings(max_examples=25, deadline=None)
def test_signed_weights_stay_within_the_gain(of: Mixing, seed: int, share: float) -> None:
    """Also of vectors that are almost the same, which 1 and -0.9 almost turn against each other."""
    base, (first, other) = random_pair(seed)
    pair = np.stack([first, first + share**3 * other])
    found = weighted(of, base, pair, (1.0, -0.9))
    bound = np.linalg.norm(pair[0]) + 0.9 * np.linalg.norm(pair[1])
    assert np.linalg.norm(found) <= of.gain() * bound


@pytest.mark.parametrize("of", SPHERES, ids=repr)
def test_the_deltas_of_float32_tensors_come_in_float64(of: Mixing) -> None:
    assert of.double
    assert of.float_sums
    found = Trial(np.ones((2, 3), np.float32), base=np.ones(3, np.float32)).merged(of)
    assert found.dtype == np.float64


@pytest.mark.parametrize("of", SPHERES, ids=repr)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (), (1, 1)])
def test_odd_shapes(of: Mixing, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    trial = Trial(np.ones((2, size)), base=np.ones(size), shape=shape)
    found = trial.merged(of)
    assert found.shape == (size,)
    np.testing.assert_allclose(found, np.ones(size))


def test_what_is_observed_is_the_gram_matrix_of_base_and_vectors() -> None:
    base, pair = random_pair(16)
    rows = np.stack([base, *pair])
    found = Slerp().observe(0, Chunk(pair.copy(), base=base, shape=(12,)), ())
    np.testing.assert_allclose(found, rows @ rows.T)
