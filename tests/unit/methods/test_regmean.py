"""RegMean against least squares on the inputs themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError, ValueProblem
from taskbasis.merging import merge
from taskbasis.methods import Chunk, Moment, method
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.learnt.lot import Lot
from taskbasis.methods.learnt.regmean import RegMean
from taskbasis.testing import merged
from taskbasis.vectors import TaskVector

Matrix = NDArray[Any]


def moment(x: Matrix, transposed: bool = False) -> Moment:
    return Moment(np.asarray(x.T @ x / len(x), np.float32), transposed)


def inputs(T: int, n: int, d: int, seed: int = 0) -> list[Matrix]:
    """T tasks' inputs [n, d] of unlike directions and sizes, correlated."""
    rng = np.random.default_rng(seed)
    mixed = [rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) for _ in range(T)]
    return [x * 3.0**t for t, x in enumerate(mixed)]


def weights(T: int, out: int, d: int, dtype: Any = np.float64) -> Matrix:
    return np.random.default_rng([T, out, d]).standard_normal((T, out, d)).astype(dtype)


def solved(of: Any, W: Matrix, moments: list[Moment | None]) -> Matrix:
    """The method on whole matrices [T, out, in]."""
    flat = W.reshape(len(W), -1)
    return merged(of, flat, moments=moments, shape=W.shape[1:]).reshape(W.shape[1:])


def least_squares(X: list[Matrix], W: Matrix) -> Matrix:
    """The weights whose outputs are closest to every task's, of these the least, by NumPy."""
    rows = np.concatenate([x / np.sqrt(len(x)) for x in X])
    wanted = np.concatenate([x @ w.T / np.sqrt(len(x)) for x, w in zip(X, W, strict=True)])
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0].T)


def regmean(X: list[Matrix], W: Matrix, off_diagonal: float) -> Matrix:
    """The formula as it is written."""
    H = []
    for x in X:
        G = x.T @ x / len(x)
        H.append(off_diagonal * G + (1 - off_diagonal) * np.diag(np.diag(G)))
    return np.asarray(sum(w @ h for w, h in zip(W, H, strict=True)) @ np.linalg.inv(sum(H)))


def close(found: Matrix, wanted: Matrix, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max(initial=0))


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize(("out", "d"), [(1, 1), (7, 3), (3, 8), (20, 20)])
def test_with_whole_moments_it_is_least_squares(T: int, out: int, d: int) -> None:
    X, W = inputs(T, 6 * d + 10, d), weights(T, out, d)
    moments = [moment(x) for x in X]
    for of in (RegMean(1.0), Lot()):
        close(solved(of, W, moments), least_squares(X, W), 1e-3)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [100, 4])
def test_with_less_off_the_diagonal_it_is_the_formula(off_diagonal: float, n: int) -> None:
    X, W = inputs(3, n, 12), weights(3, 9, 12)
    found = solved(RegMean(off_diagonal), W, [moment(x) for x in X])
    close(found, regmean(X, W, off_diagonal), 1e-5 / (1.001 - off_diagonal))


def test_nothing_off_the_diagonal_is_a_weighted_mean_of_columns() -> None:
    X, W = inputs(3, 50, 6), weights(3, 4, 6)
    share = np.stack([np.mean(x**2, axis=0) for x in X])
    wanted = np.einsum("tod,td->od", W, share) / share.sum(axis=0)
    close(solved(RegMean(0.0), W, [moment(x) for x in X]), wanted)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n", [40, 2])
def test_one_vector_is_itself_and_equal_moments_give_the_mean(off_diagonal: float, n: int) -> None:
    X, W = inputs(1, n, 10)[0], weights(4, 5, 10, np.float32)
    of = RegMean(off_diagonal)
    alone = solved(of, W[:1], [moment(X)])
    assert alone.tobytes() == W[0].tobytes()
    close(solved(of, W, [moment(X)] * 4), W.mean(axis=0))


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0])
def test_inputs_that_never_occur_get_the_plain_mean(off_diagonal: float) -> None:
    X, W = inputs(2, 30, 6), weights(2, 5, 6)
    for x in X:
        x[:, 2] = 0
    X[0][:, 4] = 0
    found = solved(RegMean(off_diagonal), W, [moment(x) for x in X])
    close(found[:, 2], W[:, :, 2].mean(axis=0))
    seen = [0, 1, 3, 4, 5]
    close(
        found[:, seen],
        solved(RegMean(off_diagonal), W[:, :, seen], [moment(x[:, seen]) for x in X]),
    )


def test_directions_that_never_occur_get_the_plain_mean() -> None:
    """Two inputs of each of two tasks span 4 of 9 directions."""
    X, W = inputs(2, 2, 9), weights(2, 5, 9)
    found = solved(RegMean(1.0), W, [moment(x) for x in X])
    for x, w in zip(X, W, strict=True):
        close(x @ found.T, x @ w.T, 1e-3)
    # The correction of the mean, in units of each input's size, has no part that nobody sees.
    scale = np.sqrt(np.diag(sum(x.T @ x for x in X)))
    correction = (found - W.mean(axis=0)) * scale
    unseen = np.linalg.svd(np.concatenate(X) / scale)[2][4:]
    assert np.abs(correction @ unseen.T).max() < 1e-3 * np.abs(correction).max()


def test_the_size_of_inputs_does_not_matter_but_to_tasks_against_each_other() -> None:
    X, W = inputs(2, 50, 6), weights(2, 5, 6)
    whole = solved(RegMean(), W, [moment(x) for x in X])
    for factor in (1e-12, 1e12):
        close(solved(RegMean(), W, [moment(x * factor) for x in X]), whole)
    drowned = solved(RegMean(), W, [moment(X[0] * 1e6), moment(X[1])])
    close(drowned, W[0])


def test_inputs_of_unlike_sizes_are_solved_as_well() -> None:
    """Some are a million times as large as others: only their units differ."""
    X, W = inputs(2, 50, 6), weights(2, 5, 6)
    sizes = 10.0 ** np.array([-6, -3, 0, 0, 3, 6])
    found = solved(RegMean(), W / sizes, [moment(x * sizes) for x in X])
    close(found * sizes, solved(RegMean(), W, [moment(x) for x in X]))


def test_a_transposed_weight_is_the_same_matrix() -> None:
    X, W = inputs(3, 40, 6), weights(3, 9, 6, np.float32)
    for of in (RegMean(), RegMean(1.0), Lot()):
        plain = solved(of, W, [moment(x) for x in X])
        turned = np.ascontiguousarray(W.transpose(0, 2, 1))
        found = solved(of, turned, [moment(x, True) for x in X])
        np.testing.assert_array_equal(found.T, plain)


def test_a_convolution_is_a_matrix_of_its_patches() -> None:
    X, W = inputs(2, 60, 12), weights(2, 5, 12)
    moments = [moment(x) for x in X]
    found = solved(RegMean(), W.reshape(2, 5, 3, 2, 2), moments)
    np.testing.assert_array_equal(found.reshape(5, 12), solved(RegMean(), W, moments))


def test_many_rows_are_merged_as_few_are() -> None:
    """More outputs than are worked on at once."""
    X, W = inputs(2, 30, 3), weights(2, 100_000, 3, np.float32)
    moments = [moment(x) for x in X]
    for of in (RegMean(), Lot()):
        found = solved(of, W, moments)
        for rows in (slice(0, 10), slice(99_990, None), slice(87_375, 87_390)):
            close(found[rows], solved(of, W[:, rows], moments), 1e-6)


def test_in_float64_it_is_as_exact_as_the_moments() -> None:
    X, W = inputs(2, 50, 6), weights(2, 5, 6)
    rounded = [np.asarray(moment(x).values, np.float64) for x in X]
    found = solved(RegMean(1.0), W, [Moment(g.astype(np.float32)) for g in rounded])
    wanted = sum(w @ g for w, g in zip(W, rounded, strict=True)) @ np.linalg.inv(sum(rounded))
    assert found.dtype == np.float64
    close(found, wanted, 1e-10)


# Tensors with a diagonal, and without any


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_a_diagonal_weighs_entry_by_entry(shape: tuple[int, ...]) -> None:
    """Words of an embedding, entries of a scale; words that nobody uses get the mean."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((3, *shape))
    counts = rng.integers(0, 5, (3, 6)).astype(np.float32)
    counts[:, 1] = 0
    found = solved(RegMean(), W, [Moment(row) for row in counts])
    for word in range(6):
        weight = counts[:, word].astype(np.float64)
        weight = weight if weight.any() else np.ones(3)
        wanted = np.tensordot(weight, W[:, word], 1) / weight.sum()
        np.testing.assert_allclose(found[word], wanted, rtol=1e-12, atol=1e-14)


def test_a_long_embedding_is_worked_on_in_parts() -> None:
    rng = np.random.default_rng(1)
    W = rng.standard_normal((2, 3000, 200)).astype(np.float32)
    counts = rng.integers(0, 3, (2, 3000)).astype(np.float32)
    found = solved(RegMean(), W, [Moment(row) for row in counts])
    for words in (slice(0, 5), slice(1305, 1315), slice(2990, None)):
        part = solved(RegMean(), W[:, words], [Moment(row) for row in counts[:, words]])
        np.testing.assert_array_equal(found[words], part)


def test_without_moments_of_all_tasks_it_is_the_mean() -> None:
    X, W = inputs(2, 30, 6), weights(2, 5, 6, np.float32)
    for of in (RegMean(), Lot()):
        for known in ([], [None, None], [moment(X[0]), None], [None, Moment(np.ones(5, "f4"))]):
            found = solved(of, W, known)
            assert found.tobytes() == Average().apply(Chunk(W.copy()), ()).tobytes()


# As files


def test_a_whole_model(write_folder: Any, write_moments: Any) -> None:
    """A linear weight, one stored the other way about, words, a scale, a bias, a buffer's copy."""
    rng = np.random.default_rng(2)
    shapes = {"w": (7, 5), "turned": (5, 7), "words": (9, 5), "scale": (5,), "bias": (7,)}
    X, words = inputs(2, 60, 5), rng.integers(1, 9, (2, 9)).astype(np.float32)
    base = write_folder("base", {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    deltas = [{n: rng.standard_normal(s).astype("f4") for n, s in shapes.items()} for _ in X]
    vectors, files = [], []
    for t, (x, delta) in enumerate(zip(X, deltas, strict=True)):
        folder = write_folder(f"t{t}", delta)
        vectors.append(TaskVector(base, folder))
        full = moment(x).values
        known = {"w": full, "turned": full, "words": words[t], "scale": np.diag(full)}
        files.append(write_moments(f"m{t}", folder, known, transposed=["turned"]))
    found = merge(base, vectors, RegMean(), moments=files).tensors(Engine(2))
    stacked = {n: np.stack([delta[n] for delta in deltas]).astype(np.float64) for n in shapes}
    close(found["w"], regmean(X, stacked["w"], 0.9))
    close(found["turned"].T, regmean(X, stacked["turned"].transpose(0, 2, 1), 0.9))
    share = words / words.sum(axis=0)
    close(found["words"], np.einsum("twd,tw->wd", stacked["words"], share))
    squares = np.stack([np.mean(x**2, axis=0) for x in X])
    close(found["scale"], (stacked["scale"] * squares).sum(axis=0) / squares.sum(axis=0))
    close(found["bias"], stacked["bias"].mean(axis=0))


def test_outputs_are_closer_than_those_of_the_mean(write_folder: Any, write_moments: Any) -> None:
    """What it is for: on each task's inputs, less is lost than by averaging."""
    X, W = inputs(3, 8, 16), weights(3, 10, 16, np.float32)

    def drift(V: Matrix) -> float:
        return float(sum(np.mean((x @ (V - w).T) ** 2) for x, w in zip(X, W, strict=True)))

    found = drift(solved(RegMean(), W, [moment(x) for x in X]))
    assert found < 0.5 * drift(W.mean(axis=0))
    assert drift(solved(RegMean(1.0), W, [moment(x) for x in X])) < found


# What is refused


@pytest.mark.parametrize("of", [RegMean(), Lot()], ids=repr)
@pytest.mark.parametrize(
    ("shape", "values", "said"),
    [
        ((7, 5), np.eye(7), r"'tensor' of shape \[7, 5\] .* moment of shape \[7, 7\]"),
        ((7, 5), np.ones(5), r"moment of shape \[5\]"),
        ((7,), np.eye(7), r"'tensor' of shape \[7\]"),
        ((), np.ones(()), r"'tensor' of shape \[\]"),
        ((7, 5), np.ones((7, 5)), r"moment of shape \[7, 5\]"),
    ],
)
def test_a_moment_that_does_not_go_with_its_tensor(
    of: Any, shape: tuple[int, ...], values: Matrix, said: str
) -> None:
    W = np.ones((1, *shape))
    with pytest.raises(MismatchError, match=said) as caught:
        merged(of, W.reshape(1, -1), moments=[Moment(values.astype(np.float32))], shape=shape)
    assert "make the moments again" in str(caught.value)


def test_moments_of_two_kinds() -> None:
    square = np.eye(3, dtype=np.float32)
    pairs = [(Moment(square), Moment(np.ones(3, "f4"))), (Moment(square), Moment(square, True))]
    for pair in pairs:
        with pytest.raises(MismatchError, match="the moments of two tasks are of shapes"):
            merged(RegMean(), np.ones((2, 9)), moments=pair, shape=(3, 3))


@pytest.mark.parametrize("values", [np.diag([1.0, -1e-9]), np.array([1.0, -1.0])])
def test_a_negative_mean_of_squares(values: Matrix) -> None:
    shape = (2, 2) if values.ndim == 2 else (2,)
    given = [Moment(values.astype(np.float32))]
    with pytest.raises(ValueProblem, match=r"'tensor'.*a mean of squares is negative"):
        merged(RegMean(), np.ones((1, int(np.prod(shape)))), moments=given, shape=shape)


@pytest.mark.parametrize("off_diagonal", [-0.1, 1.1, float("nan")])
def test_options_that_mean_nothing(off_diagonal: float) -> None:
    with pytest.raises(UsageError, match=r"off_diagonal .* has no meaning; use \[0, 1\]"):
        method("regmean", off_diagonal=off_diagonal)


def test_moments_are_required_and_are_no_scores(
    write_folder: Any, write_moments: Any, write_scores: Any, tmp_path: Any
) -> None:
    base = write_folder("base", {"w": np.zeros((2, 2), np.float32)})
    tuned = write_folder("tuned", {"w": np.ones((2, 2), np.float32)})
    vectors = [TaskVector(base, tuned)]
    square = np.eye(2, dtype=np.float32)
    moments, scores = (
        [write_moments("m", tuned, {"w": square})],
        [write_scores("s", tuned, {"w": square})],
    )
    for name in ("regmean", "lot"):
        with pytest.raises(UsageError, match=f"method '{name}' needs moments, one file for every"):
            merge(base, vectors, method(name)).save(tmp_path / "out")
        with pytest.raises(UsageError, match=f"method '{name}' takes no scores"):
            merge(base, vectors, method(name), scores=scores, moments=moments).save(
                tmp_path / "out"
            )
    with pytest.raises(UsageError, match="method 'average' takes no moments"):
        merge(base, vectors, Average(), moments=moments).save(tmp_path / "out")
    other = [write_moments("other", base, {"w": square})]
    with pytest.raises(MismatchError, match=r"the moments .* were learnt of the model"):
        merge(base, vectors, RegMean(), moments=other).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
