"""Torch files: weights only, and never code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.errors import FileError, HeaderError, MissingExtraError
from taskbasis.io.folder import open_tensors
from taskbasis.io.torchbin import read_torch

Save = Callable[[Any], Path]


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    def write(content: Any) -> Path:
        path = tmp_path / "model.bin"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return write


def refused(path: Path, match: str, error: type[Exception] = HeaderError) -> None:
    with pytest.raises(error, match=match) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1  # type: ignore[attr-defined]


def test_every_dtype(save: Save) -> None:
    tensors = {
        "f64": torch.randn(3, 2, dtype=torch.float64),
        "f32": torch.randn(3, 2),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(5).bfloat16(),
        "i64": torch.arange(3),
        "i32": torch.arange(3, dtype=torch.int32),
        "i16": torch.arange(3, dtype=torch.int16),
        "i8": torch.arange(3, dtype=torch.int8),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "c64": torch.randn(2, dtype=torch.complex64),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
    }
    store = open_tensors(save(tensors))
    assert list(store) == sorted(tensors)
    for name, tensor in tensors.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert store[name].load().tobytes() == raw
        assert store[name].shape == tuple(tensor.shape)
        assert store[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert store["bf16"].load().dtype == ml_dtypes.bfloat16


def test_float8_is_carried(tmp_path: Path) -> None:
    tensor = torch.randn(5).to(torch.float8_e4m3fn)
    torch.save({"f8": tensor}, tmp_path / "model.bin")  # the old format cannot hold it
    found = open_tensors(tmp_path)["f8"].load()
    assert found.dtype == ml_dtypes.float8_e4m3fn
    assert found.tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_tied_tensors_are_listed_under_each_name(save: Save) -> None:
    shared = torch.randn(4, 3)
    store = open_tensors(save({"embed": shared, "head": shared, "row": shared[1]}))
    assert list(store) == ["embed", "head", "row"]
    for name, expected in (("embed", shared), ("head", shared), ("row", shared[1])):
        np.testing.assert_array_equal(store[name].load(), expected.numpy())


def test_tensors_that_are_not_contiguous(save: Save) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "transposed": whole.t(),
        "strided": whole[:, ::2],
        "column": whole[:, 3],
        "expanded": whole[:1].expand(3, 6),
        "offset": whole[2:],
        "one of a stride": whole[1, ::3][:1],
        "none of a stride": torch.from_numpy(np.empty(0, np.float32)),
        "none of several": whole[:0, ::2],
    }
    store = open_tensors(save(views))
    for name, view in views.items():
        np.testing.assert_array_equal(store[name].load(), view.numpy())


def test_lazy_conjugates_and_signs(save: Save) -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    store = open_tensors(
        save({"conjugate": numbers.conj(), "imaginary": numbers.clone().conj().imag})
    )
    np.testing.assert_array_equal(store["conjugate"].load(), np.array([1 - 2j, 3 + 4j], "c8"))
    np.testing.assert_array_equal(store["imaginary"].load(), np.array([-2, 4], "f4"))


def test_parameters_and_ordered_dicts(save: Save) -> None:
    store = open_tensors(save(torch.nn.Linear(2, 3).state_dict()))
    assert {name: info.shape for name, info in store.items()} == {"bias": (3,), "weight": (3, 2)}
    assert open_tensors(save({"p": torch.nn.Parameter(torch.ones(2))}))["p"].shape == (2,)


def test_a_state_dict_within(save: Save) -> None:
    store = open_tensors(save({"state_dict": {"a": torch.ones(2)}, "epoch": 3, "name": "x"}))
    assert list(store) == ["a"]


def test_entries_that_are_no_tensors(save: Save) -> None:
    refused(save({"a": torch.ones(2), "epoch": 3}), "'epoch' is a int, not a tensor")


@pytest.mark.parametrize("content", [[torch.ones(1)], {1: torch.ones(1)}, 5])
def test_what_is_no_state_dict(save: Save, content: object) -> None:
    refused(save(content), "is not a state dict")


def test_a_tensor_alone(save: Save) -> None:
    refused(save(torch.ones(1)), "is not a state dict")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.ones(2, dtype=torch.complex128), "unsupported type torch.complex128"),
        (lambda: torch.zeros(1).expand(2**45), "repeats fewer values"),
    ],
)
def test_tensors_that_cannot_be_read(
    save: Save, tensor: Callable[[], torch.Tensor], match: str
) -> None:
    refused(save({"a": tensor()}), match)


@pytest.mark.parametrize("name", ["a\n", "a\0b", "__metadata__", "\ud800"])
def test_names_that_no_output_could_carry(save: Save, name: str) -> None:
    refused(save({name: torch.ones(1)}), "cannot be the name of a tensor")


class Bomb:
    """Runs a command when it is unpickled by anything that trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(save: Save, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = save({"a": torch.ones(2), "b": Bomb(marker)})
    torch.load(path, weights_only=False)
    assert marker.exists(), "the bomb must work for this test to mean anything"
    marker.rmdir()
    refused(path, "could run code", FileError)
    assert not marker.exists()


def test_a_plain_pickle_that_runs_code(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"a": Bomb(marker)}))
    pickle.loads(path.read_bytes())
    assert marker.exists()
    marker.rmdir()
    with pytest.raises(FileError, match=r"model\.bin"):
        open_tensors(path)
    assert not marker.exists()


def test_a_bomb_in_a_zip_of_its_own_making(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(marker), protocol=2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(FileError, match=r"model\.bin"):
        open_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 1, 2, 10, 0.5, 0.9, -1])
def test_truncated(save: Save, kept: float) -> None:
    path = save({"a": torch.arange(100.0), "b": torch.ones(3)})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if 0 < kept < 1 else int(kept)])
    refused(path, "model.bin", FileError)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.data())
def test_damage_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    new = data.draw(st.booleans())
    torch.save({"a": torch.arange(9.0)}, path, _use_new_zipfile_serialization=new)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(bytes(raw))
    message = str(path)
    try:
        store = open_tensors(path)
    except FileError as error:
        message, store = str(error), {}
    for info in store.values():
        assert info.load().shape == info.shape
    assert str(path) in message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_torch(tmp_path / "none.bin")


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(1)}, path)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'taskbasis\[torch\]'"):
        open_tensors(path)
