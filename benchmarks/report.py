"""The table: what was measured, against mergekit, against the floor, against the targets."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Floor, Run, Spread, cores, fresh_memory_seconds

OURS = "taskbasis"
PEAK_LIMIT = 1 << 30  # bytes; no job of ours may reach it
RIVAL_SHARE = 0.25  # add may take this much of mergekit's wall time


@dataclass(frozen=True)
class Row:
    """One job done by one program.

    Attributes:
        job: what was done.
        by: who did it.
        runs: the measured ones, at least one; the last has failed when ``failed``.
        first: the wall seconds of the run before, which is not counted: it may compile kernels.
        floor: what the bytes alone cost.
        passes: how often the job reads its inputs.
        rival: the median wall seconds of mergekit at the same job, when it has one.
    """

    job: str
    by: str
    runs: Sequence[Run]
    first: float
    floor: Floor | None = None
    passes: int = 1
    rival: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the program gave up."""
        return self.runs[-1].code != 0

    @property
    def wall(self) -> Spread:
        """Wall seconds."""
        return Spread.of([run.wall for run in self.runs])

    @property
    def cpu(self) -> Spread:
        """CPU seconds."""
        return Spread.of([run.cpu for run in self.runs])

    @property
    def peak(self) -> int:
        """Bytes: the largest of all runs, because a limit is broken by its worst run."""
        return max(run.peak for run in self.runs)

    @property
    def of_rival(self) -> float | None:
        """The share of mergekit's wall time."""
        return self.wall.median / self.rival if self.rival else None

    @property
    def of_floor(self) -> float | None:
        """Wall time over the floor."""
        return self.wall.median / self.floor.seconds(self.passes) if self.floor else None


@dataclass(frozen=True)
class Target:
    """One thing promised: ``met`` is None when it could not be judged here."""

    promise: str
    found: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """met, missed or not judged."""
        return {True: "met", False: "missed", None: "not judged"}[self.met]


def peak_targets(rows: Sequence[Row]) -> list[Target]:
    """Every job of ours stays below the limit of memory."""
    return [
        Target(
            f"{row.job}: peak memory below {mebibytes(PEAK_LIMIT)}",
            "failed" if row.failed else mebibytes(row.peak),
            not row.failed and row.peak < PEAK_LIMIT,
        )
        for row in rows
        if row.by == OURS
    ]


def rival_target(ours: Row, theirs: Row | None, promise: str) -> Target:
    """One of our jobs against the same done by mergekit."""
    promise = f"{promise}: at most {RIVAL_SHARE:g} of its wall time"
    if ours.failed:
        return Target(promise, "failed", False)
    if theirs is None or theirs.failed:
        return Target(promise, "mergekit failed" if theirs else "mergekit was not run", None)
    share = ours.wall.median / theirs.wall.median
    return Target(promise, f"{share:.3f}", share <= RIVAL_SHARE)


def machine() -> dict[str, Any]:
    """What the figures were taken on, without its name."""
    load = os.getloadavg()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load_at_start": round(load, 2),
        "fresh_memory_seconds_per_gib": round(fresh_memory_seconds(), 2),
    }


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def as_json(row: Row) -> dict[str, Any]:
    """A row as plain data: seconds and bytes."""
    return {
        "job": row.job,
        "by": row.by,
        "failed": row.failed,
        "runs": [
            {"wall": r.wall, "user": r.user, "system": r.system, "peak": r.peak, "code": r.code}
            for r in row.runs
        ],
        "first_wall": row.first,
        "wall": vars(row.wall),
        "cpu": vars(row.cpu),
        "peak": row.peak,
        "passes": row.passes,
        "floor": vars(row.floor) if row.floor else None,
        "floor_seconds": row.floor.seconds(row.passes) if row.floor else None,
        "floor_synced_seconds": row.floor.synced_seconds(row.passes) if row.floor else None,
        "of_mergekit": row.of_rival,
        "of_floor": row.of_floor,
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| job | by | runs | wall s | CPU s (kernel) | peak memory | of mergekit's wall "
        "| floor s (synced) | times floor |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Row) -> str:
    cells = [row.job, row.by, str(len(row.runs))]
    if row.failed:
        cells += [f"failed, exit code {row.runs[-1].code}", *[""] * 5]
    else:
        system = Spread.of([run.system for run in row.runs]).median
        cells += [
            spread(row.wall),
            f"{row.cpu.median:.2f} ({system:.2f})",
            mebibytes(row.peak),
            _ratio(row.of_rival),
            _floor_seconds(row),
            _ratio(row.of_floor),
        ]
    return "| " + " | ".join(cells) + " |"


def _floor_seconds(row: Row) -> str:
    if row.floor is None:
        return ""
    return f"{row.floor.seconds(row.passes):.2f} ({row.floor.synced_seconds(row.passes):.2f})"


def _ratio(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.2f}" if number < 100 else f"{number:,.0f}"


def spread(of: Spread) -> str:
    """Median and range.

    >>> spread(Spread(1.234, 1.0, 2.0))
    '1.23 (1.00 to 2.00)'
    """
    return f"{of.median:.2f} ({of.low:.2f} to {of.high:.2f})"


def mebibytes(count: float) -> str:
    """Bytes for a reader.

    >>> mebibytes(1 << 30)
    '1,024 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"


def target_table(targets: Sequence[Target]) -> str:
    """The targets as a Markdown table."""
    lines = ["| target | found | |", "|---|--:|---|"]
    return "\n".join(lines + [f"| {t.promise} | {t.found} | {t.verdict} |" for t in targets])


def page(title: str, facts: Sequence[str], rows: Sequence[Row], targets: Sequence[Target]) -> str:
    """The whole report as Markdown."""
    bullets = "\n".join(f"- {fact}" for fact in facts)
    return f"# {title}\n\n{bullets}\n\n{table(rows)}\n\n{target_table(targets)}\n"
