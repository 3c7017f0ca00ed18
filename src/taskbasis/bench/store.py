"""Results on the disk: one small file each, kept as soon as it is measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from taskbasis.suites.folders import made_beside

VERSION = 1
"""Of how results are measured; another version measures anew."""


def digest(facts: object) -> str:
    """16 hex digits that name plain data.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    told = json.dumps([VERSION, facts], sort_keys=True, default=list)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def slug(label: str) -> str:
    """A file name for a label.

    >>> slug("STA weight 0.1 exclusive, λ 1")
    'sta-weight-0.1-exclusive-λ-1'
    """
    return re.sub(r"[^\w.]+", "-", label.lower()).strip("-")


def remembered(
    path: Path, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """What was measured under equal facts, or measured now and kept.

    A file that is damaged or was measured under other facts is replaced.
    """
    key = digest(facts)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return dict(known["found"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = dict(measure())
    with made_beside(path) as draft:
        text = json.dumps({"key": key, "found": found}, indent=1, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")
    return found


def contents(paths: Iterable[Path]) -> dict[str, str]:
    """A digest of every file at or below the paths: small ones, which are read."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return {
        file.name: xxhash.xxh3_128_hexdigest(file.read_bytes())
        for file in sorted(files)
        if file.is_file()
    }


def stamps(folder: Path | None) -> list[list[str | int]]:
    """Name, size and time of change of every file below a folder; they are not read."""
    if folder is None:
        return []
    found: list[list[str | int]] = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            seen = file.stat()
            found.append([str(file.relative_to(folder)), seen.st_size, seen.st_mtime_ns])
    return found
