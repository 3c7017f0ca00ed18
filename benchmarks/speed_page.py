#!/usr/bin/env python3
"""Writes docs/speed.md from the stored results of ``speed.py`` and ``growth.py``.

    python benchmarks/speed_page.py      after a run; ``scripts/docs`` does it, too

Of several sizes the page shows the largest that was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picture import draw_speed
from records import Record
from report import checks, noise, table, target_table
from targets import Target, judge
from work import JOBS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
SIZES = ("1b", "125m", "tiny")
WORDS = Path(__file__).with_name("speed_page.md")


@dataclass(frozen=True)
class Results:
    """All that is stored of one size.

    Attributes:
        about: day, machine, versions.
        records: by job, in the order of the jobs.
    """

    about: Mapping[str, Any]
    records: Mapping[str, Record]

    @property
    def targets(self) -> list[Target]:
        """What was promised, judged."""
        largest = {record.size: self.about["largest_tensor"] for record in self.records.values()}
        return judge(self.records, largest)


def load(folder: Path, size: str) -> Results:
    """What is stored of a size.

    Raises:
        FileNotFoundError: nothing is.
    """
    data = json.loads((folder / f"speed-{size}.json").read_text(encoding="utf-8"))
    records = {name: Record.from_json(one) for name, one in data["jobs"].items()}
    return Results(data["about"], {name: records[name] for name in JOBS if name in records})


def store(folder: Path, size: str, about: Mapping[str, Any], records: Mapping[str, Record]) -> None:
    """Adds records to what is stored of a size; those of the same jobs are replaced."""
    path = folder / f"speed-{size}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"jobs": {}}
    jobs = {**known["jobs"], **{name: one.as_json() for name, one in records.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": dict(about), "jobs": jobs}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def facts(results: Results) -> list[str]:
    """What was measured on what, and how quiet it was there."""
    about, machine = results.about, results.about["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{about['date']}: checkpoints of {about['bytes_per_checkpoint'] / 1e9:.3g} GB in bf16 "
        f"(size `{about['size']}`), {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB of memory; {versions}.",
        f"All cores together did {machine['scaling']} times the arithmetic of one.",
        f"Noise: {noise(results.records)}.",
    ]
    if about["size"] != "1b":
        lines.insert(0, "**A trial at a small size: what it says of the targets does not count.**")
    return lines


def growth(folder: Path) -> str:
    """What ``growth.py`` found, if it has been run."""
    path = folder / "growth.json"
    if not path.exists():
        return "Not measured yet: `python benchmarks/growth.py`."
    data = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"- {line}" for line in data["bends"]]
    return "\n".join(["![How cost grows](../benchmarks/results/growth.png)", "", *lines])


def page(results: Results, folder: Path, words: str) -> str:
    """The page: words, then tables. ``{...}`` in the words name a table."""
    targets = results.targets
    met = sum(target.met is True for target in targets)
    missed = sum(target.met is False for target in targets)
    parts = {
        "facts": "\n".join(f"- {fact}" for fact in facts(results)),
        "table": table(results.records),
        "counts": f"{met} met, {missed} missed, {len(targets) - met - missed} not judged",
        "targets": target_table(targets, results.records),
        "checks": "\n".join(f"- {sentence}." for sentence in checks(results.records)),
        "growth": growth(folder),
        "size": results.about["size"],
    }
    for name, text in parts.items():
        words = words.replace("{" + name + "}", text)
    return words


def write(folder: Path, size: str, place: Path) -> str:
    """Writes the picture and the page; returns the page."""
    results = load(folder, size)
    draw_speed(results.records, results.targets, folder / f"speed-{size}.png")
    text = page(results, folder, WORDS.read_text(encoding="utf-8"))
    if place.parent == folder:  # a trial, beside its picture
        text = text.replace("../benchmarks/results/", "").replace("../benchmarks/", "../")
    place.write_text(text, encoding="utf-8")
    return text


def main() -> int:
    """Write the page of the largest size that is stored."""
    found = [size for size in SIZES if (RESULTS / f"speed-{size}.json").exists()]
    if not found:
        print("no docs/speed.md: nothing is stored yet, run benchmarks/speed.py", file=sys.stderr)
        return 0
    write(RESULTS, found[0], PAGE)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
