"""How one job is measured: the same start for everyone, results checked, then turn by turn."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import Floor, Run, floor, fresh_memory_seconds, run, warm
from records import OURS, THEIRS, Check, Record, Timing
from rival import OFFLINE, VERBS, Mergekit
from shares import shares

INSIDE, OUR_MAIN = Path(__file__).with_name("inside.py"), "taskbasis.cli:main"
LONG = 60.0  # seconds; a rival that takes longer runs once
LENGTHY = 15.0  # seconds; one of ours that takes longer is called twice in process, not more


@dataclass(frozen=True)
class Command:
    """What to run and where it writes.

    Attributes:
        words: as people type it.
        inside: the interpreter, then ``MODULE:FUNCTION`` and the words, for ``inside.py``.
        output: what it writes.
        fails: whether it is an error that is measured.
    """

    words: Sequence[str]
    inside: Sequence[str]
    output: Path
    fails: bool = False

    def timed(self, report: Path, calls: str) -> list[str]:
        """The words that run it under ``inside.py``."""
        python, *rest = self.inside
        return [python, str(INSIDE), str(report), calls, str(self.output), *rest]

    def alone(self) -> Command:
        """The same with one worker."""
        return replace(self, inside=[*self.inside, "--workers", "1"])


def our_command(program: Path, words: Sequence[str], output: Path, fails: bool = False) -> Command:
    """A verb of ours."""
    return Command([str(program), *words], [sys.executable, OUR_MAIN, *words], output, fails)


def their_command(
    mergekit: Mergekit, verb: str, words: Sequence[str], output: Path, fails: bool = False
) -> Command:
    """A command of mergekit's, always run under ``inside.py``: one run gives both times."""
    return Command((), [mergekit.python, VERBS[verb], *words], output, fails)


Checks = Callable[[Mapping[str, Path]], list[Check]]


@dataclass(frozen=True)
class Job:
    """One piece of work, and who does it.

    Attributes:
        title: as the table calls it.
        ours: our command.
        inputs: the files it reads, each ``passes`` times.
        theirs: mergekit's command, where it can do that.
        beside: the job whose mergekit time this one is held against.
        passes: how often.
        check: holds the outputs, by who made them, against a reference.
        floored: whether it moves bytes that a floor can be measured of.
    """

    title: str
    ours: Command
    inputs: Sequence[Path] = ()
    theirs: Command | None = None
    beside: str = ""
    passes: int = 1
    check: Checks | None = None
    floored: bool = True


def conduct(name: str, size: str, job: Job, repeats: int) -> Record:
    """Runs each once, has the results checked, then measures them in turn.

    Our first run is not counted, because it may compile kernels; mergekit's counts.
    """
    load = os.getloadavg()[0]
    fresh = fresh_memory_seconds()
    first = once(f"{job.title}: {OURS}", job.ours, job.inputs)
    outputs = {OURS: job.ours.output}
    rival: list[tuple[Run, float]] = []
    if job.theirs is not None:
        rival.append(under_watch(f"{job.title}: {THEIRS}", job.theirs, job.inputs))
        outputs |= {THEIRS: job.theirs.output} if worked(rival[0][0], job.theirs) else {}
    checks: tuple[Check, ...] = ()
    if not worked(first, job.ours):
        checks = (Check(OURS, f"failed with exit code {first.code}", False),)
    elif job.check is not None:
        say(f"{job.title}: checking the results")
        checks = tuple(job.check(outputs))
    runs: list[Run] = []
    for number in range(repeats if worked(first, job.ours) else 0):
        runs.append(once(f"{job.title}: {OURS}", job.ours, job.inputs))
        again = job.theirs is not None and worked(rival[0][0], job.theirs)
        if again and number and rival[0][0].wall <= LONG and job.theirs is not None:
            rival.append(under_watch(f"{job.title}: {THEIRS}", job.theirs, job.inputs))
    written = nbytes(job.ours.output)
    inside = in_process(job, repeats if first.wall <= LENGTHY else 1) if runs else ()
    ours = Timing(tuple(runs or [first]), first.wall, inside, _failure(first, job.ours))
    return Record(
        name,
        job.title,
        size,
        ours,
        _theirs(job, rival),
        job.beside,
        _floor(job, written) if runs and job.floored else None,
        job.passes,
        checks,
        (round(load, 2), round(os.getloadavg()[0], 2)),
        round(fresh, 2),
    )


def _theirs(job: Job, rival: Sequence[tuple[Run, float]]) -> Timing | None:
    if job.theirs is None:
        return None
    runs, inside = tuple(run for run, _ in rival), tuple(seconds for _, seconds in rival)
    return Timing(runs, runs[0].wall, inside, _failure(runs[0], job.theirs))


def _failure(done: Run, command: Command) -> str:
    """What it said; a path may be in it, so only the kind of the last line is kept."""
    return "" if worked(done, command) else f"exit code {done.code}"


def _floor(job: Job, written: int) -> Floor:
    say(f"{job.title}: the floor")
    return floor(job.inputs, written, job.ours.output.parent)


def worked(done: Run, command: Command) -> bool:
    """Whether it ended as it should."""
    return (done.code != 0) == command.fails and done.code != 127


def once(title: str, command: Command, inputs: Sequence[Path]) -> Run:
    """One run from the common start; says so when it fails."""
    say(title)
    ready(command.output, inputs)
    return told(run(command.words, OFFLINE), command)


def told(done: Run, command: Command) -> Run:
    """The run, after saying what it printed if it failed."""
    if not worked(done, command):
        say(f"failed with exit code {done.code}: {done.printed.strip()}")
    return done


def under_watch(title: str, command: Command, inputs: Sequence[Path]) -> tuple[Run, float]:
    """One run from the common start under ``inside.py``, and its seconds in process."""
    say(title)
    ready(command.output, inputs)
    done, content = _inside(command, "1")
    return told(done, command), sum(content.get("calls", ()))


def in_process(job: Job, repeats: int) -> tuple[float, ...]:
    """Seconds of the second and every further call in one process of ours."""
    say(f"{job.title}: {OURS} in process")
    ready(job.ours.output, job.inputs)
    _, content = _inside(job.ours, str(1 + repeats))
    return tuple(content.get("calls", ())[1:])


def profiled(job: Job, ours: Timing) -> dict[str, Any]:
    """Where one run with one worker spends its time, and what starting costs the whole command."""
    say(f"{job.title}: the profile")
    command = job.ours.alone() if OUR_MAIN in job.ours.inside and job.floored else job.ours
    ready(command.output, job.inputs)
    _, content = _inside(command, "profile")
    start = ours.wall.median - ours.process.median if ours.process else 0.0
    wall = content["calls"][1] if len(content.get("calls", ())) > 1 else 0.0
    return shares(content.get("profile", ()), wall, max(start, 0.0))


def timed_inside(command: Command, calls: int) -> tuple[Run, list[float]]:
    """A run under ``inside.py``, and the seconds of its calls."""
    done, content = _inside(command, str(calls))
    return done, content.get("calls", [])


def _inside(command: Command, calls: str) -> tuple[Run, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = run(command.timed(report, calls), OFFLINE)
        content = json.loads(report.read_text()) if report.exists() else {}
        return done, content


def ready(output: Path, inputs: Sequence[Path]) -> None:
    """The same start for everyone: no output yet, nothing left to write back, inputs warm."""
    discard(output)
    os.sync()
    if inputs:
        warm(inputs)


def weights(*folders: Path) -> list[Path]:
    """The weight files of checkpoints."""
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def nbytes(path: Path) -> int:
    """The size of a file or of all files in a folder; 0 when it is not there."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size if path.exists() else 0


def discard(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(what: str) -> None:
    """Progress, for whoever waits."""
    print(what, file=sys.stderr, flush=True)
