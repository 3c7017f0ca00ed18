"""Products of two factors: the same bits however they are read, and never laid out whole."""

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

from taskbasis.digest import tensor_digests
from taskbasis.engine import Engine
from taskbasis.errors import HeaderError
from taskbasis.io.dtypes import BY_CODE, BY_NAME, F32
from taskbasis.io.lowrank import LowRank, low_rank, product
from taskbasis.io.tensors import ArrayBlob, TensorInfo

Array = NDArray[Any]


def stored(name: str, array: Array) -> TensorInfo:
    dtype = BY_NAME[array.dtype.name]
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return TensorInfo(name, dtype, array.shape, ArrayBlob(raw, "adapter file"))


def tensor(down: Array, up: Array, scaling: float = 1.0, transposed: bool = False) -> TensorInfo:
    return low_rank("w", stored("A", down), stored("B", up), scaling, transposed)


def random_pair(out: int, rank: int, width: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    down = rng.standard_normal((rank, width)).astype(np.float32)
    return down, rng.standard_normal((out, rank)).astype(np.float32)


def by_steps(up: Array, down: Array) -> NDArray[np.float32]:
    """The product, its terms added one rank after the other in float64, then rounded."""
    total = np.zeros((up.shape[0], down.shape[1]))
    for k in range(up.shape[1]):
        total = total + up[:, k, None].astype(np.float64) * down[k].astype(np.float64)
    return total.astype(np.float32)


def pieces(info: TensorInfo, cuts: list[int]) -> Array:
    out = np.full(info.size, np.nan, np.float32)
    for start, stop in zip([0, *cuts], [*cuts, info.size], strict=True):
        info.read(start, stop, out[start:stop])
    return out


def test_an_example_by_hand() -> None:
    info = tensor(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0], [100.0]]), scaling=0.5)
    assert (info.name, info.dtype, info.shape) == ("w", F32, (2, 3))
    assert info.load().tolist() == [[5, 10, 15], [50, 100, 150]]
    assert info.where == "tensor 'w' of adapter file"


def test_transposed_is_the_same_matrix_turned() -> None:
    down, up = np.array([[1.0, 2.0, 3.0]]), np.array([[10.0], [100.0]])
    info = tensor(down, up, 0.5, transposed=True)
    assert info.shape == (3, 2)
    assert info.load().tolist() == [[5, 50], [10, 100], [15, 150]]


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 7, 8, 9, 16])
@pytest.mark.parametrize("width", [1, 2, 33, 1023, 1024, 1025, 2600])
def test_the_loop_equals_its_numpy_expression_bit_for_bit(rank: int, width: int) -> None:
    down, up = random_pair(3, rank, width, seed=rank * width)
    expected = by_steps(up, down).ravel()
    for skip in {0, 1, width // 2, width - 1} & set(range(width)):
        for size in {0, 1, width, 2 * width + 1} & set(range(3 * width - skip + 1)):
            out = np.full(size, np.nan, np.float32)
            rows = -(-(skip + size) // width)
            product(up[:rows].astype(np.float64), down.astype(np.float64), skip, out)
            np.testing.assert_array_equal(out, expected[skip : skip + size])


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("rank", [10, 11])
def test_the_terms_are_added_in_the_order_of_the_rank(first: int, rank: int) -> None:
    """1, 1e17, -1e17 make 0, and 1e17, -1e17, 1 make 1: another order shows even in float32."""
    terms = np.zeros((rank, 1))
    terms[0], terms[first], terms[first + 1] = 1, 1e17, -1e17
    out = np.empty(2, np.float32)
    product(np.ones((2, rank)), np.hstack([terms, terms[::-1]]), 0, out)
    assert out.tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 40)),
    transposed=st.booleans(),
    data=st.data(),
)
def test_no_cut_changes_a_bit(
    shape: tuple[int, int, int], transposed: bool, data: st.DataObject
) -> None:
    info = tensor(*random_pair(*shape, seed=sum(shape)), 1.7, transposed)
    cuts = sorted(data.draw(st.lists(st.integers(0, info.size), max_size=6)))
    whole = pieces(info, [])
    np.testing.assert_array_equal(pieces(info, cuts), whole)
    down, up = (f.astype(np.float64) for f in random_pair(*shape, seed=sum(shape)))
    dense = 1.7 * up @ down
    np.testing.assert_allclose(
        whole.reshape(info.shape), dense.T if transposed else dense, rtol=2e-7, atol=1e-6
    )


def test_cuts_across_panels_change_no_bit() -> None:
    info = tensor(*random_pair(5, 6, 3000))
    whole = pieces(info, [])
    for cuts in ([1], [2999, 3000, 3001], [1024, 2048, 5000, 5001, 14_999], [1500, 9000]):
        np.testing.assert_array_equal(pieces(info, cuts), whole)


@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_are_read_as_elements_are(transposed: bool) -> None:
    """Digests read bytes through the blob; they must see what the kernels see."""
    info = tensor(*random_pair(7, 3, 11), 2.0, transposed)
    dense = stored("w", info.load())
    engine = Engine(workers=1)
    assert tensor_digests([info], engine) == tensor_digests([dense], engine)
    part = np.empty(9, np.float32)
    info.blob.read_into(5 * 4, part.view(np.uint8).data)
    np.testing.assert_array_equal(part, info.load().ravel()[5:14])


def test_terms_are_added_in_float64_and_rounded_once() -> None:
    """In float32 the 1 would vanish beside 1e8, and 3 * (1 / 3) would be rounded twice."""
    info = tensor(np.ones((3, 1), np.float32), np.array([[1e8, 1, -1e8]], np.float32))
    assert info.load().item() == 1.0
    scaled = tensor(np.array([[3.0]], np.float32), np.array([[7.0]], np.float32), 1 / 3)
    assert scaled.load().item() == 7.0


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_factors_of_every_float_type(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    down, up = (factor.astype(dtype) for factor in random_pair(4, 5, 6))
    np.testing.assert_array_equal(tensor(down, up).load(), by_steps(up, down))


def test_factors_of_two_types() -> None:
    down, up = random_pair(4, 5, 6)
    mixed = tensor(down.astype(np.float16), up.astype(np.float64))
    np.testing.assert_array_equal(mixed.load(), by_steps(up, down.astype(np.float16)))


def test_a_convolution_is_a_matrix_of_its_first_axis_and_the_rest() -> None:
    rng = np.random.default_rng(1)
    down, up = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((6, 2, 1, 1))
    info = tensor(down, up, 3.0)
    assert info.shape == (6, 3, 4, 5)
    expected = 3.0 * np.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    np.testing.assert_allclose(info.load(), expected, rtol=1e-6, atol=1e-6)
    left, right = lowrank_of(info).factors()
    assert (left.shape, right.shape) == ((6, 2), (2, 60))


def lowrank_of(info: TensorInfo) -> LowRank:
    assert isinstance(info.blob, LowRank)
    return info.blob


@pytest.mark.parametrize("transposed", [False, True])
def test_the_factors_carry_scaling_and_transposition(transposed: bool) -> None:
    down, up = random_pair(5, 2, 7)
    info = tensor(down, up, 0.25, transposed)
    left, right = lowrank_of(info).factors()
    assert (left.dtype, right.dtype) == (np.float64, np.float64)
    assert (left.shape, right.shape) == ((info.shape[0], 2), (2, info.shape[1]))
    np.testing.assert_array_equal(info.load(), by_steps(left, right))
    dense = 0.25 * up.astype(np.float64) @ down
    np.testing.assert_allclose(left @ right, dense.T if transposed else dense, rtol=1e-6, atol=1e-7)


@dataclass
class Watched:
    """A blob that says which bytes were read."""

    blob: ArrayBlob
    reads: list[tuple[int, int]] = field(default_factory=list)
    label: str = "watched"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, buffer.nbytes))
        self.blob.read_into(offset, buffer)


def test_opening_reads_nothing_and_a_read_only_the_rows_it_needs() -> None:
    down, up = random_pair(1000, 2, 10)
    a, b = stored("A", down), stored("B", up)
    blobs = [Watched(info.blob) for info in (a, b)]  # type: ignore[arg-type]
    a, b = (
        TensorInfo(i.name, i.dtype, i.shape, blob) for i, blob in zip((a, b), blobs, strict=True)
    )
    info = low_rank("w", a, b, 1.0)
    assert blobs[0].reads == blobs[1].reads == []
    info.read(305, 325, np.empty(20, np.float32))
    assert blobs[1].reads == [(30 * 2 * 4, 3 * 2 * 4)]  # rows 30, 31 and 32 of B
    assert blobs[0].reads == [(0, 2 * 10 * 4)]
    for blob in blobs:
        blob.reads.clear()
    turned = low_rank("w", a, b, 1.0, transposed=True)
    turned.read(3000, 5000, np.empty(2000, np.float32))  # rows 3 and 4: columns of A
    assert blobs[0].reads == [(3 * 4, 2 * 4), (13 * 4, 2 * 4)]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tensor_larger_than_any_memory_is_read_in_pieces(transposed: bool) -> None:
    """A million squared in float32 would be 4 TB; its factors are 8 MB."""
    million = 1_000_000
    down = np.arange(million, dtype=np.float32)[None]
    up = np.arange(million, dtype=np.float32)[:, None]
    info = tensor(down, up, 1.0, transposed)
    assert info.nbytes == 4 * million**2
    size = 1 << 16
    out, start = np.empty(size, np.float32), 3 * million + 5
    info.read(0, 1, out)  # compiled before memory is counted
    tracemalloc.start()
    try:
        info.read(start, start + size, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expected = (3.0 * np.arange(5, 5 + size)).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    assert peak < lowrank_of(info).working_bytes(size) < 25_000_000


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 300)),
    transposed=st.booleans(),
    share=st.floats(0.01, 1),
)
def test_the_bound_of_memory_holds(
    shape: tuple[int, int, int], transposed: bool, share: float
) -> None:
    info = tensor(*random_pair(*shape), 1.0, transposed)
    size = max(int(info.size * share), 1)
    out = np.empty(size, np.float32)
    info.read(0, size, out)
    tracemalloc.start()
    try:
        info.read(0, size, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= lowrank_of(info).working_bytes(size) + 8192  # the interpreter's own


def test_threads_read_at_once() -> None:
    info = tensor(*random_pair(60, 5, 700), 1.5)
    whole = info.load().ravel()
    barrier = threading.Barrier(4)

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(40):
            start, stop = sorted(rng.integers(0, info.size, 2))
            out = np.empty(stop - start, np.float32)
            info.read(start, stop, out)
            if not np.array_equal(out, whole[start:stop]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_reading_nothing_is_allowed() -> None:
    info = tensor(*random_pair(2, 1, 2))
    info.read(2, 2, np.empty(0, np.float32))
    info.blob.read_into(8, np.empty(0, np.uint8).data)


def test_values_too_large_for_float32_show_as_infinite_without_a_warning() -> None:
    info = tensor(np.array([[1e30]], np.float32), np.array([[1e30], [-1e30]], np.float32))
    assert info.load().ravel().tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    ("down", "up", "transposed", "match"),
    [
        (np.ones((2, 3)), np.ones((4, 3)), False, r"'B' .* \[4, 3\] and 'A' has \[2, 3\]"),
        (np.ones((2, 3)), np.ones((2, 4)), False, r"\[2, 4\] and 'A' has \[2, 3\]"),
        (np.ones(3), np.ones((4, 1)), False, r"'A' .* shape \[3\], but a factor is a matrix"),
        (np.ones((1, 3)), np.ones(4), False, r"'B' .* shape \[4\], but a factor is a matrix"),
        (np.ones((0, 3)), np.ones((4, 0)), False, "sharded"),
        (np.ones((2, 3)), np.ones((0, 2)), False, "sharded"),
        (np.ones((2, 0)), np.ones((4, 2)), False, "sharded"),
        (np.ones((2, 3, 3, 3)), np.ones((4, 2)), False, "with a kernel"),
        (np.ones((2, 3)), np.ones((4, 2, 1, 1)), False, "with a kernel"),
        (np.ones((2, 3, 3)), np.ones((4, 2, 3)), False, "with a kernel"),
        (np.ones((2, 3, 1)), np.ones((4, 2, 1)), True, "with a kernel"),
        (np.ones((2, 3), np.int32), np.ones((4, 2)), False, "holds int32, but factors are floats"),
        (np.ones((2, 3)), np.ones((4, 2), bool), False, "holds bool, but factors are floats"),
    ],
)
def test_what_are_no_factors(down: Array, up: Array, transposed: bool, match: str) -> None:
    with pytest.raises(HeaderError, match=match) as caught:
        tensor_of(down, up, transposed)
    assert "adapter file" in str(caught.value)


def tensor_of(down: Array, up: Array, transposed: bool) -> TensorInfo:
    def info(name: str, array: Array) -> TensorInfo:
        code = {"bool": "BOOL", "int32": "I32"}.get(array.dtype.name, "F64")
        return TensorInfo(
            name, BY_CODE[code], array.shape, ArrayBlob(np.empty(0, np.uint8), "adapter file")
        )

    return low_rank("w", info("A", down), info("B", up), 1.0, transposed)
