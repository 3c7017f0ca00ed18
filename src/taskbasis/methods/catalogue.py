"""What every method says of itself, as rows of a table: for the command line and the docs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from taskbasis.methods.base import Method, PerVector, Unit
from taskbasis.methods.registry import FAMILIES, family, of_others, registered

__all__ = ["TITLES", "Entry", "catalogue", "entry", "markdown", "of_others", "shown"]

TITLES = {
    "averaging": "Averages and interpolations of models",
    "elementwise": "Entry by entry",
    "federated": "Aggregators of one-shot federated learning",
    "spectral": "Per matrix, by singular values",
    "optimised": "The minimum of an objective, without data",
    "learnt": "With importance scores or activation moments",
}

_HELD: dict[Unit, str] = {
    "element": "a few cuts",
    "matrix": "the largest matrix of every vector",
    "tensor": "the largest tensor of every vector",
}

_NEEDS = {
    "base": "base weights",
    "scores": "importance scores",
    "moments": "activation moments",
    "factors": "LoRA factors",
}
"""What a method may need, with its default options."""


@dataclass(frozen=True)
class Entry:
    """A method as a row of the table.

    Attributes:
        name, family, formula, source, when: as its class says.
        vectors: how many it takes, in words.
        needs: what it takes beside the vectors.
        passes: how often the inputs are read, with default options.
        held: what memory it takes, in words.
        options: its fields and their defaults.
        per_vector: those that may also be one number for each vector.
    """

    name: str
    family: str
    formula: str
    source: str
    when: str
    vectors: str
    needs: tuple[str, ...]
    passes: int
    held: str
    options: dict[str, Any]
    per_vector: tuple[str, ...]

    @property
    def needed(self) -> str:
        """All it needs, in a few words."""
        vectors = [] if self.vectors == "1 vector or more" else [self.vectors]
        return "; ".join([*vectors, *self.needs]) or "vectors only"


def entry(kind: type[Method]) -> Entry:
    """The row of one method.

    >>> from taskbasis.methods import find_method
    >>> row = entry(find_method("fisher"))
    >>> row.needs, row.passes, row.held
    (('importance scores',), 1, 'a few cuts')
    """
    default = kind()
    return Entry(
        kind.name,
        family(kind),
        kind.formula,
        kind.source,
        kind.when,
        default.count_text(),
        tuple(_needs(default)),
        1 + len(default.stages()),
        _HELD[default.unit],
        {field.name: getattr(default, field.name) for field in fields(default)},
        tuple(field.name for field in fields(default) if field.type in ("PerVector", PerVector)),
    )


def _needs(method: Method) -> Iterator[str]:
    for what, text in _NEEDS.items():
        need = getattr(method, what)
        if need != "ignored":
            yield text if need == "required" else f"{text}, if there are any"
    if method.identity:
        yield "the task at inference, for a model of its own"


def catalogue() -> list[Entry]:
    """All our methods, family by family."""
    entries = [entry(kind) for kind in registered().values()]
    return sorted(entries, key=lambda row: (FAMILIES.index(row.family), row.name))


def markdown(entries: Iterable[Entry]) -> str:
    """The tables of the docs, one for each family."""
    entries = list(entries)
    parts = []
    for name in FAMILIES:
        rows = [row for row in entries if row.family == name]
        if rows:
            parts.append(f"### {TITLES[name]}\n\n" + "\n".join(_table(rows)) + "\n")
    return "\n".join(parts)


def _table(rows: Iterable[Entry]) -> Iterator[str]:
    yield "| method | computes | needs | passes | holds | options | source |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        options = ", ".join(f"`{name}={shown(value)}`" for name, value in row.options.items())
        formula = row.formula.replace("|", "\\|")
        yield (
            f"| `{row.name}` | `{formula}` | {row.needed} | {row.passes} | {row.held} | "
            f"{options or '-'} | {row.source} |"
        )


def shown(value: Any) -> str:
    """A default as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
