"""Rows looked up in other tensors: against NumPy's indexing, however they are read."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.io.adapted import stored_dtype
from taskbasis.io.dtypes import BF16, BY_NAME, F16, F32, F64
from taskbasis.io.gathered import AVERAGE, REST, ZERO, Gathered, gathered
from taskbasis.io.lowrank import low_rank
from taskbasis.io.tensors import ArrayBlob, TensorInfo

Array = NDArray[Any]
NONE = np.zeros((0, 0), np.int64)


def stored(array: Array) -> TensorInfo:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return TensorInfo("e", BY_NAME[array.dtype.name], array.shape, ArrayBlob(raw, "a file"))


def looked_up(
    sources: list[Array],
    origin: list[int],
    number: list[int],
    members: Any = NONE,
    dtype: Any = F32,
) -> TensorInfo:
    infos = tuple(stored(one) for one in sources)
    return gathered("e", dtype, infos, np.array(origin), np.array(number), np.array(members))


def dense(sources: list[Array], origin: Any, number: Any, members: Any, dtype: Any) -> Array:
    """What is meant, row by row, in float64."""
    wide = [one.astype(np.float64) for one in sources]
    rows = np.zeros((len(origin), *sources[0].shape[1:]))
    for at, (source, row) in enumerate(zip(origin, number, strict=True)):
        if source >= 0:
            rows[at] = wide[source][row]
        elif source == AVERAGE:
            held = [one[n] for one, n in zip(wide, members[row], strict=False) if n >= 0]
            rows[at] = np.sum(held, axis=0) / len(held)
    found = rows.astype(np.float32).astype(dtype) if dtype != np.float64 else rows
    rest = np.array(origin) == REST
    if rest.any() and not rest.all():
        mean = found[~rest].astype(np.float64).mean(axis=0)
        found[rest] = mean.astype(np.float32).astype(dtype) if dtype != np.float64 else mean
    return found


def test_rows_of_two_tensors() -> None:
    one, two = np.arange(6, dtype=np.float32).reshape(3, 2), np.full((2, 2), 9, np.float32)
    seen = looked_up([one, two], [0, 1, 0, ZERO, REST], [2, 0, 0, 0, 0])
    assert seen.load().tolist() == [[4, 5], [9, 9], [0, 1], [0, 0], [3.25, 3.75]]
    assert (seen.name, seen.dtype, seen.shape) == ("e", F32, (5, 2))
    assert seen.where == "tensor 'e' of a file"


def test_the_mean_of_those_that_have_a_row() -> None:
    sources = [np.full((2, 1), value, np.float32) for value in (1, 2, 6)]
    seen = looked_up(sources, [AVERAGE, AVERAGE], [1, 0], [[0, 1, 0], [-1, 0, 1]])
    assert seen.load().tolist() == [[4], [3]]


def test_a_vector_has_rows_of_one_entry() -> None:
    seen = looked_up([np.array([5, 6, 7], np.float32)], [0, ZERO, 0], [2, 0, 1])
    assert seen.load().tolist() == [7, 0, 6]
    assert seen.shape == (3,)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_sources_are_widened_exactly(kind: Any) -> None:
    values = np.array([[1 / 3, -1e-5, np.inf], [-0.0, 7, np.nan]]).astype(kind)
    wide = F64 if kind == np.float64 else F32
    seen = looked_up([values], [0, 0, 0], [1, 0, 1], dtype=wide)
    expected = values[[1, 0, 1]].astype(np.float64)
    np.testing.assert_array_equal(seen.load().astype(np.float64), expected)
    assert np.signbit(seen.load()[0, 0])
    same = looked_up([values], [0, 0], [1, 0], dtype=BY_NAME[np.dtype(kind).name])
    assert same.load().tobytes() == values[[1, 0]].tobytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_rows_in_any_pieces(data: Any) -> None:
    """Against dense indexing, bit for bit, whatever is read at once."""
    seed, width = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 5))
    random = np.random.default_rng(seed)
    heights = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    kinds = [random.choice([np.float32, np.float16]) for _ in heights]
    sources = [
        random.standard_normal((height, width)).astype(kind)
        for height, kind in zip(heights, kinds, strict=True)
    ]
    rows = data.draw(st.integers(1, 40))
    origin = random.integers(-3, len(sources), rows)
    number = np.array([random.integers(0, heights[s]) if s >= 0 else 0 for s in origin])
    members = np.array([[random.integers(0, height) for height in heights]])
    seen = looked_up(sources, origin.tolist(), number.tolist(), members)
    expected = dense(sources, origin, number, members, np.float32)
    assert seen.load().tobytes() == expected.tobytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, seen.size), max_size=5)))
    out = np.full(seen.size, np.nan, np.float32)
    for start, stop in zip([0, *cuts], [*cuts, seen.size], strict=True):
        seen.read(start, stop, out[start:stop])
    assert out.tobytes() == expected.tobytes()


@dataclass
class Watched:
    """An array that notes what is read of it."""

    data: Array
    reads: list[tuple[int, int]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    label: str = "watched"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.reads.append((offset, buffer.nbytes))
        np.frombuffer(buffer, np.uint8)[:] = self.data[offset : offset + buffer.nbytes]


def watched(values: Array) -> tuple[TensorInfo, Watched]:
    blob = Watched(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return TensorInfo("e", F32, values.shape, blob), blob


def test_what_is_not_asked_for_is_not_read() -> None:
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    info, blob = watched(values)
    number = np.array([999, 0, 1, 2, 500])
    seen = gathered("e", F32, (info,), np.zeros(5, np.int32), number)
    np.testing.assert_array_equal(seen.load(), values[number])
    assert sorted(blob.reads) == [(0, 48), (8000, 16), (15984, 16)]


def test_near_rows_are_read_in_one_go() -> None:
    values = np.arange(400, dtype=np.float32).reshape(100, 4)
    info, blob = watched(values)
    number = np.random.default_rng(0).permutation(100)[:60]
    seen = gathered("e", F32, (info,), np.zeros(60, np.int32), number)
    np.testing.assert_array_equal(seen.load(), values[number])
    assert len(blob.reads) == 1


def test_the_mean_of_all_is_taken_once_and_is_the_same_for_all_threads() -> None:
    values = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float32)
    info, blob = watched(values)
    origin = np.array([0] * 5000 + [REST] * 100, np.int32)
    seen = gathered("e", F32, (info,), origin, np.arange(5100))
    out = np.empty((100, 8), np.float32)

    def read(row: int) -> None:
        start = (5000 + row) * 8
        seen.read(start, start + 8, out[row])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(100)))
    assert (out == values.astype(np.float64).mean(axis=0).astype(np.float32)).all()
    assert sum(size for _, size in blob.reads) == values.nbytes


def test_only_means_and_nothing_else() -> None:
    seen = looked_up([np.ones((1, 2), np.float32)], [REST, REST], [0, 0])
    assert seen.load().tolist() == [[0, 0], [0, 0]]


def test_what_a_read_takes_is_said() -> None:
    values = np.zeros((20_000, 64), ml_dtypes.bfloat16)
    random = np.random.default_rng(0)
    for origin in (np.zeros(20_000, np.int32), random.integers(-3, 1, 20_000).astype(np.int32)):
        members = np.zeros((1, 1), np.int64)
        number = np.where(origin >= 0, random.permutation(20_000), 0)
        seen = gathered("e", F32, (stored(values),), origin, number, members)
        blob: Any = seen.blob
        out = np.empty(1 << 16, np.float32)
        seen.read(0, 10, out)  # imports
        tracemalloc.start()
        seen.read(0, out.size, out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < blob.working_bytes(out.size)


def test_sources_that_are_formed_count_what_forming_takes() -> None:
    one = stored(np.ones((2, 30), np.float32))
    formed = low_rank("e", one, stored(np.ones((50, 2), np.float32)), 1.0)
    number = np.array([49, 3])
    seen = gathered("e", F32, (formed,), np.zeros(2, np.int32), number)
    assert seen.load().tolist() == [[2.0] * 30] * 2
    plain = gathered("e", F32, (stored(formed.load()),), np.zeros(2, np.int32), number)
    blob, other = seen.blob, plain.blob
    assert isinstance(blob, Gathered)
    assert isinstance(other, Gathered)
    assert blob.working_bytes(60) > other.working_bytes(60)


def test_what_the_files_store_it_in() -> None:
    half, brain = np.ones((1, 1), np.float16), np.ones((1, 1), ml_dtypes.bfloat16)
    assert stored_dtype(looked_up([half, half], [0], [0])) == F16
    assert stored_dtype(looked_up([brain], [REST], [0])) == BF16
    assert stored_dtype(looked_up([half, brain], [0], [0])) == F32


def test_other_rows_have_another_key() -> None:
    one = np.ones((2, 1), np.float32)
    keys = set()
    for origin, number in (([0, 0], [0, 1]), ([0, 0], [1, 0]), ([0, ZERO], [0, 1])):
        blob = looked_up([one], origin, number).blob
        assert isinstance(blob, Gathered)
        keys.add(blob.key)
    assert len(keys) == 3
