"""Two pictures of a bench: what addition keeps, and what forgetting costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskbasis.bench.rows import LEFT, RATIO, STAYED
from taskbasis.errors import UsageError
from taskbasis.plot.page import INK, QUIET, SMALL, new_figure, save_figure
from taskbasis.plot.storage import family_styles
from taskbasis.report import BASE, INDIVIDUAL, Report, Row

_REFERENCES = (BASE, INDIVIDUAL)


def addition_plot(report: Report, path: Path, suite: str) -> Path:
    """Normalised addition of every method, one line each: marker, 95 % interval, name at the left.

    It is the mean over tasks of accuracy / accuracy of the task's own fine-tune. Filled markers
    chose something on validation, hollow ones did not.

    Args:
        report: aggregated rows.
        path: a ``.png`` file; replaced if it exists.
        suite: named in the title.

    Raises:
        UsageError: nothing was added but the references.
    """
    rows = report.metric(RATIO).rows
    marked = [row for row in rows if row.method not in _REFERENCES]
    if not marked:
        raise UsageError("nothing was added but the references; there is nothing to draw")
    height = 1.6 + 0.2 * len(marked)
    figure, axes = new_figure(9.0, height)
    figure.subplots_adjust(left=0.34, right=0.97, top=1 - 0.7 / height, bottom=0.75 / height)
    for row in rows:
        if row.method in _REFERENCES:
            axes.axvline(row.value, color=QUIET, linewidth=1.1, linestyle=":", zorder=1)
            axes.annotate(
                f"{row.method} {row.value:.3f}", (row.value, 1), xycoords=("data", "axes fraction"),
                xytext=(0, 3 if row.method == BASE else 14), textcoords="offset points",
                ha="center" if row.method == BASE else "right", color=QUIET, fontsize=SMALL,
            )  # fmt: skip
    styles = family_styles(marked)
    for place, row in enumerate(marked):
        _mark(axes, row, row.value, place, *styles[_family(row)], across=True)
    axes.set_yticks(range(len(marked)), [row.method for row in marked])
    for label, row in zip(axes.get_yticklabels(), marked, strict=True):
        label.set_color(styles[_family(row)][0])
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.set_ylim(len(marked) - 0.4, -0.6)
    axes.grid(axis="x", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy / own fine-tune")
    note = f"{_interval(marked)}filled: chosen on validation"
    figure.text(0.985, 0.1 / height, note, ha="right", color=QUIET, fontsize=SMALL)
    axes.set_title(f"Adding all tasks: {suite}", loc="left", color=INK, fontsize=12, pad=26)
    return save_figure(figure, path)


def forgetting_plot(report: Report, path: Path, suite: str) -> Path:
    """What is left of the target against what is kept of the control: best is the lower right.

    Both as shares of the base's own accuracies.

    Args:
        report: aggregated rows.
        path: a ``.png`` file; replaced if it exists.
        suite: named in the title.

    Raises:
        UsageError: no method was asked to forget.
    """
    targets = {row.method: row for row in report.metric(LEFT).rows}
    controls = {row.method: row for row in report.metric(STAYED).rows}
    marked = [row for row in targets.values() if row.method in controls]
    if all(row.method in _REFERENCES for row in marked):
        raise UsageError("no method was asked to forget; there is nothing to draw")
    figure, axes = new_figure(9.0, 5.6)
    figure.subplots_adjust(left=0.085, right=0.7, top=0.915, bottom=0.125)
    styles = family_styles([replace(row, extras={}) for row in marked])  # one for every method
    for row in marked:
        colour, marker = (QUIET, "o") if row.method == BASE else styles[row.method]
        kept = controls[row.method]
        _mark(axes, kept, kept.value, row.value, colour, marker, across=True)
        _mark(axes, row, kept.value, row.value, colour, marker, label=row.method)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("control / base's")
    axes.set_ylabel("target / base's")
    axes.set_title(f"Forgetting one task: {suite}", loc="left", color=INK, fontsize=12, pad=12)
    note = f"{_interval(marked)}best: lower right"
    figure.text(0.985, 0.018, note, ha="right", color=QUIET, fontsize=SMALL)
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return save_figure(figure, path)


def _family(row: Row) -> str:
    return str(row.extras.get("family", row.method))


def _interval(rows: Sequence[Row]) -> str:
    counts = sorted({row.n for row in rows if row.low is not None})
    return f"mean and 95 % interval over {counts[-1]} seeds; " if counts else ""


def _mark(
    axes: Any,
    row: Row,
    x: float,
    y: float,
    colour: str,
    marker: str,
    across: bool = False,
    label: str | None = None,
) -> None:
    """A marker at a point with the row's interval, across or upright."""
    low = row.value if row.low is None else row.low
    high = row.value if row.high is None else row.high
    ends = [[row.value - low], [high - row.value]]
    filled = row.extras.get("tuned") != "no"
    axes.errorbar(
        [x], [y], xerr=ends if across else None, yerr=None if across else ends, fmt=marker,
        color=colour, markersize=6.5, markerfacecolor=colour if filled else "white",
        markeredgecolor=colour, markeredgewidth=1.1, elinewidth=0.9, zorder=3, label=label,
    )  # fmt: skip
