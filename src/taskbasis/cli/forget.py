"""taskbasis forget"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskbasis.cli.forget_mask import open_mask, put_back, share_of_norm
from taskbasis.cli.forget_search import Search, search_options
from taskbasis.cli.options import (
    Output,
    Size,
    Source,
    engine_options,
    exclude_option,
    print_table,
    rounding_options,
    settings_option,
)
from taskbasis.cli.parsing import parse_settings

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.io.storing import Rounding
    from taskbasis.masks import Mask, Masks
    from taskbasis.scores import Importance
    from taskbasis.vectors import Checkpoint, EditedModel, TaskVector


@dataclass(frozen=True)
class Removal:
    """What is taken out of which model: a vector's entries, by scores or by a stored mask.

    Attributes:
        model: what the entries are taken out of.
        base: what the model was merged on; None where the model itself is the vector's base.
        name: the vector's task.
        masks, mask: the file of masks and the one that is used; None where entries are selected.
        scores: what selects, one file; magnitudes where there is none.
        settings: options of the method sta.
    """

    model: Checkpoint
    base: Checkpoint | None
    name: str
    vector: TaskVector
    masks: Masks | None
    mask: Mask | None
    scores: tuple[Importance, ...]
    settings: Mapping[str, Any]

    def at(self, scale: float, density: float | None = None) -> EditedModel:
        """The model less ``scale`` times the selected entries of the vector."""
        from taskbasis.merging import merge
        from taskbasis.methods import method

        start, onto = (self.model, None) if self.base is None else (self.base, self.model)
        if self.mask is not None:
            return merge(start, [self.mask * self.vector], scale=-scale, onto=onto)
        settings = {**self.settings, **({} if density is None else {"density": density})}
        chosen = method("sta", **settings)
        return merge(start, [self.vector], chosen, -scale, self.scores, onto=onto)

    @property
    def inputs(self) -> list[Path]:
        """The files it reads, which nothing may be written into."""
        found = [self.model.path, *([self.base.path] if self.base else [])]
        found += [file for leaf in self.vector.combination.leaves for file in leaf.files]
        found += [file for importance in self.scores for file in importance.learnt.files]
        return [*found, *(self.mask.files if self.mask else ())]

    @contextmanager
    def advised(self) -> Iterator[None]:
        """Where the model is not the vector's base, say what else it may be."""
        from taskbasis.errors import BaseError

        try:
            yield
        except BaseError as error:
            if self.base is not None:
                raise
            advice = f"or say with --base what {self.model} was merged on"
            raise BaseError(f"{error}, {advice}") from None

    def write(self, output: Output, scale: float, density: float | None = None) -> None:
        """Write the model, and say what was taken out."""
        output.write_model(self.at(scale, density), [self.name])
        if self.masks is not None and self.mask is not None and not output.quiet:
            start = self.base or self.model
            share, common = self.masks.shares(self.mask.name)
            norm = share_of_norm(self.vector, self.mask, start.store, output.engine)
            cells = [self.name, f"{share:.2%}", f"{norm:.1%}", f"{common:.1%}"]
            print_table("kept", ["vector", "entries", "of the norm", "shared with others"], [cells])


@click.command()
@click.argument("model", type=Source())
@click.argument("vector", required=False)
@click.option("--base", help="What MODEL was merged on, if VECTOR was not taken from MODEL.")
@click.option("--scale", type=float, help="Lambda, on the selected entries. [default: 1]")
@click.option("--scores", help="Importance scores that select. [default: magnitudes]")
@click.option("--mask", "mask_spec", help="MASKS:NAME, a stored mask, instead of selecting.")
@settings_option
@search_options
@click.option("-o", "--out", help="Where to write; may be left out with --tasks.")
@click.option("--dtype", help="Of the float tensors. [default: as in MODEL]")
@rounding_options
@click.option("--out-shard-size", type=Size(), default="5GB", show_default=True)
@click.option("--replace", is_flag=True, help="Replace what stands at --out, whole.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was done with every tensor.")
@exclude_option
@engine_options
def forget(
    model: str,
    vector: str | None,
    base: str | None,
    scale: float | None,
    scores: str | None,
    mask_spec: str | None,
    settings: tuple[str, ...],
    search: Search | None,
    out: str | None,
    dtype: str | None,
    float32: tuple[str, ...],
    rounding: Rounding,
    rounding_seed: int | None,
    out_shard_size: int,
    replace: bool,
    verbose: bool,
    exclude: tuple[str, ...],
    engine: Engine,
    quiet: bool,
) -> None:
    """Write MODEL - scale * mask o VECTOR: a model without the entries a task depends on.

    VECTOR is a stored task vector, a checkpoint fine-tuned from MODEL, or LIB:NAME. Its entries
    are selected by the method sta (--set density=0.1), by --scores or else by magnitude.

    From a model that was merged on --base, a task whose --mask excludes the others' is taken out
    exactly: the base's entries are put back, and VECTOR is not needed. All else is subtracted.

    With --tasks, density and scale are searched on validation for the lowest score of --target
    that keeps every --control, and reported once on test.
    """
    from taskbasis.errors import UsageError

    if mask_spec is not None and (scores is not None or settings):
        raise UsageError("--mask is a selection already made; leave out --scores and --set")
    if out is None and search is None:
        raise UsageError("say with -o where to write, or with --tasks what to search for")
    if search is not None and scale is not None:
        raise UsageError("with --tasks the scale is searched; give the scales to try as --scales")
    masks, mask = open_mask(mask_spec) if mask_spec is not None else (None, None)
    how = (float32, rounding, rounding_seed)
    output = Output(out or "", dtype, out_shard_size, replace, engine, quiet, verbose, *how)
    if masks is not None and mask is not None and masks.exclusive and base and search is None:
        if vector is not None:
            raise UsageError(f"{mask} is put back as it was in {base}; leave out {vector}")
        put_back(model, base, masks, mask, output, scale, exclude)
        return
    removal = _removal(model, vector, base, scores, masks, mask, settings, exclude)
    with removal.advised():
        if search is not None:
            search.run(removal, output)
            return
        factor = 1.0 if scale is None else scale
        removal.write(output, factor)
    if removal.base is not None and not quiet:
        click.echo(
            "not an exact removal: it is one, up to rounding, only if these very entries were "
            f"merged into {model} at scale {factor:g}"
        )


def _removal(
    model: str,
    vector: str | None,
    base: str | None,
    scores: str | None,
    masks: Masks | None,
    mask: Mask | None,
    settings: tuple[str, ...],
    exclude: tuple[str, ...],
) -> Removal:
    from taskbasis.errors import UsageError
    from taskbasis.library.resolve import open_vector, task_name
    from taskbasis.methods import method
    from taskbasis.scores import Importance
    from taskbasis.vectors import Checkpoint

    if vector is None:
        raise UsageError(
            "name the VECTOR to take out; without one, entries are only put back where --mask "
            "excludes the others' and --base says what MODEL was merged on"
        )
    parsed = parse_settings(settings)
    method("sta", **parsed)
    if parsed.get("exclusive"):
        raise UsageError(
            "exclusive compares the scores of several vectors; make such masks with "
            "taskbasis select, then pass one as --mask MASKS:NAME"
        )
    start, origin = Checkpoint(model), Checkpoint(base) if base is not None else None
    name, path = task_name(vector)
    return Removal(
        start,
        origin,
        name,
        open_vector(path, origin or start, exclude),
        masks,
        mask,
        (Importance.open(scores),) if scores is not None else (),
        parsed,
    )
