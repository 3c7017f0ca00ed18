"""taskbasis demo"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from taskbasis.cli.options import print_table


@click.command()
@click.option(
    "-o", "--out", default="demo", show_default=True, help="Where models and results are kept."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Repetitions.")
@click.option("-q", "--quiet", is_flag=True, help="Only the table.")
def demo(out: str, seeds: int, quiet: bool) -> None:
    """Fine-tune on eight real tasks, build every kind of basis, add, negate, and judge.

    Handwritten digits from scikit-learn; no download. Needs the extra: pip install
    'taskbasis[demo]'.
    """
    from pathlib import Path

    from taskbasis.demo import COLUMNS, run

    folder = Path(out)
    report = run(folder, range(seeds), teller(quiet)).aggregate()
    header, cells = report.table(list(COLUMNS))
    narrow = [column.replace(" ", "\n") for column in header]
    print_table("digits, eight tasks", narrow, cells)
    click.echo(report.caption(list(COLUMNS)))
    click.echo(f"models, vectors, bases, report and pictures: {folder}")


def teller(quiet: bool) -> Callable[[str], None]:
    """Where sentences on the way go, from worker processes too: to the error stream, or nowhere."""
    return _nothing if quiet else partial(click.echo, err=True)


def _nothing(text: str) -> None:
    del text
