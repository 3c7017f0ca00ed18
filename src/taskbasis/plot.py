"""Two pictures: accuracy against storage, and the cosines of task vectors.

Drawn with matplotlib's Agg canvas directly, never through pyplot, so no global state is touched
and no display is needed. A file is written beside and renamed: whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskbasis.errors import UsageError, ValueProblem, require
from taskbasis.report import BASE, FULL, INDIVIDUAL, Report, Row
from taskbasis.units import bytes_text

_PURPOSE = "drawing"
_DPI = 150
_COLOURS = ("#0072B2", "#D55E00", "#00855F", "#B8578F", "#9C7400", "#1F93A8", "#7A5195", "#4D4D4D")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_INK, _QUIET = "#222222", "#767676"
_SMALL = 8.5


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
    figure, axes = _figure(9.0, 5.6)
    figure.subplots_adjust(left=0.085, right=0.8, top=0.915, bottom=0.125)
    _limits(axes, rows, marked)
    lines = [row for row in rows if row.method in (BASE, INDIVIDUAL, FULL)]
    _references(axes, lines)
    styles = _styles(marked)
    places = _side_by_side(axes, marked)
    for row in marked:
        _marker(axes, row, places[row.method], *styles[_family(row)])
    _join(axes, marked, places, styles)
    axes.set_xlabel("storage")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_formatter(lambda x, _: bytes_text(round(x)) if x > -0.5 else "")
    axes.set_title(title or metric, loc="left", color=_INK, fontsize=12, pad=12)
    figure.text(0.985, 0.018, _note(marked), ha="right", color=_QUIET, fontsize=_SMALL)
    _label(figure, axes, marked, places, styles, [row.value for row in lines])
    return _save(figure, path)


def gram_plot(
    cosines: ArrayLike, names: Sequence[str], path: str | Path, title: str | None = None
) -> Path:
    """A cosine matrix as a heat map with its numbers; the diagonal is grey.

    Colours diverge from 0 and span the largest off-diagonal cosine, so weak relations show.

    Args:
        cosines: [T, T], symmetric, from -1 to 1.
        names: the T tasks.
        path: a ``.png`` file; replaced if it exists.
        title: above the picture.

    Returns:
        The path.

    Raises:
        UsageError: the shapes do not fit, or the path does not end in .png.
        ValueProblem: a cosine is NaN or infinite.
        MissingExtraError: matplotlib is not installed.
    """
    values = np.asarray(cosines, dtype=np.float64)
    count = len(names)
    if count < 1 or values.shape != (count, count):
        raise UsageError(f"{count} names do not fit a matrix of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueProblem("a cosine is NaN or infinite; look for NaN in the task vectors")
    side = min(14.0, max(4.0, 1.9 + 0.62 * count))
    figure, axes = _figure(side + 0.7, side)
    image = _heat(axes, values)
    size = min(10.0, 16.0 * (side - 1.9) / count)  # cells of 0.62 inches hold 10 points
    axes.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=max(size, 6.0))
    axes.set_title(title or "Cosines of the task vectors", loc="left", color=_INK, fontsize=12)
    if count <= 24:
        _numbers(axes, values, image, size)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=_SMALL, labelcolor=_QUIET)
    figure.set_layout_engine("tight")
    return _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figures = require("matplotlib.figure", "plot", _PURPOSE)
    agg = require("matplotlib.backends.backend_agg", "plot", _PURPOSE)
    figure = figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=_QUIET)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _heat(axes: Any, values: NDArray[np.float64]) -> Any:
    off = values[~np.eye(len(values), dtype=bool)]
    reach = max(float(np.abs(off).max(initial=0.0)), 0.05)
    shown = np.ma.masked_array(values, mask=np.eye(len(values), dtype=bool))
    axes.set_facecolor("#E4E4E4")
    return axes.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach)


def _numbers(axes: Any, values: NDArray[np.float64], image: Any, size: float) -> None:
    for i, j in np.ndindex(*values.shape):
        red, green, blue, _ = image.to_rgba(values[i, j])
        dark = i != j and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if dark else (_QUIET if i == j else _INK)
        text = "1" if i == j and abs(values[i, j] - 1) < 5e-3 else f"{values[i, j] + 0.0:.2f}"
        text = text.replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)


def _family(row: Row) -> str:
    return str(row.extras.get("family", row.method))


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    families = dict.fromkeys(_family(row) for row in rows)
    count, markers = len(_COLOURS), len(_MARKERS)
    return {
        family: (_COLOURS[i % count], _MARKERS[(i + i // count) % markers])
        for i, family in enumerate(families)
    }


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
    least, floor = 2.6 * _SMALL * _DPI / 72, float("-inf")
    for row in sorted(rows, key=lambda row: row.value):
        axes.axhline(row.value, color=_QUIET, linewidth=1.1, linestyle=styles[row.method], zorder=1)
        height = axes.transData.transform((0, row.value))[1]
        floor = max(height, floor + least)
        size = f" with {bytes_text(row.storage_bytes)}" if row.storage_bytes else ""
        axes.annotate(
            f"{row.method}\n{row.value:.3f}{size}", (1, row.value),
            xycoords=axes.get_yaxis_transform(), xytext=(8, floor - height),
            textcoords="offset pixels", va="center", color=_QUIET, fontsize=_SMALL,
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


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""

_ANGLES = (0, 180, 25, -25, 155, -155, 55, -55, 125, -125, 90, -90)
_RADII = (13, 28, 46, 66, 90, 120, 155)
_STEP = 13.0


def _label(
    figure: Any,
    axes: Any,
    rows: Sequence[Row],
    places: Places,
    styles: Mapping[str, tuple[str, str]],
    lines: Sequence[float],
) -> None:
    """Write each method beside its marker, at the nearest place where nothing else is."""
    effects = require("matplotlib.patheffects", "plot", _PURPOSE)
    renderer = figure.canvas.get_renderer()
    frame = _box(axes.get_window_extent(renderer))
    taken = [_obstacle(axes, line, line, frame[0], frame[2]) for line in lines]
    for row in rows:
        x, y = places[row.method]
        taken.append((x - 7, y - 7, x + 7, y + 7))
        taken.append(_obstacle(axes, *_ends(row), x - 1, x + 1))
    for row in sorted(rows, key=lambda row: (-row.value, row.method)):
        colour, _ = styles[_family(row)]
        text = axes.annotate(
            row.method, places[row.method], xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", color=colour, fontsize=_SMALL, zorder=4,
            path_effects=[effects.withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        left, bottom, right, top = _box(text.get_window_extent(renderer))
        box = _free_place(places[row.method], (right - left, top - bottom), taken, frame)
        taken.append(box)
        text.set_position(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        _leader(axes, places[row.method], box, colour)


def _leader(axes: Any, at: tuple[float, float], box: Box, colour: str) -> None:
    """A thin line from a marker to its label, if the label stands away from it."""
    near = (min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3]))
    if np.hypot(near[0] - at[0], near[1] - at[1]) > 1.6 * _RADII[0]:
        ends = axes.transData.inverted().transform([at, near])
        axes.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.7, alpha=0.7, zorder=2)


def _free_place(
    at: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], frame: Box
) -> Box:
    """The box of a size nearest to a point that is inside the frame and meets nothing taken."""
    (x, y), (width, height) = at, size
    best, least = (x, y, x + width, y + height), float("inf")
    for radius in _RADII:
        for angle in np.deg2rad(_ANGLES):
            dx, dy = radius * np.cos(angle), radius * np.sin(angle)
            shift = 0.0 if dx > 1 else (-width if dx < -1 else -width / 2)
            left, bottom = x + dx + shift, y + dy - height / 2
            box = (left, bottom, left + width, bottom + height)
            outside = width * height - _shared(box, frame)
            cost = 100 * outside + sum(_shared(box, other, 2.0) for other in taken)
            if cost < least - 1e-6:
                best, least = box, cost
            if least < 1e-6:
                return best
    return best


def _shared(one: Box, other: Box, margin: float = 0.0) -> float:
    """The area that two boxes share, the first widened by a margin."""
    width = min(one[2] + margin, other[2]) - max(one[0] - margin, other[0])
    height = min(one[3] + margin, other[3]) - max(one[1] - margin, other[1])
    return max(width, 0.0) * max(height, 0.0)


def _obstacle(axes: Any, low: float, high: float, left: float, right: float) -> Box:
    ends = axes.transData.transform([(0, low), (0, high)])[:, 1]
    return (left, float(ends[0]) - 1, right, float(ends[1]) + 1)


def _box(extent: Any) -> Box:
    return (float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1))


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png, the one format that is drawn")
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            figure.canvas.print_png(file, metadata={"Software": None})
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path
