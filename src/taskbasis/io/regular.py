"""Regular files alone, whole up to a bound, and the JSON in them: nothing that waits or swells.

A pipe or a device in the place of a file would be waited for, or read, for ever; what is opened
here is known to be a file by its descriptor, so that nobody can swap it in between.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, HeaderError

JSON_LIMIT = 100_000_000
"""Bytes of a JSON file that is read; the largest index or tokenizer known is a third of it."""


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file and what the system says of it; links are followed.

    Raises:
        FileError: it cannot be opened, or is a folder, a pipe, a socket or a device.

    >>> import tempfile
    >>> open_regular(Path(tempfile.gettempdir()))
    Traceback (most recent call last):
        ...
    taskbasis.errors.FileError: ...: is not a file
    """
    try:
        found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        what = "is not a file" if error.errno == _NO_DEVICE else f"cannot be opened: {_why(error)}"
        raise FileError(f"{path}: {what}") from None
    except ValueError:
        raise FileError(f"{str(path)!r}: cannot be the name of a file") from None
    seen = os.fstat(found)
    if not stat.S_ISREG(seen.st_mode):
        os.close(found)
        raise FileError(f"{path}: is not a file")
    return found, seen


_NO_DEVICE = 6  # ENXIO: a socket, or a device that nobody drives


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def read_regular(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """All bytes of a regular file.

    Raises:
        FileError: it is none, cannot be read, is larger than ``limit``, or changes meanwhile.
    """
    descriptor, seen = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if seen.st_size <= limit:
            try:
                # Some file systems say that a file is empty until it is read.
                found = file.read(1 + (seen.st_size or limit))
            except OSError as error:
                raise FileError(f"{path}: cannot be read: {_why(error)}") from None
            if len(found) != seen.st_size and seen.st_size:
                raise FileError(f"{path}: was changed while it was being read; start again")
            if len(found) <= limit:
                return found
    raise FileError(f"{path}: is larger than the {limit:,} bytes that such a file may have")


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """What a JSON file holds.

    Raises:
        FileError: it cannot be read, or is larger than ``limit``.
        HeaderError: it is not JSON in UTF-8, or a key stands twice.
    """
    return parse_json(read_regular(path, limit), f"{path}:")


def parse_json(raw: bytes, where: str) -> Any:
    """What a JSON text holds; loaders differ in which of two like keys they take, so none is.

    Args:
        raw: the text in UTF-8.
        where: the beginning of a message, ``model.safetensors: the header``.

    Raises:
        HeaderError: it is not JSON in UTF-8, or a key stands twice.

    >>> parse_json(b'{"a": 1, "a": 2}', "x.json:")
    Traceback (most recent call last):
        ...
    taskbasis.errors.HeaderError: x.json: names 'a' twice
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise HeaderError(f"{where} names {reprlib.repr(twice)} twice")
        return found

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{where} is not valid JSON: {error}") from None


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a link out of a model's folder: what is copied from there may be anybody's secret.

    Links inside the folder are followed, and so are those of the hub's cache, whose snapshots
    are made of links to its blobs.

    Raises:
        FileError: naming where it leads.
    """
    target, home = path.resolve(), folder.resolve()
    cache = next((p.parent for p in home.parents if p.name == "snapshots"), home)
    if home not in target.parents and cache not in target.parents:
        raise FileError(
            f"{path}: is a link out of its folder, to {target}; put a copy of the file there if it "
            "is a part of the model"
        )
