#!/usr/bin/env python3
"""Which granularity, budget and normalization of a basis keeps most of what its tasks can do.

    python benchmarks/granularity.py --data DIR --work DIR                 images: DIR/images/*.npz
    python benchmarks/granularity.py --suite digits --work DIR --seeds 8   needs no data

Makes a base and its fine-tunes per seed (kept in ``--work`` and used again), fits every design
through the public API and judges it beside full task arithmetic. Prints one table and the paired
differences between designs, and stores both in ``benchmarks/results``. One thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    ADDED,
    ATOMS,
    CODES,
    ERROR,
    KEPT,
    RECOVERY,
    SUBSET,
    TARGET,
    judge_basis,
    judge_cases,
    rows_of,
)
from paired import Difference, Factors, Outcome, compare, table, with_worst

from taskbasis import Basis, Design, fit
from taskbasis.demo import InMemory, flat, store_vectors
from taskbasis.engine import Engine
from taskbasis.errors import require
from taskbasis.evaluate import (
    Effort,
    measure,
    reference_rows,
)
from taskbasis.report import FULL, Report, Row
from taskbasis.suites import digits, images
from taskbasis.suites.images_model import IMAGES, smaller
from taskbasis.vectors import Checkpoint, EditedModel, TaskVector

METHODS = ("autoencoder", "svd")
GROUPS: Mapping[str, dict[str, Any]] = {
    "model": {"granularity": "model"},
    "layer even": {"granularity": "layer"},
    "layer spectrum": {"granularity": "layer", "budget": "spectrum"},
    "tensor even": {"granularity": "tensor"},
    "tensor spectrum": {"granularity": "tensor", "budget": "spectrum"},
}
"""Granularity with budget; with one group there is nothing to spread."""
NORMALIZE = ("mean", "cosine")
"""`none` gives the codes of `mean`, since neither construction looks at the scale."""
SHARES = (2, 4)

FINE = (*(i / 20 for i in range(13)), 0.8, 1.0)
COARSE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)

WORST = (f"worst {RECOVERY}", f"worst {ERROR}")
COLUMNS = (CODES, ADDED, ATOMS, SUBSET, RECOVERY, TARGET, KEPT, ERROR)

AGAINST = (
    ("layer even", "model"),
    ("tensor even", "model"),
    ("tensor even", "layer even"),
    ("layer spectrum", "layer even"),
    ("tensor spectrum", "tensor even"),
    ("tensor spectrum", "model"),
)


def all_factors(tasks: int) -> list[Factors]:
    """Every design that is compared, as plain names.

    >>> len(all_factors(8))
    40
    """
    sizes = [str(max(1, tasks // share)) for share in SHARES]
    return [
        {"method": method, "groups": groups, "normalize": normalize, "k": k}
        for method, groups, normalize, k in itertools.product(METHODS, GROUPS, NORMALIZE, sizes)
    ]


def design_of(factors: Factors, seed: int) -> Design:
    """The design that the names stand for."""
    return Design(
        k=int(factors["k"]),
        method=factors["method"],
        normalize=factors["normalize"],
        seed=seed,
        **GROUPS[factors["groups"]],
    )


def label_of(factors: Factors) -> str:
    """How tables call a design.

    >>> label_of(all_factors(8)[2])
    'autoencoder, model, cosine, k=4'
    """
    return "{method}, {groups}, {normalize}, k={k}".format(**factors)


def judge_world(world: Any, place: Path, effort: Effort) -> tuple[list[Row], list[Outcome]]:
    """Rows and single outcomes of one seed."""
    base = EditedModel(Checkpoint(world.base)).tensors()
    tuned = {name: EditedModel(Checkpoint(path)).tensors() for name, path in world.tuned.items()}
    yardstick = measure(base, tuned, world.tasks, world.control, world.seed)
    vectors = store_vectors(world, place / "vectors")
    deltas = np.stack([flat(vector, base) for vector in vectors.values()])
    storage = sum(path.stat().st_size for path in (place / "vectors").iterdir())
    full = InMemory(tuple(vectors), storage, base, deltas, deltas.sum(axis=0))
    rows = [row for row in reference_rows(yardstick, storage) if row.metric in COLUMNS]
    rows += rows_of(FULL, storage, world.seed, judge_cases(full, yardstick, effort))
    outcomes = []
    for factors in all_factors(len(vectors)):
        made = build(vectors, place / "basis.safetensors", design_of(factors, world.seed))
        size, cases = judge_basis(made, full, yardstick, effort)
        rows += rows_of(label_of(factors), size, world.seed, cases)
        outcomes += [Outcome(factors, world.seed, *case) for case in cases]
    return rows, outcomes


def build(vectors: Mapping[str, TaskVector], out: Path, design: Design) -> Basis:
    """A basis of the vectors, in the place of the last."""
    return fit(vectors, out, design, replace_used=True, engine=Engine(workers=1))


def run_seed(options: argparse.Namespace, seed: int) -> tuple[list[Row], list[Outcome]]:
    """The results of one seed: read back if they were found before with the same effort."""
    place = options.work / options.suite / f"seed-{seed}"
    world: Any
    if options.suite == "digits":
        world = digits.prepare(place / "models", seed, say)
    else:
        settings = smaller(IMAGES) if options.quick else IMAGES
        world = images.prepare(options.data, place / "models", seed, say, settings)
    effort = Effort(FINE, COARSE, options.per_size)
    marker = (place / "models" / f"{options.suite}.json").read_text()
    facts = json.loads(json.dumps([marker, asdict(effort), all_factors(len(world.tasks))]))
    stored = place / "outcomes.json"
    if stored.exists():
        found = json.loads(stored.read_text())
        if found["facts"] == facts:
            return [Row(**row) for row in found["rows"]], [Outcome(*o) for o in found["outcomes"]]
    say(f"seed {seed}: judging")
    rows, outcomes = judge_world(world, place, effort)
    plain = [[dict(o.factors), o.seed, o.metric, o.case, o.value] for o in outcomes]
    told = {"facts": facts, "rows": [asdict(row) for row in rows], "outcomes": plain}
    stored.write_text(json.dumps(told))
    return rows, outcomes


def differences(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, Difference]]:
    """What decides: over all methods, sizes and normalizations."""
    metrics = (SUBSET, RECOVERY, TARGET, ADDED, ATOMS, ERROR, *WORST)
    for metric, pick in zip((RECOVERY, ERROR), (min, max), strict=True):
        outcomes = with_worst(outcomes, metric, pick)
    for (left, right), metric in itertools.product(AGAINST, metrics):
        yield f"{left} − {right}", metric, compare(outcomes, metric, "groups", left, right, {})
    for groups, metric in itertools.product(GROUPS, metrics):
        found = compare(outcomes, metric, "normalize", "cosine", "mean", {"groups": groups})
        yield f"cosine − mean ({groups})", metric, found


def details(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, Difference]]:
    """Finer groups against the whole model, for every method and size."""
    sizes = dict.fromkeys(o.factors["k"] for o in outcomes)
    for method, k, left, metric in itertools.product(
        METHODS, sizes, ("layer even", "tensor even"), (SUBSET, RECOVERY, TARGET)
    ):
        fixed = {"method": method, "k": k, "normalize": "mean"}
        found = compare(outcomes, metric, "groups", left, "model", fixed)
        yield f"{left} − model, {method}, k={k}", metric, found


def page(suite: str, report: Report, outcomes: Sequence[Outcome]) -> str:
    """The whole result as Markdown."""
    seeds = len({found.seed for found in outcomes})
    subsets = len({(o.seed, o.case) for o in outcomes if o.metric == SUBSET}) // seeds
    columns = [column for column in COLUMNS if column in report.metrics]
    return (
        f"# Granularity, budget and normalization: {suite}\n\n"
        f"{seeds} seeds, {subsets} subsets in each. "
        "Storage is the whole file; codes are what is not atoms.\n\n"
        f"{report.to_markdown(columns)}\n\n"
        "## Paired differences\n\nSame seed and same subset or task; averaged over whatever else "
        "varies. Lower is better for negation target and relative error, higher for the rest.\n\n"
        f"{table(list(differences(outcomes)))}\n\n## By method and size, normalize mean\n\n"
        f"{table(list(details(outcomes)))}\n"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=("images", "digits"), default="images")
    parser.add_argument("--data", type=Path, help="holds images/NAME.npz; for images")
    parser.add_argument("--work", type=Path, required=True, help="models are kept here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-size", type=int, default=1, help="subsets of every size")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="tests the benchmark, nothing else")
    options = parser.parse_args(arguments)
    if options.suite == "images" and options.data is None:
        parser.error("--suite images needs --data")
    return options


def say(sentence: str) -> None:
    """Progress, on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all seeds, print and store."""
    options = parse(arguments)
    rows: list[Row] = []
    outcomes: list[Outcome] = []
    with require("threadpoolctl", "demo", "the benchmark").threadpool_limits(1):
        for seed in range(options.seeds):
            found = run_seed(options, seed)
            rows, outcomes = rows + found[0], outcomes + found[1]
    report = Report(rows).aggregate()
    text = page(options.suite, report, outcomes)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"granularity-{options.suite}"
    target.with_suffix(".json").write_text(report.to_json(), encoding="utf-8")
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
