"""taskbasis verify"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import engine_options
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.verifying import Verified


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--base", help="Compare also with the base that the paths are bound to.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@engine_options
@click.pass_context
def verify(
    ctx: click.Context,
    paths: tuple[str, ...],
    base: str | None,
    as_json: bool,
    engine: Engine,
    quiet: bool,
) -> None:
    """Is everything as it was written? Compares PATHS with the digests they carry.

    A path is a checkpoint, task vector, basis, adapter, mask, scores or moments that taskbasis
    wrote. Every tensor that differs, is missing or was added is named with its file, and so are
    files beside the weights; the README may be edited. Exit code 1 where anything differs, or
    where a path carries no digests.
    """
    from taskbasis.errors import Problems
    from taskbasis.io.remote import open_anywhere
    from taskbasis.verifying import Verified
    from taskbasis.verifying import verify as check

    store = open_anywhere(base) if base is not None else None
    found, problems = list[Verified](), Problems()
    for path in paths:
        with problems:  # what is wrong with one path does not hide what was found in others
            found.append(check(path, store, engine))
            if not as_json:
                _say(found[-1], quiet)
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
    problems.check()
    if not all(one.intact for one in found):
        ctx.exit(1)


def _say(one: Verified, quiet: bool) -> None:
    for fault in one.faults:
        click.echo(f"{fault}")
    if quiet and one.intact:
        return
    compared = (
        f"{one.tensors} tensor{'s' * (one.tensors != 1)} ({bytes_text(one.nbytes)}) in "
        f"{one.files} file{'s' * (one.files != 1)}"
    )
    count = len(one.faults)
    outcome = "all as written" if one.intact else f"{count} fault{'s' * (count != 1)}"
    click.echo(f"{one.path}: {one.kind}; {compared} compared: {outcome}")
