"""DARE: what is dropped is a matter of seed, place and position alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import plan as plan_module
from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.kernels import BLOCK
from taskbasis.methods import Chunk, Dare, TaskArithmetic, method
from taskbasis.methods.dare import drawn
from taskbasis.vectors import TaskVector, merge

Matrix = NDArray[Any]

MANY = 200_000


def applied(of: Dare, deltas: Matrix, tensor: str = "w", start: int = 0) -> Matrix:
    return of.apply(Chunk(np.array(deltas), tensor=tensor, start=start), ())


def kept(of: Dare, T: int = 1, n: int = MANY, tensor: str = "w") -> Matrix:
    """[T, n] which entries of which vector are kept; one vector at a time is not zero."""
    masks = []
    for t in range(T):
        deltas = np.zeros((T, n), np.float32)
        deltas[t] = 1
        masks.append(applied(of, deltas, tensor) != 0)
    return np.stack(masks)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_the_density_is_the_share_that_is_kept(density: float) -> None:
    found = kept(Dare(density), 2).mean(axis=1)
    spread = np.sqrt(density * (1 - density) / MANY)
    assert np.all(np.abs(found - density) < 4 * spread)


def test_what_is_kept_is_divided_by_the_density() -> None:
    deltas = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)
    found = applied(Dare(0.3), deltas)
    mask = found != 0
    np.testing.assert_array_equal(found[mask], deltas[0][mask] / np.float32(0.3))
    plain = applied(Dare(0.3, rescale=False), deltas)
    np.testing.assert_array_equal(plain, np.where(mask, deltas[0], 0))


def test_the_expected_value_is_the_sum() -> None:
    """Over many seeds, to within four standard errors."""
    deltas = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    runs = np.stack([applied(Dare(0.5, seed=seed), deltas) for seed in range(400)])
    error = np.sqrt((deltas**2).sum(axis=0) / 400)
    assert np.all(np.abs(runs.mean(axis=0) - deltas.sum(axis=0)) < 4 * error)


def test_vectors_tensors_and_seeds_draw_apart() -> None:
    """Two draws at density 1/2 agree in half of the entries; neighbours, too."""
    draws = [*kept(Dare(), 3), kept(Dare(), tensor="v")[0], kept(Dare(seed=1))[0]]
    draws += [np.roll(draws[0], 1), np.roll(draws[0], 1 << 14), np.roll(draws[0], 64)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(np.mean(one == other) - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_the_same_seed_draws_the_same() -> None:
    assert (kept(Dare(seed=3)) == kept(Dare(seed=3))).all()
    assert kept(Dare(seed=-5)).any(), "any whole number is a seed"


def test_a_sparser_draw_is_part_of_a_denser_one() -> None:
    assert not np.any(kept(Dare(0.1)) & ~kept(Dare(0.4)))


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
    part = applied(Dare(), deltas[:, start:], start=start)
    np.testing.assert_array_equal(part, applied(Dare(), deltas)[start:])


def test_the_smallest_density_draws_something() -> None:
    assert drawn("k", 1e-300, 0, 10).sum() == 0
    assert np.isfinite(applied(Dare(1e-9), np.ones((1, 1000)))).all()


@pytest.mark.parametrize("rescale", [True, False])
def test_at_density_one_it_is_task_arithmetic(rescale: bool) -> None:
    of = Dare(1.0, rescale)
    deltas = np.random.default_rng(2).standard_normal((3, 500)).astype(np.float32)
    plain = TaskArithmetic().apply(Chunk(deltas.copy()), ())
    assert applied(of, deltas).tobytes() == plain.tobytes()
    np.testing.assert_array_equal(of.weights(3), TaskArithmetic().weights(3))
    assert Dare(0.5).weights(3) is None


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

    def made(workers: int) -> bytes:
        found = merge(base, vectors, Dare(0.3, seed=5)).tensors(Engine(workers))
        return b"".join(found[name].tobytes() for name in shapes)

    whole = made(1)
    wanted = [
        applied(Dare(0.3, seed=5), np.stack([delta[n].ravel() for delta in deltas]), n)
        for n in shapes
    ]
    np.testing.assert_array_equal(np.frombuffer(whole, np.float32), np.concatenate(wanted))
    monkeypatch.setattr(plan_module, "_MAX_CUT", BLOCK)
    for workers in (1, 3):
        assert made(workers) == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.0}, "a density of 0.0"),
        ({"density": 1.1}, r"use (0, 1]"),
        ({"seed": 0.5}, "takes a whole number"),
        ({"rescale": "no"}, "takes true or false"),
        ({"p": 0.9}, "has no option 'p'"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("dare", **options)
    assert said in str(caught.value)
