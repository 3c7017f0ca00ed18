"""Hugging Face folders: one weights file, or shards with an index."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from taskbasis.errors import FileError, HeaderError
from taskbasis.io.regular import read_json
from taskbasis.io.safetensors import read_safetensors
from taskbasis.io.suffixes import INDEX_SUFFIX, SAFETENSORS, TORCH
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.io.torchbin import read_torch

Reader = Callable[[Path], TensorStore]

_SINGLE = ("model", "pytorch_model")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin")


def open_tensors(path: str | Path) -> TensorStore:
    """Open a folder, a ``.safetensors`` file or a torch file; only headers are read.

    Raises:
        FileError: nothing readable is there, or it is ambiguous what to read.
        HeaderError: a header or an index contradicts the files, or there are no tensors.
    """
    path = Path(path)
    if os.path.isdir(path):
        found = _open_settled(path)
    elif os.path.exists(path):
        found = _reader(path)(path)
    else:
        raise FileError(f"{path}: no such file or folder")
    if not found and not set(found.metadata) - {"format"}:  # a vector of nothing says what it is
        raise HeaderError(f"{path}: holds no tensors, so nothing can be made of it")
    return found


def _open_settled(folder: Path) -> TensorStore:
    """A folder's headers, all of them of one state: it may be replaced while they are read."""
    while True:
        before = _mark(folder)
        try:
            found = _open_folder(folder)
        except FileError:
            if _mark(folder) == before:
                raise
        else:
            if _mark(folder) == before:
                return found


def _mark(folder: Path) -> tuple[int, ...]:
    try:
        found = os.stat(folder)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _reader(path: Path) -> Reader:
    if path.suffix in TORCH:
        return read_torch
    if path.suffix == SAFETENSORS:
        return read_safetensors
    raise FileError(
        f"{path}: is neither a folder, nor a {SAFETENSORS} file, nor a torch file "
        f"({', '.join(TORCH)})"
    )


def _open_folder(folder: Path) -> TensorStore:
    if (folder / "adapter_config.json").exists():
        raise FileError(
            f"{folder}: is a PEFT adapter, not a model; give it where a task vector is asked, with "
            "its base"
        )
    names = sorted(item.name for item in folder.iterdir())
    for suffixes in ((SAFETENSORS,), TORCH):
        indexes = [n for n in names if n.endswith(tuple(s + INDEX_SUFFIX for s in suffixes))]
        files = [n for n in names if n.endswith(suffixes) and n not in _NOT_WEIGHTS]
        if indexes:
            return _open_index(folder, indexes, files)
        if files:
            return _open_single(folder, files)
    raise FileError(
        f"{folder}: holds no weights; expected model.safetensors, a *{SAFETENSORS}{INDEX_SUFFIX}, "
        f"or pytorch_model.bin{'; found: ' + ', '.join(names[:8]) if names else ', it is empty'}"
    )


def _open_single(folder: Path, files: list[str]) -> TensorStore:
    standard = [name for name in files if Path(name).stem in _SINGLE]
    chosen = standard if len(standard) == 1 else files
    if len(chosen) != 1:
        raise FileError(
            f"{folder}: holds {len(files)} weight files and no index ({', '.join(files[:6])}); "
            "name the one that is meant, or add the index"
        )
    store = _reader(Path(chosen[0]))(folder / chosen[0])
    return TensorStore(folder, store.infos, store.metadata, store.files)


def _open_index(folder: Path, indexes: list[str], files: list[str]) -> TensorStore:
    if len(indexes) > 1:
        raise FileError(f"{folder}: holds {len(indexes)} indexes ({', '.join(indexes)}); keep one")
    single = [n for n in files if n == indexes[0].removesuffix(INDEX_SUFFIX)]
    if single:
        raise FileError(
            f"{folder}: holds both {single[0]} and {indexes[0]}; one of them is stale and loaders "
            "differ in which they take. Remove one"
        )
    weight_map, metadata = _read_index(folder / indexes[0])
    used = sorted(set(weight_map.values()))
    shards = {name: _open_shard(folder, indexes[0], name) for name in used}
    infos = placed(folder, weight_map, shards)
    first = next(iter(shards.values()))
    paths = tuple(folder / name for name in shards)
    return TensorStore(folder, infos, {**first.metadata, **metadata}, paths)


def placed(
    folder: Path, weight_map: Mapping[str, str], shards: Mapping[str, TensorStore]
) -> dict[str, TensorInfo]:
    """The tensors of all shards, by name, as an index places them.

    Raises:
        HeaderError: a shard lacks a tensor, or holds one that the index does not place there.
    """
    infos: dict[str, TensorInfo] = {}
    for name, shard in sorted(weight_map.items()):
        if name not in shards[shard]:
            raise HeaderError(f"{folder}: the index places {name!r} in {shard}, which lacks it")
        infos[name] = shards[shard][name]
    for shard, store in shards.items():
        strangers = [name for name in store if weight_map.get(name) != shard]
        if strangers:
            raise HeaderError(
                f"{folder / shard}: holds {len(strangers)} tensors that the index does not place "
                f"there, e.g. {strangers[0]!r}"
            )
    return infos


def weight_map_of(content: object, where: Path) -> dict[str, str]:
    """Which file an index places every tensor in.

    Raises:
        HeaderError: it is no index.
    """
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise HeaderError(f"{where}: has no weight_map")
    if not all(isinstance(value, str) for value in found.values()):
        raise HeaderError(f"{where}: weight_map must map tensor names to file names")
    return found


def _open_shard(folder: Path, index: str, name: str) -> TensorStore:
    parts = PurePosixPath(name)
    outside = parts.is_absolute() or ".." in parts.parts or "\\" in name or not parts.parts
    if outside or not name.isprintable():
        raise HeaderError(
            f"{folder / index}: names the file {reprlib.repr(name)}, outside its folder"
        )
    path = folder / name
    if not os.path.isfile(path):
        shown = name if len(name) < 256 else reprlib.repr(name)
        raise FileError(f"{folder}: the shard {shown} is missing, which {index} names")
    return _reader(path)(path)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    content = read_json(path)
    weight_map = weight_map_of(content, path)
    own = content.get("metadata")
    metadata = own if isinstance(own, dict) else {}
    return weight_map, {key: value for key, value in metadata.items() if isinstance(value, str)}
