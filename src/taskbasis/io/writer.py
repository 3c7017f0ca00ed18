"""One writer for everything: files laid out first, filled at known offsets, shown whole or never.

The output is built beside its place in a hidden folder. ``commit`` flushes it to the disk and
renames it; leaving the ``with`` block any other way removes it, or keeps it for a run that goes on
from it. Because every offset is known from the start, any thread may write any piece at any time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis.errors import FileError, UsageError
from taskbasis.io import digests
from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.flushing import Flusher
from taskbasis.io.hidden import HiddenFolder, sync
from taskbasis.io.journal import Entry, Journal, machine_run, run_key
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
        recipe: plain data that decides its bytes, beside the inputs and the layout. Where it is
            given, what is finished is noted, so that a run that was killed can be gone on from.
        resume: go on from what a run of the same recipe has left, and leave it when this one fails.

    Raises:
        FileError: the destination is refused or somebody else writes it, the disk cannot hold the
            output, or what is left is of another recipe.
        UsageError: an input is not a local file, so that it may have changed unseen.
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
        recipe: object = None,
        resume: bool = False,
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
        self._recorder = digests.Recorder(self._read_back)
        self._flusher = Flusher()
        self._side: dict[str, str] = {}
        self._replace, self._resume = replace, resume
        self._folder = HiddenFolder(self.out)
        self._journal: Journal | None = None
        layout = [(s.file, t.name, t.dtype.code, t.shape) for s in self._shards for t in s.tensors]
        self._key = run_key(recipe, list(inputs), (layout, self._metadata), resume)

    def __enter__(self) -> Staged:
        try:
            going_on = self._folder.take(self._key, self._resume)
            check_destination(self.out, self._replace)  # whoever held the folder may have made it
            self.hidden.mkdir(exist_ok=True)
            self._check_space()
            for shard in self._shards:
                self._open_shard(shard)
            if self._key is not None:
                self._journal = Journal(self._folder.path / "journal", going_on)
                self._folder.keep = self._resume and self._journal.count > 0
        except OSError as error:
            self._discard()
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        except BaseException:
            self._discard()
            raise
        return self

    def _check_space(self) -> None:
        needed = sum(tensor.nbytes for shard in self._shards for tensor in shard.tensors)
        held = sum(file.stat().st_blocks * 512 for file in self.hidden.iterdir())
        free = shutil.disk_usage(self.out.resolve().parent).free + held
        if needed > free:
            raise FileError(
                f"{self.out}: needs {bytes_text(needed)} but the disk has {bytes_text(free)} free"
            )

    def _open_shard(self, shard: Shard) -> None:
        blank = digests.blank_record((t.name for t in shard.tensors), self._metadata)
        header, offsets = self._header(shard, blank)
        descriptor = os.open(self.hidden / shard.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        self._descriptors.append(descriptor)
        os.fchmod(descriptor, MODE)
        _reserve(descriptor, len(header) + sum(t.nbytes for t in shard.tensors))
        os.pwrite(descriptor, header, 0)
        for tensor in shard.tensors:
            self._places[tensor.name] = (descriptor, offsets[tensor.name], tensor.dtype)
            self._recorder.expect(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes)

    @staticmethod
    def _header(shard: Shard, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
        return make_header(((t.name, t.dtype, t.shape) for t in shard.tensors), metadata)

    def _read_back(self, name: str, start: int, buffer: memoryview) -> None:
        descriptor, offset, _ = self._places[name]
        done = 0
        while done < buffer.nbytes:
            count = os.preadv(descriptor, [buffer[done:]], offset + start + done)
            if count == 0:
                raise FileError(f"{self.out}: was cut short while it was being written")
            done += count

    def _write_digests(self) -> None:
        """Put the tensors' digests where the headers keep room for them."""
        found = self._recorder.digests()
        for descriptor, shard in zip(self._descriptors, self._shards, strict=True):
            own = {tensor.name: found[tensor.name] for tensor in shard.tensors}
            header, _ = self._header(shard, digests.with_record(own, self._metadata))
            os.pwrite(descriptor, header, 0)
        beside = digests.folder_record(self._side, [shard.file for shard in self._shards])
        if beside is not None:
            self.add_file(digests.FILE, beside)

    @property
    def hidden(self) -> Path:
        """Where it stands until it is shown; what was written there can be read back."""
        return self._folder.path / "made"

    @property
    def notes(self) -> bool:
        """Whether it is noted what is finished."""
        return self._journal is not None

    def seal(self, words: NDArray[Any]) -> str:
        """What tells a later run whether these bytes, just written, are there."""
        if not self._resume:
            return machine_run()
        return digests.digest(words.reshape(-1).view(np.uint8).data)

    def finished(self, names: Sequence[str], start: int, stop: int) -> Entry | None:
        """What is known of a stretch of some tensors that a killed run has finished.

        Its bytes are read and compared with their digest, where that was noted; where they differ
        it is not finished.
        """
        known = self._journal.get(names[0], start) if self._journal and names else None
        if known is None or (known.seal and known.seal == machine_run()):
            return known
        hasher, found = xxhash.xxh3_128(), []
        for name in names:
            width = self._places[name][2].itemsize
            found.append(np.empty((stop - start) * width, np.uint8))
            self._read_back(name, start * width, found[-1].data)
            hasher.update(found[-1].data)
        if hasher.hexdigest() != known.seal:
            return None
        for name, piece in zip(names, found, strict=True):
            self._recorder.wrote(name, start * self._places[name][2].itemsize, piece.data)
        return known

    def note(self, names: Sequence[str], start: int, entry: Entry) -> None:
        """Take note that a stretch of some tensors is written."""
        if self._journal is not None and names:
            self._journal.add(names[0], start, entry)
            self._folder.keep = self._resume

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
        self._recorder.wrote(name, start * dtype.itemsize, buffer)
        self._flusher.wrote(descriptor, buffer.nbytes)

    def write_array(self, name: str, values: NDArray[Any]) -> None:
        """Write a whole small tensor."""
        _, _, dtype = self._places[name]
        self.write(name, 0, np.ascontiguousarray(values).reshape(-1).view(dtype.bits))

    def add_file(self, name: str, content: bytes) -> None:
        """Add a file of the given content (folders only)."""
        path = self.hidden / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(MODE)
        except OSError as error:
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        self._side[name] = digests.digest(content)

    def copy_file(self, name: str, source: Path, change: Callable[[bytes], bytes] | None) -> None:
        """Copy a side file into the folder, passed through ``change`` where one is given."""
        content = source.read_bytes()
        self.add_file(name, change(content) if change else content)

    def commit(self) -> None:
        """Flush everything to the disk and show the output under its name."""
        try:
            self._write_digests()
            self._write_index()
            for path in sorted(self.hidden.rglob("*")):
                sync(path)
            self._close()
            sync(self.hidden)
            one = self.hidden / self._shards[0].file
            self._folder.show(one if self.is_file else self.hidden, self._replace)
            sync(self.out.resolve().parent)
        except OSError as error:
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        self._discard()

    def _write_index(self) -> None:
        if len(self._shards) == 1:
            return
        weight_map = {t.name: shard.file for shard in self._shards for t in shard.tensors}
        total = sum(t.nbytes for shard in self._shards for t in shard.tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2) + "\n"
        self.add_file(f"{self._stem}.safetensors.index.json", text.encode())

    def _close(self) -> None:
        self._flusher.finish()
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._journal is not None:
            self._journal.close()

    def _discard(self) -> None:
        self._close()
        self._folder.release()

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
