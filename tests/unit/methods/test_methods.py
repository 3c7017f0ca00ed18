"""Every method against a dense merge of whole models, written another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import UsageError
from taskbasis.kernels import BLOCK
from taskbasis.merging import merge
from taskbasis.methods import Chunk, Method, method, registered
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.elementwise.magmax import MagMax
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.plan import cutting as plan_module
from taskbasis.vectors import Checkpoint, TaskVector

Matrix = NDArray[Any]
Dense = Callable[[Matrix], Matrix]

SHAPES = {"a.w": (50, 60), "b.w": (2049,), "c.one": (1,), "d.scalar": (), "e.empty": (0, 4)}
ALL = [TaskArithmetic(), Average(), MagMax(), Ties(), Ties(0.5), Ties(1.0)]
SOME = [TaskArithmetic(), Average(), MagMax(), Ties(0.3)]


# Dense references over [T, d]: plain loops over vectors, sorts instead of histograms


def dense_sum(V: Matrix) -> Matrix:
    total = np.zeros_like(V[0])
    for row in V:
        total = total + row
    return total


def dense_average(V: Matrix) -> Matrix:
    return dense_sum(V) / V.dtype.type(len(V))


def dense_magmax(V: Matrix) -> Matrix:
    out = np.empty_like(V[0])
    for j in range(V.shape[1]):
        best = 0
        for t in range(1, len(V)):
            if abs(V[t, j]) >= abs(V[best, j]):
                best = t
        out[j] = V[best, j]
    return out


def dense_ties(density: float) -> Dense:
    def merged(V: Matrix) -> Matrix:
        d = V.shape[1]
        k = max(1, int(density * d))
        trimmed = V.copy()
        for row in trimmed:
            magnitudes = np.abs(row)
            threshold = np.partition(magnitudes, d - k)[d - k]
            row[magnitudes < threshold] = 0
        elected = np.sign(dense_sum(trimmed))
        out = np.zeros_like(V[0])
        for j in range(d):
            agreeing = [v for v in trimmed[:, j] if v != 0 and np.sign(v) == elected[j]]
            if agreeing and elected[j] != 0:
                total = V.dtype.type(0)
                for value in agreeing:
                    total = total + value
                out[j] = total / len(agreeing)
        return out

    return merged


def dense(of: Method) -> Dense:
    if isinstance(of, Ties):
        return dense_ties(of.density)
    plain: dict[type, Dense] = {
        TaskArithmetic: dense_sum,
        Average: dense_average,
        MagMax: dense_magmax,
    }
    return plain[type(of)]


def flat(tensors: dict[str, Matrix]) -> Matrix:
    return np.concatenate([tensors[name].ravel() for name in sorted(SHAPES)])


def draw(seed: int, count: int, dtype: Any = np.float32, grid: int = 0) -> list[dict[str, Matrix]]:
    """Deltas of ``count`` models; on a coarse grid many entries tie and cancel."""
    rng = np.random.default_rng(seed)
    models = []
    for _ in range(count):
        tensors = {}
        for name, shape in SHAPES.items():
            values = rng.standard_normal(shape)
            values = np.round(values * grid) / grid if grid else values
            tensors[name] = np.asarray(values).astype(dtype)
        models.append(tensors)
    return models


@pytest.fixture
def models(write_folder: Callable[..., Path]) -> Callable[..., tuple[Path, list[TaskVector]]]:
    """``models(deltas)``: a base of zeros and the fine-tunes with these deltas."""

    def make(deltas: list[dict[str, Matrix]]) -> tuple[Path, list[TaskVector]]:
        zeros = {name: np.zeros_like(array) for name, array in deltas[0].items()}
        base = write_folder("base", {**zeros, "i": np.arange(3)})
        folders = [
            write_folder(f"t{n}", {**d, "i": np.arange(3) + n}, 1 + n % 2)
            for n, d in enumerate(deltas)
        ]
        return base, [TaskVector(base, folder) for folder in folders]

    return make


def merged(
    base: Path, vectors: list[TaskVector], of: Method, scale: float = 1.0, workers: int = 1
) -> Matrix:
    found = merge(base, vectors, of, scale).tensors(Engine(workers))
    assert found["i"].tolist() == [0, 1, 2]
    return flat(found)


def close(found: Matrix, expected: Matrix) -> None:
    """Equal but for the rounding of sums of a few numbers of size one."""
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=5e-7)


@pytest.mark.parametrize("of", ALL, ids=repr)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("grid", [0, 2])
def test_against_a_dense_merge(of: Method, count: int, grid: int, models: Any) -> None:
    deltas = draw(count, count, grid=grid)
    base, vectors = models(deltas)
    expected = dense(of)(np.stack([flat(d) for d in deltas]))
    assert np.any(expected != 0)
    found = merged(base, vectors, of)
    close(found, expected)
    if not isinstance(of, Average):  # whose coefficient 1/T is rounded before it multiplies
        np.testing.assert_array_equal(found, expected)
    close(merged(base, vectors, of, 0.3), np.float32(0.3) * expected)


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_in_float64(of: Method, models: Any) -> None:
    deltas = draw(3, 3, np.float64)
    base, vectors = models(deltas)
    expected = dense(of)(np.stack([flat(d) for d in deltas]))
    np.testing.assert_allclose(merged(base, vectors, of), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_bits_are_those_of_any_cut_and_any_workers(
    of: Method, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven vectors: NumPy would sum eight or more in another order for a single column."""
    base, vectors = models(draw(0, 11))
    whole = merged(base, vectors, of, 0.7)
    for workers in (2, 5):
        assert merged(base, vectors, of, 0.7, workers).tobytes() == whole.tobytes()
    for limit in (BLOCK, 2 * BLOCK):
        monkeypatch.setattr(plan_module, "_CUT", limit)
        for workers in (1, 5):
            assert merged(base, vectors, of, 0.7, workers).tobytes() == whole.tobytes()


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_apply_gives_the_same_bits_column_by_column(of: Method) -> None:
    deltas = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    state = (None, np.full(12, 0.5, np.float32)) if isinstance(of, Ties) else ()
    whole = of.apply(Chunk(deltas.copy()), state)
    assert (whole.dtype, whole.shape) == (np.float32, (40,))
    for step in (1, 7):
        chunks = [Chunk(deltas[:, j : j + step].copy()) for j in range(0, 40, step)]
        parts = [of.apply(chunk, state) for chunk in chunks]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_the_kernels_and_apply_agree(of: Method) -> None:
    """Linear methods have two forms: coefficients for the kernels, and apply."""
    coefficients = of.coefficients(np.ones(4))
    if coefficients is None:
        assert not isinstance(of, (TaskArithmetic, Average))
        return
    deltas = np.random.default_rng(0).standard_normal((4, 30))
    found = of.apply(Chunk(deltas), ())
    np.testing.assert_allclose(found, coefficients @ deltas, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_the_order_of_tasks_is_immaterial(of: Method, models: Any) -> None:
    base, vectors = models(draw(4, 4))
    found = merged(base, vectors, of)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        np.testing.assert_allclose(
            merged(base, [vectors[n] for n in order], of), found, rtol=1e-5, atol=1e-6
        )


def test_magmax_gives_ties_to_the_later_vector(models: Any) -> None:
    deltas = draw(0, 2)
    opposite = [deltas[0], {name: np.asarray(-array) for name, array in deltas[0].items()}]
    base, vectors = models(opposite)
    np.testing.assert_array_equal(merged(base, vectors, MagMax()), -flat(deltas[0]))
    np.testing.assert_array_equal(merged(base, vectors[::-1], MagMax()), flat(deltas[0]))


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_zero_vectors_give_the_base(of: Method, models: Any) -> None:
    zeros = [{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}] * 3
    base, vectors = models(zeros)
    found = merged(base, vectors, of)
    assert np.all(found == 0)


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_stored_vectors_that_are_empty_give_the_base(
    of: Method, models: Any, tmp_path: Path
) -> None:
    """Tensors that equal the base's are not stored, so a zero vector holds none at all."""
    zeros = [{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}] * 2
    base, vectors = models(zeros)
    for n, vector in enumerate(vectors):
        vector.save(tmp_path / f"v{n}.safetensors")
    again = [TaskVector.open(tmp_path / f"v{n}.safetensors") for n in range(2)]
    assert np.all(merged(base, again, of) == 0)


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_a_zero_vector_among_others(of: Method, models: Any) -> None:
    deltas = draw(1, 3)
    deltas[1] = {name: np.zeros_like(array) for name, array in deltas[1].items()}
    base, vectors = models(deltas)
    close(merged(base, vectors, of), dense(of)(np.stack([flat(d) for d in deltas])))


@pytest.mark.parametrize("of", [TaskArithmetic(), Average(), MagMax(), Ties(1.0)], ids=repr)
def test_one_vector_is_itself_and_its_negative(of: Method, models: Any) -> None:
    deltas = draw(2, 1)
    base, vectors = models(deltas)
    np.testing.assert_array_equal(merged(base, vectors, of), flat(deltas[0]))
    np.testing.assert_array_equal(merged(base, vectors, of, -1.0), -flat(deltas[0]))
    np.testing.assert_array_equal(merged(base, [-vectors[0]], of), -flat(deltas[0]))


@pytest.mark.parametrize("of", SOME, ids=repr)
def test_checkpoints_and_stored_vectors_merge_alike(
    of: Method, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Half of this model is frozen: a stored vector lacks it, a checkpoint has it."""
    rng = np.random.default_rng(0)
    start = {n: rng.standard_normal(3000).astype(np.float32) for n in ("head", "frozen")}
    base = write_folder("base", start)
    direct, stored = [], []
    for n in range(3):
        move = rng.standard_normal(3000).astype(np.float32)
        folder = write_folder(f"t{n}", {**start, "head": start["head"] + move})
        direct.append(TaskVector(base, folder))
        direct[-1].save(tmp_path / f"v{n}.safetensors")
        stored.append(TaskVector.open(tmp_path / f"v{n}.safetensors"))
    expected = merge(base, direct, of).tensors(Engine(1))
    found = merge(base, stored, of).tensors(Engine(1))
    assert Checkpoint(base).store["frozen"].load().tobytes() == found["frozen"].tobytes()
    for name in start:
        np.testing.assert_array_equal(found[name], expected[name])


def test_converting_the_rest_does_not_change_the_merge(
    write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    start = {n: np.zeros(2000, np.float32) for n in ("head", "frozen")}
    base = write_folder("base", start)
    folder = write_folder("t", {**start, "head": rng.standard_normal(2000).astype(np.float32)})
    TaskVector(base, folder).save(tmp_path / "v.safetensors")
    model = merge(base, [TaskVector.open(tmp_path / "v.safetensors")], Ties(0.1))
    model.save(tmp_path / "same")
    model.save(tmp_path / "double", "float64")
    plain = Checkpoint(tmp_path / "same").store["head"].load()
    assert np.count_nonzero(plain) == 400, "a tenth of the whole model, frozen half included"
    np.testing.assert_array_equal(Checkpoint(tmp_path / "double").store["head"].load(), plain)


# TIES


def threshold(values: Matrix, density: float, cuts: list[int]) -> float:
    """The state of both stages, from stretches of one row."""
    of, state = Ties(density), ()
    for stage, _ in enumerate(of.stages()):
        parts = [Chunk(part) for part in np.split(values[None], cuts, axis=1)]
        total = sum(of.observe(stage, part, state) for part in parts)
        state = (*state, of.finish(stage, total, state))
    return float(state[-1][0])


bit_patterns = arrays.arrays(np.uint32, st.integers(1, 60), elements=st.integers(0, 0x7F7FFFFF))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(bit_patterns, st.floats(0, 1, exclude_min=True, exclude_max=True), st.data())
def test_the_threshold_is_exact(bits: Matrix, density: float, data: st.DataObject) -> None:
    """The k-th largest magnitude, to the last bit, of any floats in any stretches."""
    values = bits.view(np.float32)
    values = values * np.where(np.arange(len(values)) % 2, np.float32(-1), np.float32(1))
    k = max(1, int(density * len(values)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    assert threshold(values, density, cuts) == np.sort(np.abs(values))[-k]


def test_equal_magnitudes_at_the_threshold_are_all_kept() -> None:
    values = np.array([[3, -2, 2, 2, 1, -1]], np.float32)
    assert threshold(values[0], 0.4, [3]) == 2
    assert Ties(0.4).apply(Chunk(values), (None, np.array([2], "f4"))).tolist() == [
        3,
        -2,
        2,
        2,
        0,
        0,
    ]


def test_signs_are_elected_and_those_who_disagree_left_out() -> None:
    deltas = np.array([[4, 1, -2, 1, 0], [-1, 1, -2, -1, 0], [2, -5, 3, 0, 7]], np.float32)
    state = np.full(3, 0.5, np.float32)
    assert Ties().apply(Chunk(deltas), (None, state)).tolist() == [3, -5, -2, 0, 7]


@pytest.mark.parametrize("density", [0, -0.1, 1.1, float("nan"), float("inf")])
def test_densities_that_mean_nothing(density: float) -> None:
    with pytest.raises(UsageError, match=r"a density of .* use \(0, 1\]"):
        Ties(density)


# The registry


def test_the_registry() -> None:
    known = registered()
    assert list(known) == sorted(known)
    assert {"average", "dare_linear", "fisher", "lot", "magmax", "regmean", "sta"} < set(known)
    for name, kind in known.items():
        assert kind.name == name
        assert isinstance(method(name), kind)
        assert (kind.__doc__ or "").strip()
    assert method("ties", density=0.7) == Ties(0.7)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("teis", {}, "there is no method 'teis'; did you mean 'ties'?"),
        ("", {}, "there is no method ''; known: "),
        ("ties", {"densty": 0.1}, "has no option 'densty'; did you mean 'density'?"),
        ("magmax", {"density": 0.1}, "'magmax' has no option 'density'; it has none"),
        ("ties", {"name": "x"}, "has no option 'name'"),
        ("ties", {"stages": 3}, "has no option 'stages'"),
        ("ties", {"density": "high"}, "takes a number"),
        ("ties", {"density": 2}, "a density of 2"),
    ],
)
def test_what_is_no_method_and_no_option(name: str, options: Any, match: str) -> None:
    with pytest.raises(UsageError) as caught:
        method(name, **options)
    assert match in str(caught.value)
    assert caught.value.exit_code == 2


def test_methods_are_frozen_records() -> None:
    with pytest.raises(AttributeError):
        Ties().density = 0.5  # type: ignore[misc]
    assert Ties() == Ties(0.2)


@pytest.mark.parametrize("of", [TaskArithmetic(), Average(), MagMax()], ids=repr)
def test_methods_without_stages_have_none(of: Method) -> None:
    assert of.stages() == ()
    for call in (of.observe, of.finish):
        with pytest.raises(NotImplementedError, match="has no stage 0"):
            call(0, Chunk(np.zeros((1, 1))), ())  # type: ignore[arg-type]
