"""taskbasis disentangle"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskbasis.cli.options import (
    LOSS_WORTH_A_WARNING,
    Output,
    Source,
    exclude_option,
    print_table,
    rounding_loss,
    vectors_output,
    warn,
)
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.disentangling import Disentangled


@click.command()
@click.argument("base", type=Source())
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@click.option(
    "--granularity",
    type=click.Choice(["model", "layer", "tensor"]),
    default="model",
    show_default=True,
    help="What has a shared part of its own.",
)
@click.option("--alpha", type=float, default=0.1, show_default=True, help="Keeps the part small.")
@click.option("--rate", type=float, default=0.01, show_default=True, help="Of the descent.")
@click.option("--iterations", type=int, default=300, show_default=True, help="Of the descent.")
@exclude_option
@vectors_output
def disentangle(
    base: str,
    vectors: tuple[str, ...],
    granularity: Any,
    alpha: float,
    rate: float,
    iterations: int,
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Take from VECTORS the one part that makes them overlap, and store what is left of each.

    Writes OUT/NAME.safetensors for each of VECTORS: a stored task vector, a checkpoint fine-tuned
    from BASE, or LIB:NAME, called after its file or NAME=PATH. What is written can be merged by
    any method.
    """
    from taskbasis.disentangling import disentangle
    from taskbasis.library.resolve import open_vectors
    from taskbasis.vectors import Checkpoint

    named = open_vectors(vectors, Checkpoint(base), exclude)
    if len(named) == 1:
        warn("one vector shares nothing with others; it is stored as it is")
    found = disentangle(
        named,
        granularity=granularity,
        alpha=alpha,
        rate=rate,
        iterations=iterations,
        engine=output.engine,
    )
    if len(named) > 1 and found.before and found.after == found.before:
        warn("nothing was taken from the vectors; try a smaller --alpha, or a smaller --rate")
    saved = found.save(
        output.path,
        output.dtype or "float32",
        float32=output.float32,
        rounding=output.rounding,
        rounding_seed=output.rounding_seed,
        replace=output.replace,
        engine=output.engine,
    )
    lost = max(one.lost for one in saved)
    if lost > LOSS_WORTH_A_WARNING:
        warn("up to " + rounding_loss(lost, "a vector", output.rounding))
    if not output.quiet:
        _show(found, granularity == "layer" or output.verbose)
        size = bytes_text(sum(one.nbytes for one in saved))
        click.echo(f"wrote {output.path}: {len(saved)} vectors, {size}")


def _show(found: Disentangled, every_group: bool) -> None:
    """How nearly orthogonal vectors are, as they were and as they are written."""
    rows = [["all", f"{found.before:.4f}", f"{found.after:.4f}", ""]]
    if len(found.groups) == 1:
        rows = []
    if every_group or not rows:
        rows += [
            [name, f"{one.before:.4f}", f"{one.after:.4f}", f"{one.share:.1%}"]
            for name, one in found.groups.items()
        ]
    columns = ["part of the model", "|cos| before", "|cos| after", "taken from a vector"]
    print_table("mean over pairs of vectors", columns, rows)
