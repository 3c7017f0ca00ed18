"""Sums on a torch device (a GPU, too, where there is one) against the compiled loops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis import (
    Checkpoint,
    Design,
    Engine,
    TaskVector,
    devices,
    fit,
    kernels,
    merge,
    method,
)
from taskbasis import engine as engine_module
from taskbasis.devices import Device, Lane, open_device
from taskbasis.engine import Scratch, resident_bytes
from taskbasis.errors import MemoryCapError, MissingExtraError, UsageError, ValueProblem
from taskbasis.kernels import BLOCK
from taskbasis.library.basis import inner_products
from taskbasis.plan import cutting

PLACES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = {"f4": np.float32, "f8": np.float64, "f2": np.int16, "bf": np.uint16}
VALUES = {"f4": np.float32, "f8": np.float64, "f2": np.float16, "bf": ml_dtypes.bfloat16}
SIGNATURES = [
    ("f4", "f4", "f4"),
    ("f4", "f4", "bf"),
    ("f4", "f4", "f2"),
    ("bf", "bf", "bf"),
    ("bf", "bf", "f4"),
    ("bf", "f4", "bf"),
    ("f2", "f2", "f2"),
    ("f2", "f2", "f4"),
    ("f4", "bf", "f4"),
    ("f8", "f8", "f8"),
    ("f8", "f8", "f2"),
    ("f8", "f4", "bf"),
]
"""What the base, the rows and the output are stored in."""
HARD = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 65504.0, 65519.9, 65520.0,
        1e-40, -1e-45, 2.0**-24, 2.0**-25, 2.0**-133, 2.0**-134, 1 + 2.0**-8, 1 + 2.0**-11,
        1 + 3 * 2.0**-8, 1 + 3 * 2.0**-11, 1 / 3]  # fmt: skip
DOUBLE = [
    *HARD,
    1e300,
    1e-320,
    1 + 2.0**-8 + 2.0**-40,
    1 + 2.0**-11 + 2.0**-40,
    2.0**-25 + 2.0**-60,
]


@pytest.fixture(params=PLACES)
def lane(request: pytest.FixtureRequest) -> Lane:
    """A worker's way to each device that is there."""
    return open_device(request.param).lane()


def both(
    lane: Lane,
    base: NDArray[Any] | None,
    rows: NDArray[Any],
    kind: str,
    difference: bool,
    coefficients: NDArray[Any],
    add_base: bool,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Words and statistics of the device, then of the loops."""
    found: list[NDArray[Any]] = []
    for loops in (lane, kernels):
        out = np.full((len(coefficients), rows.shape[1]), 77, KINDS[kind])
        stats = np.full((len(coefficients), 2), 0.5)
        scratch = np.full(kernels.scratch_rows(len(rows)), np.nan, coefficients.dtype)
        with np.errstate(all="ignore"):
            loops.form(base, rows, difference, coefficients, add_base, out, scratch, stats)
        found += [out, stats]
    return found[0], found[1], found[2], found[3]


def alike(kind: str, ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """The same words, but that any NaN is like any other."""
    with np.errstate(all="ignore"):
        nan = [np.isnan(one.view(VALUES[kind]).astype(np.float64)) for one in (ours, theirs)]
    same_nan = np.array_equal(*nan)
    return same_nan and ours[~nan[0]].tobytes() == theirs[~nan[1]].tobytes()


def alike_in_size(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """The same norms, to what float32 sums of blocks may miss; not finite at the same places."""
    finite = np.isfinite(theirs)
    return np.array_equal(finite, np.isfinite(ours)) and np.allclose(
        ours[finite], theirs[finite], rtol=1e-5, atol=0
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """Stored words, hard and of any bits; few outputs of few rows."""
    of_base, of_rows, of_out = draw(st.sampled_from(SIGNATURES))
    inputs, outputs = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    size = draw(st.sampled_from([1, 2, 7, 64]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)

    def words(kind: str, shape: Any) -> NDArray[Any]:
        width = np.dtype(KINDS[kind]).itemsize
        any_bits = rng.integers(0, 256, (*shape, width), np.uint8).view(KINDS[kind])[..., 0]
        with np.errstate(all="ignore"):
            hard = rng.choice(DOUBLE, shape).astype(VALUES[kind]).view(KINDS[kind])
            plain = rng.standard_normal(shape).astype(VALUES[kind]).view(KINDS[kind])
        which = rng.choice(
            3, shape, p=draw(st.sampled_from([(0, 0, 1), (0.1, 0.1, 0.8), (0.5, 0.5, 0)]))
        )
        return np.choose(which, [any_bits, hard, plain])

    compute = np.float64 if "f8" in (of_base, of_rows, of_out) else np.float32
    base, rows = words(of_base, (size,)), words(of_rows, (inputs, size))
    if of_base == of_rows and inputs:  # entries that fine-tuning left alone
        rows[:, ::2] = base[::2]
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    numbers = draw(st.lists(number, min_size=inputs * outputs, max_size=inputs * outputs))
    coefficients = np.array(numbers, compute).reshape(outputs, inputs)
    return base, rows, of_out, draw(st.booleans()), coefficients, draw(st.booleans())


@settings(max_examples=250, deadline=None)
@given(cases())
def test_any_words_become_the_same(case: tuple[Any, ...]) -> None:
    base, rows, kind, difference, coefficients, add_base = case
    needed = base if difference or add_base or not len(rows) else None
    for place in PLACES:
        lane = open_device(place).lane()
        ours, our_stats, theirs, their_stats = both(
            lane, needed, rows, kind, difference, coefficients, add_base
        )
        assert alike(kind, ours, theirs)
        assert alike_in_size(our_stats, their_stats)


@pytest.mark.parametrize("kinds", SIGNATURES, ids="-".join)
@pytest.mark.parametrize(("difference", "add_base"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_stretches_of_many_blocks(
    kinds: tuple[str, str, str], difference: int, add_base: int, lane: Lane
) -> None:
    of_base, of_rows, of_out = kinds
    compute = np.float64 if "f8" in kinds else np.float32
    rng = np.random.default_rng(7)
    for size, inputs, outputs in ((0, 2, 1), (2047, 1, 1), (5000, 5, 3)):
        base = rng.standard_normal(size).astype(VALUES[of_base]).view(KINDS[of_base])
        rows = rng.standard_normal((inputs, size)).astype(VALUES[of_rows]).view(KINDS[of_rows])
        mixed = rng.standard_normal((outputs, inputs)).astype(compute)
        needed = base if difference or add_base else None
        ours, our_stats, theirs, their_stats = both(
            lane, needed, rows, of_out, difference == 1, mixed, add_base == 1
        )
        assert ours.tobytes() == theirs.tobytes()
        assert alike_in_size(our_stats, their_stats)


def test_statistics_are_float64_sums(lane: Lane) -> None:
    """Of a million equal numbers, where a running float32 sum is wrong in the third digit."""
    rows, third = np.full((1, 1 << 20), 1 / 3, np.float32), float(np.float32(1 / 3))
    out, stats = np.empty((1, 1 << 20), np.uint16), np.zeros((1, 2))
    one, scratch = np.ones((1, 1), np.float32), np.empty((0, 0), np.float32)
    lane.form(None, rows, False, one, False, out, scratch, stats)
    stored = float(out[:, :1].view(ml_dtypes.bfloat16).astype(np.float64)[0, 0])
    wanted = [third**2 * 2**20, float(np.float32(stored - third)) ** 2 * 2**20]
    np.testing.assert_allclose(stats, [wanted], rtol=1e-13)


@pytest.mark.parametrize("kind", ["f4", "f8", "f2", "bf"])
@pytest.mark.parametrize("difference", [False, True])
def test_inner_products_are_those_of_float64(
    kind: str, difference: bool, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_WIDENED", 3 * BLOCK)  # so that some sizes take several steps
    compute = np.float64 if kind == "f8" else np.float32
    for size in (0, 1, 2047, 2048, 2049, 5000):
        for inputs in (1, 2, 5):
            rng = np.random.default_rng([size, inputs])
            rows = rng.standard_normal((inputs, size)).astype(VALUES[kind])
            base = rng.standard_normal(size).astype(VALUES[kind])
            scratch = np.empty(kernels.scratch_rows(inputs), compute)
            out = np.full((inputs, inputs), 10.0)
            args = base.view(KINDS[kind]) if difference else None, rows.view(KINDS[kind])
            lane.gram(*args, difference, scratch, out)
            wide = rows.astype(compute) - (base.astype(compute) if difference else compute(0))
            dense = np.tril(wide.astype(np.float64) @ wide.astype(np.float64).T) + 10
            np.testing.assert_allclose(np.tril(out), np.tril(dense), rtol=1e-12, atol=1e-11)
            np.testing.assert_array_equal(np.triu(out, 1), np.triu(np.full_like(out, 10), 1))
            loops = np.full((inputs, inputs), 10.0)
            kernels.gram(*args, difference, scratch, loops)
            np.testing.assert_allclose(out, loops, rtol=1e-5, atol=1e-2)


def test_products_below_float32_are_kept(lane: Lane) -> None:
    """1e-30 squared is no float32, and TF32 would round the second product."""
    fine = 1 + 2.0**-20
    rows, out = np.array([[1e-30, 0], [0, fine]], np.float32), np.zeros((2, 2))
    lane.gram(None, rows, False, rows, out)
    assert out.tolist() == [[float(np.float32(1e-30)) ** 2, 0], [0, fine**2]]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", [0, BLOCK, 4999])
def test_what_is_not_finite_shows(value: float, where: int, lane: Lane) -> None:
    rows = np.ones((2, 5000), np.float32)
    base, mixed = np.ones(5000, np.float32), np.ones((1, 2), np.float32)
    rows[1, where] = value
    out, stats, gram = np.empty((1, 5000), np.float32), np.zeros((1, 2)), np.zeros((2, 2))
    lane.form(base, rows, True, mixed, True, out, rows, stats)
    lane.gram(base, rows, True, rows, gram)
    assert not np.isfinite(stats[0, 0])
    assert not np.isfinite(gram[1, 1])
    base[where] = value  # and where fine-tuning left it alone it is nothing, unless it is NaN
    rows[0, where], stats, gram = value, np.zeros((1, 2)), np.zeros((2, 2))
    lane.form(base, rows, True, mixed, True, out, rows, stats)
    lane.gram(base, rows, True, rows, gram)
    assert bool(np.isfinite(stats).all() and np.isfinite(gram[1, 1])) == (not np.isnan(value))
    rows[:] = 1  # a finite delta on an infinite base
    stats = np.zeros((1, 2))
    lane.form(base, rows, False, mixed, True, out, rows, stats)
    assert np.isfinite(stats[0, 0])
    assert not np.isfinite(stats[0, 1])


def test_words_that_torch_has_no_name_for_go_through_the_loops(lane: Lane) -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    out, stats, gram = np.empty((1, 3), np.float32), np.zeros((1, 2)), np.zeros((2, 2))
    scratch = np.empty(kernels.scratch_rows(2), np.float32)
    lane.form(None, rows, False, np.ones((1, 2), np.float32), False, out, scratch, stats)
    lane.gram(None, rows, False, scratch, gram)
    assert out.tolist() == [[3.0, 5.0, 7.0]]
    assert gram.tolist() == [[5.0, 0.0], [14.0, 50.0]]


def test_buffers_to_copy_from() -> None:
    for place in PLACES:
        device = open_device(place)
        buffer = device.lane().empty(4096)
        assert (buffer.dtype, buffer.size, buffer.flags.writeable) == (np.uint8, 4096, True)
        assert torch.from_numpy(buffer).is_pinned() == device.locks_pages


# Devices that cannot be used


@pytest.mark.parametrize(("name", "why"), [
    ("quantum", "Expected one of cpu, cuda"),
    ("cpu:cpu", "Invalid device string"),
    ("", "Device string must not be empty"),
    pytest.param("cuda", "not compiled with CUDA|NVIDIA driver|No CUDA", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="there is a GPU")),
    ("cuda:99", "not compiled with CUDA|NVIDIA driver|No CUDA|invalid device"),
])  # fmt: skip
def test_a_device_that_is_not_there(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"the device {name} cannot be used: .*({why})") as caught:
        open_device(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.fixture
def flushing() -> Iterator[None]:
    """Small numbers are zero for this thread."""
    open_device.cache_clear()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush small numbers to zero")
    yield
    torch.set_flush_denormal(False)
    open_device.cache_clear()


def test_a_device_that_rounds_otherwise_is_refused(flushing: None) -> None:
    with pytest.raises(UsageError, match=r"cpu cannot be used: it rounds otherwise .* flush"):
        open_device("cpu")


def test_torch_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    open_device.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"the device cuda needs .*taskbasis\[torch\]"):
        open_device("cuda")


def test_a_device_that_is_too_small() -> None:
    """256 TiB, of which nothing is read."""
    rows = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (1, 1 << 46), (0, 0))
    stats, one = np.zeros((1, 2)), np.ones((1, 1))
    with pytest.raises(MemoryCapError, match="the device cpu ran out of memory; use fewer workers"):
        open_device("cpu").lane().form(None, rows, False, one, False, rows, rows, stats)


def test_other_errors_of_torch_stay_what_they_are() -> None:
    out, two = np.empty((2, 3), np.float32), np.ones((1, 4), np.float32)
    with pytest.raises(RuntimeError, match="size"):
        open_device("cpu").lane().form(
            None, two, False, np.ones((2, 1), np.float32), False, out, two, np.zeros((2, 2))
        )


# The engine


def test_without_a_device_the_loops_are_the_compiled_ones() -> None:
    seen = list(Engine(1).map(lambda _, scratch: scratch.loops, [1], int, ""))
    assert seen == [kernels]
    assert Scratch().array("x", (3,), np.float32, travels=True).shape == (3,)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_has_a_lane_of_its_own(workers: int) -> None:
    import threading

    barrier = threading.Barrier(workers, timeout=10)

    def work(item: int, scratch: Scratch) -> tuple[int, bool]:
        barrier.wait()
        return id(scratch.loops), isinstance(scratch.loops, Lane)

    found = list(Engine(workers, device="cpu").map(work, range(workers), int, ""))
    assert all(is_lane for _, is_lane in found)
    assert len({name for name, _ in found}) == workers


def test_the_device_is_opened_before_anything_is_done() -> None:
    done: list[int] = []
    engine = Engine(1, device="quantum")
    with pytest.raises(UsageError, match="the device quantum cannot be used"):
        list(engine.map(lambda item, scratch: done.append(item), [1], int, ""))
    with pytest.raises(UsageError, match="the device quantum cannot be used"):
        Engine(1, memory=1 << 40, device="quantum").within(1)
    assert done == []


@pytest.fixture
def checkpoints(floats: Callable[..., NDArray[Any]], write_folder: Callable[..., Path]) -> Path:
    """A bf16 base of three tensors, one of several cuts, and three fine-tunes; one is float16."""
    shapes = {"long": (1100, 1000), "small": (7, 11), "scalar": ()}
    base = {name: floats(at, shape) for at, (name, shape) in enumerate(shapes.items())}
    for number, task in enumerate(("base", "a", "b", "c")):
        kind = np.float16 if task == "c" else ml_dtypes.bfloat16
        tensors = {
            name: np.asarray(
                value + 0.05 * number * floats([number, value.size], value.shape), kind
            )
            for name, value in base.items()
        }
        folder = write_folder(task, tensors)
    return folder.parent


def written(path: Path) -> dict[str, bytes]:
    """Every weights file, by name."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    assert files
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.promise(
    "What is stored of weighted sums has the same bytes with `--device` and without, for any "
    "number of workers."
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_written_has_the_same_bytes(
    place: str, workers: int, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if workers > 1:
        monkeypatch.setattr(cutting, "_FAR", 1)  # so that there is a cut for each
    base = Checkpoint(checkpoints / "base")
    a, b, c = (TaskVector(base, checkpoints / task) for task in "abc")
    a.save(checkpoints / "stored.safetensors")
    stored = TaskVector.open(checkpoints / "stored.safetensors")
    model = base + 0.3 * (stored + b + c)  # deltas and weights, in three dtypes
    jobs: dict[str, Callable[[Path, Engine], Any]] = {
        "sum": lambda out, engine: (base + 0.7 * a - 0.2 * b).save(out, engine=engine),
        "extract": lambda out, engine: b.save(out / "b.safetensors", engine=engine),
        "mixed": lambda out, engine: model.save(out, engine=engine),
        "float32": lambda out, engine: model.save(out, "float32", engine=engine),
        "random": lambda out, engine: model.save(out, rounding="stochastic", engine=engine),
        "ties": lambda out, engine: merge(base, [a, b], method("ties")).save(out, engine=engine),
        "convert": lambda out, engine: (base + 0 * a).save(out, "float16", engine=engine),
        "capped": lambda out, engine: model.save(out, engine=engine),
    }
    for name, job in jobs.items():
        paths = []
        for device in (None, place):
            cap = resident_bytes() + (1 << 30) if name == "capped" else None
            paths.append(checkpoints / f"{name}-{device}")
            paths[-1].mkdir()
            job(paths[-1], Engine(workers, memory=cap, device=device))
        assert written(paths[0]) == written(paths[1]), name


@pytest.mark.parametrize("place", PLACES)
def test_inner_products_do_not_depend_on_workers(
    place: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_FAR", 1)
    vectors = [TaskVector(checkpoints / "base", checkpoints / task) for task in "ab"]
    loops = inner_products(vectors, Engine(1))
    one, three = (inner_products(vectors, Engine(n, device=place)) for n in (1, 3))
    assert one.keys() == loops.keys()
    for name, matrix in one.items():
        assert matrix.tobytes() == three[name].tobytes()
        np.testing.assert_allclose(matrix, loops[name], rtol=1e-5, atol=1e-4)


def test_a_basis_is_fitted_and_recovered_on_a_device(checkpoints: Path) -> None:
    """Codes come from inner products, so they are the same but for the last digits."""
    vectors = {task: TaskVector(checkpoints / "base", checkpoints / task) for task in "ab"}
    engine = Engine(2, device="cpu")
    made = fit(vectors, checkpoints / "lib.safetensors", Design(k=2, method="svd"), engine=engine)
    loops = fit(vectors, checkpoints / "loops.safetensors", Design(k=2, method="svd"))
    found, wanted = (one["a"].tensors(engine) for one in (made, loops))
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def test_cuts_are_longer_where_a_device_computes(checkpoints: Path) -> None:
    base = Checkpoint(checkpoints / "base")
    plan = (base + TaskVector(base, checkpoints / "a")).edit().plan()
    far = replace(plan, far=True)
    assert far.cut_size == 1 << 22 == 8 * plan.cut_size
    assert 7 * plan.memory(1) < far.memory(1) + (8 << 20) < 9 * plan.memory(1)


def test_infinity_is_refused_by_name(checkpoints: Path, write_folder: Callable[..., Path]) -> None:
    with np.errstate(all="ignore"):
        weights = Checkpoint(checkpoints / "a")
        tensors = (weights + 0 * TaskVector(weights, checkpoints / "b")).tensors()
    tensors["small"][0, 0] = np.inf
    vector = TaskVector(checkpoints / "base", write_folder("sick", tensors))
    with pytest.raises(ValueProblem, match="tensor 'small': a value is NaN or infinite"):
        (Checkpoint(checkpoints / "base") + vector).tensors(Engine(2, device="cpu"))


def test_a_cap_counts_page_locked_memory_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handed out in powers of two; a GPU's name is enough to see that it is counted."""
    gpu = Device("cuda", torch, torch.device("cuda"))
    monkeypatch.setattr(engine_module, "open_device", lambda name: gpu)
    gib = 1 << 30
    for device, most in ((None, 10), ("cuda", 5)):
        engine = Engine(64, memory=resident_bytes() + 10 * gib + gib // 2, device=device)
        assert engine.within(gib).workers == most


def test_a_cap_is_kept(checkpoints: Path) -> None:
    model = Checkpoint(checkpoints / "base") + TaskVector(checkpoints / "base", checkpoints / "a")
    with pytest.raises(MemoryCapError, match=r"a memory cap of .* is too small"):
        model.tensors(Engine(memory=1 << 20, device="cpu"))
