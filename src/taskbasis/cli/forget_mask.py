"""What taskbasis forget does with a stored mask: open it, put its entries back, weigh them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskbasis.cli.options import Output

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.io.tensors import TensorStore
    from taskbasis.masks import Mask, Masks
    from taskbasis.vectors import TaskVector


def open_mask(spec: str) -> tuple[Masks, Mask]:
    """The file and the mask that ``MASKS:NAME`` names."""
    from taskbasis.errors import UsageError
    from taskbasis.masks import Masks

    path, colon, name = spec.rpartition(":")
    if not colon or Path(spec).exists():
        known = ", ".join(Masks.open(spec).names)
        raise UsageError(f"--mask {spec}: name the task, as {spec}:NAME ({known})")
    masks = Masks.open(path)
    return masks, masks[name]


def put_back(
    model: str,
    base: str,
    masks: Masks,
    mask: Mask,
    output: Output,
    scale: float | None,
    exclude: tuple[str, ...],
) -> None:
    """The exact removal: entries that are one task's alone become the base's again."""
    from taskbasis.errors import UsageError
    from taskbasis.selection import restore

    for option, given in (
        ("--scale", scale not in (None, 1.0)),
        ("--exclude", bool(exclude)),
        ("--dtype", output.dtype is not None),
        ("--keep-float32", bool(output.float32)),
        ("--rounding", output.rounding != "nearest"),
    ):
        if given:
            raise UsageError(
                f"{mask} excludes the other tasks' masks, so its entries are put back as they were "
                f"in {base}, exactly; {option} has no meaning there"
            )
    saved = restore(
        model,
        base,
        mask,
        output.path,
        shard_size=output.shard_size,
        replace=output.replace,
        engine=output.engine,
    )
    output.report(saved)
    if not output.quiet:
        share, _ = masks.shares(mask.name)
        click.echo(
            f"{share:.2%} of the entries, those of {mask.name!r} alone, are again as in {base}: "
            f"an exact removal, if {model} was merged with these masks"
        )


def share_of_norm(vector: TaskVector, mask: Mask, base: TensorStore, engine: Engine) -> float:
    """The norm of what a mask keeps over the norm of the vector; 0 for a zero vector."""
    from taskbasis.passes import gram_by_tensor
    from taskbasis.plan import make_plan

    pair = [vector.combination, (mask * vector).combination]
    grams = gram_by_tensor(make_plan(pair, None, base), engine).values()
    whole, part = (sum(float(gram[i, i]) for gram in grams) for i in range(2))
    return math.sqrt(part / whole) if whole else 0.0
