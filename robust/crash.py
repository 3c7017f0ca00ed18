"""Kills every writing verb at many moments, and looks at what is left each time.

    python robust/crash.py --moments 150 --seed 0 [--verbs "merge;basis fit"] [--learnt]

A moment is a call that changes the disk (before it, half done, or after it), or a time after the
start. After each the output must be absent or whole (byte for byte what an undisturbed run
writes, or what stood there before), the inputs untouched, and the next run must succeed and
leave nothing beside its output; verbs with --resume go on half of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from steps import Step, Steps
from world import LEARNT, VERBS, Verb, make

from taskbasis.cli import run

OLD = b"what stood there before"


@dataclass
class Trials:
    """What came of the moments of one verb."""

    verb: Verb
    steps: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def spawn(words: Sequence[str], folder: Path, last: Step | None, log: Path) -> int:
    """Start a command in a process group of its own, which is killed at a step if one is given."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        steps = Steps(last)
        steps.install()
        code = run([*words, *([] if "-j" in words else ["-j", "1"])])
        sys.stdout.flush()
        log.with_suffix(".steps").write_text(str(steps.count), encoding="utf-8")
    except BaseException:  # noqa: BLE001  (a fork must not return)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def here(words: Sequence[str], folder: Path) -> int:
    """Run a command in this process: what it imports and compiles, its forks find done.

    One worker starts no thread, so that the process can be forked.
    """
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return run([*words, "-q", "-j", "1"])
    finally:
        os.chdir(before)


def call(words: Sequence[str], folder: Path, log: Path) -> int:
    """Run a command undisturbed, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(spawn(words, folder, None, log), 0)[1])


def killed(words: Sequence[str], folder: Path, moment: Step | float, log: Path) -> bool:
    """Run a command and kill it at a moment; says whether it was killed before its end."""
    step = moment if isinstance(moment, Step) else None
    process = spawn(words, folder, step, log)
    if not isinstance(moment, Step):
        time.sleep(moment)
        try:
            os.killpg(process, signal.SIGKILL)
        except ProcessLookupError:  # it has not yet made its group, or has ended
            os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def content(path: Path) -> dict[str, bytes]:
    """Every file of a folder, or the file, by its name."""
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {"": path.read_bytes()} if path.exists() else {}


def moments(verb: Trials, count: int, draw: random.Random) -> list[Step | float]:
    """Moments spread over a run: two thirds at steps, in like parts of them, the rest by time."""
    by_time = count // 3
    bounds = np.linspace(0, verb.steps, count - by_time + 1)
    found: list[Step | float] = []
    for low, high in pairwise(bounds):
        number = min(draw.randrange(int(low), max(int(high), int(low) + 1)), verb.steps - 1)
        found.append(Step(number, draw.choice(("before", "half", "after"))))
    return found + [draw.uniform(0, verb.seconds) for _ in range(by_time)]


class Harness:
    """One folder to work in, whose inputs are watched."""

    def __init__(self, root: Path, learnt: bool) -> None:
        self.desk, self.log = root / "desk", root / "log"
        self.desk.mkdir()
        make(self.desk, lambda words: here(words, self.desk), learnt)
        self.inputs = content(self.desk)
        self.names = sorted(os.listdir(self.desk))

    def prepare(self, verb: Verb) -> None:
        """Put the desk in order: nothing but inputs, and what is to be replaced."""
        for name in os.listdir(self.desk):
            path = self.desk / name
            if name not in self.names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if verb.replaces:
            out = self.desk / verb.out
            if out.suffix:
                out.write_bytes(OLD)
            else:
                out.mkdir()
                (out / "old").write_bytes(OLD)

    def tried(self, verb: Verb, count: int, draw: random.Random) -> Trials:
        """Kill a verb at ``count`` moments."""
        out = self.desk / verb.out
        self.prepare(verb)
        before = content(out)
        start = time.monotonic()
        if call(verb.command, self.desk, self.log):
            raise RuntimeError(f"{verb.name}: {self.log.read_text()}")
        trials = Trials(
            verb,
            int(self.log.with_suffix(".steps").read_text()),
            time.monotonic() - start,
        )
        whole = content(out)
        if len(os.listdir(self.desk)) != len(self.names) + 1:
            raise RuntimeError(f"{verb.name}: leaves something beside its output")
        for moment in moments(trials, count, draw):
            self.prepare(verb)
            if not killed(verb.command, self.desk, moment, self.log):
                trials.counts["ended before"] += 1
            found = content(out)
            state = "whole" if found == whole else "absent" if found == before else "broken"
            fault = self._fault(verb, whole, found, state, draw.random() < 0.5, trials)
            trials.counts["broken" if fault else state] += 1
            if fault:
                trials.faults.append(f"{verb.name} at {moment}: {fault}")
        return trials

    def _fault(
        self,
        verb: Verb,
        whole: dict[str, bytes],
        found: dict[str, bytes],
        state: str,
        resume: bool,
        trials: Trials,
    ) -> str:
        """What is wrong after a kill; nothing, where all is well."""
        if state == "broken":
            return f"the output is neither absent nor whole: {sorted(found)}"
        if any(content(self.desk / name) != self._input(name) for name in self.names):
            return "an input was touched"
        words = verb.command
        if verb.resumes and resume and state == "absent":
            words = [*words, "--resume"]
            trials.counts["resumed"] += 1
        elif state == "whole" and not verb.replaces:
            words = [*words, "--replace"]
        if call(words, self.desk, self.log):
            return f"the next run failed: {self.log.read_text()}"
        if content(self.desk / verb.out) != whole:
            return f"the next run ({' '.join(words)}) wrote something else"
        hidden = sorted(set(os.listdir(self.desk)) - {*self.names, verb.out})
        return f"left behind: {hidden}" if hidden else ""

    def _input(self, name: str) -> dict[str, bytes]:
        if (self.desk / name).is_dir():
            own = {n: c for n, c in self.inputs.items() if n.startswith(f"{name}/")}
            return {n.removeprefix(f"{name}/"): c for n, c in own.items()}
        return {"": self.inputs[name]}


COLUMNS = ("ended before", "resumed", "absent", "whole", "broken")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=200, help="in all, over the verbs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", help="names, at semicolons; all by default")
    parser.add_argument("--learnt", action="store_true", help="also verbs that need torch")
    asked = parser.parse_args()
    verbs = [*VERBS, *(LEARNT if asked.learnt else ())]
    if asked.verbs:
        wanted = asked.verbs.split(";")
        verbs = [verb for verb in verbs if verb.name in wanted]
    draw, done = random.Random(asked.seed), []
    start = time.monotonic()
    print("verb".ljust(22), "steps", "moments", *COLUMNS, sep="\t", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), asked.learnt)
        for number, verb in enumerate(verbs):
            share = (asked.moments + number) // len(verbs)  # as even as can be
            trials = harness.tried(verb, share, draw)
            cells = [trials.counts[column] for column in COLUMNS]
            print(verb.name.ljust(22), trials.steps, share, *cells, sep="\t", flush=True)
            done.append(trials)
    faults = [fault for trials in done for fault in trials.faults]
    for fault in faults:
        print(f"FAULT {fault}")
    result = {
        "tried": asked.moments,
        "survived": asked.moments - len(faults),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(f"RESULT {json.dumps(result)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
