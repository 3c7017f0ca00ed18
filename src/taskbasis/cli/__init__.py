"""The command line: one thin file per verb, loaded when it is called."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from taskbasis._version import __version__
from taskbasis.cli.stopping import exit_code, stop_on_signals, what_stands
from taskbasis.errors import TaskbasisError, nearest
from taskbasis.io.hidden import on_remark
from taskbasis.terminal import plain_streams, sentence

VERBS = {
    "show": "What is this file or folder?",
    "extract": "Take the task vector of a fine-tuned model.",
    "add": "Add task vectors to a base model.",
    "negate": "Subtract a task vector: make a model forget.",
    "analogy": "C + (B - A): reach a task nobody trained.",
    "merge": "Merge task vectors by any method.",
    "check": "Every error of a mergekit recipe at once, before any work.",
    "verify": "Is a file or folder still what was written?",
    "plan": "What following a recipe will read, write and hold.",
    "lora": "Make LoRA adapters: from full models, and from each other.",
    "methods": "List the ways to merge, or tell all of one.",
    "select": "Choose the entries of vectors that matter, as masks.",
    "diagnose": "What is wrong with task vectors, before they are merged?",
    "disentangle": "Take from task vectors the part that they share needlessly.",
    "basis": "Keep many task vectors as a few atoms.",
    "evaluate": "Score models on tasks.",
    "search": "Choose the scale on validation, report on test.",
    "forget": "Take one task's selected entries out of a model.",
    "importance": "Score every parameter for a task, once, into a file.",
    "moments": "Collect second moments of activations, for RegMean and LOT.",
    "bench": "One table: every method on a suite of real tasks.",
    "push": "Send a model to the Hugging Face hub.",
    "demo": "The whole story on handwritten digits; no download.",
}


_COLLECT = (10_000, 10, 10)
"""Objects until rubbish is looked for: modules are no rubbish, and make most objects of a run."""


class LazyGroup(click.Group):
    """A group that imports a verb's file when the verb is used, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(import_module(f"taskbasis.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}; {nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="taskbasis")
def cli() -> None:
    """Task vectors as first-class things: extract, store, build a basis, add, negate, evaluate."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors become one sentence and an exit code, never a traceback."""
    gc.set_threshold(*_COLLECT)
    stop_on_signals()
    code = run(arguments)
    gc.freeze()  # nothing is worth looking for in a process that ends
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Like :func:`main`, but returns the exit code: 0, 2 for usage, 1 for the rest."""
    with plain_streams():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    on_remark(lambda remark: click.echo(remark, err=True))
    try:
        found = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TaskbasisError as error:
        click.echo(f"Error: {sentence(error)}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        click.echo(what_stands(), err=True)
        return exit_code(stop)
    except BrokenPipeError:
        return 1
    except OSError as error:
        click.echo(f"Error: {error.filename or 'input or output'}: {error.strerror}", err=True)
        return 1
    except MemoryError:
        click.echo("Error: out of memory; use fewer --workers, or a --memory cap", err=True)
        return 1
    return found if isinstance(found, int) else 0  # what a verb left through ctx.exit
