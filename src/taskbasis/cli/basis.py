"""taskbasis basis fit | show | recover | add | negate | update | nearest"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskbasis.cli.options import (
    Output,
    Source,
    apply_masks,
    engine_options,
    exclude_option,
    model_output,
    output_options,
    scale_option,
    settings_option,
    warn,
)
from taskbasis.cli.parsing import parse_settings

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.library.basis import Basis
    from taskbasis.vectors import Checkpoint, TaskVector

base_option = click.option("--base", help="What checkpoints among the vectors were tuned from.")
onto_option = click.option("--base", help="Write this base plus the vector; else the vector.")
_atoms_output = output_options(
    "Of the stored atoms: float32, float16, bfloat16. [default: float32]", rounds=False
)
_grown_output = output_options(
    "Of the stored atoms: float32, float16, bfloat16. [default: as before]", rounds=False
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def basis() -> None:
    """Keep many task vectors as a few atoms, and do arithmetic on those."""


@basis.command()
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@click.option("-k", "size", help="Atoms: a count, a fraction of the tasks, or error=0.1.")
@click.option(
    "--method",
    default="autoencoder",
    show_default=True,
    help="autoencoder, pca, svd, cluster, select or random.",
)
@click.option("--normalize", default="mean", show_default=True, help="mean, cosine or none.")
@click.option(
    "--granularity",
    type=click.Choice(["model", "layer", "tensor"]),
    default="model",
    show_default=True,
    help="What shares one set of codes.",
)
@click.option(
    "--budget",
    type=click.Choice(["even", "spectrum"]),
    default="even",
    show_default=True,
    help="Atoms per group: the same, or spread by what each gains.",
)
@click.option("--random-seed", type=int, default=0, show_default=True, help="Of methods that draw.")
@settings_option
@click.option("--masks", help="Multiply every vector by its mask of this file first.")
@base_option
@exclude_option
@_atoms_output
def fit(
    vectors: tuple[str, ...],
    size: str | None,
    method: str,
    normalize: str,
    granularity: Any,
    budget: Any,
    random_seed: int,
    settings: tuple[str, ...],
    masks: str | None,
    base: str | None,
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Build a basis of VECTORS; tasks are called after their files, or NAME=PATH."""
    from taskbasis.cli.basis_show import show_basis
    from taskbasis.library import Design, fit
    from taskbasis.library.resolve import open_vectors

    found = apply_masks(masks, open_vectors(vectors, _checkpoint(base), exclude))
    design = Design(
        size,
        method,
        normalize,
        granularity,
        budget,
        random_seed,
        parse_settings(settings),
    )
    made = fit(
        found,
        output.path,
        design,
        dtype=output.dtype or "float32",
        shard_size=output.shard_size,
        replace_used=output.replace,
        engine=output.engine,
    )
    if not output.quiet:
        show_basis(made, output.verbose)


@basis.command()
@click.argument("library")
@click.option("--plot", help="Write the cosines of the tasks as a PNG.")
@click.option("-v", "--verbose", is_flag=True, help="Also every group of tensors.")
def show(library: str, plot: str | None, verbose: bool) -> None:
    """Print what a basis holds, what it saves, and what each task loses."""
    from taskbasis.cli.basis_show import show_basis
    from taskbasis.library import Basis

    opened = Basis.open(library)
    show_basis(opened, verbose)
    if plot:
        from pathlib import Path

        from taskbasis.plot import gram_plot

        gram_plot(opened.cosines, opened.names, Path(plot))
        click.echo(f"wrote {plot}")


@basis.command()
@click.argument("library")
@click.argument("name")
@onto_option
@scale_option
@model_output
def recover(library: str, name: str, base: str | None, scale: float, output: Output) -> None:
    """Recover one task: its vector, or with --base the model."""
    opened = _open(library)
    _warn_if_dropped(opened, name)
    _write(scale * opened[name], base, output)


@basis.command()
@click.argument("library")
@onto_option
@scale_option
@click.option("--weight", "weights", multiple=True, help="NAME=NUMBER; the others count 0.")
@click.option("--atoms", is_flag=True, help="Sum the atoms, as the paper does, not the tasks.")
@model_output
def add(
    library: str,
    base: str | None,
    scale: float,
    weights: tuple[str, ...],
    atoms: bool,
    output: Output,
) -> None:
    """Add the tasks of a basis: the recovered sum, or with --atoms the sum of the atoms."""
    from taskbasis.errors import UsageError

    opened = _open(library)
    if atoms and weights:
        raise UsageError("--atoms sums the atoms; --weight speaks of tasks. Use one of them")
    given = {name: _number(value) for name, _, value in (w.partition("=") for w in weights)}
    vector = opened.add_atoms() if atoms else opened.add(given or None)
    if not output.quiet:
        cosines = opened.sum_cosines
        if atoms:
            click.echo(f"the sum of the atoms; cosine to the full sum {cosines[0]:.4f}")
        elif not given:
            click.echo(f"the sum of the recovered tasks; cosine to the full sum {cosines[1]:.4f}")
    _write(scale * vector, base, output)


def _number(text: str) -> float:
    from taskbasis.errors import UsageError

    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--weight needs NAME=NUMBER, not {text!r}") from None


@basis.command()
@click.argument("library")
@click.argument("name")
@onto_option
@scale_option
@model_output
def negate(library: str, name: str, base: str | None, scale: float, output: Output) -> None:
    """Subtract one recovered task; warns when the basis has dropped it."""
    opened = _open(library)
    _warn_if_dropped(opened, name)
    _write(scale * opened.negate(name), base, output)


@basis.command()
@click.argument("library")
@click.argument("vector")
@click.option("-k", "size", help="Atoms of the new basis. [default: as many as before]")
@base_option
@exclude_option
@_grown_output
def update(
    library: str,
    vector: str,
    size: str | None,
    base: str | None,
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Add a task using only the stored basis; errors become upper bounds."""
    from taskbasis.cli.basis_show import show_basis
    from taskbasis.library import update
    from taskbasis.library.resolve import open_vectors

    ((name, found),) = open_vectors([vector], _checkpoint(base), exclude).items()
    made = update(
        _open(library),
        name,
        found,
        output.path,
        size,
        dtype=output.dtype,
        shard_size=output.shard_size,
        replace_used=output.replace,
        engine=output.engine,
    )
    if not output.quiet:
        show_basis(made, output.verbose)


@basis.command()
@click.argument("library")
@click.argument("vector")
@base_option
@exclude_option
@engine_options
def nearest(
    library: str,
    vector: str,
    base: str | None,
    exclude: tuple[str, ...],
    engine: Engine,
    quiet: bool,
) -> None:
    """Which atom and which task a vector from outside is closest to."""
    from taskbasis.library.resolve import open_vector

    found = open_vector(vector, _checkpoint(base), exclude)
    atoms, tasks, residual = _open(library).nearest(found, engine)
    for what, items in (("atom", atoms), ("task", tasks)):
        listed = ", ".join(f"{item.name} ({item.cosine:.4f})" for item in items[:3])
        click.echo(f"nearest {what}: {listed}")
    click.echo(f"share of its norm outside the span of the atoms: {residual:.4f}")


def _open(library: str) -> Basis:
    from taskbasis.library import Basis

    return Basis.open(library)


def _checkpoint(path: str | None) -> Checkpoint | None:
    from taskbasis.vectors import Checkpoint

    return Checkpoint(path) if path else None


def _write(vector: TaskVector, base: str | None, output: Output) -> None:
    if base:
        output.write_model(vector.apply_to(base))
    else:
        output.write_vector(vector)


def _warn_if_dropped(opened: Basis, name: str) -> None:
    if opened.dropped(name):
        warn(
            f"the basis has dropped {name!r} (relative error {opened.errors[name]:.2f}); "
            "what is left of it does next to nothing"
        )
