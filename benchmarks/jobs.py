"""How one job is measured: the same start for everyone, one uncounted run, then turn by turn."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Run, alternate, floor, run, warm
from report import Row
from rival import OFFLINE

Verify = Callable[[Mapping[str, Path]], None]


@dataclass(frozen=True)
class Command:
    """What to run and where it writes."""

    words: Sequence[str]
    output: Path


@dataclass(frozen=True)
class Job:
    """One piece of work and everyone who does it.

    Attributes:
        name: as the table calls it.
        commands: by the name of who does it.
        inputs: the files it reads, each ``passes`` times.
        passes: how often.
    """

    name: str
    commands: Mapping[str, Command]
    inputs: Sequence[Path]
    passes: int = 1


def conduct(job: Job, repeats: int, verify: Verify | None = None) -> list[Row]:
    """Runs each once uncounted, has the results verified, then measures them in turn.

    Args:
        job: what to do.
        repeats: how many measured runs each.
        verify: given the output of each who came through, before anything is timed.

    Returns:
        One row for each; outputs of the last runs are left standing.
    """
    first = {by: once(f"{job.name}: {by}", one, job.inputs) for by, one in job.commands.items()}
    able = {by: one for by, one in job.commands.items() if first[by].code == 0}
    if verify is not None:
        say(f"{job.name}: checking the results")
        verify({by: one.output for by, one in able.items()})

    def prepare(by: str) -> None:
        say(f"{job.name}: {by}")
        ready(job.commands[by].output, job.inputs)

    words = {by: one.words for by, one in able.items()}
    runs = alternate(words, repeats, prepare, OFFLINE)
    written = max((nbytes(one.output) for one in able.values()), default=0)
    folder = next(iter(job.commands.values())).output.parent
    ground = floor(job.inputs, written, folder) if able else None
    return [
        Row(job.name, by, runs.get(by, [first[by]]), first[by].wall, ground, job.passes)
        for by in job.commands
    ]


def once(name: str, command: Command, inputs: Sequence[Path]) -> Run:
    """One run from the common start; says so when it fails."""
    say(name)
    missing = [path.name for path in inputs if not path.exists()]
    if missing or not inputs:
        done = Run(0.0, 0.0, 0.0, 0, 127, f"no input {', '.join(missing)}")
    else:
        ready(command.output, inputs)
        done = run(command.words, OFFLINE)
    if done.code != 0:
        say(f"failed with exit code {done.code}: {done.printed.strip()}")
    return done


def ready(output: Path, inputs: Sequence[Path]) -> None:
    """The same start for everyone: no output yet, nothing left to write back, inputs warm."""
    discard(output)
    os.sync()
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
