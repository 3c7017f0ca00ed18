"""WUDI: what is minimised, how it is held to the sum, and the steps of the released code."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods import Chunk, method
from taskbasis.methods.optimised.wudi import Wudi

Array = NDArray[Any]


def draw(count: int, outputs: int, inputs: int, seed: int = 0, size: float = 1.0) -> Array:
    return size * np.random.default_rng(seed).standard_normal((count, outputs, inputs))


def merge(of: Wudi, taus: Any) -> Array:
    """The merged matrix [out, in] of matrices [T, out, in]."""
    taus = np.array(taus)
    chunk = Chunk(taus.reshape(len(taus), -1), shape=taus.shape[1:])
    return of.apply(chunk, ()).reshape(taus.shape[1:])


def objective(merged: Array, taus: Array) -> float:
    return sum(
        float(np.sum(((merged - tau) @ tau.T) ** 2) / np.sum(tau**2)) for tau in taus if np.any(tau)
    )


def held(of: Wudi, merged: Array, taus: Array) -> float:
    return objective(merged, taus) + of.ridge * len(taus) * float(np.sum((merged - sum(taus)) ** 2))


SHAPES = [(3, 6, 4), (3, 2, 20), (2, 4, 8), (5, 1, 7), (4, 9, 1)]
"""[T, out, in]: both of more rows than inputs and of fewer."""


def test_tasks_of_other_inputs_do_not_meet() -> None:
    """Each of the three speaks of two inputs of its own: their sum disturbs nobody."""
    taus = np.zeros((3, 2, 6))
    for t in range(3):
        taus[t, :, 2 * t : 2 * t + 2] = draw(1, 2, 2, seed=t)[0]
    for of in (Wudi(), Wudi(solver="adam")):
        np.testing.assert_allclose(merge(of, taus), taus.sum(axis=0), rtol=0, atol=1e-12)


def test_tasks_of_one_input_meet_at_their_mean_weighted_by_size() -> None:
    """``sum_t tau_t^2 (m - tau_t)^2 / tau_t^2``: a plain mean; in matrices, by squares of inputs.

    With two inputs, of which a task uses the first with share p: weights are the shares.
    """
    assert merge(Wudi(ridge=1e-12), [[[4.0]], [[1.0]], [[-2.0]]]) == pytest.approx(1.0)
    first = [[3.0, 0.0], [0.0, 4.0]]  # shares of its inputs: 9/25, 16/25
    second = [[1.0, 0.0], [0.0, 0.0]]  # and 1, 0
    found = merge(Wudi(ridge=1e-12), [first, second])
    shares = np.array([9 / 25, 1.0])
    wanted = [[shares @ [3.0, 1.0] / shares.sum(), 0.0], [0.0, 4.0]]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_ridge_is_between_the_sum_and_the_least_squares() -> None:
    """One input, T tasks: minimise ``sum_t (m - tau_t)^2 + ridge T (m - sum)^2``."""
    taus = [[[4.0]], [[1.0]], [[-2.0]]]
    for ridge in (1e-3, 0.5, 1.0):
        wanted = (1.0 + ridge * 3.0) / (1 + ridge)  # the mean 1, the sum 3
        assert merge(Wudi(ridge=ridge), taus) == pytest.approx(wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_nothing_nearby_is_better(shape: tuple[int, int, int], ridge: float) -> None:
    taus, of = draw(*shape), Wudi(ridge=ridge)
    best = merge(of, taus)
    least, random = held(of, best, taus), np.random.default_rng(1)
    for size in (1e-3, 1.0):
        for _ in range(10):
            assert held(of, best + size * random.standard_normal(best.shape), taus) > least


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 2, 6)])
def test_with_next_to_no_ridge_it_is_the_pseudo_inverse(shape: tuple[int, int, int]) -> None:
    taus = draw(*shape)
    units = [tau.T @ tau / np.sum(tau**2) for tau in taus]
    wanted = sum(tau @ unit for tau, unit in zip(taus, units, strict=True))
    wanted = wanted @ np.linalg.pinv(sum(units))
    np.testing.assert_allclose(merge(Wudi(ridge=1e-12), taus), wanted, rtol=1e-6)


def test_inputs_that_no_task_has_stay_the_base_s() -> None:
    taus = draw(3, 4, 6)
    taus[:, :, 2] = 0
    for of in (Wudi(), Wudi(ridge=1e-12), Wudi(solver="adam", rate=1e-2)):
        found = merge(of, taus)
        assert not found[:, 2].any()
        assert found[:, [0, 1, 3, 4, 5]].all()


def test_what_the_bare_least_squares_does_to_tasks_that_disagree() -> None:
    """The pitfall: nearly the same input, opposite answers. The default stays in proportion."""
    taus = np.array([[[1.0, 0.0]], [[-1.0, -1e-3]]])
    size = sum(np.linalg.norm(tau) for tau in taus)
    assert np.linalg.norm(merge(Wudi(ridge=1e-12), taus)) > 500 * size
    assert np.linalg.norm(merge(Wudi(), taus)) < size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([1e-9, 1e-3, 1.0]),
    st.floats(0, 6),
)
def test_gain_holds_whatever_the_signs_and_however_alike_the_vectors(
    count: int, outputs: int, inputs: int, seed: int, ridge: float, alike: float
) -> None:
    random = np.random.default_rng(seed)
    common, own = draw(1, outputs, inputs, seed)[0], draw(count, outputs, inputs, seed + 1)
    taus = (common + 10.0**-alike * own) * random.choice([1.0, -0.9], (count, 1, 1))
    of = Wudi(ridge=ridge)
    lengths = [np.linalg.norm(tau) for tau in taus]
    assert np.linalg.norm(merge(of, taus)) <= of.gain() * sum(lengths) * (1 + 1e-9)


def test_gain_is_said() -> None:
    assert Wudi(ridge=1.0).gain() == 2.0
    assert Wudi(ridge=1e-4).gain() == pytest.approx(101.0)
    assert Wudi(solver="adam").gain() >= 1e30
    assert np.isfinite(Wudi(solver="adam").gain())


@pytest.mark.parametrize("solver", ["closed", "adam"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_vector_is_itself_and_minus_it_its_negative(
    solver: Any, shape: tuple[int, int, int]
) -> None:
    tau = draw(1, *shape[1:]).astype(np.float32)
    of = Wudi(solver=solver, ridge=1e-6, rate=1e-2)
    np.testing.assert_array_equal(merge(of, tau), tau[0])
    np.testing.assert_array_equal(merge(of, -tau), -tau[0])
    padded = np.concatenate([tau, np.zeros_like(tau)])
    np.testing.assert_array_equal(merge(of, padded), tau[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_turn_the_result(shape: tuple[int, int, int]) -> None:
    taus = draw(*shape).astype(np.float32)
    for of in (Wudi(), Wudi(solver="adam", rate=1e-2, iterations=40)):
        np.testing.assert_array_equal(merge(of, -taus), -merge(of, taus))


def test_a_zero_vector_has_no_say() -> None:
    """The released code divides by its norm; here the others do not even notice it."""
    taus = draw(3, 4, 5)
    more = np.concatenate([taus, np.zeros((2, 4, 5))])
    for of in (Wudi(), Wudi(solver="adam")):
        np.testing.assert_array_equal(merge(of, more), merge(of, taus))
    np.testing.assert_array_equal(merge(Wudi(), np.zeros((3, 4, 5))), np.zeros((4, 5)))


def test_closed_does_not_depend_on_units_and_adam_does() -> None:
    taus = draw(3, 6, 4)
    np.testing.assert_allclose(merge(Wudi(), 1e-6 * taus), 1e-6 * merge(Wudi(), taus), rtol=1e-9)
    of = Wudi(solver="adam")
    small, large = merge(of, 1e-4 * taus) * 1e4, merge(of, taus)
    assert np.abs(large - taus.sum(axis=0)).max() < 301 * 1e-5 * 1.01
    assert np.abs(small - large).max() > 0.1


def test_a_longer_vector_counts_no_more_in_what_is_disturbed() -> None:
    """Its error counts by ``||tau||^2``, its own size: halfway between tasks on one input."""
    assert merge(Wudi(ridge=1e-12), [[[100.0]], [[1.0]]]) == pytest.approx(50.5)


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 2, 10)])
def test_adam_gets_where_the_closed_form_is(shape: tuple[int, int, int]) -> None:
    """From the sum down: with steps enough, at the minimum."""
    taus = draw(*shape, size=1e-2)
    least = objective(merge(Wudi(ridge=1e-9), taus), taus)
    values = [
        objective(merge(Wudi(solver="adam", rate=1e-4, iterations=steps), taus), taus)
        for steps in (0, 10, 100, 3000)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(objective(taus.sum(axis=0), taus))
    assert abs(values[-1] - least) < 1e-6 * values[0]


def test_the_first_step_is_the_rate_against_the_sign_of_the_slope() -> None:
    """Two tasks on one input: at the sum 3 the slope is ``2 (3 - 2) + 2 (3 - 1) > 0``."""
    found = merge(Wudi(solver="adam", iterations=1, rate=0.25), [[[2.0]], [[1.0]]])
    assert found == pytest.approx(2.75, abs=1e-8)


def test_a_slope_as_small_as_adam_s_epsilon_makes_half_a_step() -> None:
    """Of tasks 2 s and s it is ``6 s`` at the sum: with s = 1e-8 / 6 as large as epsilon."""
    s = 1e-8 / 6
    found = merge(Wudi(solver="adam", iterations=1, rate=0.25), [[[2 * s]], [[s]]])
    assert found == pytest.approx(3 * s - 0.125)


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 2, 10)])
def test_adam_is_torch_s(shape: tuple[int, int, int]) -> None:
    """The objective as it stands, by autograd, on the merged matrix itself, in float32."""
    torch = pytest.importorskip("torch")
    taus = torch.tensor(draw(*shape, size=3e-4), dtype=torch.float32)
    merged = torch.nn.Parameter(taus.sum(0))
    optimiser = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(300):
        optimiser.zero_grad()
        disturbed = [((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus]
        sum(disturbed).backward()
        optimiser.step()
    wanted = merged.detach().numpy()
    found = merge(Wudi(solver="adam"), taus.numpy())
    assert found.dtype == np.float32
    assert np.abs(wanted - taus.numpy().sum(axis=0)).max() > 2e-4
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_other_tensors_get_the_mean() -> None:
    deltas = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    for solver in ("closed", "adam"):
        of = method("wudi", solver=solver)
        np.testing.assert_array_equal(of.apply(Chunk(deltas.copy(), shape=(2,)), ()), [2.0, 1.0])


def test_a_convolution_is_a_linear_layer_of_its_patches() -> None:
    taus = draw(3, 4, 12)
    flat = merge(Wudi(), taus)
    deep = Chunk(taus.reshape(3, -1).copy(), shape=(4, 3, 2, 2))
    np.testing.assert_array_equal(Wudi().apply(deep, ()), flat.reshape(-1))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    for solver in ("closed", "adam"):
        found = method("wudi", solver=solver).apply(
            Chunk(np.zeros((2, 0), np.float32), shape=shape), ()
        )
        assert found.shape == (0,)
        assert found.dtype == np.float32


def test_many_inputs_cost_no_matrix_of_their_width() -> None:
    """A layer of 6000 inputs and 2 outputs: its curvature alone would take 288 MB."""
    taus = draw(2, 2, 6000).astype(np.float32)
    for of in (Wudi(), Wudi(solver="adam", iterations=2)):
        tracemalloc.start()
        merge(of, taus)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5_000_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "adm"}, "solver 'adm' is unknown; did you mean 'adam'"),
        ({"ridge": 0.0}, r"a ridge of 0.0 has no meaning; use \[1e-12, 1\]"),
        ({"ridge": 1.5}, "a ridge of 1.5"),
        ({"ridge": float("nan")}, "a ridge of nan"),
        ({"iterations": -1}, "-1 iterations cannot be made; use 0 or more"),
        ({"rate": 0.0}, r"a rate of 0.0 leads nowhere; use \(0, 1\]"),
        ({"rate": 2.0}, "a rate of 2.0"),
        ({"rate": float("nan")}, "a rate of nan"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Wudi(**options)
