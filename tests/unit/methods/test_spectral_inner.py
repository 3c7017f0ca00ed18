"""Methods that let another one merge: KnOTS, core space, and calibrated singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods import Chunk, Factors, Method, method, parse_method
from taskbasis.methods.base import State
from taskbasis.methods.spectral.inner import inner_method, merge_within
from taskbasis.testing import merged

Matrix = NDArray[Any]

ALIGNING = ["knots", "core_space"]


def drawn(T: int, *shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng([seed, T, *shape]).standard_normal((T, *shape))


def made(of: Method | str, taus: Any, **more: Any) -> Matrix:
    of = parse_method(of) if isinstance(of, str) else of
    taus = np.asarray(taus, np.float64)
    result = merged(of, taus.reshape(len(taus), -1), shape=taus.shape[1:], **more)
    return result.reshape(taus.shape[1:])


def close(found: Matrix, wanted: Matrix, tolerance: float = 1e-9) -> None:
    scale = np.max(np.abs(wanted), initial=1e-30)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


def adapters(T: int, out: int, inputs: int, rank: int) -> list[Factors]:
    ups, downs = drawn(T, out, rank), drawn(T, rank, inputs, seed=1)
    return [Factors(up, down) for up, down in zip(ups, downs, strict=True)]


def from_factors(of: Method, pairs: list[Factors], dtype: Any = np.float64) -> Matrix:
    shape = (len(pairs[0].up), pairs[0].down.shape[1])
    chunk = Chunk(np.zeros((len(pairs), 0), dtype), shape=shape, factors=pairs)
    return of.apply(chunk, ()).reshape(shape)


# What may be inside, and how it is run.


def test_options_of_the_inner_method_are_parted_by_semicolons() -> None:
    of: Any = parse_method("sta:density=0.5,normalize=max")
    assert inner_method("sta:density=0.5;normalize=max") == of
    outer: Any = parse_method("knots:inner=sta:density=0.5;normalize=max,exact=true")
    assert inner_method(outer.inner) == of
    assert outer.exact


@pytest.mark.parametrize("outer", [*ALIGNING, "svc"])
@pytest.mark.parametrize(
    ("inner", "what"),
    [("fisher", "scores"), ("regmean", "moments"), ("slerp", "the base's weights")],
)
def test_methods_that_need_more_than_vectors_are_refused(outer: str, inner: str, what: str) -> None:
    with pytest.raises(UsageError, match=f"inner '{inner}' needs {what}, .* such as 'ties'"):
        method(outer, inner=inner)


@pytest.mark.parametrize("outer", [*ALIGNING, "svc"])
def test_unknown_inner_methods_are_refused(outer: str) -> None:
    with pytest.raises(UsageError, match="did you mean 'ties'"):
        method(outer, inner="tie")


@pytest.mark.parametrize("outer", [*ALIGNING, "svc"])
@pytest.mark.parametrize("shape", [(4, 5), (7,)])
def test_an_inner_method_for_another_number_of_vectors_is_refused(
    outer: str, shape: tuple[int, ...]
) -> None:
    of = method(outer, inner="nuslerp")
    with pytest.raises(UsageError, match="inner 'nuslerp' takes 2 vectors, not 3"):
        made(of, drawn(3, *shape))


@dataclass(frozen=True)
class Probe(Method):
    """Says what it sees: the method that is given to others here."""

    name: ClassVar[str] = "probe"
    formula: ClassVar[str] = "sum_t tau_t"
    source: ClassVar[str] = "this file"
    when: ClassVar[str] = "Never."
    double: ClassVar[bool] = True

    def stages(self) -> tuple[Granularity, ...]:
        return ("model", "layer", "model")

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        assert len(state) == stage
        total = chunk.deltas.sum(axis=1)
        chunk.deltas[:] = 99
        return np.asarray(total)

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        assert [found is None for found in state] == [[], [True], [False, True]][stage]
        return stage, total.tolist()

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        assert chunk.scores is chunk.base is None
        assert (chunk.tensor, chunk.shape, chunk.start) == ("t", (2, 1), 0)
        assert list(chunk.vector_names()) == ["a", "b"]
        assert chunk.vector_weights().tolist() == [1, -2]
        assert chunk.deltas.dtype == np.float64
        sums = chunk.deltas.sum(axis=1).tolist()
        assert state == ((0, sums), (1, sums), (2, sums))
        return np.asarray(chunk.deltas.sum(axis=0))


def test_stages_are_run_on_the_tensor_alone() -> None:
    chunk = Chunk(
        np.zeros((2, 9), np.float32),
        np.ones((2, 9), np.float32),
        tensor="t",
        shape=(3, 3),
        start=5,
        base=np.zeros(9, np.float32),
        weights=[1, -2],
        names=["a", "b"],
    )
    deltas = np.array([[1, 2], [3, 4]], np.float32)
    found = merge_within(Probe(), chunk, deltas, (2, 1))
    assert found.tolist() == [4, 6]
    assert found.dtype == np.float32


def test_ties_inside_trims_each_tensor_by_itself() -> None:
    """Of diagonal matrices that share no direction, KnOTS only sorts rows and turns signs."""
    taus = np.stack([np.diag([8.0, 0, -1, 0]), np.diag([0.0, -4, 0, 2])])
    flat = taus.reshape(2, -1)
    for density in (0.0625, 0.125, 1.0):
        wanted = merged(method("ties", density=density), flat.copy()).reshape(4, 4)
        close(made(f"knots:inner=ties:density={density}", taus), wanted)


# KnOTS and core space.


@pytest.mark.parametrize("of", ALIGNING)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (9, 9), (5, 3, 2)])
@pytest.mark.parametrize("T", [1, 2, 5])
def test_the_sum_in_other_coordinates_is_the_sum(
    of: str, exact: bool, shape: tuple[int, ...], T: int
) -> None:
    taus = drawn(T, *shape)
    close(made(method(of, inner="task_arithmetic", exact=exact), taus), taus.sum(axis=0), 1e-12)


@pytest.mark.parametrize("of", ALIGNING)
def test_the_sum_of_low_rank_and_unlike_sizes_is_the_sum(of: str) -> None:
    pairs = adapters(3, 20, 30, 2)
    taus = (
        np.stack([pair.up @ pair.down for pair in pairs]) * np.array([1, 1e-3, 50])[:, None, None]
    )
    close(made(method(of, inner="task_arithmetic"), taus), taus.sum(axis=0))
    zero = np.concatenate([taus, np.zeros((1, 20, 30))])
    close(made(method(of, inner="task_arithmetic"), zero), taus.sum(axis=0))


@pytest.mark.parametrize("of", ALIGNING)
@pytest.mark.parametrize("inner", ["average", "ties:density=0.5", "magmax", "median"])
def test_tensors_that_are_no_matrices_are_merged_by_the_inner_method(of: str, inner: str) -> None:
    taus = drawn(3, 40)
    np.testing.assert_array_equal(made(f"{of}:inner={inner}", taus), made(inner, taus))


def test_knots_by_hand() -> None:
    """Two tasks write to the directions (1, 1) and (1, -1), and disagree on the first input."""
    plus, minus = np.array([1.0, 1]) / np.sqrt(2), np.array([1.0, -1]) / np.sqrt(2)
    taus = [
        np.outer(plus, [6, 0, 2]) + np.outer(minus, [0, 1, 0]),
        np.outer(plus, [-2, 0, 4]) + np.outer(minus, [0, 3, 0]),
    ]
    found = made("knots:inner=ties:density=1", taus)
    close(found, np.outer(plus, [6, 0, 3]) + np.outer(minus, [0, 2, 0]))


@pytest.mark.parametrize(
    "inner", ["task_arithmetic", "average", "ties:density=0.5", "magmax", "median", "pcb", "emr"]
)
def test_turning_the_outputs_turns_the_result_of_knots(inner: str) -> None:
    """So signs of the basis cannot matter: element-wise methods turn with their entries."""
    taus = drawn(4, 6, 9)
    of = method("knots", inner=inner)
    for seed in range(3):
        Q = np.linalg.qr(drawn(1, 6, 6, seed=seed)[0])[0]
        close(made(of, [Q @ tau for tau in taus]), Q @ made(of, taus), 1e-7)


@pytest.mark.parametrize("inner", ["ties:density=0.5", "magmax", "tsv_merge"])
def test_turning_outputs_and_inputs_turns_the_result_of_core_space(inner: str) -> None:
    taus = drawn(4, 6, 9)
    of = method("core_space", inner=inner)
    P, Q = (np.linalg.qr(drawn(1, n, n)[0])[0] for n in (6, 9))
    close(made(of, [P @ tau @ Q for tau in taus]), P @ made(of, taus) @ Q, 1e-7)


@pytest.mark.parametrize("of", ALIGNING)
def test_the_order_matters_only_if_it_does_inside(of: str) -> None:
    taus = drawn(4, 6, 9)
    close(made(of, taus[::-1]), made(of, taus))


@pytest.mark.parametrize("inner", ["task_arithmetic", "ties:density=0.5", "iso_c", "cart"])
def test_factors_give_what_the_dense_deltas_with_these_factors_give(inner: str) -> None:
    """Balanced factors, as the method makes them of dense deltas itself."""
    of, pairs = method("core_space", inner=inner), []
    taus = [pair.up @ pair.down for pair in adapters(3, 12, 15, 2)]
    for tau in taus:
        U, s, Vt = np.linalg.svd(tau)
        root = np.sqrt(s[:2])
        pairs.append(Factors(U[:, :2] * root, root[:, None] * Vt[:2]))
    close(from_factors(of, pairs), made(of, taus), 1e-7)


def test_the_sum_of_factors_is_exact_however_they_are_split() -> None:
    of = method("core_space", inner="task_arithmetic")
    pairs = adapters(3, 12, 15, 2)
    wanted = sum(pair.up @ pair.down for pair in pairs)
    uneven = [Factors(p.up * k, p.down / k) for p, k in zip(pairs, (1e-6, 1, 1e6), strict=True)]
    for split in (pairs, uneven):
        close(from_factors(of, split), wanted, 1e-9)
        for_float32 = from_factors(of, split, np.float32)
        assert for_float32.dtype == np.float32
        close(for_float32, wanted, 1e-5)


def test_factors_of_unlike_ranks_meet() -> None:
    pairs = [*adapters(2, 12, 15, 2), *adapters(1, 12, 15, 5)]
    wanted = sum(pair.up @ pair.down for pair in pairs)
    close(from_factors(method("core_space", inner="task_arithmetic"), pairs), wanted, 1e-12)


def test_factors_are_left_as_they_are() -> None:
    pairs, again = adapters(3, 12, 15, 2), adapters(3, 12, 15, 2)
    from_factors(method("core_space"), pairs)
    for pair, kept in zip(pairs, again, strict=True):
        np.testing.assert_array_equal(pair.up, kept.up)
        np.testing.assert_array_equal(pair.down, kept.down)


def test_cores_are_no_larger_than_all_ranks_together() -> None:
    """Iso-C fills all directions of a core: of three adapters of rank 2 that is 6."""
    found = from_factors(method("core_space", inner="iso_c"), adapters(3, 12, 15, 2))
    values = np.linalg.svd(found, compute_uv=False)
    close(values[:6], np.full(6, values[0]))
    assert values[6] < 1e-9 * values[0]


def test_iso_c_in_core_space_is_iso_c() -> None:
    taus = [pair.up @ pair.down for pair in adapters(3, 12, 15, 2)]
    close(made("core_space:inner=iso_c", taus), made("iso_c", taus), 1e-7)


@pytest.mark.parametrize("of", ALIGNING)
def test_the_size_is_that_of_the_inner_method(of: str) -> None:
    assert method(of).gain() == 1
    inner = method("star", energy=0.25)
    assert method(of, inner="star:energy=0.25").gain() == inner.gain() == 4


# SVC.


def test_svc_counts_what_tasks_share_once() -> None:
    tau = drawn(1, 5, 8)[0]
    close(made("svc", [tau, tau, tau]), tau)


def test_svc_leaves_tasks_without_common_directions_alone() -> None:
    taus = np.stack([np.diag([5.0, 1, 0, 0]), np.diag([0.0, 0, 4, 3])])
    close(made("svc", taus), taus.sum(axis=0))


def test_svc_by_hand() -> None:
    """Left direction 1: responses (3, 0) and (1, 4) sum to (4, 4), of which they are held 4/3 and
    20/17 times. Direction 2: only the first has (0, 0, 1); it is held once."""
    taus = [[[3, 0, 0], [0, 0, 1]], [[1, 4, 0], [0, 0, 0]]]
    gamma = 2 / (4 / 3 + 20 / 17)
    close(made("svc", taus), np.array([[4 * gamma, 4 * gamma, 0], [0, 0, 1]]))


def test_svc_by_hand_where_tasks_oppose_each_other() -> None:
    """(3) and (-1) sum to (2), held 2/3 and -2 times; the latter counts as alpha."""
    taus = [[[3.0]], [[-1.0]]]
    close(made("svc", taus), np.array([[2 * 2 / (2 / 3 + 0.1)]]))
    close(made("svc:alpha=1", taus), np.array([[2.0]]))
    close(made("svc:alpha=4", taus), np.array([[0.5]]))


def test_scaling_inside_svc_is_dividing_alpha() -> None:
    """Which is why there is no scale inside."""
    taus, factor = drawn(3, 6, 9), 1 / 3  # average is a third of the sum
    found = made("svc:inner=average,alpha=0.2", taus)
    close(found, made(method("svc", alpha=0.2 / factor), taus))


def test_svc_ignores_what_rounding_leaves_of_a_task_in_a_direction() -> None:
    """Adapters have nothing outside their own directions; 1e-17 there is no opinion."""
    taus = np.stack([pair.up @ pair.down for pair in adapters(2, 30, 40, 2)])
    inverse = np.linalg.pinv(taus[0])
    taus[1] -= taus[0] @ inverse @ taus[1]  # no common outputs
    taus[1] -= taus[1] @ inverse @ taus[0]  # nor inputs
    close(made("svc", taus), taus.sum(axis=0), 1e-6)


def test_svc_leaves_a_direction_alone_that_no_task_has() -> None:
    """The task writes to both outputs alike; what DARE keeps for one may differ from the other."""
    tau = np.ones((1, 2, 3))
    for seed in range(200):
        dare = f"dare_linear:seed={seed}"
        merged_before = made(dare, tau)
        first, second = np.count_nonzero(merged_before, axis=1)
        if first == second == 2 and np.any(merged_before[0] != merged_before[1]):
            break
    alike = np.ones((2, 2)) / 2 @ merged_before
    apart = merged_before - alike
    times = float((alike * tau[0]).sum() / (tau**2).sum())
    found = made(f"svc:inner=dare_linear:seed={seed}", tau)
    close(found, alike / times + apart)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_svc_refuses_an_alpha_that_is_none(alpha: float) -> None:
    with pytest.raises(UsageError, match=r"alpha .* use a number above 0"):
        method("svc", alpha=alpha)


@pytest.mark.parametrize("inner", ["iso_c", "iso_cts:common=0.5"])
def test_svc_refuses_what_leaves_no_directions(inner: str) -> None:
    with pytest.raises(UsageError, match=r"inner 'iso_ct?s?' makes all singular values equal"):
        method("svc", inner=inner)


def test_svc_keeps_its_word_on_the_size_of_the_result() -> None:
    assert method("svc", alpha=0.5).gain() == 2
    assert method("svc", alpha=0.5, inner="star:energy=0.25").gain() == 8
    of, rng = method("svc", alpha=0.1), np.random.default_rng(0)
    for _ in range(20):
        taus = rng.standard_normal((3, 4, 5)) * rng.choice([-1, 1], (3, 1, 1))
        bound = of.gain() * sum(np.linalg.norm(tau) for tau in taus)
        assert np.linalg.norm(made(of, taus)) <= bound
