"""Named tensors somewhere, known by their headers and read piece by piece.

:class:`TensorInfo` says what a tensor is and where its bytes stand; a :class:`Blob` is anything
that can fill a buffer from an offset (a file, an array in memory, a seeded generator), so that
everything above reads in one way.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, MismatchError, nearest
from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.regular import open_regular


class Blob(Protocol):
    """Bytes that can be read from any offset, by several threads at once."""

    @property
    def label(self) -> str:
        """What to call it in a message, usually a path."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes that start at ``offset``, or raise FileError."""


@runtime_checkable
class Forming(Protocol):
    """A blob whose bytes are computed as they are read, which takes room beside the buffer."""

    def working_bytes(self, size: int) -> int:
        """An upper bound of that room for one read of ``size`` entries."""


class FileBlob:
    """A file, read with ``pread`` into the caller's buffer: nothing is mapped, nothing kept.

    It is opened when it is first read. Where ``seen`` says what its header was read from, another
    file or one of another size or time of change is refused: the header's offsets are not its own.
    """

    def __init__(self, path: Path, seen: os.stat_result | None = None) -> None:
        self.path = path
        self._seen = seen
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                found, now = open_regular(self.path)
                if self._seen and _state(self._seen) != _state(now):
                    os.close(found)
                    raise FileError(f"{self.path}: was changed since it was opened; open it again")
                self._descriptor = found  # only now: other threads read it without the lock
            return self._descriptor

    def read_into(self, offset: int, buffer: memoryview) -> None:
        descriptor = self._descriptor if self._descriptor is not None else self._open()
        done, size = 0, buffer.nbytes
        while done < size:
            try:
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise FileError(f"{self.path}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise FileError(
                    f"{self.path}: ended {size - done} bytes early while it was being read"
                )
            done += count
        if self._seen and _state(self._seen) != _state(os.fstat(descriptor)):
            raise FileError(f"{self.path}: was changed while it was being read; start again")

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class ArrayBlob:
    """An array in memory, as bytes."""

    data: NDArray[np.uint8]
    label: str = "memory"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        piece = self.data[offset : offset + buffer.nbytes]
        np.frombuffer(buffer, np.uint8)[:] = piece


@dataclass(frozen=True)
class Unmade:
    """The bytes of what is yet to be made: a merge of a recipe that others start from."""

    label: str

    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise FileError(f"{self.label}: is made by the recipe first, so it cannot be read yet")


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is and where its bytes stand.

    Attributes:
        name, dtype, shape: as the header says.
        blob, offset: where its first byte stands.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blob: Blob = field(repr=False, compare=False)
    offset: int = field(default=0, repr=False, compare=False)

    @property
    def size(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * self.dtype.itemsize

    @property
    def where(self) -> str:
        """The tensor and its file, for messages."""
        return f"tensor {self.name!r} of {self.blob.label}"

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read elements ``start`` to ``stop`` into ``out`` (1-D, of ``dtype.bits``)."""
        if start < stop:
            buffer = out[: stop - start].view(np.uint8).data
            self.blob.read_into(self.offset + start * self.dtype.itemsize, buffer)

    def load(self) -> NDArray[Any]:
        """The whole tensor as a NumPy array."""
        bits = np.empty(self.size, self.dtype.bits)
        self.read(0, self.size, bits)
        return to_array(bits, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class TensorStore(Mapping[str, TensorInfo]):
    """The tensors of one path, in the order of their names, and the file's own metadata.

    Attributes:
        path: the file or folder as the user named it.
        infos: one :class:`TensorInfo` per name.
        metadata: the strings stored with the tensors.
        files: the tensor files it is made of.
    """

    path: Path
    infos: Mapping[str, TensorInfo] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: tuple[Path, ...] = ()

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self.infos:
            raise MismatchError(f"{self.path} has no tensor {name!r}; {nearest(name, self.infos)}")
        return self.infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def same_as(self, other: TensorStore) -> bool:
        """Whether both are read from the same files; in memory, whether they are one."""
        return self is other or (bool(self.files) and self.files == other.files)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.infos.values())

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(info.size for info in self.infos.values())
