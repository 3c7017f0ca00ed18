"""taskbasis merge"""

from __future__ import annotations

import click

from taskbasis.cli.options import (
    Output,
    Source,
    apply_masks,
    exclude_option,
    model_output,
    scale_option,
    scores_option,
    settings_option,
)
from taskbasis.cli.parsing import match_by_name, parse_settings, parse_weights
from taskbasis.cli.recipes import ByRecipe


@click.command(cls=ByRecipe)
@click.argument("base", type=Source())
@click.argument("vectors", type=Source(), nargs=-1, required=True)
@click.option("--method", default="sta", show_default=True, help="How; see taskbasis methods.")
@settings_option
@scores_option
@click.option("--moments", multiple=True, help="Activation moments, one per vector or NAME=FILE.")
@click.option("--masks", help="Multiply every vector by its mask of this file first.")
@click.option(
    "--weights", multiple=True, help="Of the vectors: numbers in order, or NAME=NUMBER; 1."
)
@scale_option
@exclude_option
@model_output
def merge(
    base: str,
    vectors: tuple[str, ...],
    method: str,
    settings: tuple[str, ...],
    scores: tuple[str, ...],
    moments: tuple[str, ...],
    masks: str | None,
    weights: tuple[str, ...],
    scale: float,
    exclude: tuple[str, ...],
    output: Output,
) -> None:
    """Write BASE + scale * METHOD(VECTORS) as a model; or follow a recipe, as merge RECIPE.yml OUT.

    METHOD is a name, or NAME:OPTION=VALUE,OPTION=VALUE; `taskbasis methods` lists them.

    Each of VECTORS is a stored task vector, a checkpoint fine-tuned from BASE, or LIB:NAME for a
    task of a basis; it is called after its file, or NAME=PATH.
    """
    from taskbasis.library.resolve import open_vectors
    from taskbasis.merging import merge
    from taskbasis.methods import parse_method
    from taskbasis.scores import Importance, Moments
    from taskbasis.vectors import Checkpoint

    chosen = parse_method(method, **parse_settings(settings))
    start = Checkpoint(base)
    found = apply_masks(masks, open_vectors(vectors, start, exclude))
    names = list(found)
    model = merge(
        start,
        found,
        chosen,
        scale,
        [Importance.open(path) for path in match_by_name(scores, names, "--scores")],
        [Moments.open(path) for path in match_by_name(moments, names, "--moments")],
        weights=parse_weights(weights, names),
    )
    output.write_model(model, names)
