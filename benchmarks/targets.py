"""What was promised, judged by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from records import Record, times_faster

MIB = 1 << 20
PEAK, CAP = 512 * MIB, 384 * MIB

# In process, times the floor; only what the sentence of the promise says of the job is added.
FLOOR = {
    "linear": 1.5,
    "task_arithmetic": 1.5,
    "gram_16": 1.5,
    "basis_16": 1.5,
    "basis_64": 1.5,
}
FASTER = {
    "linear": 6,
    "task_arithmetic": 6,
    "ties": 30,
    "ties_paper": 30,
    "dare_ties": 20,
    "slerp": 4,
    "model_stock": 4,
    "lora": 20,
}
WALL = {"help": 0.2, "error": 0.2, "merge_125m": 3.0}
INSIDE = {"solver": 2.0}
PER_MATRIX = ("lora",)
WITHOUT_LIMIT = ("help", "error", "solver")
FAILED = "failed"


@dataclass(frozen=True)
class Target:
    """One promise: ``met`` is None when it could not be judged here.

    Attributes:
        by_profile: whether a profile says why it was missed.
    """

    job: str
    promise: str
    found: str
    met: bool | None
    by_profile: bool = True

    @property
    def verdict(self) -> str:
        """met, missed or not judged."""
        return {True: "met", False: "**missed**", None: "not judged"}[self.met]


def judge(records: Mapping[str, Record], largest: Mapping[str, int]) -> list[Target]:
    """Every promise.

    Args:
        records: what was measured, by job.
        largest: bytes of the largest tensor by size of model.
    """
    found = []
    for job, limit in FLOOR.items():
        value = _of(records, job, lambda record: record.process_of_floor)
        synced = _of(records, job, lambda record: record.process_of_synced)
        text = f"in process at most {limit:g} times the floor"
        shown = "{:.2f}" + (f" ({synced:.2f} synced)" if synced else "")
        found.append(_target(records, job, text, value, limit, shown, above=False))
    for job, limit in FASTER.items():
        value = _of(records, job, lambda record: times_faster(record, records))
        text = f"at least {limit:g} times faster than mergekit"
        found.append(_target(records, job, text, value, limit, "{:.1f}", above=True))
    for job, seconds in WALL.items():
        value = _of(records, job, lambda record: record.ours.wall.median)
        text = f"at most {seconds:g} s end to end"
        found.append(_target(records, job, text, value, seconds, "{:.2f} s", above=False))
    for job, seconds in INSIDE.items():
        value = _of(records, job, _inside)
        text = f"less than {seconds:g} s"
        found.append(_target(records, job, text, value, seconds, "{:.2f} s", above=False))
    for job, record in records.items():
        if job in WITHOUT_LIMIT:
            continue
        limit = CAP if job == "ties_capped" else PEAK
        limit += largest[record.size] if job in PER_MATRIX else 0
        value = None if record.ours.failed else record.ours.peak / MIB
        text = f"peak memory at most {limit / MIB:,.0f} MiB"
        one = _target(records, job, text, value, limit / MIB, "{:,.0f} MiB", above=False)
        found.append(Target(one.job, one.promise, one.found, one.met, by_profile=False))
    return found


def _of(
    records: Mapping[str, Record], job: str, value: Callable[[Record], float | None]
) -> float | None:
    record = records.get(job)
    return None if record is None or record.ours.failed else value(record)


def _inside(record: Record) -> float | None:
    process = record.ours.process
    return process.median if process else None


def _target(
    records: Mapping[str, Record],
    job: str,
    promise: str,
    value: float | None,
    limit: float,
    text: str,
    above: bool,
) -> Target:
    record = records.get(job)
    title = record.title if record else job
    if record is not None and record.ours.failed:
        return Target(job, f"{title}: {promise}", FAILED, False)
    if value is None:
        return Target(job, f"{title}: {promise}", "", None)
    met = value >= limit if above else value <= limit
    return Target(job, f"{title}: {promise}", text.format(value), met)
