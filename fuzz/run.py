"""Fuzzes every target with atheris for a time, and prints what came of it.

    python fuzz/run.py --seconds 600 [--seed 0] [TARGET ...]

Each target runs in a process of its own, from the corpus in ``fuzz/corpus/TARGET``; inputs that
reach code no other does are added there, small ones only. An input that crashes is kept under
``fuzz/crashes``. The exit code is 1 where any did.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, CRASHES = HERE / "corpus", HERE / "crashes"
LARGEST, KEPT = 2048, 60
"""Of an input that is kept, in bytes; and of the inputs of a target."""
MEGABYTES, TIMEOUT = 2048, 10
COLUMNS = ("target", "executions", "per second", "crashes", "new inputs")


@dataclass(frozen=True)
class Outcome:
    """What came of fuzzing one target."""

    target: str
    executions: int
    seconds: float
    crashes: int
    added: int

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        rate = self.executions / self.seconds if self.seconds else 0
        return (
            *(self.target, f"{self.executions:,}", f"{rate:,.0f}"),
            *(str(self.crashes), str(self.added)),
        )


def main() -> int:
    """Run all targets, or the named ones, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="in all; default 600")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--folders", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    given = parser.parse_args()
    if given.inside:
        inside(given.inside, given.seed, given.seconds, given.folders)
        return 0
    from targets import TARGETS

    names = given.targets or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f"there is no target {unknown[0]!r}; known: {', '.join(TARGETS)}")
    each = max(given.seconds // len(names), 2)
    outcomes = []
    for name in names:
        outcomes.append(fuzz(name, given.seed, each, TARGETS[name].seeds))
        print(" ".join(outcomes[-1].cells()), flush=True)
    rows = [COLUMNS, *(outcome.cells() for outcome in outcomes)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    print()
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    total = sum(outcome.executions for outcome in outcomes)
    spent = sum(outcome.seconds for outcome in outcomes)
    crashes = sum(outcome.crashes for outcome in outcomes)
    print(f"{total:,} inputs in {spent / 3600:.2f} hours, {crashes} crashes, seed {given.seed}")
    result = {"inputs": total, "crashes": crashes, "seconds": round(spent, 1)}
    print(f"RESULT {json.dumps(result)}")
    return 1 if crashes else 0


def fuzz(name: str, seed: int, seconds: int, seeds: tuple[bytes, ...]) -> Outcome:
    """Fuzz one target in processes of its own until its time is over, after crashes again."""
    kept, executions, crashes, begun = CORPUS / name, 0, 0, time.monotonic()
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work, found = Path(scratch) / "work", Path(scratch) / "found"
        work.mkdir()
        found.mkdir()
        for data in seeds:
            (work / hashlib.sha1(data).hexdigest()).write_bytes(data)
        while (left := seconds - (time.monotonic() - begun)) >= 1:
            words = [sys.executable, __file__, "--inside", name, "--seed", str(seed + crashes)]
            words += ["--seconds", str(int(left)), "--folders", str(work), str(kept)]
            done = subprocess.run(
                words, cwd=found, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
            )
            counts = re.findall(r"stat::number_of_executed_units: (\d+)", done.stdout)
            counts = counts or re.findall(r"^#(\d+)", done.stdout, re.MULTILINE)
            executions += int(counts[-1]) if counts else 0
            if done.returncode == 0:
                break
            crashes += 1
            _report(name, done.stdout, found)
        added = _keep(work, kept, name)
    return Outcome(name, executions, time.monotonic() - begun, crashes, added)


def _report(name: str, said: str, found: Path) -> None:
    """Keep the input that crashed, and say how."""
    CRASHES.mkdir(exist_ok=True)
    for path in found.iterdir():
        shutil.move(path, CRASHES / f"{name}-{path.name}")
        print(f"crash of {name}: {CRASHES / f'{name}-{path.name}'}", file=sys.stderr)
    lines = [line for line in said.splitlines() if not re.match(r"#\d|0x|INFO|WARNING", line)]
    print("\n".join(line[:300] for line in lines[-30:]), file=sys.stderr)


def _keep(work: Path, kept: Path, name: str) -> int:
    """Copy the small inputs that libFuzzer found worth keeping; as many as there is room for."""
    known = {path.name for path in kept.iterdir()}
    new = sorted(
        (path for path in work.iterdir() if path.name not in known),
        key=lambda path: (path.stat().st_size, path.name),
    )
    room = KEPT - len(known)
    fit = [path for path in new if path.stat().st_size <= LARGEST]
    chosen = random.Random(name).sample(fit, min(room, len(fit))) if room > 0 else []
    for path in chosen:
        shutil.copy(path, kept / path.name)
    return len(chosen)


def inside(name: str, seed: int, seconds: int, folders: list[str]) -> None:
    """Fuzz one target in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["taskbasis", "json", "yaml"], exclude=compiled()):
        import mutating
        import targets
    target = targets.TARGETS[name]
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory()))

    def once(data: bytes) -> None:
        for path in place.iterdir():
            path.unlink()
        targets.run(target, data, place)

    def mutator(data: bytes, most: int, draw: int) -> bytes:
        dice = random.Random(draw)
        if dice.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutating.mutated(dice, data, target.words, most)

    flags = [f"-seed={seed + 1}", f"-max_total_time={seconds}", f"-rss_limit_mb={MEGABYTES}"]
    flags += [f"-timeout={TIMEOUT}", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, *folders], once, custom_mutator=mutator)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def compiled() -> list[str]:
    """The modules that numba compiles, which it cannot once atheris has rewritten them."""
    place = importlib.util.find_spec("taskbasis")
    assert place is not None
    assert place.submodule_search_locations
    root = Path(place.submodule_search_locations[0])
    found = [path for path in root.rglob("*.py") if "@jit(" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in found]


def _memory() -> str | None:
    """Where files are kept in memory, if this system has such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
