"""What people type for settings, weights and files, read by the names of the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; numbers and true/false are what they look.

    Raises:
        UsageError: a text is no such pair, or a name is given twice.
    """
    from taskbasis.errors import UsageError
    from taskbasis.methods.registry import plain

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}: write NAME=VALUE")
        key = name.replace("-", "_")
        if key in found:
            raise UsageError(f"--set gives {name!r} twice")
        try:
            found[key] = plain(value)
        except UsageError as error:
            raise UsageError(f"--set {text!r}: {error}") from None
    return found


def parse_weights(texts: Sequence[str], names: Sequence[str]) -> list[float]:
    """The vectors' weights in the order of their names; none where none are given.

    Raises:
        UsageError: a text is no number, a name is unknown or given twice, or numbers without
            names are not as many as vectors.
    """
    from taskbasis.errors import UsageError, nearest

    found: dict[str, float] = {}
    parts = [part for text in texts for part in _named_parts(text, names)]
    for position, part in enumerate(parts):
        name, equals, number = part.rpartition("=")
        if not equals:
            if len(parts) != len(names):
                raise UsageError(
                    f"--weights: {len(names)} vectors ({', '.join(names)}) need a number each; or "
                    "give some as NAME=NUMBER"
                )
            name = names[position]
        if name not in names:
            raise UsageError(f"--weights: there is no vector {name!r}; {nearest(name, names)}")
        if name in found:
            raise UsageError(f"--weights gives {name!r} twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f"--weights: {number!r} is no number") from None
    return [found.get(name, 1.0) for name in names] if found else []


def _named_parts(text: str, names: Sequence[str]) -> list[str]:
    """A text at its commas, unless it is one NAME=NUMBER whose name has commas itself."""
    return [text] if text.rpartition("=")[0] in names else text.split(",")


def match_by_name(texts: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """Files in the order of the names: given in that order, or each as NAME=FILE.

    Raises:
        UsageError: a name is unknown or given twice, or there is not one file for each.
    """
    from taskbasis.errors import UsageError, nearest

    named: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            continue
        if name not in names:
            raise UsageError(
                f"{what} {text!r}: there is no vector {name!r}; {nearest(name, names)}"
            )
        if name in named:
            raise UsageError(f"{what} of {name!r} are given twice")
        named[name] = path
    if named and len(named) < len(texts):
        raise UsageError(f"{what}: name all files as NAME=FILE, or none")
    found = [named[name] for name in names if name in named] if named else list(texts)
    if found and len(found) != len(names):
        raise UsageError(f"{what}: {len(names)} vectors ({', '.join(names)}) need one file each")
    return found
