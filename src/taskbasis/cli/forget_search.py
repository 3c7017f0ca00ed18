"""taskbasis forget --tasks: the search for a density and a scale, and what it found."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from taskbasis.cli.options import Output, load_all_tasks, print_table, warn, write_text

if TYPE_CHECKING:
    from taskbasis.cli.forget import Removal
    from taskbasis.evaluate import ForgetChoice, ForgetPoint, Task

F = TypeVar("F", bound=Callable[..., Any])

Scores = dict[str, float]


@dataclass(frozen=True)
class Search:
    """What is searched, and where the curve goes; texts as they were typed."""

    specs: tuple[str, ...]
    target: str | None
    controls: tuple[str, ...]
    densities: str | None
    scales: str | None
    keep: float
    plot: str | None
    json: str | None

    def run(self, removal: Removal, output: Output) -> None:
        """Search on validation, report on test, write what was asked for."""
        from taskbasis.evaluate import Model, evaluate, report_forgetting, search_forgetting

        self._check_places(removal, output)
        target, controls = self._pick(removal)
        densities, scales = self._grid(removal)

        def build(density: float, scale: float) -> Model:
            chosen = None if removal.mask is not None else density
            return removal.at(scale, chosen).tensors(output.engine)

        # The first model is built before any is scored: it checks what belongs to whom.
        kept = evaluate(build(densities[0], 0.0), controls, "validation")
        choice = search_forgetting(build, target, controls, kept, densities, scales, self.keep)
        scores = report_forgetting(choice, build, [target, *controls])
        if not output.quiet:
            _show(choice, *scores)
        if self.json is not None:
            write_text(Path(self.json), _document(removal, choice, *scores))
            _say(output, self.json)
        if self.plot is not None:
            from taskbasis.plot import forget_plot

            forget_plot(choice, self.plot)
            _say(output, self.plot)
        if output.path:
            _write(removal, choice, output)

    def _check_places(self, removal: Removal, output: Output) -> None:
        """Refuse what could not be written before the work instead of after it."""
        from taskbasis.errors import UsageError
        from taskbasis.io.writer import check_destination
        from taskbasis.plot import check_picture

        places = [Path(place) for place in (output.path, self.json, self.plot) if place]
        if len({place.resolve() for place in places}) < len(places):
            raise UsageError("-o, --json and --plot must name different places")
        for place in places if self.plot is None else places[:-1]:
            check_destination(place, output.replace, removal.inputs)
        if self.plot is not None:
            check_picture(self.plot)

    def _pick(self, removal: Removal) -> tuple[Task, list[Task]]:
        from taskbasis.errors import UsageError, nearest

        if not self.controls:
            raise UsageError("name at least one --control, the task that must be kept")
        tasks = {task.name: task for task in load_all_tasks(self.specs)}
        name = self.target if self.target is not None else removal.name
        for option, wanted in (("--target", name), *(("--control", c) for c in self.controls)):
            if wanted not in tasks:
                given = option == "--control" or self.target is not None
                advice = "" if given else f" to score {removal.name!r} with; name it with --target"
                raise UsageError(
                    f"{option}: there is no task {wanted!r}{advice}; {nearest(wanted, tasks)}"
                )
        return tasks[name], [tasks[control] for control in self.controls]

    def _grid(self, removal: Removal) -> tuple[Sequence[float], Sequence[float]]:
        from taskbasis.errors import UsageError
        from taskbasis.evaluate.forgetting import DENSITIES, SCALES

        scales = SCALES if self.scales is None else _numbers("--scales", self.scales)
        if removal.masks is not None and removal.mask is not None:
            if self.densities is not None:
                raise UsageError("--mask has the density it has; leave out --densities")
            density, _ = removal.masks.shares(removal.mask.name)
            if not density:
                raise UsageError(f"{removal.mask} keeps no entry; there is nothing to take out")
            return [density], scales
        if "density" in removal.settings:
            raise UsageError(
                "with --tasks the density is searched; give the densities to try as --densities"
            )
        found = DENSITIES if self.densities is None else _numbers("--densities", self.densities)
        return found, scales


def search_options(function: F) -> F:
    """Add --tasks and what goes with it, and pass them as ``search``; None without --tasks."""

    @click.option("--tasks", "specs", multiple=True,
                  help="Search: SUITE:FOLDER, hf:FOLDER:DATA or module:attribute.")  # fmt: skip
    @click.option("--target", help="What to forget. [default: the vector's task]")
    @click.option("--control", "controls", multiple=True, help="What to keep; may be repeated.")
    @click.option("--densities", help="To try. [default: 0.05,0.1,0.2,0.5,1]")
    @click.option("--scales", help="To try. [default: 0 to 3 by 0.25]")
    @click.option("--keep", type=float, help="Share of every control to keep. [default: 0.95]")
    @click.option("--plot", help="Write the curve of target against control as a PNG.")
    @click.option("--json", help="Write every point of the curve as JSON.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        specs: tuple[str, ...],
        target: str | None,
        controls: tuple[str, ...],
        densities: str | None,
        scales: str | None,
        keep: float | None,
        plot: str | None,
        json: str | None,
        **kwargs: Any,
    ) -> Any:
        from taskbasis.errors import UsageError

        alone = {
            "--target": target,
            "--control": controls or None,
            "--densities": densities,
            "--scales": scales,
            "--keep": keep,
            "--plot": plot,
            "--json": json,
        }
        given = [option for option, value in alone.items() if value is not None]
        if given and not specs:
            raise UsageError(f"{given[0]} is for a search; name the tasks with --tasks")
        share = 0.95 if keep is None else keep
        search = Search(specs, target, controls, densities, scales, share, plot, json)
        return function(*args, search=search if specs else None, **kwargs)

    return cast(F, wrapped)


def _numbers(option: str, text: str) -> list[float]:
    from taskbasis.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: write numbers with commas, e.g. 0.1,0.5") from None


def _show(choice: ForgetChoice, untouched: Scores, forgotten: Scores) -> None:
    """The choice, the best point of every density, and the one look at test."""
    share = f"{choice.keep:.4g}"
    if choice.scale == 0:
        click.echo(f"untouched: no point has a lower {choice.target} and keeps {share} of controls")
    else:
        click.echo(
            f"density {choice.density:.4g}, scale {choice.scale:g}: the lowest {choice.target} on "
            f"validation ({choice.score:.4f}) where every control keeps {share} of its score"
        )
        if choice.scale == max(point.scale for point in choice.points):
            click.echo("that is the largest scale that was tried; larger ones may forget more")
    best: dict[float, ForgetPoint] = {}
    for point in choice.points:
        known = best.get(point.density)
        if point.feasible and (known is None or point.target < known.target):
            best[point.density] = point
    rows = [
        [f"{p.density:.4g}", f"{p.scale:g}", f"{p.target:.4f}", f"{p.share:.1%}"]
        for p in best.values()
    ]
    columns = ["density", "scale", choice.target, "least share kept"]
    print_table("validation, the best of every density", columns, rows)
    roles = dict.fromkeys(choice.kept, "control") | {choice.target: "target"}
    table = [
        [name, roles[name], f"{own:.4f}", f"{forgotten[name]:.4f}", _ratio(forgotten[name], own)]
        for name, own in untouched.items()
    ]
    print_table("test", ["task", "role", "untouched", "forgotten", "share left"], table)


def _ratio(score: float, own: float) -> str:
    return f"{score / own:.1%}" if own > 0 else "-"


def _document(removal: Removal, choice: ForgetChoice, untouched: Scores, forgotten: Scores) -> str:
    """Everything that was asked and measured, as JSON; equal searches give equal text."""
    selection: dict[str, Any] = (
        {"mask": str(removal.mask)}
        if removal.mask is not None
        else {"scores": [str(s) for s in removal.scores], "settings": dict(removal.settings)}
    )
    content = {
        "format": "taskbasis.forget",
        "version": 1,
        "model": str(removal.model),
        "base": str(removal.base) if removal.base is not None else None,
        "vector": str(removal.vector),
        **selection,
        "target": choice.target,
        "kept": dict(choice.kept),
        "keep": choice.keep,
        "chosen": {"density": choice.density, "scale": choice.scale},
        "test": {"untouched": untouched, "forgotten": forgotten},
        "points": [asdict(point) for point in choice.points],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _say(output: Output, path: str) -> None:
    if not output.quiet:
        click.echo(f"wrote {path}")


def _write(removal: Removal, choice: ForgetChoice, output: Output) -> None:
    from taskbasis.vectors import EditedModel

    if choice.scale == 0:
        warn(f"nothing could be taken out; {output.path} holds {removal.model} as it is")
        output.write_model(EditedModel(removal.model))
        return
    removal.write(output, choice.scale, None if removal.mask is not None else choice.density)
