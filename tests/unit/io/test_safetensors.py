"""The safetensors reader and writer against the real package."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from taskbasis.errors import FileError, MismatchError
from taskbasis.io.dtypes import BF16, BY_CODE, BY_NAME, F16, F32, F64, floating
from taskbasis.io.safetensors import make_header, read_safetensors
from taskbasis.io.tensors import TensorInfo

NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "C64": np.complex64,
}
SHAPES = [(), (1,), (0,), (7,), (3, 4), (2, 0, 5), (1, 1, 2, 3)]


def bits(code: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Every bit pattern is possible, NaN and infinity included."""
    dtype = np.dtype(NUMPY[code])
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(seed).bytes(count * dtype.itemsize)
    if code == "BOOL":
        return (np.frombuffer(raw, np.uint8) % 2).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_every_dtype_has_a_numpy_type_here() -> None:
    assert set(NUMPY) == set(BY_CODE)


@pytest.mark.parametrize("code", NUMPY)
def test_reads_what_the_real_package_wrote(tmp_path: Path, code: str) -> None:
    tensors = {f"t{at}": bits(code, shape, at) for at, shape in enumerate(SHAPES)}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path)
    store = read_safetensors(path)
    assert list(store) == sorted(tensors)
    for name, array in tensors.items():
        assert store[name].dtype.code == code
        assert store[name].size == array.size
        assert store[name].nbytes == array.nbytes
        assert_same(store[name].load(), array)
    assert store.nbytes == sum(array.nbytes for array in tensors.values())
    assert store.size == sum(array.size for array in tensors.values())


def test_reads_what_torch_wrote(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(4).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "flags": torch.tensor([True, False]),
        "steps": torch.tensor(9),
    }
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    store = read_safetensors(path)
    assert store.metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        raw = tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        assert store[name].load().tobytes() == raw
        assert store[name].shape == tuple(tensor.shape)


def test_unicode_names_and_metadata(tmp_path: Path) -> None:
    tensors = {name: bits("F32", (2,)) for name in ("größe", "重み.0", "a/b", "a b", "🙂", "")}
    metadata = {"schlüssel": "wert\n\x00\u2028", "format": "pt", "": ""}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata)
    store = read_safetensors(path)
    assert set(store) == set(tensors)
    assert store.metadata == metadata
    for name, array in tensors.items():
        assert_same(store[name].load(), array)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({}, path, {"note": "empty"})
    store = read_safetensors(path)
    assert len(store) == 0
    assert store.nbytes == 0
    assert store.metadata == {"note": "empty"}


def test_opening_reads_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": bits("F32", (5,))}, path)

    def refuse(*_: object) -> int:
        raise AssertionError("data was read")

    monkeypatch.setattr(os, "preadv", refuse)
    store = read_safetensors(path)
    assert store["a"].shape == (5,)
    with pytest.raises(AssertionError, match="data was read"):
        store["a"].load()


def test_pieces_of_a_tensor(tmp_path: Path) -> None:
    whole = bits("I16", (11,))
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"pad": bits("I8", (3,)), "a": whole}, path)
    info = read_safetensors(path)["a"]
    for start in range(12):
        for stop in range(start, 12):
            out = np.full(11, 99, np.int16)
            info.read(start, stop, out)
            assert out[: stop - start].tobytes() == whole[start:stop].tobytes()
            assert np.all(out[stop - start :] == 99)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bits("I16", (100,))
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": whole}, path)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
    assert_same(read_safetensors(path)["a"].load(), whole)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": bits("F32", (100,))}, path)
    store = read_safetensors(path)
    store["a"].read(0, 1, np.empty(1, np.float32))
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(FileError, match="ended 40 bytes early") as caught:
        store["a"].load()
    assert str(path) in str(caught.value)


def test_a_file_that_vanishes_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": bits("F32", (100,))}, path)
    store = read_safetensors(path)
    path.unlink()
    with pytest.raises(FileError, match="cannot be opened"):
        store["a"].load()


def test_a_file_that_is_replaced_before_it_is_read(tmp_path: Path) -> None:
    """Its bytes stand elsewhere: the old header's offsets would give numbers of no meaning."""
    path, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    for name, file in (("a", path), ("another name", other)):
        safetensors.numpy.save_file({name: bits("F32", (100,))}, file)
    os.utime(path, (1, 1))
    read, unread = read_safetensors(path), read_safetensors(path)
    before = read["a"].load()
    other.replace(path)
    with pytest.raises(FileError, match="was changed since it was opened") as caught:
        unread["a"].load()
    assert str(path) in str(caught.value)
    assert_same(read["a"].load(), before)


def test_a_missing_name_is_named_with_its_nearest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"encoder.weight": bits("F32", (1,))}, path)
    with pytest.raises(MismatchError, match=r"did you mean 'encoder\.weight'"):
        read_safetensors(path)["encoder.weigth"]


def written(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    header, offsets = make_header(
        [(name, BY_NAME[array.dtype.name], array.shape) for name, array in tensors.items()],
        metadata,
    )
    body = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(header + body)
    for name, array in tensors.items():
        at = offsets[name]
        assert path.read_bytes()[at : at + array.nbytes] == array.tobytes()


@pytest.mark.parametrize("code", NUMPY)
def test_the_real_package_reads_what_we_wrote(tmp_path: Path, code: str) -> None:
    tensors = {f"t{at}": bits(code, shape, at) for at, shape in enumerate(SHAPES)}
    path = tmp_path / "x.safetensors"
    written(path, tensors, {"format": "pt", "über": "ü"})
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "über": "ü"}
        assert sorted(file.keys()) == sorted(tensors)
        for name, array in tensors.items() if not code.startswith("F8") else ():
            assert_same(file.get_tensor(name), array)
    with safe_open(path, "pt") as file:
        for name, array in tensors.items():
            found = file.get_tensor(name)
            assert tuple(found.shape) == array.shape
            raw = found.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            assert raw == array.tobytes()


def test_odd_sizes_in_front_of_wide_types(tmp_path: Path) -> None:
    """Tensors follow one another without holes, so some begin at odd offsets."""
    tensors = {
        "flags": bits("BOOL", (3,)),
        "wide": bits("F64", (2,)),
        "byte": bits("U8", ()),
        "brain": bits("BF16", (5,)),
    }
    path = tmp_path / "x.safetensors"
    written(path, tensors, {})
    for found in (safetensors.numpy.load_file(path), safetensors.torch.load_file(path)):
        assert set(found) == set(tensors)
    for name, array in safetensors.numpy.load_file(path).items():
        assert_same(array, tensors[name])
    for name, array in tensors.items():
        assert_same(read_safetensors(path)[name].load(), array)


def test_the_data_is_aligned_and_the_header_is_as_documented() -> None:
    for length in range(70):
        header, offsets = make_header([("n" * length, F32, (1,))], {"k": "v"})
        assert len(header) % 64 == 0
        assert offsets == {"n" * length: len(header)}
        assert int.from_bytes(header[:8], "little") == len(header) - 8
        content = json.loads(header[8:])
        assert content["__metadata__"] == {"k": "v"}
        assert content["n" * length] == {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def test_no_metadata_no_key() -> None:
    assert b"__metadata__" not in make_header([("a", F32, ())], {})[0]


names = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
collections = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(NUMPY)), shapes, st.integers(0, 2**32 - 1)),
    max_size=6,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(collections, st.dictionaries(names, names, max_size=3))
def test_both_ways_over_shapes_and_dtypes(
    described: dict[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str]
) -> None:
    tensors = {name: bits(*described[name]) for name in described}
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs.safetensors", Path(folder) / "ours.safetensors"
        safetensors.numpy.save_file(tensors, theirs, metadata or None)
        store = read_safetensors(theirs)
        assert set(store) == set(tensors)
        assert store.metadata == metadata
        written(ours, tensors, metadata)
        found = dict(safetensors.deserialize(ours.read_bytes()))
        assert set(found) == set(tensors)
        for name, array in tensors.items():
            assert_same(store[name].load(), array)
            assert found[name]["dtype"] == BY_NAME[array.dtype.name].code
            assert tuple(found[name]["shape"]) == array.shape
            assert bytes(found[name]["data"]) == array.tobytes()
        own = read_safetensors(ours)
        assert {n: i.load().tobytes() for n, i in own.items()} == {
            n: a.tobytes() for n, a in tensors.items()
        }


def test_float_types_by_name() -> None:
    assert floating("float32") is F32
    assert floating("torch.float16") is F16
    assert floating("bfloat16") is BF16
    assert floating("float64") is F64
    assert F64.compute == np.float64
    assert BF16.compute == np.float32
    assert [d.code for d in BY_CODE.values() if d.mergeable] == ["F64", "F32", "F16", "BF16"]


@pytest.mark.parametrize("name", ["int64", "float8_e4m3fn", "bool", "flaot32", ""])
def test_other_types_are_no_float_type(name: str) -> None:
    with pytest.raises(Exception, match="is not a float type") as caught:
        floating(name)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]


def test_where_names_tensor_and_file(forge: Callable[..., Path]) -> None:
    path = forge({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcd")
    info: TensorInfo = read_safetensors(path)["a"]
    assert info.where == f"tensor 'a' of {path}"
