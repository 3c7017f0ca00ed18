"""Everything that could lose something, tried at length, in one table: scripts/robustness."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
COUNTS = ("tried", "survived", "inputs", "crashes")
COLUMNS = ("what", "faults tried", "survived", "inputs fuzzed", "crashes", "hours")


@dataclass(frozen=True)
class Row:
    """What one part tried, and what came of it.

    Attributes:
        tried, survived: faults, or tests of one each.
        inputs, crashes: of fuzzing.
        failed: whether the part did not end as it should, whatever it counted.
    """

    what: str
    tried: int = 0
    survived: int = 0
    inputs: int = 0
    crashes: int = 0
    seconds: float = 0.0
    failed: bool = False

    @property
    def lossless(self) -> bool:
        """Whether nothing was lost, and something was tried."""
        return bool(
            not self.failed
            and self.tried == self.survived
            and not self.crashes
            and (self.tried or self.inputs)
        )

    def cells(self) -> tuple[str, ...]:
        """The row as it is printed; a part that counts no such thing leaves a dash."""
        faults = (f"{self.tried:,}", f"{self.survived:,}") if self.tried else ("-", "-")
        fuzzed = (f"{self.inputs:,}", f"{self.crashes:,}") if self.inputs else ("-", "-")
        what = self.what if self.lossless else f"{self.what}: FAILED"
        return (what, *faults, *fuzzed, f"{self.seconds / 3600:.2f}")


@dataclass(frozen=True)
class Part:
    """One command: tests, or a script whose last line is ``RESULT {json}``."""

    what: str
    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    tests: bool = False

    def run(self) -> Row:
        """Run it, and count; what a part that failed said is printed."""
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            done = subprocess.run(
                [*map(str, self.command), *([f"--junitxml={report}"] if self.tests else [])],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            counts = of_tests(report) if self.tests else of_script(done.stdout)
        failed = done.returncode != 0 or counts is None
        if failed:
            sys.stdout.write(done.stdout)
        return Row(self.what, **(counts or {}), seconds=time.monotonic() - begun, failed=failed)


def of_script(said: str) -> Mapping[str, int] | None:
    """The counts on the last line; None where there are none."""
    last = said.rstrip().rpartition("\n")[2]
    if not last.startswith("RESULT "):
        return None
    found = json.loads(last.removeprefix("RESULT "))
    return {name: int(found[name]) for name in COUNTS if name in found}


def of_tests(report: Path) -> Mapping[str, int] | None:
    """How many tests ran and passed, by pytest's report; None where there is none."""
    if not report.is_file():
        return None
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    run, skipped, failures, errors = (
        sum(int(suite.get(name, "0")) for suite in suites)
        for name in ("tests", "skipped", "failures", "errors")
    )
    return {"tried": run - skipped, "survived": run - skipped - failures - errors}


def parts(moments: int, seconds: int, examples: int, seed: int) -> list[Part]:
    """All that is tried, at this length."""

    def tests(what: str, *paths: str, **environment: str) -> Part:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
        return Part(what, words, environment, tests=True)

    return [
        Part("killed", ["scripts/crash", "--moments", str(moments), "--seed", str(seed)]),
        tests("disk, memory, signals, others", "tests/robust"),
        tests("hostile and broken files", "tests/attacks"),
        Part("fuzzed", ["scripts/fuzz", "--seconds", str(seconds), "--seed", str(seed)]),
        tests("same bytes", "tests/determinism", TASKBASIS_FULL_MATRIX="1"),
        tests("digests", "tests/unit/test_verifying.py", "tests/unit/io/test_digests.py"),
        tests("any order of calls", "tests/stateful", TASKBASIS_STATEFUL=str(examples)),
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows under their heading, and their sum."""
    total = Row(
        "all",
        *(sum(getattr(row, name) for row in rows) for name in (*COUNTS, "seconds")),
        failed=not all(row.lossless for row in rows),
    )
    cells = [COLUMNS, *(row.cells() for row in (*rows, total))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def main() -> int:
    """Run all parts, or those named; 0 only if every line is without loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200, help="moments at which runs are killed")
    parser.add_argument("--seconds", type=int, default=600, help="of fuzzing, in all")
    parser.add_argument("--examples", type=int, default=300, help="of the state machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a part by its name; may be repeated")
    asked = parser.parse_args()
    found = parts(asked.moments, asked.seconds, asked.examples, asked.seed)
    names = [part.what for part in found]
    unknown = [name for name in asked.only or () if name not in names]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; known: {', '.join(names)}")
    rows = []
    for part in found:
        if not asked.only or part.what in asked.only:
            rows.append(part.run())
            sys.stdout.write("  ".join(rows[-1].cells()) + "\n")
            sys.stdout.flush()
    sys.stdout.write(f"\n{table(rows)}\n")
    return 0 if all(row.lossless for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
