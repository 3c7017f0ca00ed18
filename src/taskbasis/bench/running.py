"""Running the bench: every seed in a process of its own, every result kept when it is there."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from taskbasis.bench.contenders import Contender, contenders, pick
from taskbasis.bench.lab import Lab
from taskbasis.bench.measuring import Yard, add, forget, measure_yard
from taskbasis.bench.plots import addition_plot, forgetting_plot
from taskbasis.bench.rows import ADDING, LEFT, Context, contender_rows, page, reference_rows
from taskbasis.bench.spec import Bench
from taskbasis.bench.store import contents, remembered, slug, stamps
from taskbasis.bench.worlds import check, open_suite
from taskbasis.engine import available_workers
from taskbasis.errors import UsageError, require
from taskbasis.report import BASE, Report, Row
from taskbasis.suites.folders import made_beside
from taskbasis.suites.world import Tell


def run(bench: Bench, tell: Tell, workers: int | None = None) -> Report:
    """Make, learn and measure everything; returns the rows of all seeds.

    Seeds run side by side, one thread each. Writes ``bench-SUITE.json``, ``bench-SUITE.md`` and
    two pictures into ``bench.out``, beside one small file per result. Whatever is there already
    is read back, so an interrupted run goes on where it was stopped.

    Args:
        bench: what is asked for.
        tell: is told what is being done; must be a function of a module, since it is sent to
            other processes.
        workers: processes; as many as seeds and cores allow by default.

    Raises:
        UsageError: the suite, a task or a method is unknown, or an option does not belong.
    """
    check(bench)
    if bench.seeds < 1 or bench.samples < 1:
        raise UsageError(f"{bench.seeds} seeds and {bench.samples} samples; use at least 1 of each")
    wanted = pick(contenders(), bench.only)
    work = partial(run_seed, bench, wanted, tell=tell)
    count = min(workers or available_workers(), bench.seeds)
    if count == 1:
        report = Report(row for seed in range(bench.seeds) for row in work(seed))
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, context)
        try:
            report = Report(row for rows in pool.map(work, range(bench.seeds)) for row in rows)
        finally:
            pool.shutdown(cancel_futures=True)
    write(bench, report)
    return report


def run_seed(bench: Bench, wanted: list[Contender], seed: int, tell: Tell) -> list[Row]:
    """The rows of one seed; linear algebra keeps to one thread, since seeds share the machine."""
    torch = require("torch", "demo", "the bench")
    limits = require("threadpoolctl", "demo", "the bench")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with limits.threadpool_limits(1):
            return _measured(bench, wanted, seed, tell)
    finally:
        torch.set_num_threads(before)


def _measured(bench: Bench, wanted: list[Contender], seed: int, tell: Tell) -> list[Row]:
    world, checkpoints = open_suite(bench, seed, tell)
    lab = Lab(world, bench.place(seed), bench.samples, tell)
    facts = {
        "models": lab.fingerprints,
        "heads": contents(world.base.parent.glob("heads*")),
        "data": stamps(bench.data),
        "tasks": list(lab.names),
        "seed": seed,
        "limits": dict(bench.limits),
        "effort": asdict(bench.tried),
    }
    folder = bench.results(seed)
    yard = Yard(**remembered(folder / "single-models.json", facts, partial(measure_yard, lab)))
    context = Context(yard, seed, checkpoints)
    rows = reference_rows(context, lab.storage_bytes)
    try:
        for number, contender in enumerate(wanted, start=1):
            lacking = lab.lacks(contender)
            if lacking:
                tell(f"seed {seed}: left out: {lacking}")
                continue
            tell(f"seed {seed}: {contender.label} ({number} of {len(wanted)})")
            told = {**facts, "samples": bench.samples, "contender": asdict(contender)}
            found = _one(lab, contender, yard, bench, folder, told)
            rows += contender_rows(context, contender, found)
    finally:
        lab.close()
    return rows


def _one(
    lab: Lab, contender: Contender, yard: Yard, bench: Bench, folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """What was measured of one contender: read back, or measured now."""

    def adding() -> dict[str, Any]:
        found = add(lab, contender, yard, bench.tried)
        return {"adding": found, "storage": lab.storage(contender.recipe)}

    def forgetting() -> dict[str, Any]:
        return {"forgetting": forget(lab, contender, yard, bench.tried)}

    name = slug(contender.label)
    found = remembered(folder / f"{name}.adding.json", facts, adding)
    if contender.forgets is not None:
        found |= remembered(folder / f"{name}.forgetting.json", facts, forgetting)
    return found


def write(bench: Bench, report: Report) -> None:
    """The report as JSON and Markdown, and the pictures."""
    stem = f"bench-{bench.suite}"
    first = report.rows[0]
    tasks = [
        row.metric.removeprefix(ADDING)
        for row in report.rows
        if row.metric.startswith(ADDING) and row.method == BASE and row.seed == first.seed
    ]
    about = [
        f"Checkpoints: {first.extras['checkpoints']}.",
        f"Tasks: {', '.join(tasks)}.",
        f"{bench.seeds} seeds; {bench.samples} training samples per task for scores and moments.",
        "Tuned: scale or density chosen on validation; the rest is as it comes. "
        "Forgetting: chosen on validation so that the control keeps "
        f"{bench.tried.keep:.0%} of the base's.",
    ]
    for name, content in (
        (f"{stem}.json", report.to_json()),
        (f"{stem}.md", page(f"All methods on {bench.suite}", about, report)),
    ):
        with made_beside(bench.out / name) as draft:
            draft.write_text(content, encoding="utf-8")
    means = report.aggregate()
    addition_plot(means, bench.out / f"{stem}-addition.png", bench.suite)
    if any(row.metric == LEFT and row.method != BASE for row in means.rows):
        forgetting_plot(means, bench.out / f"{stem}-forgetting.png", bench.suite)
