"""taskbasis negate"""

from __future__ import annotations

import click

from taskbasis.cli.options import Output, Source, exclude_option, model_output, scale_option


@click.command()
@click.argument("base", type=Source())
@click.argument("vector", type=Source())
@scale_option
@exclude_option
@model_output
def negate(base: str, vector: str, scale: float, exclude: tuple[str, ...], output: Output) -> None:
    """Write BASE - scale * VECTOR: a model that forgets the task.

    VECTOR is a stored task vector, a checkpoint fine-tuned from BASE, or LIB:NAME.
    """
    from taskbasis.library.resolve import open_vector
    from taskbasis.merging import merge
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    output.write_model(merge(start, [-open_vector(vector, start, exclude)], scale=scale))
