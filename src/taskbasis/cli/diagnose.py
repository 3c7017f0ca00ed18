"""taskbasis diagnose"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import (
    Source,
    engine_options,
    exclude_option,
    print_table,
    scale_option,
    write_text,
)

if TYPE_CHECKING:
    from taskbasis.diagnosis import Diagnosis, Part, Rounding, Survival
    from taskbasis.engine import Engine
    from taskbasis.vectors import Checkpoint, TaskVector


MANY = 10
"""So many vectors have a column each."""


@click.command()
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@click.option("--base", help="What they were taken from; needed for checkpoints and adapters.")
@click.option("--dtype", help="Of the merged model. [default: as in the base]")
@scale_option
@click.option("--target", type=float, default=0.05, show_default=True,
              help="Share of the update that rounding may take.")  # fmt: skip
@click.option("--ranks", type=click.IntRange(0), default=8, show_default=True,
              help="Matrices whose effective rank is found, the largest first.")  # fmt: skip
@click.option("--all-ranks", is_flag=True, help="The effective rank of every matrix.")
@exclude_option
@click.option("--json", "json_out", help="Write every number as JSON.")
@click.option("--plot", "plot_out", help="Draw it as a .png file.")
@click.option("--replace", is_flag=True, help="Replace the file at --json.")
@click.option("-v", "--verbose", is_flag=True, help="Tables by tensor, too.")
@engine_options
def diagnose(
    vectors: tuple[str, ...],
    base: str | None,
    dtype: str | None,
    scale: float,
    target: float,
    ranks: int,
    all_ranks: bool,
    exclude: tuple[str, ...],
    json_out: str | None,
    plot_out: str | None,
    replace: bool,
    verbose: bool,
    engine: Engine,
    quiet: bool,
) -> None:
    """What is wrong with VECTORS, or could go wrong when they are merged?

    VECTORS: stored task vectors, checkpoints fine-tuned from --base, adapters, or LIB:NAME; NAME=
    before a path calls it otherwise. Prints norms, cosines, sign conflicts, effective ranks,
    whether each was taken from --base, and what rounding leaves of --scale times their sum. With
    --quiet only what is wrong.
    """
    from taskbasis.diagnosis import diagnose
    from taskbasis.library.resolve import open_vectors
    from taskbasis.vectors import Checkpoint

    origin = Checkpoint(base) if base is not None else None
    named = open_vectors(vectors, origin, exclude)
    _check_places(json_out, plot_out, replace, named, origin)
    found = diagnose(
        named,
        origin,
        dtype=dtype,
        scale=scale,
        ranks=None if all_ranks else ranks,
        target=target,
        engine=engine,
    )
    if not quiet:
        _show(found, verbose)
    for sentence in found.sentences:
        click.echo(f"- {sentence}")
    if not found.sentences and not quiet:
        click.echo("nothing looks wrong")
    if json_out is not None:
        content = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
        write_text(Path(json_out), content)
    if plot_out is not None:
        from taskbasis.plot.diagnosis import diagnosis_plot

        diagnosis_plot(found, plot_out)
    for place in (json_out, plot_out):
        if place is not None and not quiet:
            click.echo(f"wrote {place}")


def _check_places(
    json_out: str | None,
    plot_out: str | None,
    replace: bool,
    named: dict[str, TaskVector],
    origin: Checkpoint | None,
) -> None:
    """Refuse what could not be written before the work instead of after it."""
    from taskbasis.errors import UsageError
    from taskbasis.io.writer import check_destination
    from taskbasis.plot import check_picture

    places = [Path(place) for place in (json_out, plot_out) if place is not None]
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError("--json and --plot must name different places")
    files = {f for v in named.values() for leaf in v.combination.leaves for f in leaf.files}
    files |= {origin.path, *origin.store.files} if origin is not None else set()
    if json_out is not None:
        check_destination(Path(json_out), replace, sorted(files))
        if Path(json_out).is_dir():
            raise UsageError(f"--json {json_out} is a folder; name a file")
    if plot_out is not None:
        check_picture(plot_out)


def _show(found: Diagnosis, verbose: bool) -> None:
    _vectors(found)
    _parts("layers", found, found.layers)
    if verbose:
        _parts("tensors", found, found.tensors)
    if len(found.names) > 1:
        _pairs(found)
    if found.ranks:
        rows = [
            [rank.tensor, f"{rank.shape[0]} x {rank.shape[1]}", *_each(rank.effective, "{:.1f}")]
            for rank in found.ranks
        ]
        print_table("effective ranks", ["matrix", "shape", *_columns(found)], rows)
    if found.rounding is not None:
        of = found.rounding
        _survivals("layers", of, (of.whole, *of.layers))
        if verbose:
            _survivals("tensors", of, of.tensors)
            for name in of.in_float32:
                click.echo(f"  in float32: {name}")
    if found.shared is not None:
        click.echo(
            f"shared by all vectors: {found.shared.share:.1%} of their squared length; mean |cos| "
            f"{found.shared.before:.4f}, and {found.shared.after:.4f} once they are disentangled"
        )


def _vectors(found: Diagnosis) -> None:
    relative = found.whole.relative
    rows = []
    for t, name in enumerate(found.names):
        row = [name, f"{found.whole.norms[t]:.4g}"]
        if found.base is not None:
            row.append(f"{relative[t]:.2%}" if relative is not None else "-")
            of = found.origins[t].whole
            row += [f"{of.cosine:.3f}", f"{of.taken:.1%}", of.verdict]
        rows.append(row)
    columns = ["vector", "norm"]
    if found.base is not None:
        columns += ["of the base's", "cosine to base", "of base taken away", "base"]
    print_table("", columns, rows, left=[5] if found.base is not None else [])


def _columns(found: Diagnosis) -> list[str]:
    """One column per vector, or three for many."""
    return list(found.names) if len(found.names) <= MANY else ["smallest", "median", "largest"]


def _each(numbers: Sequence[float], style: str) -> list[str]:
    """What stands in :func:`_columns`."""
    from statistics import median

    many = len(numbers) > MANY
    shown = [min(numbers), median(numbers), max(numbers)] if many else numbers
    return [style.format(number) for number in shown]


def _parts(title: str, found: Diagnosis, parts: Sequence[Part]) -> None:
    """Norms over the base's, or as they are, and what the vectors are to each other."""
    rows = []
    for part in parts:
        if found.base is None:
            norms = _each(part.norms, "{:.4g}")
        elif part.relative is None:  # the base is zero there
            norms = ["-" for _ in _columns(found)]
        else:
            norms = _each(part.relative, "{:.2%}")
        between = [f"{part.cosine:.3f}", f"{part.conflict:.1%}", f"{part.weighted:.1%}"]
        rows.append([part.name, *norms, *(between if len(found.names) > 1 else [])])
    what = "norms" if found.base is None else "norms over the base's"
    between = ["|cos|", "sign conflict", "by size"] if len(found.names) > 1 else []
    print_table(f"{title}: {what}", [title[:-1], *_columns(found), *between], rows)


def _pairs(found: Diagnosis) -> None:
    """Cosines and sign conflicts of all pairs; of many vectors the pairs of largest cosine."""
    from itertools import combinations

    names, cosines, conflicts = found.names, found.pairs.cosines, found.pairs.weighted
    if len(names) > MANY:
        pairs = sorted(
            combinations(range(len(names)), 2), key=lambda ij: -abs(cosines[ij[0]][ij[1]])
        )
        rows = [
            [names[i], names[j], f"{cosines[i][j]:.3f}", f"{conflicts[i][j]:.1%}"]
            for i, j in pairs[:MANY]
        ]
        columns = ["vector", "and", "cosine", "sign conflict by size"]
        print_table(f"the {len(rows)} pairs of largest |cos|", columns, rows, left=[1])
        return
    rows = []
    for i, name in enumerate(names):
        row = [name]
        for j in range(len(names)):
            low, high = f"{cosines[i][j]:.3f}", f"{conflicts[i][j]:.1%}"
            row.append("" if i == j else low if j < i else high)
        rows.append(row)
    print_table("pairs: cosines below, sign conflicts by size above", ["vector", *names], rows)


def _survivals(title: str, of: Rounding, rows: Sequence[Survival]) -> None:
    print_table(
        f"{title}: what rounding leaves of {of.scale:g} x the sum ({of.dtype})",
        ["part", "dtype", "lost", "unchanged", "step made", "stochastic: lost", "step made"],
        [
            [
                row.name,
                row.dtype,
                f"{row.lost:.2%}",
                f"{row.unchanged:.1%}",
                f"{row.kept:.1%}",
                f"{row.drawn:.2%}",
                f"{row.drawn_kept:.1%}",
            ]
            for row in rows
        ],
        left=[1],
    )
