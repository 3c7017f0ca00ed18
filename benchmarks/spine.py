#!/usr/bin/env python3
"""Measures extract, add and basis fit on a 1.1 B-parameter model, beside mergekit and the floor.

    python benchmarks/spine.py                  everything: about 40 GB of disk
    python benchmarks/spine.py --size tiny      the same in a minute: tests the benchmark itself

Prints one table and the targets as met or missed; stores both in ``benchmarks/results``. Exits
with 1 when a command failed or a result was wrong; a missed target is reported, not an error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints import SIZES, Maker
from compare import Agreement, compare, compare_with_exact_sum
from jobs import Command, Job, conduct, discard, nbytes, once, say, weights
from measure import Run, floor
from report import OURS, Row, Target, as_json, machine, page, peak_targets, rival_target
from rival import DTYPES, ROUNDED, SAME, Mergekit, task_arithmetic

SCALE = 0.5
ADD = "add, two fine-tunes"
ADD_STORED = "add, two stored vectors"
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finding:
    """How two results agree; when ``required``, they must."""

    sides: str
    agreement: Agreement
    required: bool = True


class Spine:
    """The jobs, one method each; rows and findings gather as they run.

    Args:
        options: what :func:`parse` returns.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.maker = Maker(options.work, options.size)
        self.out = self.maker.folder / "out"
        self.rows: list[Row] = []
        self.findings: list[Finding] = []
        self._rivals = {} if options.skip_mergekit else DTYPES

    def measure(self) -> None:
        """All jobs, in the order that needs the least disk."""
        discard(self.out)
        self.out.mkdir(parents=True)
        try:
            self.add()
            self.extract_float32()
            self.extract_all()
            self.add_stored()
            self.fit()
        finally:
            shutil.rmtree(self.out)

    def add(self) -> None:
        """The merge that both can do: base and two fine-tunes to a model."""
        commands = {OURS: self._add(self._pair())}
        commands |= {name: self._rival(name) for name in self._rivals}
        job = Job(ADD, commands, weights(self.maker.base(), *self._pair()))
        rows = conduct(job, self.options.runs, self._verify)
        rival = next((row.wall.median for row in rows if row.by == SAME and not row.failed), None)
        self.rows += [replace(row, rival=rival) for row in rows]
        for command in commands.values():
            discard(command.output)

    def add_stored(self) -> None:
        """The same merge from the stored vectors; mergekit's time is that of :meth:`add`."""
        vectors = [self._vector(number) for number in (1, 2)]
        command = self._add(vectors)
        job = Job(ADD_STORED, {OURS: command}, [*weights(self.maker.base()), *vectors])
        rows = conduct(job, self.options.runs, self._verify_stored)
        self.rows += [replace(row, rival=self.row(ADD, OURS).rival) for row in rows]
        discard(command.output)

    def extract_float32(self) -> None:
        """One vector at the dtype that loses nothing, which is the default."""
        output = self.out / "float32.safetensors"
        command = self._extract(self.maker.tuned(1), output)
        inputs = weights(self.maker.base(), self.maker.tuned(1))
        self.rows += conduct(Job("extract, float32", {OURS: command}, inputs), self.options.runs)
        discard(output)

    def extract_all(self) -> None:
        """Every fine-tune's vector in bf16; each counts as one run."""
        first = self._extract_one(1)
        runs = [self._extract_one(number) for number in range(1, self.options.tuned + 1)]
        runs.sort(key=lambda done: done.code != 0)
        inputs = weights(self.maker.base(), self.maker.tuned(1))
        ground = floor(inputs, nbytes(self._vector(1)), self.out)
        job = f"extract, bfloat16, {self.options.tuned} fine-tunes"
        self.rows.append(Row(job, OURS, runs, first.wall, ground))

    def _extract_one(self, number: int) -> Run:
        tuned = self.maker.tuned(number)
        command = self._extract(tuned, self._vector(number), "--dtype", "bfloat16")
        done = once(f"extract, fine-tune {number}", command, weights(self.maker.base(), tuned))
        if number > 2 and not self.options.keep:
            discard(tuned)
        return done

    def fit(self) -> None:
        """A basis of all vectors, which takes two passes over them."""
        vectors = [self._vector(number) for number in range(1, self.options.tuned + 1)]
        output = self.out / "basis"
        words = ["basis", "fit", *map(str, vectors), "-o", str(output), "-k", str(self.options.k)]
        command = self._ours([*words, "--method", "autoencoder", "--dtype", "bfloat16"], output)
        name = f"basis fit, {self.options.k} atoms of {self.options.tuned} vectors"
        self.rows += conduct(Job(name, {OURS: command}, vectors, passes=2), self.options.runs)

    def targets(self) -> list[Target]:
        """What was promised, judged."""
        same, rounded = (self.row(ADD, name) if self._rivals else None for name in (SAME, ROUNDED))
        ours = self.row(ADD, OURS)
        return [
            rival_target(ours, same, "add beside mergekit with the same result"),
            rival_target(ours, rounded, "add beside mergekit at its faster dtype"),
            *peak_targets(self.rows),
        ]

    def sound(self) -> bool:
        """Whether every command ran and every result that must be right is right."""
        agreed = all(found.agreement.good for found in self.findings if found.required)
        return agreed and not any(row.failed for row in self.rows)

    def row(self, job: str, by: str) -> Row:
        """The row of a job that was measured."""
        return next(row for row in self.rows if (row.job, row.by) == (job, by))

    def _verify(self, outputs: Mapping[str, Path]) -> None:
        for by, output in outputs.items():
            self._hold_to_the_sum(by, output, required=by != ROUNDED)
        if OURS in outputs and SAME in outputs:
            found = compare(outputs[OURS], outputs[SAME])
            self.findings.append(Finding(f"{OURS} against {SAME}", found))

    def _verify_stored(self, outputs: Mapping[str, Path]) -> None:
        for by, output in outputs.items():
            self._hold_to_the_sum(f"{by} from vectors stored in bf16", output, required=False)

    def _hold_to_the_sum(self, who: str, output: Path, required: bool) -> None:
        found = compare_with_exact_sum(output, self.maker.base(), self._pair(), SCALE)
        self.findings.append(Finding(f"{who} against the exact sum", found, required))

    def _ours(self, words: Sequence[str], output: Path) -> Command:
        return Command([str(self.options.taskbasis), *words, "--quiet"], output)

    def _add(self, vectors: Sequence[Path]) -> Command:
        output = self.out / "taskbasis"
        words = ["add", str(self.maker.base()), *map(str, vectors), "-o", str(output)]
        words += ["--scale", str(SCALE), "--out-shard-size", self.options.out_shard_size]
        return self._ours(words, output)

    def _extract(self, tuned: Path, output: Path, *more: str) -> Command:
        words = ["extract", str(self.maker.base()), str(tuned), "-o", str(output), *more]
        return self._ours(words, output)

    def _rival(self, name: str) -> Command:
        recipe = self.out / f"{DTYPES[name]}.yml"
        recipe.write_text(task_arithmetic(self.maker.base(), self._pair(), SCALE, DTYPES[name]))
        output = self.out / f"mergekit-{DTYPES[name]}"
        mergekit = Mergekit(self.options.mergekit)
        return Command(mergekit.command(recipe, output, self.options.out_shard_size), output)

    def _pair(self) -> list[Path]:
        return [self.maker.tuned(number) for number in (1, 2)]

    def _vector(self, number: int) -> Path:
        return self.out / f"vector-{number}.safetensors"


def describe(spine: Spine, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything found, as plain data; no path and no host name is in it."""
    options = spine.options
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "size": options.size,
        "bytes_per_checkpoint": SIZES[options.size].bytes(),
        "out_shard_size": options.out_shard_size,
        "machine": dict(about),
        "versions": {name: _version(name) for name in ("taskbasis", "numpy", "numba")},
        "mergekit": None if options.skip_mergekit else Mergekit(options.mergekit).versions(),
        "agreement": {
            found.sides: {**vars(found.agreement), "sentence": found.agreement.sentence()}
            for found in spine.findings
        },
        "rows": [as_json(row) for row in spine.rows],
        "targets": [{**vars(target), "verdict": target.verdict} for target in spine.targets()],
    }


def sentences(data: Mapping[str, Any]) -> list[str]:
    """What stands above the table."""
    about = data["machine"]
    versions = {**data["versions"], **(data["mergekit"] or {})}
    return [
        f"{data['date']}: checkpoints of {data['bytes_per_checkpoint'] / 1e9:.3g} GB in bf16 "
        f"(size `{data['size']}`); shards of {data['out_shard_size']} written.",
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; load "
        f"{about['load_at_start']} at the start, {about['load_at_end']} at the end; touching "
        f"fresh memory costs {about['fresh_memory_seconds_per_gib']} s of CPU time per GiB.",
        ", ".join(f"{name} {number}" for name, number in versions.items())
        + ("." if data["mergekit"] else "; mergekit was not run."),
        *(f"{sides}: {found['sentence']}." for sides, found in data["agreement"].items()),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def store(spine: Spine, data: Mapping[str, Any]) -> str:
    """Writes the results as JSON and Markdown; returns the Markdown."""
    options = spine.options
    name = "spine" if options.size == "1b" else f"spine-{options.size}"
    title = (
        "Extract, add, basis fit" if options.size == "1b" else "A trial: no verdict in it counts"
    )
    text = page(title, sentences(data), spine.rows, spine.targets())
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    (options.results / f"{name}.md").write_text(text)
    return text


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what they default to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    work = Path(tempfile.gettempdir()) / "taskbasis-bench"
    beside = Path(sys.executable).parent / "taskbasis"
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each (default 3)")
    parser.add_argument("--tuned", type=int, default=8, help="fine-tunes (default 8)")
    parser.add_argument("-k", type=int, default=4, help="atoms of the basis (default 4)")
    parser.add_argument("--out-shard-size", default="5B", help="of both (default 5B)")
    parser.add_argument("--work", type=Path, default=work, help="where the checkpoints go")
    parser.add_argument("--keep", action="store_true", help="keep every fine-tune, not just two")
    parser.add_argument("--skip-mergekit", action="store_true", help="measure ours alone")
    parser.add_argument("--mergekit", type=Path, default=REPOSITORY / ".venv-mergekit")
    parser.add_argument("--taskbasis", type=Path, default=beside, help="the command to measure")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    return options


def disk_needed(options: argparse.Namespace) -> int:
    """Bytes at the worst moment: the checkpoints kept, every vector, the basis and its copy."""
    tuned: int = options.tuned
    atoms: int = options.k
    kept = 1 + (tuned if options.keep else min(tuned, 3))
    return SIZES[options.size].bytes() * (kept + tuned + atoms + 1)


def refusal(options: argparse.Namespace) -> str | None:
    """Why it cannot start, if it cannot."""
    if options.tuned < 2 or options.runs < 1:
        return "--tuned must be at least 2, and --runs at least 1"
    if not options.taskbasis.exists():
        return "the taskbasis command is not beside this Python; say where with --taskbasis"
    if not options.skip_mergekit and not Mergekit(options.mergekit).installed:
        return "mergekit is not installed: run benchmarks/setup_mergekit, or use --skip-mergekit"
    options.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.work).free + nbytes(options.work / options.size)
    if free < disk_needed(options):
        return f"needs {disk_needed(options) / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures everything; returns the exit code."""
    options = parse(arguments)
    refused = refusal(options)
    if refused is not None:
        say(refused)
        return 2
    about = machine()
    spine = Spine(options)
    spine.measure()
    about["load_at_end"] = round(os.getloadavg()[0], 2)
    print(store(spine, describe(spine, about)))
    return 0 if spine.sound() else 1


if __name__ == "__main__":
    sys.exit(main())
