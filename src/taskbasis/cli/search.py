"""taskbasis search"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import (
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
@click.argument("base")
@click.argument("vectors", nargs=-1, required=True)
@tasks_option
@click.option("--negate", is_flag=True, help="Forget the one vector's task instead of adding.")
@click.option("--control", help="With --negate: the task that must be kept.")
@click.option("--keep", type=float, default=0.95, show_default=True, help="Share of it to keep.")
@click.option("--grid", help="Scales to try, e.g. 0,0.1,0.2. [default: 0 to 1 by 0.05]")
@click.option("-o", "--out", help="Write the model at the chosen scale.")
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
    out: str | None,
    replace: bool,
    exclude: tuple[str, ...],
    engine: Engine,
    quiet: bool,
) -> None:
    """Choose the scale on validation, then report the test scores once.

    Vectors are matched with tasks by name: the file's stem, or NAME=PATH. Addition maximises the
    mean of accuracy / fine-tuned accuracy; --negate minimises the target's accuracy while the
    control keeps its share.
    """
    from taskbasis.evaluate import report_choice
    from taskbasis.library.resolve import open_vectors
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    found = open_vectors(vectors, start, exclude)
    tasks = {task.name: task for task in load_all_tasks(specs)}
    scales = _grid(grid)
    if negate:
        choice, judged = _forget(start, found, tasks, control, keep, scales)
    else:
        choice, judged = _combine(start, found, tasks, scales)

    def build(scale: float) -> EditedModel:
        return _edited(start, found, -scale if negate else scale)

    scores = report_choice(choice, lambda scale: build(scale).tensors(engine), judged)
    click.echo(f"scale {choice.scale:g}, chosen on validation (objective {choice.score:.4f})")
    rows = [[name, f"{score:.4f}"] for name, score in scores.items()]
    print_table("test", ["task", "score"], rows)
    if out:
        build(choice.scale).save(out, replace=replace, engine=engine)
        click.echo(f"wrote {out}")


def _grid(text: str | None) -> Sequence[float]:
    from taskbasis.errors import UsageError
    from taskbasis.evaluate import GRID

    if text is None:
        return GRID
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--grid {text!r}: write numbers with commas, e.g. 0,0.1,0.2") from None


def _edited(base: Checkpoint, vectors: dict[str, TaskVector], scale: float) -> EditedModel:
    from taskbasis.merging import merge

    return merge(base, vectors.values(), scale=scale)


def _combine(
    base: Checkpoint,
    vectors: dict[str, TaskVector],
    tasks: dict[str, Task],
    grid: Sequence[float],
) -> tuple[Choice, list[Task]]:
    from taskbasis.evaluate import evaluate, search_addition

    judged = [_named(tasks, name) for name in vectors]
    individual = {
        task.name: evaluate(vector.apply_to(base).tensors(), [task], "validation")[task.name]
        for task, vector in zip(judged, vectors.values(), strict=True)
    }
    choice = search_addition(
        lambda scale: _edited(base, vectors, scale).tensors(), judged, individual, grid
    )
    return choice, judged


def _forget(
    base: Checkpoint,
    vectors: dict[str, TaskVector],
    tasks: dict[str, Task],
    control: str | None,
    keep: float,
    grid: Sequence[float],
) -> tuple[Choice, list[Task]]:
    from taskbasis.errors import UsageError
    from taskbasis.evaluate import evaluate, search_negation

    if control is None or len(vectors) != 1:
        raise UsageError("--negate takes exactly one vector, and --control names what to keep")
    target, kept = _named(tasks, next(iter(vectors))), _named(tasks, control)
    untouched = evaluate(_edited(base, vectors, 0.0).tensors(), [kept], "validation")[kept.name]
    choice = search_negation(
        lambda scale: _edited(base, vectors, -scale).tensors(), target, kept, untouched, grid, keep
    )
    return choice, [target, kept]


def _named(tasks: dict[str, Task], name: str) -> Task:
    from taskbasis.errors import UsageError, nearest

    if name not in tasks:
        raise UsageError(
            f"there is no task {name!r} to score the vector with; {nearest(name, tasks)}"
        )
    return tasks[name]
