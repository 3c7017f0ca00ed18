"""Digests of tensors, found while their bytes are written, and the record that a file keeps.

A tensor's digest is XXH3 (128 bits) of ``name NUL dtype NUL shape NUL`` and then of the XXH3
digests of its blocks of 128 KiB, the last one shorter. Blocks are digested by whoever writes them,
in any order; sharding and the order of tensors change nothing. It tells accidents apart at the
speed of memory and is not meant to withstand an adversary.

Every file that is written says so of itself, in its metadata under ``taskbasis_digests``:

    {"format": "xxh3-128/1", "metadata": DIGEST, "tensors": {NAME: DIGEST, ...}}

where the first digest is of the other metadata. A folder with more than weights in it has
``taskbasis_digests.json`` as well:

    {"format": "xxh3-128/1", "files": {NAME: DIGEST, ...}, "weights": [NAME, ...]}

with the digests of those files, all but the README, which people edit, and the index, which is
compared with the weights themselves.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis.errors import HeaderError
from taskbasis.io.dtypes import DType

BLOCK = 1 << 17
FORMAT = "xxh3-128/1"
KEY = "taskbasis_digests"
FILE = "taskbasis_digests.json"
EDITED = ("README.md",)
_BLANK = "0" * 32


def digest(content: bytes | memoryview) -> str:
    """The digest of some bytes: 32 hexadecimal digits.

    >>> digest(b"taskbasis")
    'a79db6364ce9cd844cfd10147eebd0f3'
    """
    return xxhash.xxh3_128_hexdigest(content)


def block_digests(stretch: memoryview) -> bytes:
    """The digests of a stretch's blocks, 16 bytes each; it begins where a block does."""
    return b"".join(
        xxhash.xxh3_128_digest(stretch[at : at + BLOCK]) for at in range(0, stretch.nbytes, BLOCK)
    )


def tensor_digest(name: str, dtype: DType, shape: Iterable[int], blocks: Iterable[bytes]) -> str:
    """The digest of a tensor whose blocks' digests are given in order."""
    hasher = xxhash.xxh3_128(f"{name}\0{dtype.code}\0{list(map(int, shape))}\0".encode())
    for part in blocks:
        hasher.update(part)
    return hasher.hexdigest()


def blank_record(names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with a record as long as the one that is to come."""
    return with_record(dict.fromkeys(names, _BLANK), metadata)


def with_record(digests: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the record of the tensors' digests, and of the metadata itself."""
    content = {"format": FORMAT, "metadata": _of_strings(metadata), "tensors": dict(digests)}
    return {**metadata, KEY: json.dumps(content, separators=(",", ":"))}


def folder_record(files: Mapping[str, str], weights: Iterable[str]) -> bytes | None:
    """What a folder says of its files; None where nothing stands beside its weights."""
    kept = {name: files[name] for name in sorted(files) if name not in EDITED}
    if not kept:
        return None
    content = {"format": FORMAT, "files": kept, "weights": sorted(weights)}
    return (json.dumps(content, indent=2) + "\n").encode()


def _of_strings(metadata: Mapping[str, str]) -> str:
    return digest(json.dumps({k: v for k, v in sorted(metadata.items()) if k != KEY}).encode())


@dataclass(frozen=True)
class FileRecord:
    """What a file says of its tensors.

    Attributes:
        tensors: digests by name.
        intact: whether the rest of the metadata is as it was written.
    """

    tensors: Mapping[str, str]
    intact: bool


def read_record(path: Path, metadata: Mapping[str, str]) -> FileRecord | None:
    """What a file says of its tensors; None where it says nothing.

    Raises:
        HeaderError: the record is damaged, or of a later version.
    """
    if KEY not in metadata:
        return None
    content = _content(path, metadata[KEY])
    tensors = _digests(path, content.get("tensors"))
    return FileRecord(tensors, content.get("metadata") == _of_strings(metadata))


@dataclass(frozen=True)
class FolderRecord:
    """What a folder says of its files: digests of those beside the weights, and the weights."""

    files: Mapping[str, str]
    weights: tuple[str, ...]


def read_folder_record(path: Path, text: str) -> FolderRecord:
    """A folder's record, from the text of its file.

    Raises:
        HeaderError: the record is damaged, or of a later version.
    """
    content = _content(path, text)
    weights = content.get("weights")
    if not isinstance(weights, list) or not all(isinstance(name, str) for name in weights):
        raise HeaderError(f"{path}: the record of digests does not name the weights")
    return FolderRecord(_digests(path, content.get("files")), tuple(weights))


def _content(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{path}: the record of digests is damaged: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise HeaderError(
            f"{path}: the record of digests is of the format {str(found)[:40]!r}, this taskbasis "
            f"reads {FORMAT!r}"
        )
    return content


def _digests(path: Path, found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise HeaderError(f"{path}: the record of digests names none")
    return found


@dataclass
class _Tensor:
    """One tensor that is being written: its blocks' digests, and what is known of the others."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    done: dict[int, bytes] = field(default_factory=dict)
    parts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    doubted: set[int] = field(default_factory=set)

    def settle(self, number: int, found: bytes) -> None:
        """Note a block's digest, unless it is written a second time."""
        if number in self.done or number in self.doubted:
            self.doubt(number)
        else:
            self.done[number] = found

    def doubt(self, number: int) -> None:
        """Forget a block that was written twice: which came last is not known."""
        self.doubted.add(number)
        self.done.pop(number, None)


class Recorder:
    """Digests of tensors that are written in pieces, in any order, by any thread.

    A piece that holds a block whole is digested as it stands in memory. Smaller pieces are
    waited for: whoever writes the last of a block reads the block back, which by then stands in
    the page cache. Blocks that were written twice, or not by this process, are read at the end.

    Args:
        read: fills a buffer with the bytes of a tensor from an offset, as they were written.
    """

    def __init__(self, read: Callable[[str, int, memoryview], None]) -> None:
        self._read = read
        self._tensors: dict[str, _Tensor] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def expect(self, name: str, dtype: DType, shape: tuple[int, ...], nbytes: int) -> None:
        """Announce a tensor."""
        self._tensors[name] = _Tensor(dtype, shape, nbytes)

    def wrote(self, name: str, start: int, piece: memoryview) -> None:
        """Take note of bytes of a tensor that were just written, from its byte ``start`` on."""
        tensor, stop = self._tensors[name], start + piece.nbytes
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            block = (number * BLOCK, min((number + 1) * BLOCK, tensor.nbytes))
            low, high = max(block[0], start), min(block[1], stop)
            if (low, high) == block:
                found = xxhash.xxh3_128_digest(piece[low - start : high - start])
                with self._lock:
                    if number in tensor.parts:
                        tensor.doubt(number)
                    else:
                        tensor.settle(number, found)
            elif self._completes(tensor, number, (low, high), block):
                found = self._digest(name, *block)
                with self._lock:
                    tensor.settle(number, found)

    def _completes(
        self, tensor: _Tensor, number: int, part: tuple[int, int], block: tuple[int, int]
    ) -> bool:
        """Whether a block is whole by this part, each byte of it written once."""
        with self._lock:
            parts = tensor.parts.setdefault(number, [])
            parts.append(part)
            written = sum(high - low for low, high in parts)
            if written < block[1] - block[0] and number not in tensor.done:
                return False
            ordered = sorted(parts)
            touching = all(one[1] == next_[0] for one, next_ in itertools.pairwise(ordered))
            if written == block[1] - block[0] and touching and number not in tensor.done:
                return True
            tensor.doubt(number)
            return False

    def _digest(self, name: str, first: int, last: int) -> bytes:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty(BLOCK, np.uint8)
        buffer: NDArray[np.uint8] = self._local.buffer
        view = buffer[: last - first].data
        self._read(name, first, view)
        return xxhash.xxh3_128_digest(view)

    def digests(self) -> dict[str, str]:
        """The digests of all tensors announced, once everything is written."""
        return {name: self._whole(name, tensor) for name, tensor in self._tensors.items()}

    def _whole(self, name: str, tensor: _Tensor) -> str:
        blocks = []
        for number, first in enumerate(range(0, tensor.nbytes, BLOCK)):
            found = tensor.done.get(number)
            last = min(first + BLOCK, tensor.nbytes)
            blocks.append(self._digest(name, first, last) if found is None else found)
        return tensor_digest(name, tensor.dtype, tensor.shape, blocks)
