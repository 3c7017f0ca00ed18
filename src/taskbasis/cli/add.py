"""taskbasis add"""

from __future__ import annotations

import click

from taskbasis.cli.options import Output, Source, exclude_option, model_output, scale_option


@click.command()
@click.argument("base", type=Source())
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@scale_option
@exclude_option
@model_output
def add(
    base: str, vectors: tuple[str, ...], scale: float, exclude: tuple[str, ...], output: Output
) -> None:
    """Write BASE + scale * (the sum of VECTORS) as a model.

    Each of VECTORS is a stored task vector, a checkpoint fine-tuned from BASE, or LIB:NAME for a
    task of a basis.
    """
    from taskbasis.library.resolve import open_vector
    from taskbasis.merging import merge
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    found = [open_vector(spec, start, exclude) for spec in vectors]
    output.write_model(merge(start, found, scale=scale))
