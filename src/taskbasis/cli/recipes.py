"""What merge, check and plan do with a recipe: mergekit's YAML."""

from __future__ import annotations

import shutil
from dataclasses import replace as again
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskbasis.cli.options import (
    Output,
    Size,
    Source,
    device_option,
    engine_options,
    print_table,
    resume_option,
    rounding_options,
    warn,
    warn_where_idle,
)
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.io.storing import Rounding
    from taskbasis.preparing import Prepared
    from taskbasis.recipes import RecipeFile

RECIPES = (".yml", ".yaml")

IDLE = {
    "--cuda/--no-cuda": "weighted sums are computed on the GPU with --device cuda",
    "--low-cpu-memory/--no-low-cpu-memory": "memory is capped by --memory",
    "--read-to-gpu/--no-read-to-gpu": "files are read into page-locked memory for --device",
    "--multi-gpu/--no-multi-gpu": "--device names the one device that is used",
    "--gpu-rich": "weighted sums are computed on the GPU with --device cuda",
    "--lazy-unpickle/--no-lazy-unpickle": "no pickle is ever loaded",
    "--async-write/--no-async-write": "tensors are written as they are made",
    "--clone-tensors/--no-clone-tensors": "outputs share no memory",
    "--safe-serialization/--no-safe-serialization": "safetensors are what is written",
    "--trust-remote-code/--no-trust-remote-code": "no code of a model is run",
    "--allow-crimes/--no-allow-crimes": "tensors are matched by name and shape alone",
    "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings": (
        "rows of embeddings are never cut off; tokenizer_source: union or base aligns them by token"
    ),
    "--copy-tokenizer/--no-copy-tokenizer": "the tokenizer of the base model is always copied",
}
"""Flags of mergekit-yaml that change nothing here, and why."""


class ByRecipe(click.Command):
    """A verb that becomes another one when its first word is a recipe."""

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        if any(word.endswith(RECIPES) and not word.startswith("-") for word in args):
            return merge_recipe.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


IDLE_VALUES = {
    "--write-threads": "--num-threads is for all of the work",
    "--transformers-cache": "models of the hub are in its own cache, see HF_HUB_CACHE",
    "--lora-merge-cache": "adapters are merged while they are read",
}
"""The same of flags with a value."""


def _idle_options(function: Any) -> Any:
    for flag in IDLE_VALUES:
        function = click.option(flag, default=None, hidden=True)(function)
    function = click.option(
        "--no-quiet", is_flag=True, default=None, hidden=True, expose_value=False
    )(function)
    for flags in IDLE:
        function = click.option(flags, default=None, hidden=True, is_flag=True)(function)
    return function


@click.command()
@click.argument("recipe", type=Source())
@click.argument("out")
@click.option("--random-seed", type=int, default=0, show_default=True, help="Of random methods.")
@click.option(
    "--out-shard-size",
    type=Size(),
    default="5GB",
    show_default=True,
    help="Largest weights file. 5B means 5 billion bytes, which is what mergekit does, too.",
)
@click.option(
    "--lora-merge-dtype",
    "lora_dtype",
    help="What models with adapters on them are rounded to before they are merged. "
    "[default: not rounded, as no update of a 16-bit model survives it whole]",
)
@click.option("--write-model-card/--no-write-model-card", default=True, help="README.md.")
@click.option("--replace", is_flag=True, help="Replace what stands at OUT, whole.")
@resume_option
@device_option
@click.option("-v", "--verbose", is_flag=True, help="Say what was done with every tensor.")
@rounding_options
@click.option("--num-threads", type=click.IntRange(1), help="As --workers.")
@_idle_options
@engine_options
def merge_recipe(
    recipe: str,
    out: str,
    random_seed: int,
    out_shard_size: int,
    lora_dtype: str | None,
    write_model_card: bool,
    replace: bool,
    resume: bool,
    device: str | None,
    verbose: bool,
    float32: tuple[str, ...],
    rounding: Rounding,
    rounding_seed: int | None,
    num_threads: int | None,
    engine: Engine,
    quiet: bool,
    **idle: bool | str | None,
) -> None:
    """Follow RECIPE, a mergekit YAML file, and write the model to OUT."""
    from taskbasis.chains import follow_all, look_ahead
    from taskbasis.io.hidden import HiddenFolder
    from taskbasis.io.journal import run_key
    from taskbasis.io.writer import check_destination

    for name, given in idle.items():
        flag = name.replace("_", "-")
        why = next(
            why
            for flags, why in (*IDLE.items(), *IDLE_VALUES.items())
            if flags.startswith(f"--{flag}")
        )
        if given is not None and not quiet:
            warn(f"--{flag} changes nothing: {why}")
    device = None if device == "cpu" else device  # mergekit's word for no device
    workers = num_threads or engine.workers
    engine = again(engine, workers=workers, resume=resume, device=device)
    how = (float32, rounding, rounding_seed)
    output = Output(out, None, out_shard_size, replace, engine, quiet, verbose, *how)
    storing = output.storing
    known = _read(recipe, quiet)
    if device is not None:
        ahead = look_ahead(known, random_seed, lora_dtype).values()
        warn_where_idle(device, [edit for prepared in ahead for edit in prepared.edits])
    check_destination(Path(out), replace, [Path(recipe)])
    with HiddenFolder(Path(out), "parts") as parts:
        parts.take(run_key([random_seed, lora_dtype], [Path(recipe)], None, resume), resume)
        parts.keep = resume
        saved = follow_all(
            known,
            out,
            parts.path,
            random_seed,
            lora_dtype=lora_dtype,
            tell=lambda note: None if quiet else warn(note),
            card=write_model_card,
            shard_size=out_shard_size,
            replace_used=replace,
            engine=engine,
            storing=storing,
        )
        parts.keep = False
    output.report(saved)
    output.say_float32()


def _read(path: str, quiet: bool = False) -> RecipeFile:
    """The recipe; what has no effect in it is said."""
    from taskbasis.recipes import read_recipe

    found = read_recipe(path)
    for note in () if quiet else found.notes:
        warn(f"{path}: {note}")
    return found


def _prepared(path: str, lora_dtype: str | None = None) -> list[tuple[str, Prepared]]:
    """Every merge of a file, in order, none of which is made; what is worth a sentence is said."""
    from taskbasis.chains import look_ahead

    found = look_ahead(_read(path), lora_dtype=lora_dtype)
    for note in dict.fromkeys(note for prepared in found.values() for note in prepared.notes):
        warn(note)
    return [(name or path, prepared) for name, prepared in found.items()]


@click.command()
@click.argument("recipe", type=Source())
def check(recipe: str) -> None:
    """Check RECIPE, a mergekit YAML file, against the headers of its models: all merges of it, and
    all that is wrong at once."""
    from taskbasis.following import account

    for name, prepared in _prepared(recipe):
        steps = prepared.translation.grouped()
        click.echo(
            f"{name}: {len(prepared.outputs)} tensors in {len(steps)} "
            f"group{'s' * (len(steps) != 1)} of like settings; nothing is wrong"
        )
        for model, unused in account(prepared).items():
            if unused:
                some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
                warn(f"{len(unused)} tensors of {model} are not part of the merge: {some}")


@click.command()
@click.argument("recipe", type=Source())
def plan(recipe: str) -> None:
    """Tell what following RECIPE takes: every step, bytes, passes, memory and disk."""
    from taskbasis.following import cost

    needed = 0
    for name, prepared in _prepared(recipe):
        rows = []
        for step, tensors in prepared.translation.grouped().items():
            weights = ", ".join(
                f"{weight:g} {Path(str(ref)).name}"
                for ref, weight in zip(step.models, step.weights, strict=True)
            )
            options = ",".join(f"{key}={value}" for key, value in step.options)
            rows.append(
                [
                    f"{step.method}:{options}" if options else step.method,
                    str(len(tensors)),
                    f"{step.scale:g}",
                    weights,
                ]
            )
        print_table(name, ["method", "tensors", "scale", "weights"], rows, left=(3,))
        takes = cost(prepared)
        click.echo(
            f"reads {bytes_text(takes.read)} in up to {takes.passes} "
            f"pass{'es' * (takes.passes != 1)}, writes {bytes_text(takes.written)}, holds "
            f"{bytes_text(takes.memory)} per worker"
        )
        needed += takes.written
    free = shutil.disk_usage(Path.cwd()).free
    click.echo(f"disk: takes {bytes_text(needed)}, and here {bytes_text(free)} are free")
    if needed > free:
        warn("that does not fit here; write it to another disk")
