"""taskbasis analogy"""

from __future__ import annotations

import click

from taskbasis.cli.options import Output, Source, exclude_option, model_output, scale_option


@click.command()
@click.argument("base", type=Source())
@click.option("--plus", multiple=True, required=True, help="C and B; repeat the option.")
@click.option("--minus", multiple=True, required=True, help="A; may be repeated.")
@scale_option
@exclude_option
@model_output
def analogy(
    base: str,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    scale: float,
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Write BASE + scale * (C + B - A): A is to B as C is to the task that is wanted."""
    from taskbasis.library.resolve import open_vector
    from taskbasis.merging import merge
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    added = [open_vector(spec, start, exclude) for spec in plus]
    taken = [-open_vector(spec, start, exclude) for spec in minus]
    output.write_model(merge(start, [*added, *taken], scale=scale))
