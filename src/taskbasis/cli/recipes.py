"""What merge, check and plan do with a recipe: mergekit's YAML."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskbasis.cli.options import Output, Size, engine_options, print_table, warn
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.following import Prepared

RECIPES = (".yml", ".yaml")

IDLE = {
    "--cuda/--no-cuda": "taskbasis merges on the CPU",
    "--low-cpu-memory/--no-low-cpu-memory": "memory is capped by --memory",
    "--read-to-gpu/--no-read-to-gpu": "taskbasis merges on the CPU",
    "--multi-gpu/--no-multi-gpu": "taskbasis merges on the CPU",
    "--gpu-rich": "taskbasis merges on the CPU",
    "--lazy-unpickle/--no-lazy-unpickle": "no pickle is ever loaded",
    "--async-write/--no-async-write": "tensors are written as they are made",
    "--clone-tensors/--no-clone-tensors": "outputs share no memory",
    "--safe-serialization/--no-safe-serialization": "safetensors are what is written",
    "--trust-remote-code/--no-trust-remote-code": "no code of a model is run",
    "--allow-crimes/--no-allow-crimes": "tensors are matched by name and shape alone",
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
    "--device": "taskbasis merges on the CPU",
    "--write-threads": "--num-threads is for all of the work",
    "--transformers-cache": "models of the hub are in its own cache, see HF_HUB_CACHE",
    "--lora-merge-cache": "adapters are merged while they are read",
    "--lora-merge-dtype": "adapters are merged in float32",
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
@click.argument("recipe")
@click.argument("out")
@click.option("--random-seed", type=int, default=0, show_default=True, help="Of random methods.")
@click.option("--out-shard-size", type=Size(), default="5GB", show_default=True)
@click.option("--write-model-card/--no-write-model-card", default=True, help="README.md.")
@click.option("--replace", is_flag=True, help="Replace what stands at OUT, whole.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was done with every tensor.")
@click.option("--num-threads", type=click.IntRange(1), help="As --workers.")
@_idle_options
@engine_options
def merge_recipe(
    recipe: str,
    out: str,
    random_seed: int,
    out_shard_size: int,
    write_model_card: bool,
    replace: bool,
    verbose: bool,
    num_threads: int | None,
    engine: Engine,
    quiet: bool,
    **idle: bool | str | None,
) -> None:
    """Follow RECIPE, a mergekit YAML file, and write the model to OUT."""
    from taskbasis.chains import follow_all
    from taskbasis.engine import Engine
    from taskbasis.io.writer import check_destination

    for name, given in idle.items():
        flag = name.replace("_", "-")
        why = next(
            why
            for flags, why in (*IDLE.items(), *IDLE_VALUES.items())
            if flags.startswith(f"--{flag}")
        )
        if given is not None:
            warn(f"--{flag} changes nothing: {why}")
    if num_threads is not None:
        engine = Engine(num_threads, engine.memory, engine.progress)
    known = _read(recipe)
    check_destination(Path(out), replace, [Path(recipe)])
    scratch = Path(tempfile.mkdtemp(prefix=f".{Path(out).name}.", dir=Path(out).parent))
    try:
        saved = follow_all(
            known,
            out,
            scratch,
            random_seed,
            tell=lambda note: None if quiet else warn(note),
            card=write_model_card,
            shard_size=out_shard_size,
            replace_used=replace,
            engine=engine,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    Output(out, None, out_shard_size, replace, engine, quiet, verbose).report(saved)


def _read(path: str) -> Any:
    """The recipe; what has no effect in it is said."""
    from taskbasis.recipes import read_recipe

    found = read_recipe(path)
    for note in found.notes:
        warn(f"{path}: {note}")
    return found


def _prepared(path: str) -> list[tuple[str, Prepared]]:
    """Every merge of a file that starts from models that are there."""
    from taskbasis.following import prepare

    found, recipe = [], _read(path)
    for document in recipe.in_order():
        if recipe.needs(document):
            warn(
                f"{document.name or 'the last merge'} starts from {recipe.needs(document)[0]}, "
                "which has to be made first"
            )
            continue
        prepared = prepare(document)
        for note in prepared.notes:
            warn(note)
        found.append((document.name or path, prepared))
    return found


@click.command()
@click.argument("recipe")
def check(recipe: str) -> None:
    """Check RECIPE, a mergekit YAML file, against the headers of its models; nothing is read."""
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
@click.argument("recipe")
def plan(recipe: str) -> None:
    """Tell what following RECIPE takes: every step, bytes, passes, memory and disk."""
    from taskbasis.following import cost

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
