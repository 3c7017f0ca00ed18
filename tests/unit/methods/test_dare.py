"""DARE: what is dropped is a matter of seed, names and position alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.kernels import BLOCK
from taskbasis.merging import merge
from taskbasis.methods import Chunk, method
from taskbasis.methods.electing import Variant, elect
from taskbasis.methods.elementwise.dare_linear import DareLinear
from taskbasis.methods.elementwise.dare_ties import DareTies
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.noise import drawn
from taskbasis.plan import cutting as plan_module
from taskbasis.testing import Trial
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]

MANY = 200_000


def applied(
    of: DareLinear, deltas: Matrix, tensor: str = "w", start: int = 0, names: tuple[str, ...] = ()
) -> Matrix:
    return of.apply(Chunk(np.array(deltas), tensor=tensor, start=start, names=names), ())


def kept(of: DareLinear, T: int = 1, n: int = MANY, tensor: str = "w") -> Matrix:
    """[T, n] which entries of which vector are kept; one vector at a time is not zero."""
    masks = []
    for t in range(T):
        deltas = np.zeros((T, n), np.float32)
        deltas[t] = 1
        masks.append(applied(of, deltas, tensor) != 0)
    return np.stack(masks)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_the_density_is_the_share_that_is_kept(density: float) -> None:
    found = kept(DareLinear(density), 2).mean(axis=1)
    spread = np.sqrt(density * (1 - density) / MANY)
    assert np.all(np.abs(found - density) < 4 * spread)


def test_what_is_kept_is_divided_by_the_density() -> None:
    deltas = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)
    found = applied(DareLinear(0.3), deltas)
    mask = found != 0
    np.testing.assert_array_equal(found[mask], deltas[0][mask] / np.float32(0.3))
    plain = applied(DareLinear(0.3, rescale=False), deltas)
    np.testing.assert_array_equal(plain, np.where(mask, deltas[0], 0))


def test_the_expected_value_is_the_sum() -> None:
    """Over many seeds, to within four standard errors."""
    deltas = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    runs = np.stack([applied(DareLinear(0.5, seed=seed), deltas) for seed in range(400)])
    error = np.sqrt((deltas**2).sum(axis=0) / 400)
    assert np.all(np.abs(runs.mean(axis=0) - deltas.sum(axis=0)) < 4 * error)


def test_vectors_tensors_and_seeds_draw_apart() -> None:
    """Two draws at density 1/2 agree in half of the entries; neighbours, too."""
    draws = [*kept(DareLinear(), 3), kept(DareLinear(), tensor="v")[0], kept(DareLinear(seed=1))[0]]
    draws += [np.roll(draws[0], 1), np.roll(draws[0], 1 << 14), np.roll(draws[0], 64)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(np.mean(one == other) - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_the_same_seed_draws_the_same() -> None:
    assert (kept(DareLinear(seed=3)) == kept(DareLinear(seed=3))).all()
    assert kept(DareLinear(seed=-5)).any(), "any whole number is a seed"


def test_a_sparser_draw_is_part_of_a_denser_one() -> None:
    assert not np.any(kept(DareLinear(0.1)) & ~kept(DareLinear(0.4)))


def test_draws_never_change() -> None:
    """These bits are a promise: a model can be made again from its recipe."""
    first = drawn("dare/0/0/w", 0.5, 0, 32)
    assert np.packbits(first).tolist() == [136, 64, 55, 52]
    later = drawn("dare/7/1/h.0.weight", 0.25, 100_000, 32)
    assert np.packbits(later).tolist() == [2, 1, 172, 26]


@pytest.mark.parametrize("start", [0, 1, 16_383, 16_384, 16_385, 70_001])
@pytest.mark.parametrize("count", [0, 1, 40, 40_000])
def test_any_stretch_can_be_drawn_alone(start: int, count: int) -> None:
    whole = drawn("k", 0.5, 0, start + count)
    np.testing.assert_array_equal(drawn("k", 0.5, start, count), whole[start:])
    deltas = np.ones((2, start + count), np.float32)
    part = applied(DareLinear(), deltas[:, start:], start=start)
    np.testing.assert_array_equal(part, applied(DareLinear(), deltas)[start:])


def test_the_smallest_density_draws_something() -> None:
    assert drawn("k", 1e-300, 0, 10).sum() == 0
    assert np.isfinite(applied(DareLinear(1e-9), np.ones((1, 1000)))).all()


@pytest.mark.parametrize("rescale", [True, False])
def test_at_density_one_it_is_task_arithmetic(rescale: bool) -> None:
    of = DareLinear(1.0, rescale)
    deltas = np.random.default_rng(2).standard_normal((3, 500)).astype(np.float32)
    plain = TaskArithmetic().apply(Chunk(deltas.copy()), ())
    assert applied(of, deltas).tobytes() == plain.tobytes()
    assert of.coefficients(np.ones(3)) == pytest.approx(np.ones(3), abs=0)
    assert DareLinear(0.5).coefficients(np.ones(3)) is None


def test_bits_are_those_of_any_cut_and_any_workers(
    write_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    shapes = {"a": (300, 70), "b": (5000,), "c": ()}
    base = write_folder("base", {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    deltas = [
        {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(2)
    ]
    vectors = [TaskVector(base, write_folder(f"t{t}", delta)) for t, delta in enumerate(deltas)]

    named = {"maths": vectors[0], "code": vectors[1]}

    def made(workers: int, turned: bool = False) -> bytes:
        chosen = dict(reversed(named.items())) if turned else named
        found = merge(base, chosen, DareLinear(0.3, seed=5)).tensors(Engine(workers))
        return b"".join(found[name].tobytes() for name in shapes)

    whole = made(1)
    stacked = {n: np.stack([delta[n].ravel() for delta in deltas]) for n in shapes}
    wanted = [
        applied(DareLinear(0.3, seed=5), stacked[n], n, names=("maths", "code")) for n in shapes
    ]
    np.testing.assert_array_equal(np.frombuffer(whole, np.float32), np.concatenate(wanted))
    assert made(1, turned=True) == whole, "draws go by name, not by place"
    monkeypatch.setattr(plan_module, "_CUT", BLOCK)
    for workers in (1, 3):
        assert made(workers) == whole


def test_each_vector_may_have_its_own_density() -> None:
    ones = np.ones((2, MANY), np.float32)
    found = applied(DareLinear((1.0, 0.25)), ones)
    assert set(np.unique(found)) == {1, 5}, "1, and 1 / 0.25 where the second is kept"
    assert abs(np.mean(found == 5) - 0.25) < 0.01
    with pytest.raises(UsageError, match="density has 2 numbers for 3 vectors"):
        applied(DareLinear((1.0, 0.25)), np.ones((3, 4)))


# Restoring a tensor's sum of magnitudes, as mergekit does


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_mergekits_rescale_restores_the_sum_of_magnitudes(density: float) -> None:
    vectors = np.random.default_rng(4).standard_normal((1, 3000)).astype(np.float32)
    of = DareLinear(density, variant="mergekit")
    found = Trial(vectors).merged(of, borders=[0, 7, 1000, 3000])
    assert np.abs(found).sum() == pytest.approx(np.abs(vectors).sum(), rel=1e-5)
    ratios = found[found != 0] / vectors[0][found != 0]
    assert np.ptp(ratios) < 1e-5, "one factor for the whole tensor"
    assert ratios[0] != pytest.approx(1 / density, rel=1e-4), "not the paper's"


def test_it_restores_each_vector_by_itself() -> None:
    vectors = np.random.default_rng(5).standard_normal((2, 500))
    of = DareLinear(0.5, variant="mergekit")
    alone = [Trial(vectors[t : t + 1], names=(name,)).merged(of) for t, name in enumerate("ab")]
    both = Trial(vectors, names=("a", "b")).merged(of)
    np.testing.assert_allclose(both, alone[0] + alone[1], rtol=1e-12)


def test_a_tensor_of_which_nothing_is_kept_is_zero() -> None:
    of = DareLinear(1e-9, variant="mergekit")
    np.testing.assert_array_equal(Trial(np.ones((2, 9), np.float32)).merged(of), np.zeros(9))


def test_peft_rescales_as_the_paper() -> None:
    deltas = np.random.default_rng(6).standard_normal((2, 50))
    for variant in ("paper", "peft"):
        of = DareLinear(0.5, variant=variant)  # type: ignore[arg-type]
        assert applied(of, deltas).tobytes() == applied(DareLinear(0.5), deltas).tobytes()


def test_normalized_it_is_divided_by_the_sizes_of_weights() -> None:
    vectors = np.random.default_rng(7).standard_normal((2, 40))
    plain = Trial(vectors, weights=(1.5, -0.5)).merged(DareLinear(0.5))
    found = Trial(vectors, weights=(1.5, -0.5)).merged(DareLinear(0.5, normalize=True))
    np.testing.assert_allclose(found, plain / 2, rtol=1e-14)


def test_normalized_linear_methods_are_that_for_the_kernels_too() -> None:
    weights = np.array([1.5, -0.5])
    for of in (TaskArithmetic(normalize=True), DareLinear(1.0, normalize=True)):
        assert np.array_equal(of.coefficients(weights), [0.5, 0.5])  # type: ignore[arg-type]
        found = Trial(np.ones((2, 3)), weights=tuple(weights)).merged(of)
        assert found.tolist() == [1, 1, 1]


# Electing signs of what was not dropped


@pytest.mark.parametrize("variant", ["paper", "mergekit", "peft"])
def test_dare_ties_elects_among_what_is_kept(variant: Variant) -> None:
    weights = (0.5, 2.0, -1.0)
    vectors = np.random.default_rng(8).standard_normal((3, 400)) * np.array(weights)[:, None]
    of = DareTies(0.6, variant=variant, rescale=False, seed=2)
    kept = vectors.copy()
    for t in range(3):
        kept[t, ~drawn(f"dare_ties/2/{t}/tensor", 0.6, 0, 400)] = 0
    found = Trial(vectors, weights=weights).merged(of)
    np.testing.assert_array_equal(found, elect(kept, np.array(weights), variant))


def test_at_density_one_dare_ties_is_the_election_alone() -> None:
    vectors = np.random.default_rng(9).standard_normal((3, 100))
    assert DareTies(1.0).coefficients(np.ones(3)) is None, "it is not linear even then"
    for variant in ("paper", "mergekit"):
        found = Trial(vectors).merged(DareTies(1.0, variant=variant))  # type: ignore[arg-type]
        wanted = elect(vectors, np.ones(3), variant)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, wanted)


def test_the_gain_is_what_the_rescale_may_enlarge() -> None:
    assert DareLinear(0.25).gain() == 4
    assert DareLinear((0.5, 0.1)).gain() == 10
    assert DareLinear(0.25, rescale=False).gain() == 1
    assert DareTies(0.25).gain() == 4
    assert DareLinear(0.25, variant="mergekit").gain() > 1e20, "single entries have no bound"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.0}, "a density of 0.0"),
        ({"density": 1.1}, r"use (0, 1]"),
        ({"seed": 0.5}, "takes a whole number"),
        ({"rescale": "no"}, "takes true or false"),
        ({"p": 0.9}, "has no option 'p'"),
        ({"variant": "papr"}, "variant 'papr' is unknown; did you mean 'paper'?"),
        ({"density": (0.5, 0.0)}, "a density of 0.0"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("dare_linear", **options)
    assert said in str(caught.value)
