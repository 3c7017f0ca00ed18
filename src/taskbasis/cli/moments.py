"""taskbasis moments"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from taskbasis.cli.importance import (
    learnt_output,
    made_of,
    open_problem,
    reading_options,
    tensors_of,
)
from taskbasis.cli.options import engine_options, exclude_option
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.learn.huggingface import Reading


@click.command()
@click.argument("model")
@click.option("--task", required=True, help="Data, or SUITE:FOLDER:TASK, as for importance.")
@click.option("--samples", type=int, default=256, show_default=True, help="How many are drawn.")
@click.option("--random-seed", "seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--batch", type=int, default=8, show_default=True, help="Samples per forward pass.")
@click.option("--widest", type=int, default=8192, show_default=True, help="Largest input kept.")
@learnt_output
@exclude_option
@reading_options
@engine_options
def moments(
    model: str,
    task: str,
    samples: int,
    seed: int,
    batch: int,
    widest: int,
    out: str,
    device: str | None,
    out_shard_size: int,
    replace: bool,
    exclude: tuple[str, ...],
    reading: Reading,
    engine: Engine,
    quiet: bool,
) -> None:
    """Collect the second moments of MODEL's activations on a task, once, into a file.

    RegMean and LOT merge with them. Labels are not looked at, and padding is left out.
    """
    from taskbasis.learn import moments as collect

    found = collect(
        open_problem(task, model, reading, device),
        out,
        model=model,
        samples=samples,
        seed=seed,
        batch=batch,
        widest=widest,
        exclude=exclude,
        shard_size=out_shard_size,
        replace=replace,
        engine=engine,
    )
    if not quiet:
        click.echo(f"wrote {found}: {bytes_text(found.store.nbytes)}")
        options = {k: v for k, v in found.origin.options.items() if k not in ("transposed", "loss")}
        click.echo(made_of(options))
        click.echo(tensors_of(found.infos, "kept", found.origin.rules))
