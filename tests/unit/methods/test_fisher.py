"""Fisher merging against weighted means in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.merging import merge
from taskbasis.methods import Chunk, method
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.learnt.fisher import Fisher, weighted_mean
from taskbasis.testing import merged
from taskbasis.vectors import Checkpoint, TaskVector

Matrix = NDArray[Any]


def exact(deltas: Matrix, weights: Matrix) -> Matrix:
    """sum_t F_t tau_t / sum_t F_t in fractions; the plain mean where all F are 0."""
    out = []
    for column, weight in zip(deltas.T, weights.T, strict=True):
        F = [Fraction(float(w)) for w in weight]
        F = F if any(F) else [Fraction(1)] * len(F)
        total = sum(f * Fraction(float(tau)) for f, tau in zip(F, column, strict=True))
        out.append(float(total / sum(F)))
    return np.array(out)


WEIGHTS = st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 2e-30, 1e-15, 1.0, 3.0, 1e30, 3e38])


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_against_fractions(T: int, n: int, data: st.DataObject) -> None:
    weights = data.draw(arrays.arrays(np.float32, (T, n), elements=WEIGHTS))
    deltas = data.draw(arrays.arrays(np.float32, (T, n), elements=st.floats(-8, 8, width=32)))
    found = Fisher().apply(Chunk(deltas.copy(), weights), ())
    size = np.abs(deltas).max(axis=0) + 1e-30
    np.testing.assert_array_less(np.abs(found - exact(deltas, weights)) / size, 2e-7)
    assert found.dtype == np.float32


@pytest.mark.parametrize("size", [1.0, 1e-15, 1e-30, 1e-37])
def test_tiny_scores_weigh_as_others_do(size: float) -> None:
    weights = np.array([[3, 1, 0], [1, 1, 2]], np.float32) * np.float32(size)
    deltas = np.array([[1, 1, 1], [5, 5, 5]], np.float32)
    assert Fisher().apply(Chunk(deltas, weights), ()).tolist() == [2, 3, 5]


def test_in_float64() -> None:
    rng = np.random.default_rng(0)
    deltas, weights = rng.standard_normal((3, 50)), rng.random((3, 50)).astype(np.float32)
    found = Fisher().apply(Chunk(deltas.copy(), weights), ())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, (weights * deltas).sum(0) / weights.sum(0), rtol=1e-6)
    np.testing.assert_allclose(found, exact(deltas, weights), rtol=1e-13, atol=1e-14)


def test_equal_scores_give_the_mean_and_one_vector_itself() -> None:
    deltas = np.random.default_rng(1).standard_normal((4, 100)).astype(np.float32)
    equal = np.full((4, 100), 7e-20, np.float32)
    found = Fisher().apply(Chunk(deltas.copy(), equal), ())
    np.testing.assert_allclose(
        found, Average().apply(Chunk(deltas.copy()), ()), rtol=1e-5, atol=1e-7
    )
    alone = Fisher().apply(Chunk(deltas[:1].copy(), equal[:1] * np.float32(3)), ())
    assert alone.tobytes() == deltas[0].tobytes()


def test_it_lies_between_the_vectors() -> None:
    rng = np.random.default_rng(2)
    deltas = rng.standard_normal((3, 400)).astype(np.float32)
    weights = (10.0 ** rng.uniform(-38, 38, (3, 400))).astype(np.float32)
    found = Fisher().apply(Chunk(deltas.copy(), weights), ())
    assert np.all(found >= deltas.min(axis=0) - 1e-6)
    assert np.all(found <= deltas.max(axis=0) + 1e-6)


def test_it_minimises_the_weighted_squared_distance() -> None:
    """No nearby point is likelier under all the Gaussians together."""
    rng = np.random.default_rng(3)
    deltas, weights = rng.standard_normal((3, 20)), rng.random((3, 20)).astype(np.float32)

    def cost(point: Matrix) -> Matrix:
        return np.asarray((weights * (deltas - point) ** 2).sum(axis=0))

    found = Fisher().apply(Chunk(deltas.copy(), weights), ())
    for step in (1e-3, -1e-3):
        assert np.all(cost(found) < cost(found + step))


# Normalised


@pytest.mark.parametrize("kind", ["mean", "norm"])
def test_a_task_with_larger_gradients_does_not_outvote_the_others(kind: Any) -> None:
    rng = np.random.default_rng(4)
    deltas = rng.standard_normal((2, 300)).astype(np.float32)
    weights = rng.random((2, 300)).astype(np.float32)
    loud = weights * np.array([[2.0**40], [2.0**-60]], np.float32)
    found = merged(Fisher(kind), deltas, scores=loud)
    np.testing.assert_array_equal(found, merged(Fisher(kind), deltas, scores=weights))
    np.testing.assert_allclose(merged(Fisher(), deltas, scores=loud), deltas[0], rtol=1e-6)
    size = weights.mean(axis=1) if kind == "mean" else np.linalg.norm(weights, axis=1)
    np.testing.assert_allclose(found, exact(deltas, weights / size[:, None]), rtol=0.01, atol=0.01)


def test_numbers_of_few_bits_are_normalised_exactly() -> None:
    scores = np.array([[3, 4, 0, 0], [1, 1, 1, 1]], np.float32)
    deltas = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    # Norms 5 and 2: the first has 0.6 against 0.5, then 0.8 against 0.5.
    found = merged(Fisher("norm"), deltas, scores=scores)
    np.testing.assert_allclose(found, [0.6 / 1.1, 0.8 / 1.3, 0, 0], rtol=1e-6)
    # Means 7/4 and 1.
    found = merged(Fisher("mean"), deltas, scores=scores)
    np.testing.assert_allclose(found, [12 / 19, 16 / 23, 0, 0], rtol=1e-6)


def test_scores_of_zero_throughout_are_not_divided_by() -> None:
    scores = np.array([[0, 0], [0, 2]], np.float32)
    deltas = np.array([[1, 1], [3, 3]], np.float32)
    for kind in ("mean", "norm"):
        assert merged(method("fisher", normalize=kind), deltas, scores=scores).tolist() == [2, 3]


@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_sizes_are_taken_over_the_scope(scope: Any, write_folder: Any, write_scores: Any) -> None:
    rng = np.random.default_rng(5)
    shapes = {"h.0.w": (30, 5), "h.0.b": (5,), "h.1.w": (70,)}
    groups = {
        "tensor": {name: name for name in shapes},
        "layer": {"h.0.w": "0", "h.0.b": "0", "h.1.w": "1"},
        "model": dict.fromkeys(shapes, "all"),
    }[scope]
    base = write_folder("base", {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    deltas, scores, vectors, files = [], [], [], []
    for t in range(2):
        deltas.append({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
        # On a grid of 7 bits: neither float16 nor counting rounds them.
        loud = {"h.0.w": 1, "h.0.b": 16, "h.1.w": 2.0 ** (8 * t)}
        scores.append(
            {n: (rng.integers(0, 99, s) * loud[n]).astype(np.float32) for n, s in shapes.items()}
        )
        folder = write_folder(f"t{t}", deltas[t])
        vectors.append(TaskVector(base, folder))
        files.append(write_scores(f"s{t}", folder, scores[t]))
    found = merge(base, vectors, Fisher("norm", scope), scores=files).tensors(Engine(2))
    for name in shapes:
        weights = []
        for mine in scores:
            alike = [mine[other].ravel() for other in shapes if groups[other] == groups[name]]
            weights.append(mine[name].ravel() / np.linalg.norm(np.concatenate(alike)))
        rows = np.stack([delta[name].ravel() for delta in deltas])
        np.testing.assert_allclose(
            found[name].ravel(), exact(rows, np.stack(weights)), rtol=1e-5, atol=1e-6
        )


# As files, and what is refused


def test_a_vector_without_scores_of_a_tensor_it_leaves_alone_has_no_say_there(
    write_folder: Any, write_scores: Any
) -> None:
    base = write_folder("base", {n: np.zeros(4, np.float32) for n in "ab"})
    one = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    folders = [write_folder("t0", one), write_folder("t1", {**one, "b": np.zeros(4, np.float32)})]
    vectors = [TaskVector(base, folders[0]), TaskVector(base, folders[1], exclude=["b"])]
    ones = np.ones(4, np.float32)
    scores = [
        write_scores("s0", folders[0], {"a": ones, "b": ones}),
        write_scores("s1", folders[1], {"a": ones}),
    ]
    found = merge(base, vectors, Fisher(), scores=scores).tensors()
    assert found["b"].tolist() == [1, 1, 1, 1]
    assert Checkpoint(base).store["b"].load().tolist() == [0, 0, 0, 0]


def test_scores_are_required(write_folder: Any, tmp_path: Any) -> None:
    base = write_folder("base", {"a": np.zeros(4, np.float32)})
    tuned = write_folder("tuned", {"a": np.ones(4, np.float32)})
    with pytest.raises(UsageError, match="method 'fisher' needs scores, one file for every vector"):
        merge(base, [TaskVector(base, tuned)], Fisher()).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for of in (Fisher(), Fisher("mean")):
        with pytest.raises(UsageError, match="needs scores"):
            merged(of, np.ones((1, 3)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normalize": "rank"}, "normalize 'rank' is unknown; known: none, mean, norm"),
        ({"normalize": "norms"}, "did you mean 'norm'?"),
        ({"scope": "modal"}, "did you mean 'model'?"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("fisher", **options)
    assert said in str(caught.value)


def test_without_normalising_there_is_no_stage() -> None:
    assert Fisher().stages() == ()
    for call in (Fisher().observe, Fisher().finish):
        with pytest.raises(NotImplementedError, match="has no stage 0"):
            call(0, Chunk(np.zeros((1, 1))), ())  # type: ignore[arg-type]


def test_the_weighted_mean_leaves_its_inputs_alone() -> None:
    rows, weights = np.ones((2, 5), np.float32), np.zeros((2, 5), np.float32)
    weighted_mean(rows, weights)
    assert (rows == 1).all()
    assert (weights == 0).all()
