"""The passes against dense arithmetic on whole tensors: same bits however the work is cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import engine as engine_module
from taskbasis.difference import difference_leaf
from taskbasis.engine import Engine, Scratch
from taskbasis.errors import MemoryCapError, ValueProblem
from taskbasis.granularity import Granularity
from taskbasis.io.dtypes import BF16, BY_NAME, F16, F32, F64, DType
from taskbasis.io.storing import Storing
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import MemorySink, OutputTensor
from taskbasis.kernels import BLOCK
from taskbasis.methods import Chunk, Method
from taskbasis.methods.base import State
from taskbasis.methods.elementwise.magmax import MagMax
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.passes import (
    Found,
    Linear,
    Merged,
    gram_by_tensor,
    rounding,
    run_stages,
    write,
    writing,
)
from taskbasis.plan import Plan, make_plan
from taskbasis.plan import cutting as plan_module
from taskbasis.recipe import Binding, Combination, Leaf, Term

Open = Callable[..., TensorStore]
Floats = Callable[..., NDArray[Any]]
Arrays = Mapping[str, NDArray[Any]]

SHAPES = {"a": (60, 100), "b": (2049,), "c": (), "d": (0, 3), "e": (1,), "f": (7, 11)}


@pytest.fixture
def model(floats: Floats) -> Callable[..., dict[str, NDArray[Any]]]:
    """``model(seed, dtype)``: six tensors, the largest of several blocks."""

    def make(seed: int, dtype: Any = np.float32, spread: float = 1.0) -> dict[str, NDArray[Any]]:
        return {
            name: floats([seed, at], shape, dtype, spread)
            for at, (name, shape) in enumerate(SHAPES.items())
        }

    return make


@pytest.fixture
def stored(open_folder: Open) -> Callable[..., Leaf]:
    def make(name: str, tensors: Arrays) -> Leaf:
        store = open_folder(name, tensors)
        return Leaf(name, dict(store.infos), False, Binding("base", None, "mark"), store.files)

    return make


def alone(leaf: Leaf, factor: float = 1.0) -> Combination:
    return Combination((Term(leaf, factor),))


def wide(array: NDArray[Any], double: bool = False) -> NDArray[Any]:
    return np.asarray(array, np.float64 if double else np.float32)


def sink_for(plan: Plan, dtype: DType | None = None, base: TensorStore | None = None) -> MemorySink:
    if base is not None:
        return MemorySink(
            OutputTensor(i.name, dtype if dtype and i.dtype.mergeable else i.dtype, i.shape)
            for i in base.values()
        )
    return MemorySink(OutputTensor(m.name, dtype or F32, m.shape) for m in plan.merges)


def total(plan: Plan, engine: Engine, coefficients: Any = None, **where: Any) -> Any:
    """Arrays of the sum of the plan's vectors, or of the given mix of them."""
    sink = sink_for(plan, where.get("dtype"), where.get("base"))
    row = np.ones((1, plan.vectors)) if coefficients is None else np.atleast_2d(coefficients)
    former = Linear(lambda name: row)
    stats = write(plan, sink, former, lambda name: (name,), "base" in where, engine)
    return sink.arrays(), stats


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


@pytest.fixture(params=[np.float32, "bfloat16", np.float16, np.float64], ids=str)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_adding_is_the_dense_sum(kind: Any, model: Any, open_folder: Open) -> None:
    """base + c1 (t1 - base) + c2 (t2 - base), in float32 (float64), row after row."""
    tensors = [model(seed, kind) for seed in range(3)]
    base, *tuned = (open_folder(f"m{n}", t) for n, t in enumerate(tensors))
    vectors = [alone(difference_leaf(base, t)) for t in tuned]
    plan = make_plan(vectors, base, base)
    found, _ = total(plan, Engine(1), [0.3, -1.7], base=base)
    double = kind is np.float64
    expected = {}
    for name, origin in tensors[0].items():
        start, compute = wide(origin, double), wide(np.array(0), double).dtype
        acc = np.zeros_like(start)
        for factor, other in zip((0.3, -1.7), tensors[1:], strict=True):
            acc = acc + compute.type(factor) * (wide(other[name], double) - start)
        expected[name] = np.asarray(start + acc).astype(origin.dtype)
    same(found, expected)


def test_float64_is_computed_in_float64(open_folder: Open) -> None:
    """1 + 1e-12 would vanish in float32."""
    base = open_folder("base", {"a": np.ones(5), "b": np.ones(5, np.float32)})
    tuned = open_folder("tuned", {"a": np.full(5, 1 + 1e-12), "b": np.full(5, 1 + 1e-12, "f4")})
    plan = make_plan([alone(difference_leaf(base, tuned))], base, base)
    found, stats = total(plan, Engine(1), [3.0], base=base)
    np.testing.assert_allclose(found["a"] - 1, 3e-12, rtol=1e-3)
    assert np.all(found["b"] == 1)
    assert stats["a"][0] == pytest.approx(5 * 9e-24, rel=1e-3)
    grams = gram_by_tensor(plan, Engine(1))
    assert grams["a"][0, 0] == pytest.approx(5e-24, rel=1e-3)
    assert grams["b"][0, 0] == 0


@pytest.mark.parametrize("against", ["float32", "float64"])
def test_mixed_types_and_mixed_kinds_of_input(
    against: str, model: Any, open_folder: Open, stored: Any
) -> None:
    """A checkpoint in bfloat16, deltas in float16 and float32: each is widened to its delta."""
    tensors = model(0, against)
    tuned, half, full = model(1, "bfloat16"), model(2, np.float16), model(3)
    base = open_folder("base", tensors)
    vectors = [
        alone(difference_leaf(base, open_folder("tuned", tuned))),
        alone(stored("half", half), 2.0),
        alone(stored("full", full)),
    ]
    plan = make_plan(vectors, base, base)
    found, _ = total(plan, Engine(2), [0.5, 1.0, -1.0], base=base)
    double, compute = against == "float64", np.dtype(against).type
    expected = {}
    for name, origin in tensors.items():
        rows = [wide(tuned[name], double) - origin, wide(half[name], double)]
        rows.append(wide(full[name], double))
        acc = np.zeros_like(origin)
        for factor, row in zip((0.5, 2.0, -1.0), rows, strict=True):
            acc = acc + compute(factor) * row
        expected[name] = np.asarray(origin + acc)
    same(found, expected)
    grams = gram_by_tensor(plan, Engine(1))
    for name, origin in tensors.items():
        deltas = np.stack(
            [
                (wide(tuned[name], double) - origin).astype(float).ravel(),
                2 * half[name].astype(float).ravel(),
                full[name].astype(float).ravel(),
            ]
        )
        np.testing.assert_allclose(grams[name], deltas @ deltas.T, rtol=1e-5, atol=1e-5)


def test_a_tensor_absent_from_a_vector_counts_as_zero(
    model: Any, open_folder: Open, stored: Any
) -> None:
    tensors = {n: model(0)[n] for n in ("a", "b", "f")}
    base = open_folder("base", tensors)
    one, two = {"a": model(1)["a"]}, {"b": model(2)["b"]}
    plan = make_plan([alone(stored("v", one)), alone(stored("w", two))], base, base)
    found, stats = total(plan, Engine(1), [1.0, 0.5], base=base)
    same(
        found,
        {
            "a": tensors["a"] + one["a"],
            "b": tensors["b"] + np.float32(0.5) * two["b"],
            "f": tensors["f"],
        },
    )
    assert set(stats) == {"a", "b"}
    grams = gram_by_tensor(plan, Engine(1))
    assert grams["a"][1].tolist() == [0.0, 0.0]
    assert grams["b"][0].tolist() == [0.0, 0.0]
    assert grams["a"][0, 0] > 0 < grams["b"][1, 1]


def test_the_order_of_adding_is_that_of_appearance(stored: Any) -> None:
    """(big + small) - big keeps nothing of small; another order would."""
    big = stored("big", {"a": np.full(3000, 1e8, np.float32)})
    small = stored("small", {"a": np.ones(3000, np.float32)})
    other = stored("other", {"a": np.full(3000, -1e8, np.float32)})
    first = make_plan([alone(big) + alone(small) + alone(other)], None, None)
    assert np.all(total(first, Engine(1))[0]["a"] == 0)
    second = make_plan([alone(big) + alone(other) + alone(small)], None, None)
    assert np.all(total(second, Engine(1))[0]["a"] == 1)
    apart = make_plan([alone(big), alone(small), alone(other)], None, None)
    assert np.all(total(apart, Engine(5))[0]["a"] == 0)


@pytest.fixture
def wide_plan(model: Any, open_folder: Open, stored: Any) -> tuple[Plan, TensorStore]:
    """Nine vectors, stored and not, of several types, added to a base."""
    base = open_folder("base", {**model(0), "i": np.arange(4)})
    kinds = [np.float32, "bfloat16", np.float16]
    vectors = [
        alone(difference_leaf(base, open_folder(f"t{n}", model(n, kinds[n % 3]))))
        for n in range(1, 6)
    ]
    vectors += [alone(stored(f"v{n}", model(n))) for n in range(6, 10)]
    return make_plan(vectors, base, base), base


def formers(plan: Plan, engine: Engine) -> dict[str, Any]:
    members = range(plan.vectors)
    row = np.linspace(-1, 1, plan.vectors)[None]
    found: dict[str, Any] = {"linear": Linear(lambda name: row)}
    for method in (Ties(0.3), MagMax()):
        state = run_stages(plan, method, members, engine)
        found[method.name] = Merged(plan, [(method, members, state)], 0.4)
    return found


@pytest.mark.parametrize("which", ["linear", "ties", "magmax"])
def test_same_bytes_for_any_number_of_workers(wide_plan: Any, which: str) -> None:
    plan, base = wide_plan
    results = []
    for workers in (1, 2, 5):
        engine, sink = Engine(workers), sink_for(plan, None, base)
        former = formers(plan, engine)[which]
        stats = write(plan, sink, former, lambda name: (name,), True, engine)
        results.append((sink.arrays(), stats))
    for arrays, stats in results[1:]:
        same(arrays, results[0][0])
        same(stats, results[0][1])


@pytest.mark.parametrize("which", ["linear", "ties", "magmax"])
def test_same_outputs_for_any_cut(
    wide_plan: Any, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6,000 and 2,049 entries in cuts of 2,048: the last one has a single entry."""
    plan, base = wide_plan
    results = []
    for limit in (1 << 18, 2 * BLOCK, BLOCK):
        monkeypatch.setattr(plan_module, "_CUT", limit)
        plan = replace(plan)  # one that has not yet found how it is cut
        sink = sink_for(plan, None, base)
        former = formers(plan, Engine(1))[which]
        write(plan, sink, former, lambda name: (name,), True, Engine(1))
        results.append((len(plan.cuts()), sink.arrays()))
    assert [cuts for cuts, _ in results] == [6, 7, 9]
    for _, arrays in results[1:]:
        same(arrays, results[0][1])


def test_gram_for_any_number_of_workers_and_any_cut(
    wide_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = wide_plan
    whole = gram_by_tensor(plan, Engine(1))
    for workers in (2, 5):
        same(gram_by_tensor(plan, Engine(workers)), whole)
    monkeypatch.setattr(plan_module, "_CUT", BLOCK)
    cut = gram_by_tensor(plan, Engine(5))
    for name, matrix in whole.items():
        np.testing.assert_allclose(cut[name], matrix, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(matrix, matrix.T)


def test_several_outputs_at_once(model: Any, stored: Any) -> None:
    """What a basis needs: M mixes of T vectors, each under its own name."""
    tensors = [model(n) for n in range(3)]
    plan = make_plan([alone(stored(f"v{n}", t)) for n, t in enumerate(tensors)], None, None)
    mix = np.array([[1, 0, 0], [0.5, 0.25, 0.25]])
    outputs = [OutputTensor(f"{m}:{name}", F32, s) for m in range(2) for name, s in SHAPES.items()]
    sink = MemorySink(outputs)
    names = {name: [f"{m}:{name}" for m in range(2)] for name in SHAPES}
    stats = write(plan, sink, Linear(lambda name: mix), names.__getitem__, False, Engine(2))
    arrays = sink.arrays()
    for name in SHAPES:
        same({"x": arrays[f"0:{name}"]}, {"x": tensors[0][name] + 0})
        expected = sum(np.float32(c) * t[name] for c, t in zip(mix[1], tensors, strict=True))
        np.testing.assert_allclose(arrays[f"1:{name}"], expected, rtol=1e-6)
    assert set(stats) == {output.name for output in outputs}


def test_a_tensor_without_outputs_is_skipped(model: Any, stored: Any) -> None:
    plan = make_plan([alone(stored("v", model(1)))], None, None)
    sink = MemorySink([OutputTensor("a", F32, SHAPES["a"])])
    row = Linear(lambda name: np.ones((int(name == "a"), 1)))
    stats = write(plan, sink, row, lambda name: ("a",) if name == "a" else (), False, Engine(1))
    assert set(stats) == {"a"}


def test_conversion_and_copies(model: Any, open_folder: Open, stored: Any) -> None:
    tensors = {**model(0), "half": model(5, np.float16)["a"], "i": np.arange(4)}
    base = open_folder("base", tensors)
    delta = {"a": model(1)["a"]}
    plan = make_plan([alone(stored("v", delta))], base, base, Storing(BF16))
    found, _ = total(plan, Engine(2), base=base, dtype=BF16)
    expected = {n: wide(t).astype(ml_dtypes.bfloat16) for n, t in tensors.items() if n != "i"}
    expected["a"] = (tensors["a"] + delta["a"]).astype(ml_dtypes.bfloat16)
    expected["i"] = tensors["i"]
    same(found, expected)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_statistics_are_the_norms_of_delta_and_rounding(
    dtype: DType, model: Any, stored: Any
) -> None:
    tensors = model(1)
    plan = make_plan([alone(stored("v", tensors))], None, None)
    found, stats = total(plan, Engine(1), [0.7], dtype=dtype)
    whole = np.concatenate([np.float32(0.7) * t.ravel() for t in tensors.values()])
    taken = np.concatenate([wide(found[n]).ravel() for n in tensors]) - whole
    norm, lost = rounding(stats)
    assert norm == pytest.approx(np.linalg.norm(whole.astype(float)), rel=1e-6)
    assert lost == pytest.approx(np.linalg.norm(taken.astype(float)), rel=1e-5, abs=0)
    assert (lost == 0) == (dtype is F32)
    assert rounding({}) == (0.0, 0.0)


# Memory


class Watched(Scratch):
    """Scratch that can be asked what it holds."""

    made: list[Watched] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("outputs", [1, 20])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_estimate_holds_what_is_used(
    rows: int,
    outputs: int,
    mixed: bool,
    monkeypatch: pytest.MonkeyPatch,
    open_folder: Open,
    stored: Any,
    floats: Floats,
) -> None:
    size = 300_000 if rows < 40 else 120_000
    base = open_folder("base", {"a": floats(0, size, np.float64 if mixed else np.float32)})
    store = open_folder("tuned", {"a": floats(1, size, np.float16 if mixed else np.float32)})
    leaves = [difference_leaf(base, store)]
    leaves += [Leaf(str(n), leaves[0].infos, True, leaves[0].base) for n in range(rows - 1)]
    if mixed:
        leaves.append(stored("v", {"a": floats(2, size)}))
    plan = make_plan([alone(leaf) for leaf in leaves], None, base)
    monkeypatch.setattr(engine_module, "Scratch", Watched)
    members = range(plan.vectors)
    names = [f"{m}" for m in range(outputs)]
    sink = MemorySink(OutputTensor(name, F64, (size,)) for name in names)
    jobs: list[tuple[int, Callable[[], object]]] = [
        (plan.memory(0), lambda: gram_by_tensor(plan, Engine(1))),
        (
            plan.memory(outputs),
            lambda: write(
                plan,
                sink,
                Linear(lambda name: np.ones((outputs, plan.vectors))),
                lambda name: names,
                False,
                Engine(1),
            ),
        ),
        (
            plan.memory(outputs),
            lambda: write(
                plan,
                sink,
                Merged(plan, [(MagMax(), members, Found())] * outputs),
                lambda name: names,
                False,
                Engine(1),
            ),
        ),
        (plan.memory(2 * plan.vectors), lambda: run_stages(plan, Ties(), members, Engine(1))),
    ]
    for estimate, job in jobs:
        Watched.made.clear()
        job()
        assert 0 < max(scratch.nbytes for scratch in Watched.made) <= estimate


def test_a_cap_is_honoured_before_anything_is_read(model: Any, stored: Any) -> None:
    plan = make_plan([alone(stored("v", model(1)))], None, None)
    for job in (
        lambda engine: gram_by_tensor(plan, engine),
        lambda engine: run_stages(plan, Ties(), [0], engine),
        lambda engine: total(plan, engine),
    ):
        with pytest.raises(MemoryCapError, match="too small"):
            job(Engine(2, memory=1000))
        job(Engine(2, memory=10**12))


# Values that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 2048, 5999])
@pytest.mark.parametrize("workers", [1, 2])
def test_values_that_are_not_finite_are_refused_everywhere(
    value: float, where: int, workers: int, model: Any, stored: Any, tmp_path: Path
) -> None:
    """MagMax and TIES compare; NaN would lose every comparison and vanish."""
    broken = model(2)
    broken["a"].reshape(-1)[where] = value
    plan = make_plan([alone(stored("v", model(1))), alone(stored("w", broken))], None, None)
    engine, members = Engine(workers), [0, 1]
    sink = sink_for(plan)
    cutoffs = {"model": np.zeros(2, np.float32)}
    zeros = Found((("model", {"model": None}), ("model", cutoffs)))
    jobs: list[Callable[[], object]] = [
        lambda: gram_by_tensor(plan, engine),
        lambda: total(plan, engine),
        lambda: run_stages(plan, Ties(), members, engine),
        lambda: write(
            plan, sink, Merged(plan, [(MagMax(), members, Found())]), lambda n: (n,), False, engine
        ),
        lambda: write(
            plan,
            sink,
            Merged(plan, [(Ties(), members, zeros)]),
            lambda n: (n,),
            False,
            engine,
        ),
    ]
    for job in jobs:
        with pytest.raises(ValueProblem, match="tensor 'a': a value is NaN or infinite") as caught:
            job()
        assert str(tmp_path / "w") in str(caught.value)


def test_overflow_names_the_type(stored: Any) -> None:
    plan = make_plan([alone(stored("v", {"a": np.full(5, 7e4, np.float32)}))], None, None)
    total(plan, Engine(1), dtype=BF16)
    with pytest.raises(ValueProblem, match="tensor 'a': a value is too large for float16"):
        total(plan, Engine(1), dtype=F16)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_base_that_is_not_finite(value: float, open_folder: Open, stored: Any) -> None:
    base = open_folder("base", {"a": np.array([1, value], np.float32)})
    plan = make_plan([alone(stored("v", {"a": np.ones(2, np.float32)}))], base, base)
    with pytest.raises(
        ValueProblem, match=r"tensor 'a'.*the base .* is not finite there"
    ) as caught:
        total(plan, Engine(1), base=base)
    assert str(base.files[0]) in str(caught.value)


@pytest.mark.parametrize("workers", [2, 5])
def test_no_worker_writes_after_an_error(workers: int, stored: Any) -> None:
    """Otherwise it might write into a file that has taken the closed one's descriptor."""
    tensors = {f"t{n:02d}": np.full(10, n, np.float32) for n in range(50)}
    tensors["t00"][3] = np.nan
    plan = make_plan([alone(stored("v", tensors))], None, None)
    written: list[str] = []

    class Slow(MemorySink):
        def write(self, name: str, start: int, words: NDArray[Any]) -> None:
            time.sleep(0 if name == "t00" else 0.01)
            written.append(name)

    sink = Slow(OutputTensor(m.name, F32, m.shape) for m in plan.merges)
    before = threading.active_count()
    with pytest.raises(ValueProblem) as caught:
        write(
            plan,
            sink,
            Linear(lambda name: np.ones((1, 1))),
            lambda n: (n,),
            False,
            Engine(workers),
        )
    kept = caught.value.__traceback__  # holds the frames, as an except block does
    at_once = list(written)
    assert threading.active_count() == before
    time.sleep(0.05)
    assert written == at_once
    assert len(at_once) < 50
    assert kept is not None


# Stages


class Counting(Method):
    """Sums over the whole model, in two stages."""

    name = "counting"

    def stages(self) -> tuple[Granularity, ...]:
        return ("model", "model")

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        assert stage == len(state)
        return np.array([chunk.deltas.shape[1], len(chunk.deltas), np.sum(chunk.deltas == 0)])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        return [int(total[0]), int(total[2])]

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return chunk.deltas[0]


@pytest.mark.parametrize("dtype", [None, F32, BF16])
def test_stages_see_the_whole_model(dtype: DType | None, open_folder: Open, stored: Any) -> None:
    """Whether untouched tensors are stored, copied or converted, they count as zeros."""
    tensors = {n: np.ones(s, np.float32) for n, s in (("a", 3000), ("b", 2500), ("c", 0))}
    base = open_folder("base", {**tensors, "i": np.arange(7)})
    short = alone(stored("v", {"a": np.ones(3000, np.float32)}))
    tuned = open_folder("tuned", {**tensors, "a": tensors["a"] + 1, "i": np.arange(7)})
    long = alone(difference_leaf(base, tuned))
    for vectors in ([short], [long], [short, long], [long, short]):
        plan = make_plan(vectors, base, base, Storing(dtype))
        members = range(len(vectors))
        found = run_stages(plan, Counting(), members, Engine(1))
        assert found.of("a") == ([5500, 2500 * len(vectors)],) * 2


def test_stages_without_anything_to_see(stored: Any) -> None:
    plan = make_plan([alone(stored("v", {"a": np.ones(3, np.float32)}), 0.0)], None, None)
    assert plan.merges == ()
    assert run_stages(plan, Ties(), [0], Engine(1)).of("a") == (None, None)
    assert total(plan, Engine(1)) == ({}, {})
    assert gram_by_tensor(plan, Engine(1)) == {}


def test_outputs_of_chosen_members(model: Any, stored: Any) -> None:
    tensors = [model(n) for n in range(4)]
    plan = make_plan([alone(stored(f"v{n}", t)) for n, t in enumerate(tensors)], None, None)
    names = {name: [f"0:{name}", f"1:{name}"] for name in SHAPES}
    sink = MemorySink(OutputTensor(f"{m}:{n}", F32, s) for m in (0, 1) for n, s in SHAPES.items())
    former = Merged(plan, [(MagMax(), [1, 3], Found()), (MagMax(), [2], Found())], 2.0)
    write(plan, sink, former, names.__getitem__, False, Engine(1))
    for name in SHAPES:
        one, three = tensors[1][name], tensors[3][name]
        larger = np.where(np.abs(three) >= np.abs(one), three, one)
        np.testing.assert_array_equal(sink.arrays()[f"0:{name}"], 2 * larger)
        np.testing.assert_array_equal(sink.arrays()[f"1:{name}"], 2 * tensors[2][name])


def test_copies_are_cut_into_pieces(open_folder: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_COPY_PIECE", 64)
    tensors = {
        n: np.arange(100).astype(n) for n in ("float64", "float32", "int8", "bool", "float16")
    }
    tensors |= {"scalar": np.array(5, np.int64), "empty": np.empty((3, 0))}
    base = open_folder("base", tensors)
    plan = make_plan([], base, base)
    for workers in (1, 3):
        sink = sink_for(plan, None, base)
        former = Linear(lambda name: np.zeros((1, 0)))
        assert write(plan, sink, former, lambda n: (n,), True, Engine(workers)) == {}
        same(sink.arrays(), tensors)
    assert BY_NAME["bool"].bits == np.uint8
