"""taskbasis lora extract | add"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskbasis.cli.options import Source, engine_options, exclude_option, print_table, warn
from taskbasis.cli.parsing import parse_weights
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.lora import Made

F = TypeVar("F", bound=Callable[..., Any])

_ASKED = {"embedding": "--embeddings adapts them", "head": "--head adapts it"}


def _options(function: F) -> F:
    """What both verbs take: how much is kept, and how it is written."""

    @click.option("-o", "--out", required=True, help="The adapter's folder.")
    @click.option("--rank", type=int, help="Of every module, at most.")
    @click.option(
        "--energy", type=float, help="Share of every matrix's squared norm to keep, e.g. 0.9."
    )
    @click.option("--base-name", help="What the adapter's config calls its base.")
    @click.option("--dtype", default="float32", show_default=True, help="Of the stored factors.")
    @click.option(
        "--max-rank",
        type=int,
        default=16,
        show_default=True,
        help="Warn above this rank; 16 is what vLLM serves by default.",
    )
    @click.option("--replace", is_flag=True, help="Replace what stands at --out, whole.")
    @click.option("-v", "--verbose", is_flag=True, help="Say it of every module and tensor.")
    @engine_options
    @functools.wraps(function)
    def wrapped(*args: Any, max_rank: int, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        _report(function(*args, **kwargs), max_rank, quiet, verbose)

    return wrapped  # type: ignore[return-value]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lora() -> None:
    """Make LoRA adapters: out of full models, and out of each other."""


@lora.command()
@click.argument("base", type=Source())
@click.argument("tuned", type=Source())
@click.option("--include", multiple=True, help="Adapt only tensors matching this pattern.")
@exclude_option
@click.option("--embeddings", is_flag=True, help="Adapt the embeddings, too.")
@click.option("--head", is_flag=True, help="Adapt the projection to the vocabulary, too.")
@click.option(
    "--fan-in-fan-out/--no-fan-in-fan-out",
    default=None,
    help="Whether matrices are [in, out], as in GPT-2. [default: as the biases tell]",
)
@_options
def extract(
    base: str,
    tuned: str,
    out: str,
    rank: int | None,
    energy: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    embeddings: bool,
    head: bool,
    fan_in_fan_out: bool | None,
    base_name: str | None,
    dtype: str,
    replace: bool,
    engine: Engine,
) -> Made:
    """Write the LoRA adapter nearest to TUNED - BASE.

    TUNED is a fine-tuned checkpoint, a stored task vector, or LIB:NAME. Every linear layer's
    difference is replaced by its truncated SVD; what is missed is measured and printed.
    """
    from taskbasis.library.resolve import open_vectors
    from taskbasis.lora import extract_lora
    from taskbasis.vectors import Checkpoint

    start = Checkpoint(base)
    (vector,) = open_vectors([tuned], start, exclude).values()
    return extract_lora(
        start,
        vector,
        out,
        rank,
        energy,
        include=include,
        embeddings=embeddings,
        head=head,
        fan_in_fan_out=fan_in_fan_out,
        base_name=base_name,
        dtype=dtype,
        replace_used=replace,
        engine=engine,
    )


@lora.command()
@click.argument("adapters", type=Source(), nargs=-1, required=True)
@click.option("--weights", multiple=True, help="Numbers in order, or NAME=NUMBER; 1.")
@click.option("--base", help="The base's weights, to check every adapter against.")
@_options
def add(
    adapters: tuple[str, ...],
    out: str,
    weights: tuple[str, ...],
    rank: int | None,
    energy: float | None,
    base: str | None,
    base_name: str | None,
    dtype: str,
    replace: bool,
    engine: Engine,
) -> Made:
    """Write the signed sum of ADAPTERS as one adapter: exactly, or cut to a rank.

    ADAPTERS are called after their folders, or NAME=PATH. Their ranks add up unless --rank or
    --energy says how much of the sum is kept.
    """
    from taskbasis.library.resolve import named_specs
    from taskbasis.lora import add_adapters

    found = dict(named_specs(adapters, "adapters"))
    return add_adapters(
        found,
        parse_weights(weights, list(found)),
        out,
        rank,
        energy,
        base=base,
        base_name=base_name,
        dtype=dtype,
        replace_used=replace,
        engine=engine,
    )


def _report(made: Made, max_rank: int, quiet: bool, verbose: bool) -> None:
    """Say what was written, what it misses, and what is not part of it."""
    from taskbasis.lora import serving_hint

    hint = serving_hint(made.rank, max_rank)
    if hint:
        warn(f"{made.path}: {hint}")
    if quiet:
        return
    modules = "module" if len(made.rows) == 1 else "modules"
    click.echo(
        f"wrote {made.path}: {bytes_text(made.nbytes)}; {len(made.rows)} {modules}, "
        f"rank {made.rank}, scaling 1"
    )
    _print_modules(made, verbose)
    if made.rules:
        _print_rules(made)
    if made.norms:
        click.echo(f"of the whole delta {made.missing:.4g} of the norm is missed")
    for rule, names in made.rules.items() if verbose else ():
        for name in names:
            click.echo(f"  {rule:<12} {name}")


def _print_modules(made: Made, verbose: bool) -> None:
    from taskbasis.lora.made import summary

    groups = {row.module: [row] for row in made.rows} if verbose else made.by_kind()
    rows = []
    for name, found in [*sorted(groups.items()), ("all", list(made.rows))]:
        norm, error = summary(found)
        least, most = min(row.rank for row in found), max(row.rank for row in found)
        ranks = str(most) if least == most else f"{least}-{most}"
        rows.append([name, str(len(found)), ranks, f"{norm:.4g}", f"{error:.4g}"])
    columns = ["module", "count", "rank", "norm of the delta", "relative error"]
    print_table("adapted", columns, rows)


def _print_rules(made: Made) -> None:
    rows = []
    for rule, names in made.rules.items():
        share = f"{made.norms[rule] / made.norm:.2%}" if rule in made.norms else "-"
        rows.append([rule, str(len(names)), share, _ASKED.get(rule, "")])
    print_table("not adapted", ["rule", "tensors", "of the norm", "note"], rows, left=[3])
