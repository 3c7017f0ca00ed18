"""taskbasis evaluate"""

from __future__ import annotations

from typing import Literal

import click

from taskbasis.cli.options import load_all_tasks, print_table, tasks_option


@click.command()
@click.argument("models", nargs=-1, required=True)
@tasks_option
@click.option(
    "--split",
    type=click.Choice(["validation", "test"]),
    default="test",
    show_default=True,
    help="Coefficients are chosen on validation; test is for reporting.",
)
def evaluate(
    models: tuple[str, ...], specs: tuple[str, ...], split: Literal["validation", "test"]
) -> None:
    """Print a number per task for every model."""
    from taskbasis.evaluate import evaluate
    from taskbasis.vectors import Checkpoint, EditedModel

    tasks = load_all_tasks(specs)
    rows = []
    for path in models:
        scores = evaluate(EditedModel(Checkpoint(path)).tensors(), tasks, split)
        mean = sum(scores.values()) / len(scores)
        rows.append([path, f"{mean:.4f}", *(f"{score:.4f}" for score in scores.values())])
    print_table(f"{split} scores", ["model", "mean", *(task.name for task in tasks)], rows)
