"""Fixtures shared by the tests: checkpoints written the way other programs write them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.digest import fingerprint, tensor_digests
from taskbasis.engine import Engine
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import OutputTensor, Staged
from taskbasis.stored import VECTOR, encode

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """``write_folder(name, tensors, shards=1)``: a Hugging Face folder, by the real package."""

    def write(name: str, tensors: Arrays, shards: int = 1, **side: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        names = sorted(tensors)
        if shards == 1:
            save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        else:
            files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
            weight_map = {name: files[at % shards] for at, name in enumerate(names)}
            for file in files:
                part = {name: tensors[name] for name in names if weight_map[name] == file}
                save_file(part, folder / file, {"format": "pt"})
            index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for file_name, content in side.items():
            (folder / file_name).write_text(content)
        return folder

    return write


@pytest.fixture(scope="session")
def recorded_worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mergekit's recorded cases are merged from: a folder of worlds, each of models."""
    recorded = Path(__file__).parent / "reference" / "mergekit" / "inputs.safetensors"
    folder = tmp_path_factory.mktemp("worlds")
    models: dict[str, dict[str, Any]] = {}
    for name, tensor in safetensors.deserialize(recorded.read_bytes()):
        model, _, inner = name.rpartition("/")
        models.setdefault(model, {})[inner] = tensor
    for name, parts in models.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_as_they_are(parts))
    return folder


def _as_they_are(parts: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file of tensors whose dtypes NumPy has no names for: length, JSON header, bytes."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in parts.items():
        ends = [len(data), len(data) + len(tensor["data"])]
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": ends}
        data += bytes(tensor["data"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def open_folder(write_folder: Callable[..., Path]) -> Callable[..., TensorStore]:
    """Like ``write_folder``, but opened."""
    return lambda *args, **more: open_tensors(write_folder(*args, **more))


@pytest.fixture
def write_vector(tmp_path: Path) -> Callable[..., Path]:
    """``write_vector(name, base, deltas)``: a stored task vector bound to a base's store."""

    def write(name: str, base: TensorStore, deltas: Arrays) -> Path:
        path = tmp_path / f"{name}.safetensors"
        digests = tensor_digests(base.values(), Engine(workers=1))
        binding = {"name": str(base.path), "fingerprint": fingerprint(digests), "digests": digests}
        metadata = encode(VECTOR, {"base": binding, "dtype": "mixed", "made": []})
        save_file(dict(deltas), path, metadata)
        return path

    return write


@pytest.fixture
def forge(tmp_path: Path) -> Callable[..., Path]:
    """``forge(header, data)``: a safetensors file with any header, true or not."""

    def write(
        header: object, data: bytes = b"", length: int | None = None, name: str = "x.safetensors"
    ) -> Path:
        if isinstance(header, bytes):
            raw = header
        else:
            raw = (header if isinstance(header, str) else json.dumps(header)).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
        return path

    return write


@pytest.fixture
def stage() -> Callable[..., Path]:
    """``stage(out, tensors, **options)``: arrays written through the writer and committed."""

    def write(out: Path, tensors: Arrays, **options: Any) -> Path:
        outputs = [OutputTensor(n, BY_NAME[a.dtype.name], a.shape) for n, a in tensors.items()]
        with Staged(out, outputs, {"format": "pt"}, **options) as staged:
            for name, array in tensors.items():
                staged.write_array(name, array)
            staged.commit()
        return out

    return write


@pytest.fixture
def floats() -> Callable[..., NDArray[Any]]:
    """``floats(seed, shape, dtype, spread)``: normal numbers in any float type."""

    def draw(
        seed: int, shape: tuple[int, ...] | int, dtype: Any = np.float32, spread: float = 1.0
    ) -> NDArray[Any]:
        found = np.random.default_rng(seed).standard_normal(shape) * spread
        return np.asarray(found).astype(
            ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        )

    return draw


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """The names of hidden, half-written or retired entries in a folder."""
    return lambda folder: sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@pytest.fixture
def loaded_by() -> Callable[[str], set[str]]:
    """``loaded_by(code)``: all modules that a fresh interpreter has loaded after some code."""

    def names(code: str) -> set[str]:
        words = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split())

    return names
