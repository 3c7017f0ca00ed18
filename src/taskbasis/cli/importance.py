"""taskbasis importance"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskbasis.cli.options import Size, engine_options, exclude_option, warn
from taskbasis.units import bytes_text

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.learn.huggingface import Reading
    from taskbasis.learn.problem import Problem
    from taskbasis.scores import Importance

F = TypeVar("F", bound=Callable[..., Any])


def reading_options(function: F) -> F:
    """Add the options that say how data is read, and pass them as ``reading``."""

    @click.option("--text-column", "text_columns", multiple=True, help="Twice for pairs of texts.")
    @click.option("--label-column", help="[default: label]")
    @click.option("--image-column", help="[default: image]")
    @click.option("--max-length", type=int, help="Tokens per sample. [default: at most 128]")
    @click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer.")
    @click.option("--split", help="Of the data. [default: train]")
    @click.option("--compute-dtype", help="[default: as stored, float16 as float32]")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        text_columns: tuple[str, ...],
        label_column: str | None,
        image_column: str | None,
        max_length: int | None,
        tokenizer: Path | None,
        split: str | None,
        compute_dtype: str | None,
        **kwargs: Any,
    ) -> Any:
        from taskbasis.io.dtypes import floating
        from taskbasis.learn.huggingface import Reading

        dtype = floating(compute_dtype).name if compute_dtype else None
        reading = Reading(
            text_columns, label_column, image_column, max_length, tokenizer, split, dtype
        )
        return function(*args, reading=reading, **kwargs)

    return wrapped  # type: ignore[return-value]


def learnt_output(function: F) -> F:
    """Add --device and where the file goes."""

    @click.option("-o", "--out", required=True, help="Where to write: a .safetensors file.")
    @click.option("--device", help="Where the model runs, e.g. cuda. [default: cpu]")
    @click.option("--out-shard-size", type=Size(), default="5GB", show_default=True)
    @click.option("--replace", is_flag=True, help="Replace what stands at --out, whole.")
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def open_problem(task: str, model: str, reading: Reading, device: str | None) -> Problem:
    """The problem that --task names, on a device."""
    from taskbasis.errors import UsageError
    from taskbasis.learn.spec import problem_of

    problem = problem_of(task, Path(model), reading)
    if device is not None:
        try:
            problem.module.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--device {device} cannot be used: {reason}") from None
    return problem


@click.command()
@click.argument("model")
@click.option(
    "--task", help="Data (csv, tsv, jsonl, txt, npz, a datasets folder), or SUITE:FOLDER:TASK."
)
@click.option("--base", help="The model it was tuned from.")
@click.option("--factor", show_default="delta with --base, else weight",
              help="weight, delta, grad, fisher, fisher_delta, magnitude (no data).")  # fmt: skip
@click.option("--aggregation", default="mean_abs", show_default=True,
              help="mean_abs, abs_mean or mean_square, over samples.")  # fmt: skip
@click.option("--at", default="tuned", show_default=True,
              help="Where gradients are taken: tuned, base, or path between.")  # fmt: skip
@click.option("--points", type=int, default=5, show_default=True, help="On the path.")
@click.option("--samples", type=int, default=256, show_default=True, help="How many are drawn.")
@click.option("--random-seed", "seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--gradients", default="auto", show_default=True,
              help="per_sample, single (both exact), batch (cheaper), or auto.")  # fmt: skip
@click.option("--batch", type=int, default=8, show_default=True, help="With --gradients batch.")
@click.option("--dtype", default="float16", show_default=True, help="Of the scores.")
@learnt_output
@exclude_option
@reading_options
@engine_options
def importance(
    model: str,
    task: str | None,
    base: str | None,
    out: str,
    device: str | None,
    out_shard_size: int,
    replace: bool,
    exclude: tuple[str, ...],
    dtype: str,
    reading: Reading,
    engine: Engine,
    quiet: bool,
    **how: Any,
) -> None:
    """Score every parameter of MODEL for a task, once, into a file.

    A score is the mean over samples of |delta x gradient of the sample's loss|, the first-order
    estimate of what the parameter's change from BASE is worth to the task; without --base, of
    |weight x gradient|, what the parameter is worth (Selective Task Arithmetic). The head of a
    classifier is not scored. The file is bound to MODEL; masks, merging and forgetting use it.
    """
    from taskbasis.errors import UsageError
    from taskbasis.learn import importance as measure
    from taskbasis.learn.how import How
    from taskbasis.learn.huggingface import Reading
    from taskbasis.learn.scoring import with_factor

    how = with_factor({k: v for k, v in how.items() if v is not None}, base is not None)
    chosen = How(**how)
    if chosen.factor == "magnitude":
        if task is not None or device is not None or reading != Reading():
            raise UsageError("the factor magnitude needs no data; leave out --task and its options")
        problem = None
    elif task is None:
        raise UsageError(
            f"the factor {chosen.factor} needs data: name it with --task, or use --factor magnitude"
        )
    else:
        problem = open_problem(task, model, reading, device)
    found = measure(
        problem,
        out,
        model=model,
        base=base,
        exclude=exclude,
        dtype=dtype,
        shard_size=out_shard_size,
        replace=replace,
        engine=engine,
        **how,
    )
    if "approximation" in found.origin.options:
        warn(f"the scores are an approximation: {found.origin.options['approximation']}")
    if not quiet:
        _report(found)


def _report(found: Importance) -> None:
    """What was measured, what was left out, and what came out."""
    options = found.origin.options
    click.echo(f"wrote {found}: {bytes_text(found.store.nbytes)}")
    click.echo(made_of(options))
    total, size, largest, where = 0.0, 0, -1.0, ""
    for name in sorted(found.infos):
        scores = found.scores(name)
        total, size = total + float(scores.sum(dtype="float64")), size + scores.size
        if scores.size and float(scores.max()) > largest:
            largest, where = float(scores.max()), name
    click.echo(tensors_of(found.infos, "scored", found.origin.rules))
    click.echo(f"mean score {total / max(size, 1):.4g}, largest {max(largest, 0):.4g} in {where}")


def made_of(options: Any) -> str:
    """One line on the samples and options that went in."""
    known = dict(options)
    samples, available = known.pop("samples", None), known.pop("available", None)
    drawn = "" if samples is None else f"{samples} of {available} samples, "
    return drawn + ", ".join(f"{name} {value}" for name, value in known.items())


def tensors_of(kept: Any, done: str, rules: Any) -> str:
    """One line on the tensors that were looked at and, by rule, on those that were not."""
    counts = ", ".join(f"{len(names)} {rule}" for rule, names in rules.items() if names)
    return f"tensors: {len(kept)} {done}" + (f", {counts}" if counts else "")
