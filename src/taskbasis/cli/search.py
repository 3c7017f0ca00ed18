"""taskbasis search"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import (
    Source,
    engine_options,
    exclude_option,
    load_all_tasks,
    print_table,
    tasks_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskbasis.engine import Engine
    from taskbasis.evaluate import Choice, Task
    from taskbasis.vectors import Checkpoint, EditedModel, TaskVector


@click.command()
@click.argument("base", type=Source())
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@tasks_option
@click.option("--negate", is_flag=True, help="Forget the one vector's task instead of adding.")
@click.option("--control", help="With --negate: the task that must be kept.")
@click.option("--keep", type=float, default=0.95, show_default=True, help="Share of it to keep.")
@click.option("--grid", help="Scales to try, e.g. 0,0.1,0.2. [default: 0 to 1 by 0.05]")
@click.option(
    "--optimizer",
    type=click.Choice(["grid", "tpe"]),
    default="grid",
    show_default=True,
    help="tpe: a coefficient for every vector, by Optuna; needs '.[search]'.",
)
@click.option("--trials", type=int, help="With tpe: models to build and score. [default: 60]")
@click.option("--random-seed", "seed", type=int, help="With tpe: of what is tried. [default: 0]")
@click.option("--bounds", help="With tpe: least and largest coefficient. [default: 0,1]")
@click.option("-o", "--out", help="Write the model that was chosen.")
@click.option("--replace", is_flag=True, help="Replace what stands at --out, whole.")
@exclude_option
@engine_options
def search(
    base: str,
    vectors: tuple[str, ...],
    specs: tuple[str, ...],
    negate: bool,
    control: str | None,
    keep: float,
    grid: str | None,
    optimizer: str,
    trials: int | None,
    seed: int | None,
    bounds: str | None,
    out: str | None,
    replace: bool,
    exclude: tuple[str, ...],
    engine: Engine,
    quiet: bool,
) -> None:
    """Choose the scale on validation, then report the test scores once.

    Vectors are matched with tasks by name: the file's stem, or NAME=PATH. Addition maximises the
    mean of accuracy / fine-tuned accuracy; --negate minimises the target's accuracy while the
    control keeps its share. With --optimizer tpe every vector has a coefficient of its own.
    """
    from taskbasis.evaluate import report_choice
    from taskbasis.io.writer import check_destination
    from taskbasis.library.resolve import open_vectors
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    found = open_vectors(vectors, start, exclude)
    if out:  # refused before the work, not after it
        check_destination(Path(out), replace, _edited(start, found, 1.0).edit().inputs)
    tasks = {task.name: task for task in load_all_tasks(specs)}
    if optimizer == "tpe":
        from taskbasis.cli.tuning import Tuning, tune

        if negate or grid is not None:
            raise _misplaced("--negate" if negate else "--grid", "grid")
        tune(start, found, tasks, Tuning.of(trials, seed, bounds), out, replace, engine)
        return
    for option, value in (("--trials", trials), ("--random-seed", seed), ("--bounds", bounds)):
        if value is not None:
            raise _misplaced(option, "tpe")
    scales = _grid(grid)
    if negate:
        choice, judged = _forget(start, found, tasks, control, keep, scales, engine)
    else:
        choice, judged = _combine(start, found, tasks, scales, engine)

    def build(scale: float) -> EditedModel:
        return _edited(start, found, -scale if negate else scale)

    scores = report_choice(choice, lambda scale: build(scale).tensors(engine), judged)
    click.echo(f"scale {choice.scale:g}, chosen on validation (objective {choice.score:.4f})")
    rows = [[name, f"{score:.4f}"] for name, score in scores.items()]
    print_table("test", ["task", "score"], rows)
    if out:
        build(choice.scale).save(out, replace=replace, engine=engine)
        click.echo(f"wrote {out}")


def _misplaced(option: str, optimizer: str) -> Exception:
    from taskbasis.errors import UsageError

    return UsageError(f"{option} goes with --optimizer {optimizer}; leave one of the two out")


def _grid(text: str | None) -> Sequence[float]:
    from taskbasis.errors import UsageError
    from taskbasis.evaluate.search import GRID, check_grid

    if text is None:
        return GRID
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--grid {text!r}: write numbers with commas, e.g. 0,0.1,0.2") from None
    return check_grid(scales)


def _edited(base: Checkpoint, vectors: dict[str, TaskVector], scale: float) -> EditedModel:
    from taskbasis.merging import merge

    return merge(base, vectors.values(), scale=scale)


def _combine(
    base: Checkpoint,
    vectors: dict[str, TaskVector],
    tasks: dict[str, Task],
    grid: Sequence[float],
    engine: Engine,
) -> tuple[Choice, list[Task]]:
    from taskbasis.evaluate import search_addition

    judged, individual = own_scores(base, vectors, tasks, engine)
    choice = search_addition(
        lambda scale: _edited(base, vectors, scale).tensors(engine), judged, individual, grid
    )
    return choice, judged


def own_scores(
    base: Checkpoint, vectors: dict[str, TaskVector], tasks: dict[str, Task], engine: Engine
) -> tuple[list[Task], dict[str, float]]:
    """The task of every vector, and what its own fine-tuned model scores on validation."""
    from taskbasis.evaluate import evaluate

    judged = [_named(tasks, name) for name in vectors]
    return judged, {
        task.name: evaluate(vector.apply_to(base).tensors(engine), [task], "validation")[task.name]
        for task, vector in zip(judged, vectors.values(), strict=True)
    }


def _forget(
    base: Checkpoint,
    vectors: dict[str, TaskVector],
    tasks: dict[str, Task],
    control: str | None,
    keep: float,
    grid: Sequence[float],
    engine: Engine,
) -> tuple[Choice, list[Task]]:
    from taskbasis.errors import UsageError
    from taskbasis.evaluate import evaluate, search_negation

    if control is None or len(vectors) != 1:
        raise UsageError("--negate takes exactly one vector, and --control names what to keep")
    target, kept = _named(tasks, next(iter(vectors))), _named(tasks, control)
    plain = _edited(base, vectors, 0.0).tensors(engine)
    untouched = evaluate(plain, [kept], "validation")[kept.name]
    choice = search_negation(
        lambda scale: _edited(base, vectors, -scale).tensors(engine),
        target,
        kept,
        untouched,
        grid,
        keep,
    )
    return choice, [target, kept]


def _named(tasks: dict[str, Task], name: str) -> Task:
    from taskbasis.errors import UsageError, nearest

    if name not in tasks:
        raise UsageError(
            f"there is no task {name!r} to score the vector with; {nearest(name, tasks)}"
        )
    return tasks[name]
