"""Methods of one model: NearSwap, Arcee Fusion, Passthrough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.averaging import arcee_fusion
from taskbasis.methods.averaging.arcee_fusion import ArceeFusion
from taskbasis.methods.averaging.nearswap import NearSwap
from taskbasis.methods.averaging.passthrough import Passthrough
from taskbasis.testing import Trial

Array = NDArray[Any]


def merged(of: Any, delta: Any, base: Any = None, weight: float = 1.0, **more: Any) -> Array:
    vectors = np.array([delta], float)
    vectors = weight * vectors.reshape(1, -1)
    base = None if base is None else np.array(base, float).ravel()
    return Trial(vectors, base=base, weights=(weight,), **more).merged(of)


# NearSwap


def test_nearswap_by_hand() -> None:
    """Weights of min(0.5 / |tau|, 1): 1, 0.25, 1, 0.05."""
    found = merged(NearSwap(t=0.5), [0.25, 2.0, -0.5, -10.0])
    np.testing.assert_allclose(found, [0.25, 0.5, -0.5, -0.5])


@given(st.floats(1e-6, 10), st.lists(st.floats(-100, 100), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_nearswap_is_the_interpolation_that_mergekit_computes(t: float, delta: list[float]) -> None:
    tau = np.array(delta)
    share = np.clip(t / np.maximum(np.abs(tau), 1e-6), 0, 1)
    np.testing.assert_allclose(merged(NearSwap(t=t), tau), share * tau, atol=1e-6 * t)


def test_nearswap_of_a_large_t_is_the_model_and_of_a_subtracted_one_minus_that() -> None:
    tau = [3.0, -1.0, 0.0]
    assert merged(NearSwap(t=5.0), tau).tolist() == tau
    assert merged(NearSwap(t=2.0), tau, weight=-1.0).tolist() == [-2.0, 1.0, 0.0]


def test_nearswap_keeps_float32() -> None:
    found = Trial(np.array([[0.5, 1e-6]], np.float32)).merged(NearSwap())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1e-4, 1e-6], rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, -1.0, float("nan"), float("inf")])
def test_nearswap_refuses(t: float) -> None:
    with pytest.raises(UsageError, match=f"a t of {t} moves nothing sensible"):
        NearSwap(t=t)


# Passthrough


def test_passthrough_is_the_model() -> None:
    of = Passthrough()
    assert merged(of, [1.0, -2.0]).tolist() == [1.0, -2.0]
    assert merged(of, [1.0, -2.0], weight=-1.0).tolist() == [-1.0, 2.0]
    coefficients = of.coefficients(np.array([-1.0]))
    assert coefficients is not None
    assert coefficients.tolist() == [1.0]


def test_passthrough_scales_weights_not_deltas() -> None:
    base, tau = np.array([2.0, 4.0]), np.array([1.0, -1.0])
    np.testing.assert_allclose(base + merged(Passthrough(scale=0.5), tau, base), [1.5, 1.5])
    np.testing.assert_allclose(base + merged(Passthrough(scale=0.0), tau, base), [0.0, 0.0])
    np.testing.assert_allclose(base + merged(Passthrough(scale=-1.0), tau, base), [-3.0, -3.0])


def test_passthrough_asks_for_the_base_only_where_it_scales_it() -> None:
    plain, scaled = Passthrough(), Passthrough(scale=0.5)
    assert (plain.base, plain.double, plain.signed) == ("ignored", False, True)
    assert (scaled.base, scaled.double, scaled.signed) == ("required", True, False)
    assert replace(scaled, scale=1.0).base == "ignored"
    assert scaled.coefficients(np.ones(1)) is None


def test_passthrough_refuses() -> None:
    with pytest.raises(UsageError, match="a scale of inf has no meaning"):
        Passthrough(scale=float("inf"))


# Arcee Fusion


@pytest.mark.parametrize(("last", "kept"), [(5.9, False), (6.1, True)])
def test_arcee_fusion_by_hand(last: float, kept: bool) -> None:
    """One row, so importances are in proportion to the changes: quartiles of 2, 3 and 4, and a
    threshold of 3 + 1.5 (4 - 2) = 6."""
    found = merged(ArceeFusion(), [3.0, -1.0, last, 2.0, -4.0], np.zeros(5))
    assert found.tolist() == [0.0, 0.0, last if kept else 0.0, 0.0, 0.0]


def test_arcee_fusion_weighs_rows_by_their_divergence() -> None:
    """A shift of a whole row changes no softmax, so its large changes do not matter."""
    delta = np.random.default_rng(4).standard_normal((4, 5))
    delta[0] = 50.0
    found = merged(ArceeFusion(), delta, np.zeros((4, 5)), shape=(4, 5)).reshape(4, 5)
    assert not np.any(found[0])
    assert np.any(found[1:])


def test_arcee_fusion_keeps_everything_where_most_importance_is_zero() -> None:
    """The quartiles are 0, and so is the threshold, which every entry reaches."""
    delta = np.zeros((2, 4))
    delta[0], delta[1, 0] = 5.0, 1.0
    found = merged(ArceeFusion(), delta, np.zeros((2, 4)), shape=(2, 4))
    assert found.tolist() == delta.ravel().tolist()


def test_arcee_fusion_takes_rows_of_the_last_axis() -> None:
    random = np.random.default_rng(0)
    base, delta = random.standard_normal((2, 24))
    deep, flat = (merged(ArceeFusion(), delta, base, shape=s) for s in ((2, 3, 4), (6, 4)))
    assert deep.tolist() == flat.tolist()
    other = merged(ArceeFusion(), delta, base, shape=(24,))
    assert 0 < np.count_nonzero(deep) < 24
    assert other.tolist() != deep.tolist()


def test_arcee_fusion_keeps_what_reaches_the_threshold() -> None:
    """All importances equal: the quartiles are, too, and everything is at the threshold."""
    found = merged(ArceeFusion(), [1.0, -1.0, 1.0, -1.0], np.zeros(4))
    assert found.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_arcee_fusion_of_rows_of_one_entry_keeps_everything() -> None:
    delta = [[1.0], [2.0], [300.0]]
    assert merged(ArceeFusion(), delta, np.zeros(3), shape=(3, 1)).tolist() == [1.0, 2.0, 300.0]
    assert merged(ArceeFusion(), [7.0], [1.0], shape=()).tolist() == [7.0]


def test_arcee_fusion_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    base, delta = random.standard_normal((2, 60))
    whole = merged(ArceeFusion(), delta, base, shape=(12, 5))
    monkeypatch.setattr(arcee_fusion, "_BLOCK", 15)
    assert merged(ArceeFusion(), delta, base, shape=(12, 5)).tolist() == whole.tolist()


def test_arcee_fusion_finds_divergences_of_tiny_changes() -> None:
    """Scaling a tiny vector scales every importance alike: the same entries are kept."""
    random = np.random.default_rng(2)
    base, delta = 0.02 * random.standard_normal(64), random.standard_normal(64)
    small, tiny = (
        np.flatnonzero(merged(ArceeFusion(), far * delta, base, shape=(8, 8)))
        for far in (1e-3, 1e-6)
    )
    assert small.tolist() == tiny.tolist()
    assert 0 < len(small) < 32


def test_arcee_fusion_subtracts_what_it_would_add() -> None:
    random = np.random.default_rng(3)
    base, delta = 3 * random.standard_normal(40), random.standard_normal(40)
    added, subtracted = (
        merged(ArceeFusion(), delta, base, weight, shape=(8, 5)) for weight in (1.0, -1.0)
    )
    assert subtracted.tolist() == (-added).tolist()
    opposite = merged(ArceeFusion(), -delta, base, shape=(8, 5))
    assert np.flatnonzero(opposite).tolist() != np.flatnonzero(added).tolist()


def test_arcee_fusion_is_not_upset_by_large_weights() -> None:
    found = merged(ArceeFusion(), [0.0, 0.0, 0.0, 0.0, 1e4], [1e5, -1e5, 0.0, 1.0, 2.0])
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_arcee_fusion_of_nothing(shape: tuple[int, ...]) -> None:
    assert merged(ArceeFusion(), [], [], shape=shape).tolist() == []
