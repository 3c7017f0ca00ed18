"""Fingerprints: the same for the same tensors, however they are stored and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from taskbasis import digest
from taskbasis.digest import fingerprint, store_digests, tensor_digests
from taskbasis.engine import Engine
from taskbasis.io import digests
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import ArrayBlob, TensorInfo, TensorStore

TENSORS: dict[str, Any] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.float16),
    "c": np.array(3, np.int64),
    "d": np.empty((0, 2), np.float64),
    "e": np.arange(300, dtype=np.float64),
}


def info(name: str, array: NDArray[Any]) -> TensorInfo:
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return TensorInfo(name, BY_NAME[array.dtype.name], array.shape, ArrayBlob(raw))


def mark(tensors: dict[str, NDArray[Any]], workers: int = 1) -> str:
    infos = [info(name, array) for name, array in tensors.items()]
    return fingerprint(tensor_digests(infos, Engine(workers)))


def of(path: Path, workers: int = 1) -> str:
    return fingerprint(store_digests(open_tensors(path), Engine(workers)))


def test_it_is_independent_of_sharding(write_folder: Callable[..., Path]) -> None:
    marks = {of(write_folder(f"m{n}", TENSORS, n)) for n in (1, 2, 3, 5)}
    assert marks == {mark(TENSORS)}
    assert all(len(found) == 32 and int(found, 16) >= 0 for found in marks)


def test_it_is_independent_of_the_order() -> None:
    assert mark(TENSORS) == mark(dict(reversed(TENSORS.items())))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.promise("A fingerprint depends on names, types, shapes and numbers alone.")
def test_it_is_independent_of_workers_and_pieces(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest is defined by blocks of a fixed size; how many are read at once is free."""
    monkeypatch.setattr(digest, "BLOCK", 64)
    monkeypatch.setattr(digests, "BLOCK", 64)
    expected = mark(TENSORS)
    for pieces in (1, 2, 3, 100):
        monkeypatch.setattr(digest, "PIECE", pieces * digest.BLOCK)
        assert mark(TENSORS, workers) == expected


def test_torch_files_give_the_same(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    tensors = {n: torch.from_numpy(np.array(a)) for n, a in TENSORS.items()}
    torch.save(tensors, tmp_path / "zip.bin")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    turned = {**tensors, "a": tensors["a"].t().contiguous().t()}
    torch.save(turned, tmp_path / "turned.bin")
    expected = of(write_folder("m", TENSORS))
    assert {of(tmp_path / f"{n}.bin") for n in ("zip", "old", "turned")} == {expected}


def test_brain_floats_give_the_same(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    tensor = torch.randn(7).bfloat16()
    torch.save({"a": tensor}, tmp_path / "m.bin")
    array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    assert of(tmp_path / "m.bin") == of(write_folder("m", {"a": array}))


def test_it_is_read_once(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_tensors(write_folder("m", TENSORS))
    first = store_digests(store, Engine(1))

    def refuse(*_: object) -> dict[str, str]:
        raise AssertionError("read again")

    monkeypatch.setattr(digest, "tensor_digests", refuse)
    assert store_digests(store, Engine(1)) is first


def test_of_nothing() -> None:
    assert tensor_digests([], Engine(1)) == {}
    assert len(fingerprint({})) == 32


def test_of_several_megabytes() -> None:
    """Beyond one piece: a change in any block is seen."""
    array = np.zeros(9 << 20, np.uint8)
    before = mark({"a": array})
    for where in (0, (1 << 20) - 1, 1 << 20, (8 << 20) - 1, 8 << 20, len(array) - 1):
        array[where] = 1
        assert mark({"a": array}) != before
        array[where] = 0
    assert mark({"a": array}) == before == mark({"a": array}, 2)


dtypes = st.sampled_from(["f4", "f8", "f2", "i8", "u1"])
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.data(), dtypes, shapes, st.text("abc.", max_size=3))
def test_whatever_changes_is_seen(
    data: st.DataObject, dtype: str, shape: tuple[int, ...], name: str
) -> None:
    array = data.draw(arrays.arrays(dtype, shape))
    rest = {"other": np.ones(3, np.float32)}
    before = mark({name: array, **rest})
    assert before == mark({**rest, name: array.copy()})
    assert before != mark({name + "x": array, **rest})
    assert before != mark(rest)
    assert before != mark({name: array, **rest, "more": np.empty(0, np.float32)})
    same_size = {"f4": "i4", "f8": "i8", "f2": "i2", "i8": "f8", "u1": "i1"}[dtype]
    assert before != mark({name: array.view(same_size), **rest})
    assert before != mark({name: array[None], **rest})
    assert before != mark({name: array.reshape((*shape, 1)), **rest})
    if array.size:
        raw = bytearray(array.tobytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert before != mark({name: np.frombuffer(bytes(raw), dtype).reshape(shape), **rest})


def test_values_do_not_wander_between_tensors() -> None:
    one, two = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert mark({"a": one, "b": two}) != mark({"a": two, "b": one})
    whole = np.arange(6, dtype=np.float32)
    assert mark({"a": whole[:2], "b": whole[2:]}) != mark({"a": whole[:3], "b": whole[3:]})


def test_zero_has_a_sign_and_nan_a_payload() -> None:
    """Bytes count, not values."""
    assert mark({"a": np.array([0.0])}) != mark({"a": np.array([-0.0])})
    nan = np.array([np.nan])
    assert mark({"a": nan}) == mark({"a": nan.copy()})


def test_two_stores_of_one_path_are_read_apart(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS)
    before = of(folder)
    store = TensorStore(folder, {"a": info("a", np.ones(2, np.float32))})
    assert fingerprint(store_digests(store, Engine(1))) != before
    assert of(folder) == before
