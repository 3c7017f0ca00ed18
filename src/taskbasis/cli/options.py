"""Options that several verbs share, and what they say when the work is done."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as again
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from taskbasis.io.hidden import whole_file
from taskbasis.terminal import raw, visible
from taskbasis.units import bytes_text, parse_bytes

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.evaluate import Task
    from taskbasis.io.storing import Rounding, Storing
    from taskbasis.passes import Kept
    from taskbasis.saving import Edit, Saved
    from taskbasis.vectors import EditedModel, TaskVector

F = TypeVar("F", bound=Callable[..., Any])

LOSS_WORTH_A_WARNING = 0.1


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes: 800MB, 5GB, 512MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_bytes(value)


class Source(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A model, vector or adapter, refused at once where nothing stands."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from taskbasis.io.ids import check_there

        check_there(value)
        return str(value)


def engine_options(function: F) -> F:
    """Add --workers, --memory and --quiet, and pass an ``engine``."""

    @click.option("-j", "--workers", type=click.IntRange(1), help="Threads. [default: all cores]")
    @click.option("--memory", type=Size(), help="Cap on resident memory, e.g. 1GiB.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress, no report.")
    @functools.wraps(function)
    def wrapped(
        *args: Any, workers: int | None, memory: int | None, quiet: bool, **kwargs: Any
    ) -> Any:
        return function(*args, engine=make_engine(workers, memory, quiet), quiet=quiet, **kwargs)

    return wrapped  # type: ignore[return-value]


def make_engine(workers: int | None, memory: int | None, quiet: bool) -> Engine:
    """An engine as the options say; the bar is shown to people, not to pipes."""
    from taskbasis.compiling import on_first_compilation
    from taskbasis.engine import Engine, available_workers
    from taskbasis.progress import Bar, Silent

    if not quiet:
        on_first_compilation(
            lambda: click.echo("compiling the kernels for this machine, once", err=True)
        )
    shown = not quiet and sys.stderr.isatty()
    return Engine(workers or available_workers(), memory, Bar() if shown else Silent())


@dataclass(frozen=True)
class Output:
    """Where a verb writes, how, and what it says of it."""

    path: str
    dtype: str | None
    shard_size: int
    replace: bool
    engine: Engine
    quiet: bool
    verbose: bool = False
    float32: tuple[str, ...] = ()
    rounding: Rounding = "nearest"
    rounding_seed: int | None = None

    @property
    def storing(self) -> Storing:
        """How floats are stored."""
        from taskbasis.io.storing import storing

        return storing(self.dtype, self.float32, self.rounding, self.rounding_seed)

    def write_model(self, model: EditedModel, names: Sequence[str] = ()) -> None:
        """Write weights and report; ``names`` are those of the vectors a method chose from."""
        warn_where_idle(self.engine.device, [model.edit()])
        saved = model.save(
            self.path,
            self.dtype,
            float32=self.float32,
            rounding=self.rounding,
            rounding_seed=self.rounding_seed,
            shard_size=self.shard_size,
            replace=self.replace,
            engine=self.engine,
        )
        self.report(saved)
        self.say_float32()
        if saved.kept is not None and not self.quiet:
            print_kept(names or [str(vector) for vector in model.vectors], saved.kept)

    def write_vector(self, vector: TaskVector) -> None:
        """Write a task vector and report."""
        self.report(
            vector.save(
                self.path,
                self.dtype or "float32",
                float32=self.float32,
                rounding=self.rounding,
                rounding_seed=self.rounding_seed,
                shard_size=self.shard_size,
                replace=self.replace,
                engine=self.engine,
            )
        )

    def report(self, saved: Saved) -> None:
        """Say what was written and what became of every tensor."""
        if saved.lost > LOSS_WORTH_A_WARNING:
            warn(rounding_loss(saved.lost, "the update", self.rounding))
        if not self.quiet:
            counts = ", ".join(
                f"{len(names)} {rule}" for rule, names in saved.rules.items() if names
            )
            click.echo(f"wrote {saved.path}: {bytes_text(saved.nbytes)}; tensors: {counts}")
            click.echo(
                f"norm of the delta {saved.norm:.6g}, {_ROUNDED[self.rounding]} {saved.lost:.3%}"
            )
        if self.verbose:
            self._list(saved)

    def say_float32(self) -> None:
        """Say how tensors that were kept in float32 are lost again by whoever loads them."""
        if self.float32 and not self.quiet:
            click.echo(
                "to keep what is stored in float32, load the model in float32 (dtype=torch.float32 "
                "in transformers): loading all of it in its config's dtype rounds it again"
            )

    @staticmethod
    def _list(saved: Saved) -> None:
        for rule, names in saved.rules.items():
            for name in names:
                click.echo(f"  {rule:<10} {name}")


_ROUNDED = {"nearest": "of which rounding took", "stochastic": "to which rounding added noise of"}


def rounding_loss(lost: float, what: str, rounding: Rounding) -> str:
    """What is said of a share of the norm that rounding took, and what to do."""
    if rounding == "stochastic":
        return (
            f"stochastic rounding adds noise of {lost:.0%} of {what}'s norm; --dtype float32, or "
            "--keep-float32 for some tensors, has none"
        )
    return (
        f"{lost:.0%} of {what} is lost to rounding; --dtype float32 keeps it, --rounding "
        "stochastic keeps it on average"
    )


def rounding_options(function: F) -> F:
    """Add --keep-float32, --rounding and --rounding-seed."""
    options = (
        click.option(
            "--rounding-seed", type=int, help="Of what stochastic rounding draws. [default: 0]"
        ),
        click.option(
            "--rounding",
            type=click.Choice(["nearest", "stochastic"]),
            default="nearest",
            show_default=True,
            help="Stochastic: up or down, right on average; small updates survive.",
        ),
        click.option(
            "--keep-float32",
            "float32",
            multiple=True,
            help="Store tensors matching this pattern in float32; may be repeated.",
        ),
    )
    for option in options:
        function = option(function)
    return function


def output_options(
    dtype_help: str | None, shards: bool = True, rounds: bool = True
) -> Callable[[F], F]:
    """Add -o, --dtype, --out-shard-size, --replace and the engine's; pass them as ``output``.

    Without a help text there is no --dtype, no --device and nothing of rounding; without
    ``shards`` no --out-shard-size, and without ``rounds`` only --dtype and --device. What has both
    has --resume, too.
    """
    shard_size = click.option(
        "--out-shard-size",
        type=Size(),
        default="5GB",
        show_default=True,
        help="Largest weights file; 5B means 5 billion bytes.",
    )

    def decorate(function: F) -> F:
        @click.option("-o", "--out", required=True, help="Where to write.")
        @(shard_size if shards else _unchanged)
        @click.option("--replace", is_flag=True, help="Replace what stands at --out, whole.")
        @(resume_option if shards and dtype_help else _unchanged)
        @(device_option if dtype_help else _unchanged)
        @click.option("-v", "--verbose", is_flag=True, help="Say what was done with every tensor.")
        @engine_options
        @functools.wraps(function)
        def wrapped(
            *args: Any,
            out: str,
            replace: bool,
            engine: Engine,
            quiet: bool,
            verbose: bool,
            resume: bool = False,
            device: str | None = None,
            out_shard_size: int = 0,
            dtype: str | None = None,
            float32: tuple[str, ...] = (),
            rounding: Rounding = "nearest",
            rounding_seed: int | None = None,
            **kwargs: Any,
        ) -> Any:
            output = Output(
                out,
                dtype,
                out_shard_size,
                replace,
                again(engine, resume=resume, device=device),
                quiet,
                verbose,
                float32,
                rounding,
                rounding_seed,
            )
            return function(*args, output=output, **kwargs)

        if dtype_help is None:
            return cast(F, wrapped)
        if rounds:
            wrapped = rounding_options(wrapped)
        return cast(F, click.option("--dtype", help=dtype_help)(wrapped))

    return decorate


def _unchanged(function: F) -> F:
    return function


resume_option = click.option(
    "--resume", is_flag=True, help="Go on from what the same command, killed or stopped, finished."
)
device_option = click.option(
    "--device",
    help="Compute weighted sums (the same bytes) and inner products on this torch device, e.g. "
    "cuda.",
)
model_output = output_options(
    "Of the float tensors: float32, float16, bfloat16. [default: as in the base]"
)
vector_output = output_options("Stored as float32, float16 or bfloat16. [default: float32]")
vectors_output = output_options("Stored as float32, float16 or bfloat16. [default: float32]", False)
scale_option = click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Lambda, on the whole sum."
)
exclude_option = click.option(
    "--exclude", multiple=True, help="Leave out tensors matching this pattern; may be repeated."
)
settings_option = click.option(
    "--set", "settings", multiple=True, help="An option of the method, NAME=VALUE."
)
scores_option = click.option(
    "--scores", multiple=True, help="Importance scores, one per vector in order, or NAME=FILE."
)
tasks_option = click.option(
    "--tasks",
    "specs",
    multiple=True,
    required=True,
    help="SUITE:FOLDER, hf:MODEL_FOLDER:DATA, lm_eval:MODEL_FOLDER:TASK, or "
    "package.module:attribute; may be repeated.",
)


def apply_masks(path: str | None, vectors: dict[str, TaskVector]) -> dict[str, TaskVector]:
    """The vectors times their masks of a file, by name; as they are without a file."""
    from taskbasis.errors import UsageError
    from taskbasis.masks import Masks

    if path is None:
        return vectors
    masks = Masks.open(path)
    if masks.options.get("method") == "tall":
        raise UsageError(
            f"{path}: masks of tall are for the sum of all vectors, not for each; use --method "
            "tall:task=1 for the first vector's model, and so on"
        )
    return {name: masks[name] * vector for name, vector in vectors.items()}


def load_all_tasks(specs: Sequence[str]) -> list[Task]:
    """The tasks that all specs name, in order.

    Raises:
        UsageError: two have the same name.
    """
    from taskbasis.errors import UsageError
    from taskbasis.evaluate import load_tasks

    found: dict[str, Task] = {}
    for spec in specs:
        for task in load_tasks(spec):
            if task.name in found:
                raise UsageError(f"--tasks {spec}: there is a task {task.name!r} already")
            found[task.name] = task
    return list(found.values())


def print_kept(names: Sequence[str], kept: Kept) -> None:
    """What a selection kept of every vector, and how much any two share."""
    rows = []
    for t, name in enumerate(names):
        others = [other for other in range(len(names)) if other != t]
        most = max(others, key=lambda other: kept.overlap[t, other], default=None)
        shared = f"{kept.overlap[t, most]:.1%} with {names[most]}" if most is not None else "-"
        rows.append([name, f"{kept.density[t]:.2%}", f"{kept.norm[t]:.1%}", shared])
    print_table("kept", ["vector", "entries", "of the norm", "largest overlap"], rows)
    nothing = [name for name, density in zip(names, kept.density, strict=True) if not density]
    if nothing:
        warn(f"nothing is kept of {', '.join(nothing)}; is the threshold too high?")


def warn_where_idle(device: str | None, edits: Iterable[Edit]) -> None:
    """Say which methods a device, if one was asked for, does not compute."""
    for name in sorted({edit.method.name for edit in edits if device and edit.row is None}):
        warn(f"--device {device} changes nothing for {name}, which is more than a weighted sum")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def warn(text: str) -> None:
    """A sentence on the error stream."""
    click.echo(f"warning: {text}", err=True)


def print_table(
    title: str, columns: list[str], rows: list[list[str]], left: Sequence[int] = ()
) -> None:
    """A table on the standard output; numbers stand right, the first column and ``left`` left."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(visible(title)), title_justify="left")
    for number, column in enumerate(columns):
        words = number == 0 or number in left
        table.add_column(
            escape(visible(column)),
            justify="left" if words else "right",
            no_wrap=not left or not words,
        )
    for row in rows:
        table.add_row(*(escape(visible(cell)) for cell in row))  # brackets are no markup
    console = Console(file=raw(sys.stdout))
    if not console.is_terminal:
        console = Console(file=raw(sys.stdout), width=200)
    console.print(table)
