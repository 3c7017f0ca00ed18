"""State dicts as stores and back: torch tensors or NumPy arrays, read as the bytes they are.

Torch is never imported here: a tensor of its can only come from a program that did.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, UsageError
from taskbasis.io.dtypes import BY_NAME, DType
from taskbasis.io.tensors import ArrayBlob, TensorInfo, TensorStore

State = Mapping[str, Any]
"""Names and torch tensors or NumPy arrays."""

_PIECE = 1 << 20


def store_of(state: State, label: str) -> TensorStore:
    """The tensors of a state dict, to be read like those of a file.

    Contiguous tensors on the CPU are read where they are; others are copied there first.

    Args:
        state: names and torch tensors or NumPy arrays of any float, integer or boolean type.
        label: what to call it in messages.

    Raises:
        UsageError: a name is not a text, or a value is not a plain tensor with values.

    >>> store_of({"w": np.ones(3, np.float32)}, "the base")["w"].where
    "tensor 'w' of the base"
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UsageError(f"{label} must be a state dict, names and tensors; got {_kind(state)}")
    infos = {name: _info(name, state[name], label) for name in sorted(state)}
    return TensorStore(Path(label), infos)


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor or a NumPy array."""
    return isinstance(value, np.ndarray) or _is_torch(value)


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _info(name: str, value: Any, label: str) -> TensorInfo:
    where = f"tensor {name!r} of {label}"
    if _is_torch(value):
        dtype, data = _torch_bytes(value, where)
    elif isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        dtype = _dtype(value.dtype.name, where)
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        data = np.ascontiguousarray(native).reshape(-1).view(np.uint8)
    else:
        raise UsageError(f"{where} is {_kind(value)}, not a torch tensor or a NumPy array")
    return TensorInfo(name, dtype, tuple(value.shape), ArrayBlob(data, label))


def _torch_bytes(value: Any, where: str) -> tuple[DType, NDArray[np.uint8]]:
    torch = sys.modules["torch"]
    if value.is_meta:
        raise UsageError(
            f"{where} is on the meta device: it has a shape but no values; load the weights first"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise UsageError(f"{where} is sparse, quantised or nested; give a dense tensor")
    dtype = _dtype(str(value.dtype).removeprefix("torch."), where)
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dtype, plain.reshape(-1).view(torch.uint8).numpy()


def _dtype(name: str, where: str) -> DType:
    if name not in BY_NAME:
        raise UsageError(f"{where} holds {name}, which no tensor file does; convert it first")
    return BY_NAME[name]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def like(array: NDArray[Any], model: Any) -> Any:
    """The array as what ``model`` is: a torch tensor on its device, or a NumPy array.

    >>> like(np.ones(2, np.float32), np.zeros(2, np.float32))
    array([1., 1.], dtype=float32)
    """
    if not _is_torch(model):
        return array
    torch = sys.modules["torch"]
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(model.dtype).reshape(model.shape).to(model.device)


def groups(state: State, names: Iterable[str]) -> list[list[str]]:
    """The names, those of one memory together: tied tensors, seen under several names.

    Tensors that share only a part of their memory are not tied.

    >>> w = np.ones(3)
    >>> groups({"a": w, "b": np.ones(3), "c": w}, "abc")
    [['a', 'c'], ['b']]
    """
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(_memory(name, state[name]), []).append(name)
    return list(found.values())


def _memory(name: str, value: Any) -> Hashable:
    """Where a tensor lies and how it is read; empty ones lie nowhere."""
    if _is_torch(value):
        place, steps, size = value.data_ptr(), value.stride(), value.numel()
    else:
        place, steps, size = value.__array_interface__["data"][0], value.strides, value.size
    if not size or not place:
        return name
    return (
        place,
        tuple(value.shape),
        tuple(steps),
        str(value.dtype),
        str(getattr(value, "device", "")),
    )


def tied_as_one(
    arrays: Mapping[str, NDArray[Any]], tied: Iterable[list[str]], label: str, advice: str
) -> None:
    """Refuse results that differ under the names of one memory, which can hold one of them only.

    Raises:
        MismatchError: naming both.
    """
    for first, *others in tied:
        for other in others:
            if not _same_bytes(arrays[first], arrays[other]):
                raise MismatchError(
                    f"{label} ties {first!r} and {other!r}, but they come out different; {advice}"
                )


def _same_bytes(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Whether two arrays hold the same bytes; piece by piece, since embeddings are large."""
    left, right = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (one, two))
    return left.size == right.size and all(
        np.array_equal(left[at : at + _PIECE], right[at : at + _PIECE])
        for at in range(0, left.size, _PIECE)
    )
