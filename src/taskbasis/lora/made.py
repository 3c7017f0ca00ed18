"""What an adapter that was written keeps, module by module, and what it cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVED = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (as its documentation of 0.14 says)."""

DEFAULT_SERVED = 16
"""What vLLM takes unless told otherwise."""


@dataclass(frozen=True)
class Row:
    """One module of an adapter.

    Attributes:
        module: its name.
        rank: columns of its factor B.
        norm: Frobenius norm of the delta that it stands for.
        error: norm of what the stored factors miss of it: truncation and rounding together.
    """

    module: str
    rank: int
    norm: float
    error: float

    @property
    def relative(self) -> float:
        """The error as a share of the norm; 0 for a zero delta."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Made:
    """An adapter that was written.

    Attributes:
        path: its folder.
        nbytes: bytes of factors.
        rows: per module its rank, norm and error.
        rules: tensors that are not part of it, by the rule that left them out.
        norms: per rule the norm of the delta that its tensors hold; rules whose tensors are not
            part of the delta are not among them.
    """

    path: Path
    nbytes: int
    rows: tuple[Row, ...] = field(repr=False)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    norms: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(row.rank for row in self.rows)

    @property
    def norm(self) -> float:
        """The norm of the whole delta, with what the adapter cannot hold."""
        return _root(self.adapted, *self.norms.values())

    @property
    def adapted(self) -> float:
        """The norm of the delta of the modules that are adapted."""
        return _root(*(row.norm for row in self.rows))

    @property
    def error(self) -> float:
        """What is missed of the adapted modules, as a share of their norm."""
        return _share(_root(*(row.error for row in self.rows)), self.adapted)

    @property
    def missing(self) -> float:
        """What is missed of the whole delta, as a share of its norm."""
        lost = _root(*(row.error for row in self.rows), *self.norms.values())
        return _share(lost, self.norm)

    def by_kind(self) -> dict[str, list[Row]]:
        """The rows by the last part of their module's name."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.module.rpartition(".")[2], []).append(row)
        return found


def summary(rows: Iterable[Row]) -> tuple[float, float]:
    """The norm of the deltas of some modules, and the share of it that is missed."""
    known = list(rows)
    norm = _root(*(row.norm for row in known))
    return norm, _share(_root(*(row.error for row in known)), norm)


def serving_hint(rank: int, limit: int = DEFAULT_SERVED) -> str | None:
    """What to tell a server of an adapter whose rank is above a limit; None where it is not.

    >>> serving_hint(40)
    'its rank 40 is above 16, which vLLM takes by default; serve it with --max-lora-rank 64'
    >>> serving_hint(16)
    """
    if rank <= limit:
        return None
    taken = ", which vLLM takes by default" if limit == DEFAULT_SERVED else ""
    above = f"its rank {rank} is above {limit}{taken}"
    fitting = next((number for number in SERVED if number >= rank), None)
    if fitting is None:
        return f"{above}; vLLM takes none above {SERVED[-1]}: ask for a smaller rank"
    return f"{above}; serve it with --max-lora-rank {fitting}"


def _root(*norms: float) -> float:
    return math.sqrt(math.fsum(norm * norm for norm in norms))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
