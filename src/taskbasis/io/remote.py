"""Safetensors files on other machines, read by ranges through fsspec: s3://, gs://, https://.

A header costs two small requests, a piece of a tensor one; nothing is downloaded whole and nothing
is kept. Torch files and adapters are not read this way.
"""

from __future__ import annotations

import posixpath
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from taskbasis.errors import FileError, HeaderError, MissingExtraError, UsageError, require
from taskbasis.io.folder import open_tensors, placed, weight_map_of
from taskbasis.io.header import parse_header
from taskbasis.io.hub import brief, resolve
from taskbasis.io.regular import JSON_LIMIT, parse_json
from taskbasis.io.safetensors import (
    HEADER_LIMIT,
    check_layout,
    read_entry,
    read_metadata,
)
from taskbasis.io.suffixes import INDEX_SUFFIX, SAFETENSORS, WEIGHT_SUFFIXES
from taskbasis.io.tensors import TensorInfo, TensorStore

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}")
_SINGLE = "model.safetensors"
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What is looked for where a server cannot list a folder."""


class Url(PosixPath):
    """A path of another machine: it prints as the URL it is, without what is secret in it."""

    def __str__(self) -> str:
        text = super().__str__()
        return text.replace(":/", ":///" if text.startswith("file:") else "://", 1)


def is_url(text: str | Path) -> bool:
    """Whether a text is a URL that :func:`open_remote` reads; those of the hub are not.

    >>> is_url("s3://bucket/model"), is_url("hf://owner/name"), is_url("lib:task"), is_url("a/b")
    (True, False, False, False)
    """
    found = _URL.match(str(text))
    return found is not None and found["scheme"] != "hf"


class RemoteBlob:
    """A file on another machine; every read is one request for its range.

    Whether the file was changed since its header was read is not asked again.
    """

    def __init__(self, system: Any, path: str, label: str) -> None:
        self._system = system
        self._path = path
        self.label = label

    def size(self) -> int:
        """Its bytes.

        Raises:
            FileError: it is not there, or its server does not say.
        """
        try:
            size = self._system.size(self._path)
        except Exception as error:  # noqa: BLE001 - every file system raises its own
            raise _unreadable(self.label, error) from None
        if size is None:
            raise FileError(f"{self.label}: its server does not say its size; download it first")
        return int(size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        wanted = buffer.nbytes
        if not wanted:
            return
        try:
            data = self._system.cat_file(self._path, start=offset, end=offset + wanted)
        except Exception as error:  # noqa: BLE001 - every file system raises its own
            raise _unreadable(self.label, error) from None
        if len(data) != wanted:
            raise FileError(
                f"{self.label}: {len(data)} bytes came where {wanted} were asked from {offset}; it "
                "was changed, or its server serves no ranges: download it first"
            )
        buffer[:] = data

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``."""
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)


def open_remote(url: str | Path) -> TensorStore:
    """Open a safetensors file, or a folder of one or of shards; only headers are read.

    Raises:
        FileError: nothing readable is there. HeaderError: a header or an index contradicts the
            files. MissingExtraError: fsspec, or what it needs for this protocol, is not installed.

    >>> import fsspec, numpy, safetensors.numpy
    >>> raw = safetensors.numpy.save({"w": numpy.ones(2, "float32")})
    >>> fsspec.filesystem("memory").pipe("/doctest/model.safetensors", raw)
    >>> open_remote("memory://doctest")["w"].load()
    array([1., 1.], dtype=float32)
    """
    system, path, shown = _connect(url)
    if path.partition("?")[0].endswith(SAFETENSORS):
        return _open_file(system, path, shown)
    names = _names(system, path, shown)
    if "adapter_config.json" in names:
        raise FileError(
            f"{shown}: is a PEFT adapter, which is not read remotely; download it first"
        )
    indexes = [name for name in names if name.endswith(SAFETENSORS + INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(SAFETENSORS)]
    if len(indexes) > 1:
        raise FileError(f"{shown}: holds {len(indexes)} indexes ({', '.join(indexes)}); keep one")
    if indexes:
        if indexes[0].removesuffix(INDEX_SUFFIX) in files:
            raise FileError(
                f"{shown}: holds both {indexes[0].removesuffix(INDEX_SUFFIX)} and {indexes[0]}; "
                "one of them is stale. Remove one"
            )
        return _open_index(system, path, shown, indexes[0])
    chosen = [_SINGLE] if _SINGLE in files else files
    if len(chosen) != 1:
        found = f"; found: {', '.join(names[:8])}" if names else ""
        raise FileError(
            f"{shown}: holds no {_SINGLE} and no *{SAFETENSORS}{INDEX_SUFFIX}{found}; name the "
            "file that is meant, or download the folder"
        )
    store = _open_file(system, posixpath.join(path, chosen[0]), shown / chosen[0])
    return TensorStore(shown, store.infos, store.metadata, store.files)


def side_files(url: str | Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder that are not weights, by name: config, tokenizer and so on.

    Those in folders of its own are left out. Servers that cannot list a folder, as those of
    https:// cannot, are asked for the usual names.
    """
    system, path, shown = _connect(url)
    for name in _names(system, path, shown):
        if not name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX)) and not name.startswith("."):
            blob = RemoteBlob(system, posixpath.join(path, name), str(shown / name))
            yield name, blob.read(0, blob.size())


def _whole(text: str) -> str:
    """A URL with both its slashes, which pathlib makes one of."""
    found = _URL.match(text)
    if found is None:
        raise UsageError(f"{text}: is not a URL such as s3://bucket/model")
    slashes = ":///" if found["scheme"] == "file" else "://"
    return found["scheme"] + slashes + text[found.end() :].lstrip("/")


def _shown(text: str) -> Url:
    """What to call a URL: without passwords and signatures."""
    parts = urlsplit(_whole(text))
    host = parts.netloc.rpartition("@")[2]
    return Url(urlunsplit(parts._replace(netloc=host, query="", fragment="")))


def _connect(url: str | Path) -> tuple[Any, str, Url]:
    """The file system, the path in it, and what to call that."""
    text = _whole(str(url))
    shown, parts = _shown(text), urlsplit(text)
    if parts.query and not parts.path.endswith(SAFETENSORS):
        raise UsageError(f"{shown}: a folder's URL takes no query; name the {SAFETENSORS} file")
    fsspec = require("fsspec", "remote", f"reading {shown}")
    try:
        system, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise MissingExtraError(f"reading {shown}: {brief(error)}") from None
    except ValueError:
        known = ", ".join(sorted({"s3", "gs", "https", "abfs", "file"}))
        raise UsageError(
            f"{shown}: no file system is called {parts.scheme!r}; known are {known} and others "
            "of fsspec"
        ) from None
    except Exception as error:  # noqa: BLE001 - every file system raises its own
        raise _unreadable(str(shown), error) from None
    return system, path.rstrip("/"), shown


def _unreadable(label: str, error: Exception) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(f"{label}: no such file or folder")
    if isinstance(error, PermissionError):
        return FileError(f"{label}: may not be read with the credentials of this machine")
    return FileError(f"{label}: cannot be read: {brief(error)}")


def _names(system: Any, path: str, shown: Url) -> list[str]:
    """The names in a folder; of the usual ones those that are there, where none can be listed."""
    try:
        if str(shown).startswith(("https://", "http://")):
            usual = (_SINGLE, _SINGLE + INDEX_SUFFIX, "adapter_config.json", *_SIDE_FILES)
            return [name for name in usual if _is_there(system, posixpath.join(path, name))]
        entries = system.ls(path, detail=True)
    except Exception as error:  # noqa: BLE001 - every file system raises its own
        raise _unreadable(str(shown), error) from None
    files = [entry["name"] for entry in entries if entry["type"] == "file"]
    return sorted(posixpath.basename(name) for name in files)


def _is_there(system: Any, path: str) -> bool:
    try:
        system.info(path)  # exists() begins to download it
    except FileNotFoundError:
        return False
    return True


def _open_file(system: Any, path: str, shown: Url) -> TensorStore:
    blob = RemoteBlob(system, path, str(shown))
    raw, size = _header(blob, shown)
    start = 8 + len(raw)
    entries = parse_header(shown, raw)
    metadata = read_metadata(shown, entries.pop("__metadata__", {}))
    infos: dict[str, TensorInfo] = {}
    spans = []
    for name in sorted(entries):
        dtype, shape, begin, end = read_entry(shown, name, entries[name])
        infos[name] = TensorInfo(name, dtype, shape, blob, start + begin)
        if infos[name].nbytes != end - begin:
            raise HeaderError(
                f"{shown}: tensor {name!r} of shape {list(shape)} and dtype {dtype.code} needs "
                f"{infos[name].nbytes} bytes, but its offsets span {end - begin}"
            )
        spans.append((begin, end, name))
    check_layout(shown, spans, size - start)
    return TensorStore(shown, infos, metadata, (shown,))


def _header(blob: RemoteBlob, shown: Url) -> tuple[bytes, int]:
    size = blob.size()
    if size < 8:
        raise HeaderError(f"{shown}: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", blob.read(0, 8))
    if length > min(HEADER_LIMIT, size - 8):
        raise HeaderError(
            f"{shown}: the header claims {length} bytes of a file of {size}; it is truncated, "
            "or no safetensors file"
        )
    return blob.read(8, length), size


def _open_index(system: Any, path: str, shown: Url, index: str) -> TensorStore:
    weight_map = _weight_map(system, posixpath.join(path, index), shown / index)
    shards: dict[str, TensorStore] = {}
    for shard in sorted(set(weight_map.values())):
        if (
            "/" in shard
            or "\\" in shard
            or not shard.isprintable()
            or not shard.endswith(SAFETENSORS)
        ):
            raise HeaderError(f"{shown / index}: names the file {shard!r}, which is not read")
        shards[shard] = _open_file(system, posixpath.join(path, shard), shown / shard)
    infos = placed(shown, weight_map, shards)
    metadata = next(iter(shards.values())).metadata
    return TensorStore(shown, infos, metadata, tuple(shown / shard for shard in shards))


def _weight_map(system: Any, path: str, shown: Url) -> dict[str, str]:
    blob = RemoteBlob(system, path, str(shown))
    size = blob.size()
    if size > JSON_LIMIT:
        raise HeaderError(f"{shown}: an index of {size} bytes is none")
    return weight_map_of(parse_json(blob.read(0, size), f"{shown}:"), shown)


def located(path: str | Path, revision: str | None = None) -> Path:
    """Where something stands: a path of this machine, a model of the hub in its cache, or a Url.

    Raises:
        FileError: it is nowhere. UsageError: a revision of what has none.
    """
    if not is_url(path) or Path(path).exists():
        return resolve(path, revision)
    if revision is not None:
        raise UsageError(f"{path}: is a URL, which has no revision {revision!r}; leave it out")
    return _shown(str(path))


def open_anywhere(path: str | Path, revision: str | None = None) -> TensorStore:
    """Open weights wherever they are: a local path, a model of the hub, or a URL.

    Raises:
        FileError: it is nowhere, or cannot be read. UsageError: a revision of what has none.
    """
    place = located(path, revision)
    return open_remote(path) if isinstance(place, Url) else open_tensors(place)
