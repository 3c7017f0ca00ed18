"""One writer for everything: files laid out first, filled at known offsets, shown whole or never.

The output is built beside its place under a hidden name. ``commit`` flushes it to the disk and
renames it; leaving the ``with`` block any other way removes it. Because every offset is known
from the start, any thread may write any piece at any time.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, UsageError
from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.safetensors import make_header
from taskbasis.units import bytes_text

MODE = 0o644
DEFAULT_SHARD = 5_000_000_000


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written: its name, dtype and shape."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file of the output and the tensors it holds."""

    file: str
    tensors: tuple[OutputTensor, ...]


def plan_shards(
    tensors: Sequence[OutputTensor], shard_size: int | None, stem: str = "model"
) -> list[Shard]:
    """Split tensors, in order, into files of at most ``shard_size`` bytes; None means one file.

    A tensor larger than the limit gets a file of its own. Names follow the hub's scheme.

    >>> from taskbasis.io.dtypes import F32
    >>> four = [OutputTensor(n, F32, (2,)) for n in "abcd"]
    >>> [shard.file for shard in plan_shards(four, 16)]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and shard_size is not None and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return [Shard(f"{stem}.safetensors", tuple(groups[0]))]
    count = len(groups)
    return [
        Shard(f"{stem}-{number:05d}-of-{count:05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def check_destination(out: Path, replace: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse a destination that would cost the user something.

    Raises:
        FileError: ``out`` is or holds an input, lies inside one, is in use (without
            ``replace``), or its parent folder is missing.
    """
    target = out.resolve()
    for source in inputs:
        other = source.resolve()
        if target == other or target in other.parents or (other in target.parents):
            raise FileError(f"{out}: writing there would touch the input {source}; name another")
    if not target.parent.is_dir():
        raise FileError(f"{out}: the folder {target.parent} does not exist; create it first")
    used = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if used and not replace:
        raise FileError(
            f"{out}: already exists; pass --replace to replace it whole, or name another"
        )


class Sink(Protocol):
    """Where stored words go: a staged output, or arrays in memory."""

    def dtype(self, name: str) -> DType:
        """The dtype that tensor ``name`` is stored in."""

    def write(self, name: str, start: int, words: NDArray[Any]) -> None:
        """Take stored words of tensor ``name`` from element ``start`` on; any thread may call."""


class MemorySink:
    """Whole tensors in memory, for models small enough to evaluate in place."""

    def __init__(self, tensors: Iterable[OutputTensor]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._words = {
            name: np.empty(math.prod(tensor.shape), tensor.dtype.bits)
            for name, tensor in self._tensors.items()
        }

    def dtype(self, name: str) -> DType:
        return self._tensors[name].dtype

    def write(self, name: str, start: int, words: NDArray[Any]) -> None:
        flat = words.reshape(-1)
        self._words[name][start : start + flat.size] = flat

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors as NumPy arrays."""
        return {
            name: to_array(self._words[name], tensor.dtype).reshape(tensor.shape)
            for name, tensor in self._tensors.items()
        }


class Staged:
    """A folder or file being written: a context manager that shows it whole or not at all.

    Args:
        out: where it will stand. A name ending in ``.safetensors`` becomes one file, any other
            a folder.
        tensors: what it will hold, in the order it is laid out.
        metadata: strings for the header of every file.
        shard_size: bytes per file in a folder; None for one file.
        replace: whether what stands at ``out`` may be replaced.
        inputs: paths that must not be touched.
        stem: how weight files are called.

    Raises:
        FileError: the destination is refused, or the disk cannot hold the output.
    """

    def __init__(
        self,
        out: str | Path,
        tensors: Sequence[OutputTensor],
        metadata: Mapping[str, str],
        *,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        inputs: Iterable[Path] = (),
        stem: str = "model",
    ) -> None:
        self.out = Path(out)
        self.is_file = self.out.suffix == ".safetensors"
        if shard_size is not None and shard_size <= 0:
            raise UsageError(f"a shard size of {shard_size} bytes holds nothing")
        check_destination(self.out, replace, inputs)
        self._shards = plan_shards(tensors, None if self.is_file else shard_size, stem)
        self._stem = stem
        self._metadata = dict(metadata)
        self._descriptors: list[int] = []
        self._places: dict[str, tuple[int, int, DType]] = {}
        self._hidden = self.out.parent / f".{self.out.name}.{secrets.token_hex(4)}.partial"

    def __enter__(self) -> Staged:
        try:
            self._check_space()
            self._hidden.mkdir()
            for shard in self._shards:
                self._open_shard(shard)
        except OSError as error:
            self._discard()
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        except BaseException:
            self._discard()
            raise
        return self

    def _check_space(self) -> None:
        needed = sum(tensor.nbytes for shard in self._shards for tensor in shard.tensors)
        free = shutil.disk_usage(self.out.resolve().parent).free
        if needed > free:
            raise FileError(
                f"{self.out}: needs {bytes_text(needed)} but the disk has {bytes_text(free)} free"
            )

    def _open_shard(self, shard: Shard) -> None:
        header, offsets = make_header(
            ((t.name, t.dtype, t.shape) for t in shard.tensors), self._metadata
        )
        descriptor = os.open(
            self._hidden / shard.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE
        )
        self._descriptors.append(descriptor)
        os.fchmod(descriptor, MODE)
        _reserve(descriptor, len(header) + sum(t.nbytes for t in shard.tensors))
        os.pwrite(descriptor, header, 0)
        for tensor in shard.tensors:
            self._places[tensor.name] = (descriptor, offsets[tensor.name], tensor.dtype)

    @property
    def hidden(self) -> Path:
        """Where it stands until it is shown; what was written there can be read back."""
        return self._hidden

    def dtype(self, name: str) -> DType:
        """The dtype that tensor ``name`` is stored in."""
        return self._places[name][2]

    def write(self, name: str, start: int, words: NDArray[Any]) -> None:
        """Write stored words of tensor ``name`` from element ``start`` on; any thread may call."""
        descriptor, offset, dtype = self._places[name]
        if words.dtype.itemsize != dtype.itemsize:
            raise ValueError(f"{name}: {words.dtype} words written as {dtype.name}")
        buffer = np.ascontiguousarray(words).reshape(-1).view(np.uint8).data
        position, done = offset + start * dtype.itemsize, 0
        while done < buffer.nbytes:
            try:
                done += os.pwrite(descriptor, buffer[done:], position + done)
            except OSError as error:
                raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None

    def write_array(self, name: str, values: NDArray[Any]) -> None:
        """Write a whole small tensor."""
        _, _, dtype = self._places[name]
        self.write(name, 0, np.ascontiguousarray(values).reshape(-1).view(dtype.bits))

    def add_file(self, name: str, content: bytes) -> None:
        """Add a file of the given content (folders only)."""
        path = self._hidden / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(MODE)

    def copy_file(self, name: str, source: Path, change: Callable[[bytes], bytes] | None) -> None:
        """Copy a side file into the folder, passed through ``change`` where one is given."""
        content = source.read_bytes()
        self.add_file(name, change(content) if change else content)

    def commit(self) -> None:
        """Flush everything to the disk and show the output under its name."""
        try:
            self._write_index()
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            self._close()
            _sync_folder(self._hidden)
            if self.is_file:
                self._show(self._hidden / self._shards[0].file)
                shutil.rmtree(self._hidden)
            else:
                self._show(self._hidden)
            _sync_folder(self.out.resolve().parent)
        except OSError as error:
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None

    def _show(self, made: Path) -> None:
        """Rename what was made to its name; what stood there goes last, or comes back."""
        folder = self.out.is_dir() and not self.out.is_symlink()
        if (self.is_file and not folder) or not os.path.lexists(self.out):
            os.replace(made, self.out)
            return
        retired = made
        if not exchange(made, self.out):
            retired = self._hidden.with_suffix(".replaced")
            os.rename(self.out, retired)
            try:
                os.rename(made, self.out)
            except BaseException:
                os.rename(retired, self.out)
                raise
        if folder:
            shutil.rmtree(retired)
        else:
            retired.unlink()

    def _write_index(self) -> None:
        if len(self._shards) == 1:
            return
        weight_map = {t.name: shard.file for shard in self._shards for t in shard.tensors}
        total = sum(t.nbytes for shard in self._shards for t in shard.tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2) + "\n"
        self.add_file(f"{self._stem}.safetensors.index.json", text.encode())

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _discard(self) -> None:
        self._close()
        shutil.rmtree(self._hidden, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()


def _reserve(descriptor: int, size: int) -> None:
    """Claim the file's blocks at once: a full disk shows now, and writing is cheaper."""
    try:
        if hasattr(os, "posix_fallocate"):  # not on every system
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    os.ftruncate(descriptor, size)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, where the system can (Linux); says whether it did."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return rename is not None and rename(here, bytes(one), here, bytes(other), swap) == 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
