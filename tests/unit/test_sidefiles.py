"""Side files: which go with an output, what is changed in the config, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.errors import FileError
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.folder import open_tensors
from taskbasis.io.writer import OutputTensor, Staged
from taskbasis.sidefiles import RECIPE_FILE, copy_side_files, read_config

TENSORS = {"w": np.zeros(2, np.float32)}
Copy = Callable[..., tuple[str, ...]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Copy:
    """``copied(dtype=None, config=None, skip=())``: what was left; the rest is in ``out``."""

    def run(dtype: str | None = None, config: Any = None, **how: Any) -> tuple[str, ...]:
        outputs = [OutputTensor("w", BY_NAME["float32"], (2,))]
        with Staged(tmp_path / "out", outputs, {"format": "pt"}) as staged:
            staged.write_array("w", TENSORS["w"])
            named = BY_NAME[dtype] if dtype else None
            left = copy_side_files(open_tensors(base), staged, named, config, **how)
            staged.commit()
        return left

    return run


def written(out: Path) -> list[str]:
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    return sorted(found - {"taskbasis_digests.json"})


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_which_files_go_with_it(base: Path, copied: Copy, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "README.md", RECIPE_FILE, "notes.yml", ".hidden"):
        (base / name).write_text(f"text of {name}")
    (base / "original").mkdir()
    (base / "original" / "params.json").write_text("{}")
    (base / "original" / "model.pth").write_bytes(b"weights")
    others = ("pytorch_model.bin", "rust_model.ot", "64.tflite", "model.onnx_data")
    for name in others:
        (base / name).write_bytes(b"weights")
    (base / ".cache").mkdir()
    (base / ".cache" / "lock").write_text("")
    left = copied(skip=("notes.yml",))
    out = tmp_path / "out"
    assert written(out) == [
        "model.safetensors", "original/params.json", "tokenizer.json", "vocab.txt"
    ]  # fmt: skip
    assert (out / "vocab.txt").read_text() == "text of vocab.txt"
    assert set(left) >= {"README.md", *others, "original/model.pth"}
    assert RECIPE_FILE not in left


def test_modules_of_a_sentence_transformer_keep_their_weights(
    base: Path, copied: Copy, tmp_path: Path
) -> None:
    (base / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    for folder in ("2_Dense", "3_Other"):
        (base / folder).mkdir()
        save_file(TENSORS, base / folder / "model.safetensors")
    assert copied() == ("3_Other/model.safetensors",)
    assert "2_Dense/model.safetensors" in written(tmp_path / "out")


@pytest.mark.parametrize("modules", ["no JSON", "3", '[{"name": 1}]', "[" * 100_000])
def test_strange_modules_list_nothing(modules: str, base: Path, copied: Copy) -> None:
    (base / "modules.json").write_text(modules)
    assert copied() == ()


def test_another_config_takes_the_place_of_the_base_s(
    base: Path, copied: Copy, tmp_path: Path
) -> None:
    (base / "config.json").write_text('{"n_layer": 4, "torch_dtype": "float32"}')
    copied("bfloat16", {"n_layer": 6, "names": ["ä"], "torch_dtype": "float32"})
    wanted = {"n_layer": 6, "names": ["ä"], "torch_dtype": "bfloat16"}
    assert config_of(tmp_path / "out") == wanted


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_config_says_the_dtype(key: str, base: Path, copied: Copy, tmp_path: Path) -> None:
    (base / "config.json").write_text(json.dumps({key: "float32", "num_hidden_layers": 4}))
    copied("bfloat16")
    assert config_of(tmp_path / "out") == {key: "bfloat16", "num_hidden_layers": 4}


def test_keys_that_are_not_there_are_not_added(base: Path, copied: Copy, tmp_path: Path) -> None:
    (base / "config.json").write_text('{"a": 1, "n_layer": null}')
    copied("bfloat16")
    assert config_of(tmp_path / "out") == {"a": 1, "n_layer": None}


def test_a_config_that_needs_no_change_keeps_its_bytes(
    base: Path, copied: Copy, tmp_path: Path
) -> None:
    (base / "config.json").write_bytes(b'{ "dtype" :"float32"}')
    copied()
    assert (tmp_path / "out" / "config.json").read_bytes() == b'{ "dtype" :"float32"}'


@pytest.mark.parametrize(("raw", "said"), [
    (b"{", "is not valid JSON"),
    (b"\xff", "is not valid JSON"),
    (b"[" * 100_000, "is not valid JSON"),
    (b"[]", "is not a JSON object"),
    (b'{"dtype": "float16", "dtype": "float32"}', "names 'dtype' twice"),
])  # fmt: skip
def test_a_config_that_is_none(
    raw: bytes, said: str, base: Path, copied: Copy, tmp_path: Path, leftovers: Any
) -> None:
    (base / "config.json").write_bytes(raw)
    with pytest.raises(FileError, match=f"config.json: {said}"):
        copied("bfloat16")
    with pytest.raises(FileError, match=said):
        read_config(base)
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_a_config_as_it_is_read(base: Path) -> None:
    assert read_config(base) is None
    assert read_config(base / "model.safetensors") is None
    (base / "config.json").write_text('{"n_layer": 4}')
    assert read_config(base) == {"n_layer": 4}


def test_a_folder_behind_a_url(tmp_path: Path) -> None:
    """Its side files come along as those of a folder do."""
    fsspec = pytest.importorskip("fsspec")
    from taskbasis.io.remote import open_anywhere

    memory = fsspec.filesystem("memory")
    save_file(TENSORS, tmp_path / "w.safetensors")
    root = "/taskbasis-sidefiles"
    memory.pipe(f"{root}/model.safetensors", (tmp_path / "w.safetensors").read_bytes())
    memory.pipe(f"{root}/config.json", b'{"n_layer": 4}')
    memory.pipe(f"{root}/README.md", b"of the base")
    memory.pipe(f"{root}/tokenizer.json", b"{}")
    store = open_anywhere(f"memory:/{root}")
    with Staged(tmp_path / "out", [OutputTensor("w", BY_NAME["float32"], (2,))], {}) as staged:
        staged.write_array("w", TENSORS["w"])
        copy_side_files(store, staged, None, {"n_layer": 6})
        staged.commit()
    assert written(tmp_path / "out") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert config_of(tmp_path / "out") == {"n_layer": 6}
    assert read_config(store.path) == {"n_layer": 4}
    memory.rm(root, recursive=True)
