"""taskbasis select"""

from __future__ import annotations

import click

from taskbasis.cli.options import (
    Output,
    Source,
    exclude_option,
    output_options,
    print_kept,
    scores_option,
    settings_option,
)
from taskbasis.cli.parsing import match_by_name, parse_settings


@click.command()
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@click.option("--base", help="What checkpoints among the vectors were tuned from.")
@click.option("--method", default="sta", show_default=True, help="What selects.")
@settings_option
@scores_option
@exclude_option
@output_options(None)
def select(
    vectors: tuple[str, ...],
    base: str | None,
    method: str,
    settings: tuple[str, ...],
    scores: tuple[str, ...],
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Choose the entries of VECTORS that matter and store them as masks, one bit an entry.

    METHOD is one that keeps entries as they are, and settings are its options; of sta: density,
    scope, normalize, threshold, exclusive, effect. Masks are used by merge --masks and
    forget --mask.
    """
    from taskbasis.errors import UsageError
    from taskbasis.library.resolve import open_vectors
    from taskbasis.methods import Selecting, parse_method
    from taskbasis.scores import Importance
    from taskbasis.selection import select
    from taskbasis.units import bytes_text
    from taskbasis.vectors import Checkpoint

    chosen = parse_method(method, **parse_settings(settings))
    if not isinstance(chosen, Selecting):
        raise UsageError(f"method {chosen.name!r} selects no entries; use one that does, like sta")
    found = open_vectors(vectors, Checkpoint(base) if base else None, exclude)
    paths = match_by_name(scores, list(found), "--scores")
    made = select(
        found,
        output.path,
        chosen,
        [Importance.open(path) for path in paths],
        base=base,
        shard_size=output.shard_size,
        replace=output.replace,
        engine=output.engine,
    )
    if not output.quiet:
        size = bytes_text(made.masks.store.nbytes)
        click.echo(f"wrote {output.path}: {size}; masks of {len(found)} vectors")
        print_kept(list(found), made.kept)
