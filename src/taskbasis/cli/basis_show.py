"""What a basis looks like in words."""

from __future__ import annotations

import click

from taskbasis.cli.options import print_table
from taskbasis.library.basis import Basis
from taskbasis.units import bytes_text


def show_basis(basis: Basis, verbose: bool = False) -> None:
    """Print what a basis holds, what it saves, and what each task loses.

    With ``verbose`` also every group of tensors: its atoms, and the share of it that is lost.
    """
    contents = basis.contents
    options = contents.options
    saved = 1 - basis.nbytes / basis.full_nbytes if basis.full_nbytes else 0.0
    click.echo(
        f"{basis.path}: a basis of {_many(len(basis.names), 'task')} in "
        f"{_many(contents.atoms, 'atom')} "
        f"({options.get('method')}, {options.get('granularity')} codes, "
        f"normalize {options.get('normalize')})"
    )
    click.echo(f"base {contents.base.name} (fingerprint {contents.base.fingerprint})")
    click.echo(
        f"{bytes_text(basis.nbytes)} instead of {bytes_text(basis.full_nbytes)}: {saved:.1%} saved"
    )
    loss, bound = basis.loss_and_bound
    click.echo(
        f"reconstruction loss {loss:.6g}; no atoms of that number lose less than {bound:.6g}"
    )
    atoms, recovered = basis.sum_cosines
    click.echo(
        f"cosine to the sum of all vectors: {atoms:.4f} for the sum of atoms, "
        f"{recovered:.4f} for the recovered sum"
    )
    state = " (upper bound)" if options.get("updates") else ""
    norms, errors = basis.norms, basis.errors
    rows = [
        [
            name,
            f"{norms[name]:.4g}",
            f"{errors[name]:.4f}",
            "dropped" if basis.dropped(name) else "",
        ]
        for name in basis.names
    ]
    print_table("", ["task", "norm", f"relative error{state}", "note"], rows)
    if verbose:
        _show_groups(basis)


def _show_groups(basis: Basis) -> None:
    rows = []
    for group in basis.contents.groups:
        energy = float(group.gram.diagonal()[: len(basis.names)].sum())
        lost = f"{(float(group.error.sum()) / energy) ** 0.5:.4f}" if energy else "0"
        rows.append([group.name, str(len(group.tensors)), str(group.atoms), lost])
    print_table("", ["group", "tensors", "atoms", "relative error"], rows)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
