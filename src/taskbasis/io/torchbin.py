"""``.bin``, ``.pt`` and ``.pth`` files, through torch's weights-only loader.

Nothing but tensors and plain containers is ever unpickled: torch refuses the rest, and so do
we. The file is mapped where its format allows; the old non-zip format is loaded whole.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskbasis.errors import FileError, HeaderError, require
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.tensors import ArrayBlob, TensorInfo, TensorStore

if TYPE_CHECKING:
    import torch

_REPEATED = 1 << 26
"""Bytes up to which an expanded tensor (one stored row, many times) is laid out in memory."""


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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            raise FileError(
                f"{path}: holds more than tensors, or is damaged; loading it could run code, so "
                "it is refused. Convert it to safetensors where you trust it"
            ) from None
        except Exception as error:  # noqa: BLE001 - a damaged file can raise anything in torch
            failure = error
    reason = (str(failure).splitlines() or [type(failure).__name__])[0]
    raise FileError(f"{path}: is not a readable torch file: {reason}")


def _state_dict(path: Path, loaded: object) -> Mapping[str, Any]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise HeaderError(f"{path}: is not a state dict (names to tensors)")
    return loaded


def _info(torch: Any, path: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    if not name.isprintable() or name == "__metadata__":
        raise HeaderError(f"{path}: {name!r} cannot be the name of a tensor; rename it")
    code = str(tensor.dtype).removeprefix("torch.")
    if code not in BY_NAME or tensor.is_quantized:
        raise HeaderError(f"{path}: tensor {name!r} has the unsupported type {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise HeaderError(
            f"{path}: tensor {name!r} is stored as {tensor.layout} on {tensor.device}; "
            "save it as a dense tensor with values"
        )
    if tensor.nbytes > max(tensor.untyped_storage().nbytes(), _REPEATED):
        raise HeaderError(
            f"{path}: tensor {name!r} of shape {list(tensor.shape)} repeats fewer values than it "
            "has entries; save its .contiguous() copy"
        )
    # Torch calls tensors of one entry or none contiguous whatever their strides; these are set.
    flat = tensor.detach().resolve_conj().contiguous().as_strided((tensor.numel(),), (1,))
    blob = ArrayBlob(flat.view(torch.uint8).numpy(), str(path))
    return TensorInfo(name, BY_NAME[code], tuple(tensor.shape), blob, 0)
