"""Options that several verbs share, and what they say when the work is done."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from taskbasis.units import bytes_text, parse_bytes

if TYPE_CHECKING:
    from taskbasis.engine import Engine
    from taskbasis.evaluate import Task
    from taskbasis.passes import Kept
    from taskbasis.saving import Saved
    from taskbasis.vectors import EditedModel, TaskVector

F = TypeVar("F", bound=Callable[..., Any])

LOSS_WORTH_A_WARNING = 0.1


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes: 800MB, 5GB, 512MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_bytes(value)


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
    from taskbasis.engine import Engine, available_workers
    from taskbasis.kernels import on_first_compilation
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

    def write_model(self, model: EditedModel, names: Sequence[str] = ()) -> None:
        """Write weights and report; ``names`` are those of the vectors a method chose from."""
        saved = model.save(
            self.path,
            self.dtype,
            shard_size=self.shard_size,
            replace=self.replace,
            engine=self.engine,
        )
        self.report(saved)
        if saved.kept is not None and not self.quiet:
            print_kept(names or [str(vector) for vector in model.vectors], saved.kept)

    def write_vector(self, vector: TaskVector) -> None:
        """Write a task vector and report."""
        self.report(
            vector.save(
                self.path,
                self.dtype or "float32",
                shard_size=self.shard_size,
                replace=self.replace,
                engine=self.engine,
            )
        )

    def report(self, saved: Saved) -> None:
        """Say what was written and what became of every tensor."""
        if saved.lost > LOSS_WORTH_A_WARNING:
            warn(f"{saved.lost:.0%} of the update is lost to rounding; --dtype float32 keeps it")
        if not self.quiet:
            counts = ", ".join(
                f"{len(names)} {rule}" for rule, names in saved.rules.items() if names
            )
            click.echo(f"wrote {saved.path}: {bytes_text(saved.nbytes)}; tensors: {counts}")
            click.echo(
                f"norm of the delta {saved.norm:.6g}, of which rounding took {saved.lost:.3%}"
            )
        if self.verbose:
            self._list(saved)

    @staticmethod
    def _list(saved: Saved) -> None:
        for rule, names in saved.rules.items():
            for name in names:
                click.echo(f"  {rule:<10} {name}")


def output_options(dtype_help: str | None, shards: bool = True) -> Callable[[F], F]:
    """Add -o, --dtype, --out-shard-size, --replace and the engine's; pass them as ``output``.

    Without a help text there is no --dtype; without ``shards`` no --out-shard-size.
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
            out_shard_size: int = 0,
            dtype: str | None = None,
            **kwargs: Any,
        ) -> Any:
            output = Output(out, dtype, out_shard_size, replace, engine, quiet, verbose)
            return function(*args, output=output, **kwargs)

        if dtype_help is None:
            return cast(F, wrapped)
        return cast(F, click.option("--dtype", help=dtype_help)(wrapped))

    return decorate


def _unchanged(function: F) -> F:
    return function


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
    help="SUITE:FOLDER, hf:MODEL_FOLDER:DATA, or package.module:attribute; may be repeated.",
)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; numbers and true/false are what they look.

    Raises:
        UsageError: a text is no such pair, or a name is given twice.
    """
    from taskbasis.errors import UsageError
    from taskbasis.methods.registry import plain

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}: write NAME=VALUE")
        key = name.replace("-", "_")
        if key in found:
            raise UsageError(f"--set gives {name!r} twice")
        try:
            found[key] = plain(value)
        except UsageError as error:
            raise UsageError(f"--set {text!r}: {error}") from None
    return found


def parse_weights(texts: Sequence[str], names: Sequence[str]) -> list[float]:
    """The vectors' weights in the order of their names; none where none are given.

    Raises:
        UsageError: a text is no number, a name is unknown or given twice, or numbers without
            names are not as many as vectors.
    """
    from taskbasis.errors import UsageError, nearest

    found: dict[str, float] = {}
    parts = [part for text in texts for part in _named_parts(text, names)]
    for position, part in enumerate(parts):
        name, equals, number = part.rpartition("=")
        if not equals:
            if len(parts) != len(names):
                raise UsageError(
                    f"--weights: {len(names)} vectors ({', '.join(names)}) need a number each; or "
                    "give some as NAME=NUMBER"
                )
            name = names[position]
        if name not in names:
            raise UsageError(f"--weights: there is no vector {name!r}; {nearest(name, names)}")
        if name in found:
            raise UsageError(f"--weights gives {name!r} twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f"--weights: {number!r} is no number") from None
    return [found.get(name, 1.0) for name in names] if found else []


def _named_parts(text: str, names: Sequence[str]) -> list[str]:
    """A text at its commas, unless it is one NAME=NUMBER whose name has commas itself."""
    return [text] if text.rpartition("=")[0] in names else text.split(",")


def match_by_name(texts: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """Files in the order of the names: given in that order, or each as NAME=FILE.

    Raises:
        UsageError: a name is unknown or given twice, or there is not one file for each.
    """
    from taskbasis.errors import UsageError, nearest

    named: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            continue
        if name not in names:
            raise UsageError(
                f"{what} {text!r}: there is no vector {name!r}; {nearest(name, names)}"
            )
        if name in named:
            raise UsageError(f"{what} of {name!r} are given twice")
        named[name] = path
    if named and len(named) < len(texts):
        raise UsageError(f"{what}: name all files as NAME=FILE, or none")
    found = [named[name] for name in names if name in named] if named else list(texts)
    if found and len(found) != len(names):
        raise UsageError(f"{what}: {len(names)} vectors ({', '.join(names)}) need one file each")
    return found


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


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


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

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        words = number == 0 or number in left
        table.add_column(
            column, justify="left" if words else "right", no_wrap=not left or not words
        )
    for row in rows:
        table.add_row(*map(escape, row))  # brackets are no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
