"""Accuracy against storage, one marker and interval per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.errors import UsageError, ValueProblem, require
from taskbasis.plot.labels import RADII, Box, box_of, free_place
from taskbasis.plot.page import DPI, INK, PURPOSE, QUIET, SMALL, new_figure, save_figure, style
from taskbasis.report import BASE, FULL, INDIVIDUAL, Report, Row
from taskbasis.units import bytes_text

_STEP = 13.0


def storage_plot(report: Report, path: str | Path, metric: str, title: str | None = None) -> Path:
    """Accuracy against storage: a marker and interval per method, reference lines for the rest.

    Methods called ``base``, ``full task arithmetic`` and ``individual models`` (see
    :mod:`taskbasis.report`) are horizontal lines across the picture. Methods whose rows share
    ``extras["family"]`` share a colour and a marker, and are joined.

    Args:
        report: rows of one metric per method, aggregated or of a single seed.
        path: a ``.png`` file, 1350 x 840 pixels; replaced if it exists.
        metric: which rows to draw.
        title: above the picture; the metric by default.

    Returns:
        The path.

    Raises:
        UsageError: no such metric, no method to mark, or a path that does not end in .png.
        ValueProblem: a method has two rows of this metric; aggregate the report first.
        MissingExtraError: matplotlib is not installed.
    """
    rows = report.metric(metric).rows
    if len({row.method for row in rows}) < len(rows):
        raise ValueProblem(f"methods have several rows of {metric!r}; aggregate the report first")
    marked = [row for row in rows if row.method not in (BASE, INDIVIDUAL, FULL)]
    if not marked:
        raise UsageError(f"{metric!r} was measured for no method but the references")
    figure, axes = new_figure(9.0, 5.6)
    figure.subplots_adjust(left=0.085, right=0.8, top=0.915, bottom=0.125)
    _limits(axes, rows, marked)
    lines = [row for row in rows if row.method in (BASE, INDIVIDUAL, FULL)]
    _references(axes, lines)
    styles = family_styles(marked)
    places = _side_by_side(axes, marked)
    for row in marked:
        _marker(axes, row, places[row.method], *styles[_family(row)])
    _join(axes, marked, places, styles)
    axes.set_xlabel("storage")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_formatter(lambda x, _: bytes_text(round(x)) if x > -0.5 else "")
    axes.set_title(title or metric, loc="left", color=INK, fontsize=12, pad=12)
    figure.text(0.985, 0.018, _note(marked), ha="right", color=QUIET, fontsize=SMALL)
    _label(figure, axes, marked, places, styles, [row.value for row in lines])
    return save_figure(figure, path)


def _family(row: Row) -> str:
    return str(row.extras.get("family", row.method))


def family_styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for every family of methods, in order of appearance."""
    families = dict.fromkeys(_family(row) for row in rows)
    return {family: style(place) for place, family in enumerate(families)}


def _ends(row: Row) -> tuple[float, float]:
    return (
        row.value if row.low is None else row.low,
        row.value if row.high is None else row.high,
    )


def _note(rows: Sequence[Row]) -> str:
    counts = sorted({row.n for row in rows if row.low is not None})
    if not counts:
        return f"{rows[0].split} split"
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"mean and 95 % interval over {seeds} seeds, {rows[0].split} split; "
        "methods of equal storage stand side by side"
    )


def _limits(axes: Any, rows: Sequence[Row], marked: Sequence[Row]) -> None:
    """Room for every interval, and for labels beside the outermost markers."""
    heights = [end for row in marked for end in _ends(row)] + [row.value for row in rows]
    sizes = [row.storage_bytes for row in marked]
    low, high = min(heights), max(heights)
    room = max(high - low, 0.01) * 0.07
    span = max(max(sizes) - min(sizes), 0.25 * max(sizes), 1)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(max(-0.08 * span, min(sizes) - 0.3 * span), max(sizes) + 0.3 * span)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def _references(axes: Any, rows: Sequence[Row]) -> None:
    """Lines across the picture, named in the margin, where names do not touch each other."""
    styles: dict[str, Any] = {BASE: ":", INDIVIDUAL: (0, (1, 1)), FULL: "--"}
    least, floor = 2.6 * SMALL * DPI / 72, float("-inf")
    for row in sorted(rows, key=lambda row: row.value):
        axes.axhline(row.value, color=QUIET, linewidth=1.1, linestyle=styles[row.method], zorder=1)
        height = axes.transData.transform((0, row.value))[1]
        floor = max(height, floor + least)
        size = f" with {bytes_text(row.storage_bytes)}" if row.storage_bytes else ""
        axes.annotate(
            f"{row.method}\n{row.value:.3f}{size}", (1, row.value),
            xycoords=axes.get_yaxis_transform(), xytext=(8, floor - height),
            textcoords="offset pixels", va="center", color=QUIET, fontsize=SMALL,
        )  # fmt: skip


Places = Mapping[str, tuple[float, float]]
"""Where each method's marker stands, in pixels."""


def _side_by_side(axes: Any, rows: Sequence[Row]) -> Places:
    """Markers of nearly the same storage are moved apart, so that their intervals show."""
    columns: list[list[tuple[float, Row]]] = []
    for row in sorted(rows, key=lambda row: row.storage_bytes):
        x = float(axes.transData.transform((row.storage_bytes, 0))[0])
        if columns and x - columns[-1][0][0] < _STEP:
            columns[-1].append((x, row))
        else:
            columns.append([(x, row)])
    order = {row.method: place for place, row in enumerate(rows)}
    places: dict[str, tuple[float, float]] = {}
    for column in columns:
        column.sort(key=lambda item: order[item[1].method])
        for place, (x, row) in enumerate(column):
            y = float(axes.transData.transform((0, row.value))[1])
            places[row.method] = (x + (place - (len(column) - 1) / 2) * _STEP, y)
    return places


def _marker(axes: Any, row: Row, place: tuple[float, float], colour: str, marker: str) -> None:
    x = axes.transData.inverted().transform(place)[0]
    low, high = _ends(row)
    errors = [[row.value - low], [high - row.value]] if high > low else None
    axes.errorbar(
        [x], [row.value], yerr=errors, fmt=marker, color=colour, markersize=7.5,
        markeredgecolor="white", markeredgewidth=0.8, elinewidth=1.2, alpha=0.95, zorder=3,
    )  # fmt: skip


def _join(
    axes: Any, rows: Sequence[Row], places: Places, styles: Mapping[str, tuple[str, str]]
) -> None:
    back = axes.transData.inverted()
    for family, (colour, _) in styles.items():
        points = sorted(places[row.method] for row in rows if _family(row) == family)
        if len(points) > 1:
            found = back.transform(points)
            axes.plot(found[:, 0], found[:, 1], color=colour, linewidth=1, alpha=0.25, zorder=2)


def _label(
    figure: Any,
    axes: Any,
    rows: Sequence[Row],
    places: Places,
    styles: Mapping[str, tuple[str, str]],
    lines: Sequence[float],
) -> None:
    """Write each method beside its marker, at the nearest place where nothing else is."""
    effects = require("matplotlib.patheffects", "plot", PURPOSE)
    renderer = figure.canvas.get_renderer()
    frame = box_of(axes, renderer)
    taken = [_obstacle(axes, line, line, frame[0], frame[2]) for line in lines]
    for row in rows:
        x, y = places[row.method]
        taken.append((x - 7, y - 7, x + 7, y + 7))
        taken.append(_obstacle(axes, *_ends(row), x - 1, x + 1))
    for row in sorted(rows, key=lambda row: (-row.value, row.method)):
        colour, _ = styles[_family(row)]
        text = axes.annotate(
            row.method, places[row.method], xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", color=colour, fontsize=SMALL, zorder=4,
            path_effects=[effects.withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        left, bottom, right, top = box_of(text, renderer)
        box = free_place(places[row.method], (right - left, top - bottom), taken, frame)
        taken.append(box)
        text.set_position(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        _leader(axes, places[row.method], box, colour)


def _leader(axes: Any, at: tuple[float, float], box: Box, colour: str) -> None:
    """A thin line from a marker to its label, if the label stands away from it."""
    near = (min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3]))
    if np.hypot(near[0] - at[0], near[1] - at[1]) > 1.6 * RADII[0]:
        ends = axes.transData.inverted().transform([at, near])
        axes.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.7, alpha=0.7, zorder=2)


def _obstacle(axes: Any, low: float, high: float, left: float, right: float) -> Box:
    ends = axes.transData.transform([(0, low), (0, high)])[:, 1]
    return (left, float(ends[0]) - 1, right, float(ends[1]) + 1)
