"""taskbasis bench"""

from __future__ import annotations

import click

from taskbasis.cli.demo import teller
from taskbasis.cli.options import print_table
from taskbasis.cli.stopping import exit_code


@click.command()
@click.argument("suite")
@click.option("--data", type=click.Path(path_type=str), help="The suite's data; digits needs none.")
@click.option("-o", "--out", default="bench", show_default=True, help="Where results are kept.")
@click.option("--cache", help="Where models and scores are kept. [default: OUT/models]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Repetitions.")
@click.option("--tasks", help="Which tasks, with commas. [default: all of the suite]")
@click.option("--encoder", help="text: an encoder folder with its tokenizer; clip: the base.")
@click.option("--only", multiple=True, help="Methods by name, * for anything; may be repeated.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Training samples per task that scores and moments are learnt from.",
)
@click.option("--validation", type=click.IntRange(1), help="Items scored per task, at most.")
@click.option("--test", type=click.IntRange(1), help="The same for the test split.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Processes. [default: cores, seeds]")
@click.option("-q", "--quiet", is_flag=True, help="Only the table.")
def bench(
    suite: str,
    data: str | None,
    out: str,
    cache: str | None,
    seeds: int,
    tasks: str | None,
    encoder: str | None,
    only: tuple[str, ...],
    samples: int,
    validation: int | None,
    test: int | None,
    workers: int | None,
    quiet: bool,
) -> None:
    """One table: every method on a suite of real tasks, added and forgotten.

    SUITE is digits, images, text or clip. Models, scores and results are kept as they are made,
    so an interrupted run goes on where it was stopped. Needs the extra: pip install
    'taskbasis[demo]'.
    """
    from pathlib import Path

    from taskbasis.bench import COLUMNS, Bench, run

    limits = {"validation": validation, "test": test}
    asked = Bench(
        suite,
        Path(out),
        Path(cache) if cache else Path(out) / "models",
        Path(data) if data else None,
        seeds,
        tuple(tasks.split(",")) if tasks else (),
        Path(encoder) if encoder else None,
        only,
        samples,
        {split: count for split, count in limits.items() if count is not None},
    )
    try:
        report = run(asked, teller(quiet), workers)
    except KeyboardInterrupt as stop:
        click.echo("stopped; what was made and measured is kept, and used when run again", err=True)
        raise click.exceptions.Exit(exit_code(stop)) from None
    means = report.aggregate()
    columns = [name for name in COLUMNS if name in means.metrics]
    header, cells = means.table(columns)
    print_table(f"{suite}, all methods", [name.replace(" ", "\n") for name in header], cells)
    click.echo(means.caption(columns))
    click.echo(f"checkpoints: {report.rows[0].extras['checkpoints']}")
    click.echo(f"table, differences and pictures: {Path(out) / f'bench-{suite}.md'}")
