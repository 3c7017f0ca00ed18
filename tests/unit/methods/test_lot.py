"""LOT against NumPy's least squares of least norm, and in what it differs from RegMean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.merging import merge
from taskbasis.methods import Chunk, Moment
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.learnt.lot import Lot
from taskbasis.methods.learnt.regmean import RegMean
from taskbasis.testing import merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]


def moment(x: Matrix) -> Moment:
    return Moment(np.asarray(x.T @ x / len(x), np.float32))


def draw(T: int, n: int, out: int, d: int) -> tuple[list[Matrix], Matrix]:
    """Inputs [n, d] of T tasks, and weights [T, out, d]."""
    rng = np.random.default_rng([T, n, out, d])
    return [rng.standard_normal((n, d)) for _ in range(T)], rng.standard_normal((T, out, d))


def solved(of: Any, W: Matrix, moments: list[Moment]) -> Matrix:
    flat = W.reshape(len(W), -1)
    return merged(of, flat, moments=moments, shape=W.shape[1:]).reshape(W.shape[1:])


def drift(V: Matrix, X: list[Matrix], W: Matrix) -> float:
    """The feature drift that LOT minimises."""
    return float(sum(((x @ (V - w).T) ** 2).sum() / len(x) for x, w in zip(X, W, strict=True)))


@pytest.mark.parametrize("T", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3, 50])
def test_it_is_the_least_of_all_minima(T: int, n: int) -> None:
    """NumPy's least squares take the smallest solution where there are many."""
    X, W = draw(T, n, 5, 16)
    rows = np.concatenate(X)
    wanted = np.concatenate([x @ w.T for x, w in zip(X, W, strict=True)])
    solution = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    found = solved(Lot(), W, [moment(x) for x in X])
    np.testing.assert_allclose(found, solution, atol=2e-4)


@pytest.mark.parametrize("n", [2, 40])
def test_no_other_weights_move_features_less(n: int) -> None:
    X, W = draw(3, n, 5, 12)
    found = solved(Lot(), W, [moment(x) for x in X])
    least = drift(found, X, W)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = 1e-2 * rng.standard_normal(found.shape)
        assert drift(found + step, X, W) >= least - 1e-6
    for of in (RegMean(), RegMean(0.5)):
        assert drift(solved(of, W, [moment(x) for x in X]), X, W) > least - 1e-6
    assert drift(W.mean(axis=0), X, W) > least


def test_where_tasks_see_different_inputs_each_keeps_its_own() -> None:
    """No feature moves at all; what nobody sees stays the base's."""
    X, W = draw(2, 40, 5, 9)
    X[0][:, 4:] = 0
    X[1][:, :4] = 0
    X[1][:, 8] = 0
    found = solved(Lot(), W, [moment(x) for x in X])
    np.testing.assert_allclose(found[:, :4], W[0][:, :4], atol=1e-5)
    np.testing.assert_allclose(found[:, 4:8], W[1][:, 4:8], atol=1e-5)
    np.testing.assert_allclose(found[:, 8], 0, atol=1e-12)


def test_one_vector_gives_what_its_inputs_see_of_it() -> None:
    (X,), W = draw(1, 3, 5, 8)
    found = solved(Lot(), W, [moment(X)])
    np.testing.assert_allclose(X @ found.T, X @ W[0].T, atol=1e-4)
    _, _, directions = np.linalg.svd(X)
    np.testing.assert_allclose(found @ directions[3:].T, 0, atol=1e-4)
    assert np.linalg.norm(found) < np.linalg.norm(W[0])


def test_with_inputs_in_all_directions_it_is_regmean_with_whole_moments() -> None:
    X, W = draw(3, 80, 6, 10)
    moments = [moment(x) for x in X]
    np.testing.assert_allclose(
        solved(Lot(), W, moments), solved(RegMean(1.0), W, moments), atol=1e-5
    )


def test_moments_of_zero_leave_the_base() -> None:
    _, W = draw(2, 1, 3, 4)
    zero = Moment(np.zeros((4, 4), np.float32))
    assert not np.any(solved(Lot(), W, [zero, zero]))


def test_a_scale_is_weighed_by_its_squared_inputs() -> None:
    rng = np.random.default_rng(1)
    W, x = rng.standard_normal((2, 6)), rng.standard_normal((2, 50, 6)) * [[[1.0]], [[3.0]]]
    squares = np.mean(x**2, axis=1)
    found = solved(Lot(), W, [Moment(row.astype(np.float32)) for row in squares])
    np.testing.assert_allclose(found, (W * squares).sum(0) / squares.sum(0), rtol=1e-5)
    # It minimises the drift of each feature.
    for step in (1e-2, -1e-2):
        cost = [np.sum(squares * (v - W) ** 2, axis=0) for v in (found, found + step)]
        assert np.all(cost[0] < cost[1])


def test_words_get_the_plain_mean() -> None:
    W = np.random.default_rng(2).standard_normal((2, 5, 3)).astype(np.float32)
    counts = [Moment(np.array(row, np.float32)) for row in ([9, 0, 0, 1, 2], [1, 0, 7, 1, 0])]
    plain = Average().apply(Chunk(W.reshape(2, -1).copy()), ())
    assert solved(Lot(), W, counts).tobytes() == plain.tobytes()
    assert solved(RegMean(), W, counts).tobytes() != plain.tobytes()


def test_as_a_file(write_folder: Any, write_moments: Any, tmp_path: Any) -> None:
    X, W = draw(2, 3, 6, 10)
    W = W.astype(np.float32)
    bias = np.array([[1, 2], [3, 6]], np.float32)
    base = write_folder("base", {"w": np.zeros((6, 10), np.float32), "b": np.zeros(2, np.float32)})
    vectors, files = [], []
    for t in range(2):
        folder = write_folder(f"t{t}", {"w": W[t], "b": bias[t]})
        vectors.append(TaskVector(base, folder))
        files.append(write_moments(f"m{t}", folder, {"w": moment(X[t]).values}))
    model = merge(base, vectors, Lot(), moments=files)
    found = model.tensors()
    np.testing.assert_array_equal(found["w"], solved(Lot(), W, [moment(x) for x in X]))
    assert found["b"].tolist() == [2, 4]
    model.save(tmp_path / "out")
    recipe = (tmp_path / "out" / "taskbasis_recipe.json").read_text()
    assert '"method": "lot"' in recipe
    assert "m1.safetensors" in recipe
