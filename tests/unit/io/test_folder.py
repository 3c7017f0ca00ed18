"""Hugging Face folders: what is opened, and what is refused rather than guessed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from taskbasis.errors import FileError, HeaderError, TaskbasisError
from taskbasis.io import folder as folder_module
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.arange(4, dtype=np.float16),
    "c.scale": np.array(2.5, np.float64),
    "d.steps": np.array([7], np.int64),
    "e.none": np.empty((0, 3), np.float32),
}
INDEX = "model.safetensors.index.json"


def assert_holds(store: TensorStore, tensors: dict[str, Any] = TENSORS) -> None:
    assert list(store) == sorted(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(store[name].load(), array, strict=True)


def refused(path: Path, error: type[TaskbasisError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def index(folder: Path, weight_map: object, name: str = INDEX, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"weight_map": weight_map, **more}))
    return folder


def test_one_file(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, **{"config.json": "{}", "tokenizer.json": "{}"})
    store = open_tensors(str(folder))
    assert_holds(store)
    assert store.path == folder
    assert store.files == (folder / "model.safetensors",)
    assert store.metadata == {"format": "pt"}


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards(write_folder: Callable[..., Path], shards: int) -> None:
    store = open_tensors(write_folder("m", TENSORS, shards))
    assert_holds(store)
    assert len(store.files) == shards
    assert [f.name for f in store.files] == sorted({f.name for f in store.files})


def test_each_shard_is_opened_once(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder("m", {f"t{n}": np.ones(1, np.float32) for n in range(12)}, 3)
    opened: list[str] = []
    real = folder_module._reader

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(folder_module, "_reader", counting)
    open_tensors(folder)
    assert len(opened) == 3


def test_index_metadata_is_kept_where_it_is_text(tmp_path: Path) -> None:
    folder = index(tmp_path / "m", {"a": "s.safetensors"}, metadata={"total_size": 4, "note": "x"})
    save_file({"a": np.ones(1, np.float32)}, folder / "s.safetensors", {"format": "pt"})
    assert open_tensors(folder).metadata == {"format": "pt", "note": "x"}


@pytest.mark.parametrize("name", ["adapter", "diffusion_pytorch_model", "open_clip_model", "model"])
def test_one_file_of_any_name(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / f"{name}.safetensors")
    assert_holds(open_tensors(tmp_path))


def test_a_standard_name_wins_over_strangers(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "extra.safetensors")
    assert_holds(open_tensors(tmp_path))


def test_two_files_without_a_standard_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    refused(
        tmp_path, FileError, r"2 weight files and no index \(one.safetensors, two.safetensors\)"
    )


def test_shards_whose_index_was_lost(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    (folder / INDEX).unlink()
    refused(folder, FileError, "no index")


def test_two_standard_names(tmp_path: Path) -> None:
    for name in ("model", "pytorch_model"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    refused(tmp_path, FileError, "2 weight files")


def test_a_stale_index_beside_a_single_file(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    save_file(TENSORS, folder / "model.safetensors")
    refused(folder, FileError, "one of them is stale")


def test_two_indexes(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    (folder / "other.safetensors.index.json").write_text((folder / INDEX).read_text())
    refused(folder, FileError, "2 indexes")


def test_safetensors_are_preferred_to_torch(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS)
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    assert_holds(open_tensors(folder))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
        (tmp_path / name).write_bytes(b"not read")
    assert_holds(open_tensors(tmp_path), {"a": np.ones(2, np.float32)})


def test_torch_shards(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index(
        tmp_path,
        {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"},
        "pytorch_model.bin.index.json",
    )
    assert_holds(open_tensors(tmp_path), {"a": np.ones(2, "f4"), "b": np.zeros(3, "f4")})


def test_a_missing_shard(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, FileError, r"shard model-00002-of-00002\.safetensors is missing")


def test_a_shard_with_strangers(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    content = json.loads((folder / INDEX).read_text())
    del content["weight_map"]["b.bias"]
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(HeaderError, match=r"does not place there, e\.g\. 'b\.bias'") as caught:
        open_tensors(folder)
    assert "model-00002-of-00002.safetensors" in str(caught.value)


def test_a_tensor_in_the_wrong_shard(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, 2)
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"]["b.bias"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(content))
    refused(folder, HeaderError, r"places 'b\.bias' in model-00001-of-00002\.safetensors")


def test_one_name_in_two_shards(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", {"a": np.ones(1, "f4"), "b": np.ones(1, "f4")}, 2)
    both = {"a": np.zeros(1, "f4"), "b": np.ones(1, "f4")}
    save_file(both, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(HeaderError, match=r"e\.g\. 'a'"):
        open_tensors(folder)


@pytest.mark.parametrize(
    "where",
    [
        "../m.safetensors",
        "sub/../../m.safetensors",
        "/etc/passwd",
        "{tmp}/m.safetensors",
        "..\\m.safetensors",
        "",
        ".",
        "m\0.safetensors",
        "\ud800.safetensors",
        "m\n.safetensors",
    ],
)
def test_an_index_that_points_outside(tmp_path: Path, where: str) -> None:
    save_file({"a": np.ones(1, "f4")}, tmp_path / "m.safetensors")
    folder = index(tmp_path / "m", {"a": where.format(tmp=tmp_path)})
    refused(folder, HeaderError, "outside its folder")


@pytest.mark.parametrize("where", ["m" * 5000 + ".safetensors", "sub", "no/such.safetensors"])
def test_an_index_that_names_no_file(tmp_path: Path, where: str) -> None:
    folder = index(tmp_path / "m", {"a": where})
    (folder / "sub").mkdir()
    refused(folder, FileError, "is missing")


def test_an_index_that_names_another_kind_of_file(tmp_path: Path) -> None:
    folder = index(tmp_path / "m", {"a": "config.json"})
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileError, match=r"config\.json: is neither"):
        open_tensors(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": "m.safetensors"',
        '{"weight_map": ' + "9" * 5000 + "}",
        '{"weight_map": ' + "[" * 100_000,
        b'{"weight_map": {"\xff": "m.safetensors"}}',
    ],
)
def test_an_index_that_is_none(tmp_path: Path, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / INDEX).write_bytes(raw)
    refused(tmp_path, HeaderError, "index.json: ")


def test_an_adapter(write_folder: Callable[..., Path]) -> None:
    folder = write_folder("m", TENSORS, **{"adapter_config.json": "{}"})
    refused(folder, FileError, "PEFT adapter")


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, FileError, "holds no weights.*it is empty")


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    refused(tmp_path, FileError, r"holds no weights.*found: model\.gguf")


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "none", FileError, "no such file or folder")
    refused(tmp_path / ("n" * 5000), FileError, "no such file or folder")


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("hello")
    refused(path, FileError, "is neither a folder")


def test_links_are_followed_as_hub_caches_need(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder("blobs", TENSORS)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert_holds(open_tensors(snapshot))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(FileError, match=r"model\.safetensors: cannot be opened"):
        open_tensors(snapshot)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="is not a file"):
        open_tensors(tmp_path)
    with pytest.raises(FileError, match="is not a file"):
        open_tensors(tmp_path / "model.safetensors")
