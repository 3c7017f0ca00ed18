"""``.bin``, ``.pt`` and ``.pth`` files, through torch's weights-only loader.

Nothing but tensors and plain containers is ever unpickled: torch refuses the rest, and so do
we. The file is mapped where its format allows; the old non-zip format is loaded whole.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskbasis.errors import FileError, HeaderError, require
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.tensors import ArrayBlob, TensorInfo, TensorStore

if TYPE_CHECKING:
    import torch


def read_torch(path: Path) -> TensorStore:
    """Open a torch state dict without unpickling anything but tensors.

    Tied tensors (one storage under several names) are each listed under their name.

    Raises:
        MissingExtraError: torch is not installed.
        FileError: the file is missing, damaged, or holds more than tensors.
        HeaderError: an entry is not a tensor or has a dtype that is not known.
    """
    torch = require("torch", "torch", f"reading {path.name}")
    infos: dict[str, TensorInfo] = {}
    for name, value in sorted(_state_dict(path, _load(torch, path)).items()):
        if not isinstance(value, torch.Tensor):
            raise HeaderError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save a plain state "
                "dict, or convert the file to safetensors"
            )
        infos[name] = _info(torch, path, name, value)
    return TensorStore(path, infos, {}, (path,))


def _load(torch: Any, path: Path) -> object:
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    failure: Exception | None = None
    for mapped in (True, False):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            raise FileError(
                f"{path}: holds more than tensors, or is damaged; loading it could run code, so "
                "it is refused. Convert it to safetensors where you trust it"
            ) from None
        except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            failure = error
    raise FileError(f"{path}: is not a readable torch file: {str(failure).splitlines()[0]}")


def _state_dict(path: Path, loaded: object) -> Mapping[str, Any]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise HeaderError(f"{path}: is not a state dict (names to tensors)")
    return loaded


def _info(torch: Any, path: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    code = str(tensor.dtype).removeprefix("torch.")
    if code not in BY_NAME or tensor.is_sparse or tensor.is_quantized:
        raise HeaderError(f"{path}: tensor {name!r} has the unsupported type {tensor.dtype}")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    blob = ArrayBlob(flat.numpy(), str(path))
    return TensorInfo(name, BY_NAME[code], tuple(tensor.shape), blob, 0)
