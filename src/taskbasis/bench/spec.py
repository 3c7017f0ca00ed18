"""What a run of the bench is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskbasis.evaluate import GRID, Effort
from taskbasis.evaluate.judge import COARSE

SUITES = ("digits", "images", "text", "clip")
"""Where real tasks come from."""

_FINE = Effort(GRID, (*COARSE, 1.5, 2.0, 3.0))
_COARSE = Effort(tuple(i / 10 for i in range(11)), (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0))

EFFORTS: Mapping[str, Effort] = {
    "digits": _FINE,
    "images": _FINE,
    "text": _COARSE,
    "clip": _COARSE,
}
"""Scales to choose among, for adding and for forgetting: fewer where a model takes seconds.

Forgetting goes beyond 1, or a vector of which little is kept could never reach as far as a whole
one does.
"""


@dataclass(frozen=True)
class Bench:
    """One table: a suite, where its data and models are, and how much is tried.

    Attributes:
        suite: one of :data:`SUITES`.
        out: where the results go.
        cache: where models, vectors and scores are kept.
        data: where the suite's data are; None for those that need none.
        seeds: repetitions, numbered from 0.
        tasks: which tasks of the suite; all by default.
        encoder: for text a Hugging Face encoder folder, for clip the base's name.
        only: patterns of methods; all by default.
        samples: training samples per task that scores and moments are learnt from.
        limits: items of a split that are scored, where that is fewer than the suite has.
        settings: how the suite's models are made; the suite's own by default.
        effort: scales to choose among; the suite's own by default.
    """

    suite: str
    out: Path
    cache: Path
    data: Path | None = None
    seeds: int = 3
    tasks: tuple[str, ...] = ()
    encoder: Path | None = None
    only: tuple[str, ...] = ()
    samples: int = 256
    limits: Mapping[str, int] = field(default_factory=dict)
    settings: Any = None
    effort: Effort | None = None

    @property
    def tried(self) -> Effort:
        """The scales that are chosen among."""
        return self.effort or EFFORTS[self.suite]

    def place(self, seed: int) -> Path:
        """Where one seed's models, vectors and scores are kept."""
        return self.cache / self.suite / f"seed-{seed}"

    def results(self, seed: int) -> Path:
        """Where one seed's results are kept."""
        return self.out / "results" / self.suite / f"seed-{seed}"
