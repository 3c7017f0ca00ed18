"""The table: what was measured, against mergekit, against the floor; and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Spread, cores, fresh_memory_seconds, scaling
from records import Record, Timing, rival_of, times_faster
from shares import explanation
from targets import Target


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
        "scaling": round(scaling(), 2),
    }


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


HEAD = (
    "job",
    "wall s",
    "in process s",
    "CPU s",
    "peak memory",
    "mergekit wall s",
    "in process s",
    "peak memory",
    "times faster",
    "floor s (synced)",
    "wall / floor",
    "in process / floor",
)


def table(records: Mapping[str, Record]) -> str:
    """The records as a Markdown table."""
    lines = [_line(record, rival_of(record, records), records) for record in records.values()]
    rule = ["---", *["--:"] * (len(HEAD) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [HEAD, rule, *lines])


def _line(record: Record, theirs: Timing | None, records: Mapping[str, Record]) -> list[str]:
    if record.ours.failed:
        ours = [f"failed, {record.ours.failed}", "", "", ""]
    else:
        process = record.ours.process
        ours = [
            spread(record.ours.wall),
            spread(process) if process else "",
            f"{record.ours.cpu.median:.2f}",
            mebibytes(record.ours.peak),
        ]
    if theirs is None:
        failed = record.theirs.failed if record.theirs else ""
        other = [f"failed, {failed}" if failed else "", "", ""]
    else:
        process = theirs.process
        other = [spread(theirs.wall), spread(process) if process else "", mebibytes(theirs.peak)]
    floor = record.floor
    return [
        record.title,
        *ours,
        *other,
        ratio(times_faster(record, records)),
        f"{floor.seconds(record.passes):.2f} ({floor.synced_seconds(record.passes):.2f})"
        if floor
        else "",
        ratio(record.wall_of_floor),
        ratio(record.process_of_floor),
    ]


def ratio(number: float | None) -> str:
    """A ratio for a reader: empty where there is none.

    >>> ratio(1.234), ratio(54.3), ratio(None)
    ('1.23', '54', '')
    """
    if number is None:
        return ""
    return f"{number:.2f}" if number < 10 else f"{number:,.0f}"


def spread(of: Spread) -> str:
    """Median and range; one number where there was one run.

    >>> spread(Spread(1.234, 1.0, 2.0)), spread(Spread(2.0, 2.0, 2.0))
    ('1.23 (1.00–2.00)', '2.00')
    """
    if of.low == of.high:
        return f"{of.median:.2f}"
    return f"{of.median:.2f} ({of.low:.2f}–{of.high:.2f})"


def mebibytes(count: float) -> str:
    """Bytes for a reader.

    >>> mebibytes(1 << 30)
    '1,024 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"


def target_table(targets: Sequence[Target], records: Mapping[str, Record]) -> str:
    """The targets as a Markdown table; a miss says where the time went, if that was looked at."""
    lines = ["| target | found | | |", "|---|--:|---|---|"]
    for target in targets:
        record = records.get(target.job)
        why = ""
        if target.met is False and record is not None and record.profile and target.by_profile:
            why = explanation(record.profile)
        lines.append(f"| {target.promise} | {target.found} | {target.verdict} | {why} |")
    return "\n".join(lines)


def noise(records: Mapping[str, Record]) -> str:
    """How quiet the machine was: load, spread of our runs, price of fresh memory."""
    loads = [one for record in records.values() for one in record.load]
    fresh = [record.fresh for record in records.values()]
    spreads = [
        record.ours.wall.high / record.ours.wall.low
        for record in records.values()
        if not record.ours.failed and len(record.ours.runs) > 1
    ]
    parts = [f"load {min(loads, default=0):.2f} to {max(loads, default=0):.2f}"]
    if spreads:
        middle = Spread.of(spreads)
        parts.append(
            f"the slowest of our runs took {middle.median:.2f} times the fastest "
            f"(median over jobs; at worst {middle.high:.2f})"
        )
    parts.append(
        f"touching a GiB of fresh memory cost {min(fresh, default=0):.2f} to "
        f"{max(fresh, default=0):.2f} s of CPU time"
    )
    return "; ".join(parts)


def checks(records: Mapping[str, Record]) -> list[str]:
    """A sentence for every result that was held against a reference."""
    return [
        f"{record.title}, {check.by}: {check.sentence}"
        + ("" if check.good else " (**wrong**)" if check.required else " (not ours to get right)")
        for record in records.values()
        for check in record.checks
    ]
