#!/usr/bin/env python3
"""Measures taskbasis beside mergekit and beside what the bytes alone cost.

    python benchmarks/speed.py                       everything: see README.md for time and disk
    python benchmarks/speed.py --only linear,ties    some jobs: others stay as they are stored
    python benchmarks/speed.py --size tiny           a trial: tests the benchmark itself

What is known of a job is stored as soon as it is measured, in ``results/speed-SIZE.json``; then the
picture and the table are made of all that is stored. Exits with 1 when a command failed or a result
was wrong; a missed target is reported, not an error.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints import SIZES
from jobs import conduct, discard, nbytes, profiled, say
from records import Record
from report import machine
from rival import Mergekit
from speed_page import PAGE, RESULTS, load, store, write
from targets import FAILED
from work import JOBS, NEEDS, Work, disk_needed

REPOSITORY = Path(__file__).resolve().parent.parent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what they default to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    work = Path(tempfile.gettempdir()) / "taskbasis-bench"
    beside = Path(sys.executable).parent / "taskbasis"
    parser.add_argument("--size", choices=("tiny", "125m", "1b"), default="1b")
    parser.add_argument("--only", default=",".join(JOBS), help="jobs, by name, with commas between")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each (default 3)")
    parser.add_argument("--profile", action="store_true", help="of misses, where the time goes")
    parser.add_argument("--work", type=Path, default=work, help="where the checkpoints go")
    parser.add_argument("--keep", action="store_true", help="keep what further calls may read")
    parser.add_argument("--skip-mergekit", action="store_true", help="measure ours alone")
    rival = os.environ.get("MERGEKIT_VENV", REPOSITORY / ".venv-mergekit")
    parser.add_argument("--mergekit", type=Path, default=Path(rival))
    parser.add_argument("--taskbasis", type=Path, default=beside, help="the command to measure")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    options.only = [name for name in options.only.split(",") if name]
    return options


def refusal(options: argparse.Namespace) -> str | None:
    """Why it cannot start, if it cannot."""
    unknown = [name for name in options.only if name not in JOBS]
    if unknown or not options.only:
        return f"--only {','.join(unknown)}: no such job; there are {', '.join(JOBS)}"
    if options.runs < 1:
        return "--runs must be at least 1"
    if not options.taskbasis.exists():
        return "the taskbasis command is not beside this Python; say where with --taskbasis"
    if not options.skip_mergekit and not Mergekit(options.mergekit).installed:
        return "mergekit is not installed: run benchmarks/setup_mergekit, or use --skip-mergekit"
    options.work.mkdir(parents=True, exist_ok=True)
    stands = sum(nbytes(options.work / size) for size in {options.size, "125m"})
    free = shutil.disk_usage(options.work).free + stands
    needed = disk_needed(options.size)
    if free < needed:
        return f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
    return None


def measure(options: argparse.Namespace, about: Mapping[str, Any]) -> dict[str, Record]:
    """Every chosen job in turn, each stored when it is done; those that were measured now."""
    mergekit = None if options.skip_mergekit else Mergekit(options.mergekit)
    work = Work(options.work, options.size, options.taskbasis, mergekit)
    chosen, found = [name for name in JOBS if name in options.only], {}
    try:
        for place, name in enumerate(chosen):
            job = JOBS[name](work)
            keep = partial(store, options.results, options.size, about)
            found[name] = conduct(name, options.size, job, options.runs)
            keep({name: found[name]})
            if options.profile and _missed(options, name):
                found[name] = replace(found[name], profile=profiled(job, found[name].ours))
                keep({name: found[name]})
            for command in (job.ours, job.theirs):
                if command is not None and not command.output.name.startswith("library"):
                    discard(command.output)
            later = chosen[place + 1 :]
            for what, readers in NEEDS.items():
                if not options.keep and name in readers and not {*later} & {*readers}:
                    work.discard(what)
    finally:
        if not options.keep:
            shutil.rmtree(work.out, ignore_errors=True)
    return found


def _missed(options: argparse.Namespace, job: str) -> bool:
    """Whether a job is slower than was promised."""
    targets = load(options.results, options.size).targets
    misses = [one for one in targets if one.job == job and one.met is False]
    return any(one.by_profile and one.found != FAILED for one in misses)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Day, machine and versions; no path and no host name is in it."""
    size = SIZES[options.size]
    versions = {name: _version(name) for name in ("taskbasis", "numpy", "numba")}
    rival = {} if options.skip_mergekit else Mergekit(options.mergekit).versions()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "size": options.size,
        "bytes_per_checkpoint": size.bytes(),
        "largest_tensor": max(2 * math.prod(shape) for _, shape in size.tensors()),
        "machine": machine(),
        "versions": {**versions, **rival},
    }


def _trial(options: argparse.Namespace) -> Path:
    path: Path = options.results / f"speed-{options.size}.md"
    return path


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the chosen jobs; returns the exit code."""
    options = parse(arguments)
    refused = refusal(options)
    if refused is not None:
        say(refused)
        return 2
    measured = measure(options, about(options))
    # The page of the docs is of the full size; a trial has its own beside its results.
    full = options.size == "1b" and options.results == RESULTS
    print(write(options.results, options.size, PAGE if full else _trial(options)))
    wrong = [record.title for record in measured.values() if not record.sound]
    for title in wrong:
        say(f"failed or wrong: {title}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
