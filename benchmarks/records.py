"""What was measured of one job, as it is stored: numbers in, ratios out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from measure import Floor, Run, Spread

OURS, THEIRS = "taskbasis", "mergekit"


@dataclass(frozen=True)
class Timing:
    """One program at one job.

    Attributes:
        runs: of the whole command, the measured ones.
        first: wall seconds of the run before, which is not counted: it may compile kernels.
        inside: seconds in process, imports done.
        failed: what it said when it gave up; empty when it did not.
    """

    runs: tuple[Run, ...]
    first: float
    inside: tuple[float, ...] = ()
    failed: str = ""

    @property
    def wall(self) -> Spread:
        """Wall seconds, from start to exit."""
        return Spread.of([run.wall for run in self.runs])

    @property
    def cpu(self) -> Spread:
        """CPU seconds."""
        return Spread.of([run.cpu for run in self.runs])

    @property
    def process(self) -> Spread | None:
        """Seconds in process."""
        return Spread.of(self.inside) if self.inside else None

    @property
    def peak(self) -> int:
        """Bytes: the largest of all runs, because a limit is broken by its worst run."""
        return max(run.peak for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        runs = [{k: v for k, v in vars(run).items() if k != "printed"} for run in self.runs]
        return {**vars(self), "runs": runs, "inside": list(self.inside)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timing:
        """What :meth:`as_json` gave."""
        runs = tuple(Run(**run) for run in data["runs"])
        return cls(runs, data["first"], tuple(data["inside"]), data["failed"])


@dataclass(frozen=True)
class Check:
    """How a result agrees with its reference; when ``required``, it must."""

    by: str
    sentence: str
    good: bool
    required: bool = True


@dataclass(frozen=True)
class Record:
    """One job.

    Attributes:
        job: its name for ``--only``.
        title: as the table calls it.
        size: of the checkpoints it worked on.
        ours, theirs: the two programs, where they can do it.
        beside: the job whose mergekit time it is held against; its own by default.
        floor: what the bytes alone cost.
        passes: how often the inputs are read.
        checks: made before anything was timed.
        load: the load average before and after.
        fresh: CPU seconds to touch a GiB of fresh memory, then.
        profile: shares of one run with one worker, where it was asked for.
    """

    job: str
    title: str
    size: str
    ours: Timing
    theirs: Timing | None = None
    beside: str = ""
    floor: Floor | None = None
    passes: int = 1
    checks: tuple[Check, ...] = ()
    load: tuple[float, float] = (0.0, 0.0)
    fresh: float = 0.0
    profile: Mapping[str, Any] | None = field(default=None)

    @property
    def sound(self) -> bool:
        """Whether our command ran and every result that must be right is right."""
        return not self.ours.failed and all(c.good for c in self.checks if c.required)

    @property
    def floor_seconds(self) -> float | None:
        """Reading every pass, and writing into the page cache."""
        return self.floor.seconds(self.passes) if self.floor else None

    @property
    def wall_of_floor(self) -> float | None:
        """Wall time over the floor."""
        floor = self.floor_seconds
        return self.ours.wall.median / floor if floor and not self.ours.failed else None

    @property
    def process_of_floor(self) -> float | None:
        """Time in process over the floor."""
        floor, inside = self.floor_seconds, self.ours.process
        return inside.median / floor if floor and inside else None

    @property
    def process_of_synced(self) -> float | None:
        """Time in process over the floor with the output on the disk."""
        inside = self.ours.process
        return (
            inside.median / self.floor.synced_seconds(self.passes)
            if self.floor and inside
            else None
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **vars(self),
            "ours": self.ours.as_json(),
            "theirs": self.theirs.as_json() if self.theirs else None,
            "floor": vars(self.floor) if self.floor else None,
            "checks": [vars(check) for check in self.checks],
            "load": list(self.load),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """What :meth:`as_json` gave."""
        return cls(
            **{
                **data,
                "ours": Timing.from_json(data["ours"]),
                "theirs": Timing.from_json(data["theirs"]) if data["theirs"] else None,
                "floor": Floor(**data["floor"]) if data["floor"] else None,
                "checks": tuple(Check(**check) for check in data["checks"]),
                "load": tuple(data["load"]),
            }
        )


def rival_of(record: Record, records: Mapping[str, Record]) -> Timing | None:
    """The mergekit time that a job is held against, if there is one that came through."""
    owner = records.get(record.beside) if record.beside else record
    theirs = owner.theirs if owner else None
    return theirs if theirs and not theirs.failed else None


def times_faster(record: Record, records: Mapping[str, Record]) -> float | None:
    """mergekit's wall time over ours."""
    theirs = rival_of(record, records)
    if theirs is None or record.ours.failed:
        return None
    return theirs.wall.median / record.ours.wall.median
