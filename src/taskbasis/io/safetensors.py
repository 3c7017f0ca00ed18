"""The safetensors format: read its header and refuse what cannot be vouched for; write one.

    8 bytes   N, the header's length, little-endian
    N bytes   JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
    the rest  the tensors' bytes, with neither holes nor overlaps

The package ``safetensors`` reads through a memory map and hands out fresh arrays. The engine
wants the offsets instead, to fill buffers it reuses; that is why the header is read here. What
is written is checked against that package in the tests.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, HeaderError
from taskbasis.io.dtypes import BY_CODE, DType
from taskbasis.io.header import parse_header
from taskbasis.io.regular import open_regular
from taskbasis.io.tensors import FileBlob, TensorInfo, TensorStore

HEADER_LIMIT = 100_000_000
_DIMENSIONS = 64
_LONGEST_NAME = 1000
_ADDRESSABLE = 2**63


def read_safetensors(path: Path) -> TensorStore:
    """Open one safetensors file; only its header is read.

    Raises:
        FileError: the file is missing or cannot be read.
        HeaderError: the header and the file disagree, in a sentence naming the tensor.
    """
    raw, seen = _header_bytes(path)
    data_start = 8 + len(raw)
    entries = parse_header(path, raw)
    metadata = read_metadata(path, entries.pop("__metadata__", {}))
    blob = FileBlob(path, seen)
    spans: list[tuple[int, int, str]] = []
    infos: dict[str, TensorInfo] = {}
    for name in sorted(entries):
        dtype, shape, begin, end = read_entry(path, name, entries[name])
        info = TensorInfo(name, dtype, shape, blob, data_start + begin)
        if info.nbytes != end - begin:
            raise HeaderError(
                f"{path}: tensor {name!r} of shape {list(shape)} and dtype {dtype.code} needs "
                f"{info.nbytes} bytes, but its offsets span {end - begin}"
            )
        infos[name] = info
        spans.append((begin, end, name))
    check_layout(path, spans, seen.st_size - data_start)
    return TensorStore(path, infos, metadata, (path,))


def _header_bytes(path: Path) -> tuple[bytes, os.stat_result]:
    descriptor, seen = open_regular(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            size = seen.st_size
            head = file.read(8)
            if len(head) < 8:
                raise HeaderError(f"{path}: {size} bytes are too few for a safetensors file")
            (length,) = struct.unpack("<Q", head)
            if length > HEADER_LIMIT:
                raise HeaderError(
                    f"{path}: the header claims {length} bytes, more than the format's limit of "
                    f"{HEADER_LIMIT}; this is not a safetensors file, or it is damaged"
                )
            if length > size - 8:
                raise HeaderError(
                    f"{path}: the header claims {length} bytes but the file ends after "
                    f"{size - 8}; it is truncated, copy it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    return raw, seen


def read_metadata(path: Path, value: object) -> dict[str, str]:
    """The file's own strings; HeaderError where they are something else."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise HeaderError(f"{path}: __metadata__ must map strings to strings")
    try:
        "".join(text for pair in value.items() for text in pair).encode()
    except UnicodeEncodeError:
        raise HeaderError(f"{path}: __metadata__ holds half a character") from None
    return value


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _possible(shape: list[Any], itemsize: int) -> bool:
    """Whether an array can have this shape: few dimensions, and strides that can be addressed."""
    if len(shape) > _DIMENSIONS or not all(map(_count, shape)):
        return False
    extent: int = math.prod(max(length, 1) for length in shape) * itemsize
    return extent < _ADDRESSABLE


def _short(value: object) -> str:
    """What a hostile header may fill with megabytes, in a few words."""
    return reprlib.repr(value)


def read_entry(path: Path, name: str, entry: object) -> tuple[DType, tuple[int, ...], int, int]:
    """Dtype, shape, first byte and the one after the last; HeaderError where they disagree."""
    if not name.isprintable():
        raise HeaderError(f"{path}: tensor name {_short(name)} holds control characters")
    if len(name) > _LONGEST_NAME:
        raise HeaderError(f"{path}: tensor name {_short(name)} has {len(name)} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(
            f"{path}: tensor {name!r} must have exactly dtype, shape and data_offsets"
        )
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in BY_CODE:
        raise HeaderError(f"{path}: tensor {name!r} has the unknown dtype {_short(code)}")
    if not isinstance(shape, list) or not _possible(shape, BY_CODE[code].itemsize):
        raise HeaderError(f"{path}: tensor {name!r} has the impossible shape {_short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_count, offsets)):
        raise HeaderError(f"{path}: tensor {name!r} has the impossible offsets {_short(offsets)}")
    begin, end = offsets
    if begin > end:
        raise HeaderError(f"{path}: tensor {name!r} ends at {end}, before it begins at {begin}")
    return BY_CODE[code], tuple(shape), begin, end


def check_layout(path: Path, spans: list[tuple[int, int, str]], available: int) -> None:
    """Refuse tensors that overlap, leave gaps or do not end where the file does (HeaderError)."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise HeaderError(f"{path}: tensor {name!r} begins at {begin} and {what}")
        position = end
    if position != available:
        state = "truncated" if position > available else "longer than its header says"
        raise HeaderError(
            f"{path}: the header describes {position} bytes of tensors but {available} are "
            f"there; the file is {state}"
        )


def make_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The bytes that open a safetensors file, and where each tensor's bytes then begin.

    The tensors are laid out in the order given, after a header padded so that the data starts
    at a multiple of 64 bytes.

    >>> from taskbasis.io.dtypes import F32
    >>> header, offsets = make_header([("a", F32, (2,)), ("b", F32, ())], {"format": "pt"})
    >>> len(header) % 64, offsets["b"] - offsets["a"]
    (0, 8)
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + TensorInfo(name, dtype, shape, _NOWHERE).nbytes
        entries[name] = {"dtype": dtype.code, "shape": list(shape), "data_offsets": [position, end]}
        offsets[name] = position
        position = end
    body = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    body += b" " * (-(len(body) + 8) % 64)
    start = 8 + len(body)
    return struct.pack("<Q", len(body)) + body, {name: start + at for name, at in offsets.items()}


_NOWHERE = FileBlob(Path("nowhere"))
