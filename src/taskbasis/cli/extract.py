"""taskbasis extract"""

from __future__ import annotations

import click

from taskbasis.cli.options import Output, Source, exclude_option, vector_output


@click.command()
@click.argument("base", type=Source())
@click.argument("tuned", type=Source())
@exclude_option
@vector_output
def extract(base: str, tuned: str, exclude: tuple[str, ...], output: Output) -> None:
    """Take the task vector TUNED - BASE and store it.

    The difference is taken in float32 before it is rounded to --dtype. Tensors that are equal on
    both sides are not stored; integer tensors are never part of a vector. The vector is bound to
    its base and refused by any other.
    """
    from taskbasis.vectors import TaskVector

    output.write_vector(TaskVector(base, tuned, exclude))
