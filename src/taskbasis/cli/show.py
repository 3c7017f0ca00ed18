"""taskbasis show"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import engine_options, print_table
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.io.adapter import Adapter
    from taskbasis.io.tensors import TensorStore


@click.command()
@click.argument("path")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--fingerprint", is_flag=True, help="Read the tensors and print their fingerprint.")
@engine_options
def show(path: str, tensors: bool, fingerprint: bool, engine: Engine, quiet: bool) -> None:
    """What is this file or folder? Only headers are read, unless --fingerprint is asked."""
    from taskbasis.errors import UsageError
    from taskbasis.io.adapter import Adapter
    from taskbasis.io.remote import open_anywhere
    from taskbasis.library.basis import Basis
    from taskbasis.library.resolve import open_any
    from taskbasis.masks import Masks
    from taskbasis.scores import Importance, Moments
    from taskbasis.vectors import TaskVector

    found = open_any(path)
    if isinstance(found, Adapter) and fingerprint:
        raise UsageError(f"{path}: an adapter holds factors, no tensors to fingerprint")
    if isinstance(found, Adapter):
        _show_adapter(found, tensors)
        return
    store = open_anywhere(path)
    if isinstance(found, Basis):
        from taskbasis.cli.basis_show import show_basis

        show_basis(found)
    elif isinstance(found, TaskVector):
        bound = found.combination.leaves[0].base
        click.echo(f"{path}: a task vector of {bound.name} (fingerprint {bound.fingerprint})")
        _summary(store)
    elif isinstance(found, (Importance, Moments)):
        what = "importance scores" if isinstance(found, Importance) else "activation moments"
        model = found.origin.model
        click.echo(f"{path}: {what} of {model.name} (fingerprint {model.fingerprint})")
        for line in (found.origin.options, *({k: len(v)} for k, v in found.origin.rules.items())):
            click.echo("  " + ", ".join(f"{name}: {value}" for name, value in line.items()))
        _summary(store)
    elif isinstance(found, Masks):
        kind = "that exclude each other" if found.exclusive else "that may share entries"
        click.echo(f"{path}: masks {kind}, of vectors of {found.base.name}")
        click.echo("  tasks: " + ", ".join(found.names))
        click.echo("  " + ", ".join(f"{name}: {value}" for name, value in found.options.items()))
        _summary(store)
    else:
        click.echo(f"{path}: a checkpoint")
        _summary(store)
    if fingerprint:
        from taskbasis.digest import fingerprint as combine
        from taskbasis.digest import store_digests

        click.echo(f"fingerprint {combine(store_digests(store, engine))}")
    if tensors:
        rows = [
            [i.name, i.dtype.name, str(list(i.shape)), bytes_text(i.nbytes)] for i in store.values()
        ]
        print_table("", ["tensor", "dtype", "shape", "size"], rows)


def _show_adapter(adapter: Adapter, tensors: bool) -> None:
    from taskbasis.io.lowrank import LowRank

    ranks = {n: i.blob.rank for n, i in adapter.infos.items() if isinstance(i.blob, LowRank)}
    of = f" of {adapter.base_name}" if adapter.base_name else ""
    low, high = min(ranks.values(), default=0), max(ranks.values(), default=0)
    span = f"rank {low}" if low == high else f"ranks {low} to {high}"
    whole = f", and {len(adapter.copies)} whole beside them" if adapter.copies else ""
    click.echo(f"{adapter.path}: a LoRA adapter{of}: {len(ranks)} tensors, {span}{whole}")
    if tensors:
        rows = [[n, str(list(adapter.infos[n].shape)), str(rank)] for n, rank in ranks.items()]
        rows += [[n, str(list(i.shape)), "whole"] for n, i in adapter.copies.items()]
        print_table("", ["tensor", "shape", "rank"], rows)


def _summary(store: TensorStore) -> None:
    by_dtype: dict[str, int] = {}
    for info in store.values():
        by_dtype[info.dtype.name] = by_dtype.get(info.dtype.name, 0) + 1
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(by_dtype.items()))
    files = f"{len(store.files)} file{'s' if len(store.files) != 1 else ''}"
    click.echo(
        f"{len(store)} tensors ({kinds}), {store.size:,} numbers, "
        f"{bytes_text(store.nbytes)} in {files}"
    )
