"""Average, linear, NAN and Model Stock: by hand, by identities, and with signed weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import Chunk, Method
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.averaging.linear import Linear
from taskbasis.methods.averaging.model_stock import ModelStock
from taskbasis.methods.averaging.nan import Nan
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.testing import Trial, check_method

Array = NDArray[Any]

SEEDS = st.integers(0, 2**32 - 1)


def weighted(of: Method, vectors: Any, weights: tuple[float, ...], base: Any = None) -> Array:
    """The merged delta of weighted vectors."""
    vectors = np.array(vectors, float) * np.array(weights)[:, None]
    return Trial(vectors, weights=weights, base=base).merged(of)


# Average and linear


def test_average_divides_by_the_number_of_vectors_whatever_their_weights() -> None:
    assert weighted(Average(), [[3.0, 1.0], [1.0, 5.0]], (1.0, 1.0)).tolist() == [2.0, 3.0]
    assert weighted(Average(), [[3.0, 1.0], [1.0, 5.0]], (2.0, -1.0)).tolist() == [2.5, -1.5]


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_average_upon_the_base_is_the_mean_of_the_models(seed: int) -> None:
    random = np.random.default_rng(seed)
    base, models = random.standard_normal(5), random.standard_normal((3, 5))
    found = base + Trial(models - base).merged(Average())
    np.testing.assert_allclose(found, models.mean(axis=0), atol=1e-14)


def test_linear_by_hand() -> None:
    found = weighted(Linear(), [[4.0, 0.0], [0.0, 8.0]], (3.0, 1.0))
    assert found.tolist() == [3.0, 2.0]


def test_linear_of_equal_weights_is_the_average() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 9))
    np.testing.assert_allclose(
        weighted(Linear(), vectors, (0.3,) * 4), Trial(vectors).merged(Average())
    )


def test_linear_subtracts_a_vector_of_weight_minus_one() -> None:
    """mergekit 0.1.5 gives base + tau: it divides -tau by -1."""
    assert weighted(Linear(), [[1.0, 2.0]], (-1.0,)).tolist() == [-1.0, -2.0]
    assert weighted(Linear(), [[1.0, 2.0]], (-0.5,)).tolist() == [-1.0, -2.0]


def test_linear_does_not_blow_up_where_signed_weights_cancel() -> None:
    found = weighted(Linear(), [[1.0, 0.0], [0.0, 1.0]], (1.0, -1.0))
    assert found.tolist() == [0.5, -0.5]


def test_linear_gives_the_kernel_the_same_coefficients() -> None:
    weights = np.array([2.0, -0.5])
    coefficients = Linear().coefficients(weights)
    assert coefficients is not None
    assert coefficients.tolist() == [0.4, 0.4]
    assert Linear(normalize=False).coefficients(weights) is None
    average = Average().coefficients(np.array([2.0, -0.5, 1.0]))
    assert average is not None
    assert average.tolist() == [1 / 3] * 3


def test_linear_unnormalised_sums_weighted_models() -> None:
    """0.5 (10 + 1) + 0.9 (10 + 2) = 16.3, which is 6.3 above the base."""
    found = weighted(Linear(normalize=False), [[1.0], [2.0]], (0.5, 0.9), np.array([10.0]))
    np.testing.assert_allclose(found, [6.3])


def test_linear_unnormalised_with_weights_that_sum_to_one_is_normalised() -> None:
    random = np.random.default_rng(1)
    vectors, base = random.standard_normal((2, 6)), random.standard_normal(6)
    np.testing.assert_allclose(
        weighted(Linear(normalize=False), vectors, (0.25, 0.75), base),
        weighted(Linear(), vectors, (0.25, 0.75)),
        atol=1e-14,
    )


def test_linear_asks_for_the_base_only_where_it_scales_it() -> None:
    plain, raw = Linear(), Linear(normalize=False)
    assert (plain.base, plain.double, plain.signed) == ("ignored", False, True)
    assert (raw.base, raw.double, raw.signed) == ("required", True, False)
    assert Linear.base == "ignored"
    assert replace(raw, normalize=True).base == "ignored"
    assert raw != plain
    assert raw == Linear(normalize=False)


# NAN


def test_nan_by_hand() -> None:
    """Norms 5 and 10, so the coefficients are 2/3 and 1/3."""
    base, models = np.array([1.0, 1.0]), np.array([[3.0, 4.0], [6.0, 8.0]])
    found = Trial(models - base, base=base).merged(Nan())
    np.testing.assert_allclose(found, 2 / 3 * (models[0] - base) + 1 / 3 * (models[1] - base))


def test_nan_of_models_of_one_norm_is_the_average() -> None:
    random = np.random.default_rng(2)
    models = random.standard_normal((3, 8))
    models /= np.linalg.norm(models, axis=1, keepdims=True)
    base = random.standard_normal(8)
    found = Trial(models - base, base=base).merged(Nan())
    np.testing.assert_allclose(found, models.mean(axis=0) - base)


def test_nan_takes_norms_of_whole_weights_not_of_vectors() -> None:
    base = np.full(100, 50.0)
    taus = np.stack([np.full(100, 1e-3), np.full(100, 1e-1)])
    found = Trial(taus, base=base).merged(Nan())
    np.testing.assert_allclose(found, taus.mean(axis=0), rtol=2e-3)


def test_nan_gives_models_of_norm_zero_the_whole_weight() -> None:
    found = Trial(np.array([[-2.0, -1.0], [1.0, 1.0]]), base=np.array([2.0, 1.0])).merged(Nan())
    assert found.tolist() == [-2.0, -1.0]
    nothing = Trial(np.zeros((2, 3)), base=np.zeros(3)).merged(Nan())
    assert nothing.tolist() == [0.0] * 3


def test_nan_subtracts_and_mixes_signs_within_bounds() -> None:
    base, taus = np.array([3.0, 4.0]), np.array([[1.0, -1.0], [1.0, -1.1]])
    assert weighted(Nan(), taus[:1], (-1.0,), base).tolist() == [-1.0, 1.0]
    found = weighted(Nan(), taus, (1.0, -0.9), base)
    assert np.all(np.abs(found) <= np.abs(taus[0]) + 0.9 * np.abs(taus[1]))


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_nan_sums_squares_over_its_scope(scope: Any) -> None:
    of = Nan(scope=scope)
    assert of.stages() == (scope,)
    base = np.array([1.0, 2.0, 2.0])
    parts = [
        of.observe(0, Chunk(np.ones((2, 2)), base=base[:2], shape=(3,)), ()),
        of.observe(0, Chunk(2 * np.ones((2, 1)), base=base[2:], shape=(3,), start=2), ()),
    ]
    np.testing.assert_allclose(parts[0], [4 + 9] * 2)
    np.testing.assert_allclose(parts[1], [16.0] * 2)
    np.testing.assert_allclose(of.finish(0, parts[0] + parts[1], ()), [0.5, 0.5])


def test_nan_refuses() -> None:
    with pytest.raises(UsageError, match="scope 'tensors' is unknown; did you mean 'tensor'"):
        Nan(scope="tensors")  # type: ignore[arg-type]


# Model Stock


def test_model_stock_by_hand() -> None:
    """Two at 60 degrees: t = 2 (1/2) / (1 + 1/2) = 2/3 of the mean."""
    taus = np.array([[2.0, 0.0], [1.0, np.sqrt(3)]])
    found = Trial(taus).merged(ModelStock())
    np.testing.assert_allclose(found, 2 / 3 * taus.mean(axis=0))


def test_model_stock_of_three_takes_the_mean_of_the_pairs() -> None:
    """Cosines 1/2, 1/2 and -1/2: mean 1/6, t = (3/6) / (1 + 2/6) = 3/8."""
    turns = np.array([0, 1, 2]) * np.pi / 3
    taus = np.stack([np.cos(turns), np.sin(turns)], axis=1) * np.array([[1.0], [5.0], [2.0]])
    np.testing.assert_allclose(Trial(taus).merged(ModelStock()), 3 / 8 * taus.mean(axis=0))


@given(SEEDS, st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_model_stock_of_vectors_that_agree_is_their_mean(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    taus = random.uniform(0.5, 2, (count, 1)) * random.standard_normal(7)
    np.testing.assert_allclose(Trial(taus).merged(ModelStock()), taus.mean(axis=0))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_nearest_to_the_centre_that_it_supposes(count: int) -> None:
    """Models at one distance of a centre, in directions orthogonal to it and to each other: of
    all multiples of their mean the result is the nearest to the centre."""
    centre, aside = np.eye(1 + count)[0] * 2.0, np.eye(1 + count)[1:] * 3.0
    taus = centre + aside
    found = Trial(taus).merged(ModelStock())
    np.testing.assert_allclose((centre - found) @ found, 0, atol=1e-14)
    np.testing.assert_allclose(found / found[0], taus.mean(axis=0) / taus.mean(axis=0)[0])


@pytest.mark.parametrize("cosine", [0.0, -0.3, -0.5, -0.999, -1.0])
def test_model_stock_keeps_the_base_where_vectors_do_not_agree(cosine: float) -> None:
    """mergekit 0.1.5 goes to t = 2 cos / (1 + cos), which is -1998 at -0.999."""
    taus = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    found = Trial(taus).merged(ModelStock())
    np.testing.assert_allclose(found, 0, atol=1e-15)


def test_model_stock_of_three_opposed_vectors_is_no_division_by_zero() -> None:
    """The mean cosine is -1/2 = -1/(N - 1), where the formula has its pole."""
    turns = np.array([0, 2, 4]) * np.pi / 3
    taus = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    np.testing.assert_allclose(Trial(taus).merged(ModelStock()), 0, atol=1e-15)


def test_model_stock_of_very_short_vectors() -> None:
    """Parallel ones give their mean; mergekit 0.1.5 gives a fiftieth of it (2e-6)."""
    taus = np.array([[1e-4, 0.0], [1e-4, 1e-6]])
    found = Trial(taus).merged(ModelStock())
    np.testing.assert_allclose(found, taus.mean(axis=0), rtol=1e-4)


def test_model_stock_of_one_vector_is_that_vector() -> None:
    tau = np.array([[1.0, -2.0]])
    assert Trial(tau).merged(ModelStock()).tolist() == [1.0, -2.0]
    assert weighted(ModelStock(), tau, (-1.0,)).tolist() == [-1.0, 2.0]


def test_model_stock_with_a_zero_vector_has_half_the_cosines() -> None:
    """Cosines 1, 0, 0: mean 1/3, t = 1 / (1 + 2/3)."""
    taus = np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(Trial(taus).merged(ModelStock()), 0.6 * taus.mean(axis=0))


def test_model_stock_filter_wise_by_hand() -> None:
    """The first rows agree, the second are orthogonal, the third stay."""
    first = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    second = np.array([[3.0, 3.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    taus = np.stack([first.ravel(), second.ravel()])
    found = Trial(taus, shape=(3, 3)).merged(ModelStock(filter_wise=True)).reshape(3, 3)
    np.testing.assert_allclose(found, [[2, 2, 0], [0, 0, 0], [0, 0, 0]], atol=1e-15)


def test_model_stock_filter_wise_takes_filters_of_all_axes_behind_the_first() -> None:
    random = np.random.default_rng(4)
    taus = random.standard_normal(24) + random.standard_normal((2, 24))
    of = ModelStock(filter_wise=True)
    deep, flat = (Trial(taus, shape=shape).merged(of) for shape in ((4, 3, 2), (4, 6)))
    assert deep.tolist() == flat.tolist()
    assert np.abs(deep - Trial(taus).merged(ModelStock())).max() > 1e-3


def test_model_stock_filter_wise_takes_flat_tensors_whole() -> None:
    taus = np.random.default_rng(5).standard_normal(11) + 0.1 * np.eye(2, 11)
    found = Trial(taus).merged(ModelStock(filter_wise=True), borders=[0, 4, 11])
    np.testing.assert_allclose(found, Trial(taus).merged(ModelStock()))


def test_model_stock_does_not_need_the_base_and_cuts_matrices_unless_filter_wise() -> None:
    assert ModelStock().base == "ignored"
    assert (ModelStock().unit, ModelStock(filter_wise=True).unit) == ("element", "matrix")


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_model_stock_is_never_more_than_the_mean(seed: int) -> None:
    random = np.random.default_rng(seed)
    taus = random.standard_normal(6) + random.standard_normal((3, 6))
    signs = random.choice([-1.0, 1.0, 0.5], 3)
    found = weighted(ModelStock(), taus, tuple(signs))
    assert np.all(np.abs(found) <= np.abs(signs @ taus / 3) + 1e-15)


@pytest.mark.parametrize(
    "of", [Average(), Linear(), Nan(), ModelStock(), ModelStock(filter_wise=True)], ids=repr
)
def test_they_keep_the_contract(of: Method) -> None:
    check_method(of)


def test_one_vector_makes_all_means_the_vector_itself() -> None:
    tau, base = np.array([[0.3, -7.0, 0.0]]), np.array([1.0, 2.0, 3.0])
    for of in (Average(), Linear(), Nan(), ModelStock(), TaskArithmetic()):
        assert Trial(tau, base=base).merged(of).tolist() == tau[0].tolist()
