"""Folders that are whole or not there, and the marker that says how they were made."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from taskbasis.errors import FileError


@contextmanager
def made_beside(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, renamed to ``path`` at the end; removed on an error.

    >>> out = getfixture("tmp_path") / "deep" / "model"
    >>> with made_beside(out) as draft:
    ...     draft.mkdir()
    ...     out.exists()
    False
    >>> out.is_dir()
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield place / path.name
        for file in (place / path.name).rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        os.replace(place / path.name, path)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def claim(folder: Path, marker: str, facts: Mapping[str, Any]) -> None:
    """Mark a folder with how its content is made, or check that it was made that way.

    Args:
        folder: absent, empty, or marked with equal facts.
        marker: the name of the file that holds the facts.
        facts: plain data.

    Raises:
        FileError: the folder is used for something else, or was made otherwise; the message says
            which fact differs.
    """
    path = folder / marker
    plain = json.loads(json.dumps(facts))
    if path.exists():
        found = read_marker(folder, marker)
        for name in (*plain, *found):
            if found.get(name) != plain.get(name):
                raise FileError(
                    f"{folder} was made otherwise: its {name} is {_short(found.get(name))}, not "
                    f"{_short(plain.get(name))}; name another folder, or delete it"
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} is in use and holds no {marker}; name another folder")
    with made_beside(path) as draft:
        draft.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def read_marker(folder: Path, marker: str) -> dict[str, Any]:
    """The facts that a folder is marked with.

    Raises:
        FileError: there is no marker, or it is damaged.
    """
    path = folder / marker
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); prepare the suite") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged; delete {folder} and prepare the suite again")
    return found


def digest_of(*paths: Path) -> str:
    """32 hex digits that name the bytes of some files."""
    hasher = xxhash.xxh3_128()
    for path in paths:
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
