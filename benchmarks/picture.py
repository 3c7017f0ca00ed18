"""The pictures: what a job takes beside the floor and beside mergekit, and how cost grows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from records import Record, times_faster
from report import ratio
from targets import FASTER, FLOOR, Target

from taskbasis.plot.page import COLOURS, DPI, INK, MARKERS, QUIET, SMALL, save_figure

BLUE, ORANGE, GREEN = COLOURS[:3]
PALE = "#A9CCE3"
THICK = 0.62  # of a bar, where rows are 1 apart


def _bare(axes: Any) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, which="both", labelcolor=QUIET, labelsize=SMALL)


def _figure(width: float, height: float, columns: int, **more: Any) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, **more)[0]
    for one in axes:
        _bare(one)
    return figure, axes


def draw_speed(records: Mapping[str, Record], targets: Sequence[Target], path: Path) -> Path:
    """One row per job; at the left times the floor, at the right times faster than mergekit."""
    shown = {
        name: record
        for name, record in records.items()
        if record.process_of_floor is not None or times_faster(record, records) is not None
    }
    rows = {name: place for place, name in enumerate(reversed(shown))}
    figure, (left, right) = _figure(9.5, 1.1 + 0.3 * len(rows), 2, sharey=True)
    _floor_bars(left, shown, rows)
    _rival_bars(right, shown, records, rows)
    left.set_yticks(list(rows.values()), [_label(shown[name]) for name in rows])
    left.tick_params(axis="y", labelcolor=INK)
    left.set_ylim(-0.6, len(rows) - 0.4)
    missed = sum(target.met is False for target in targets)
    met = sum(target.met is True for target in targets)
    title = f"{met} targets met, {missed} missed; upright marks are targets, orange is missed"
    figure.suptitle(title, fontsize=SMALL + 1, color=QUIET, x=0.01, ha="left")
    return save_figure(figure, path)


def _label(record: Record) -> str:
    return "\n".join(textwrap.wrap(record.title, 40))


def _floor_bars(axes: Any, shown: Mapping[str, Record], rows: Mapping[str, int]) -> None:
    """Pale: the whole command; strong: in process; a ring: the floor with the output synced."""
    for name, record in shown.items():
        wall, process, place = record.wall_of_floor, record.process_of_floor, rows[name]
        if wall is None or process is None or record.floor is None:
            continue
        axes.barh(place, wall, THICK, color=PALE)
        axes.barh(place, process, THICK, color=BLUE)
        synced = record.floor.synced_seconds(record.passes) / record.floor.seconds(record.passes)
        axes.plot([synced], [place], "o", mfc="white", mec=INK, ms=4)
        met = name not in FLOOR or process <= FLOOR[name]
        if name in FLOOR:
            _mark(axes, FLOOR[name], place, met)
        _value(axes, max(wall, process), place, process, met)
    title = "Times the floor, in process (pale: end to end;\nring: the floor with fsync)"
    _scale(axes, title, (1, 2, 5, 10, 20, 50, 100, 300, 1000, 3000))


def _rival_bars(
    axes: Any, shown: Mapping[str, Record], records: Mapping[str, Record], rows: Mapping[str, int]
) -> None:
    for name, record in shown.items():
        value, place = times_faster(record, records), rows[name]
        if value is None:
            continue
        axes.barh(place, value, THICK, color=GREEN)
        target = FASTER.get(name, 0)
        if target:
            _mark(axes, target, place, value >= target)
        _value(axes, max(value, target), place, value, value >= target)
    _scale(axes, "Times faster than mergekit,\nend to end", (1, 2, 5, 10, 20, 50, 100, 300))


def _mark(axes: Any, target: float, place: int, met: bool) -> None:
    colour = INK if met else ORANGE
    axes.plot([target, target], [place - 0.42, place + 0.42], color=colour, lw=2.4)


def _value(axes: Any, edge: float, place: int, value: float, met: bool) -> None:
    style = {"va": "center", "fontsize": SMALL - 1, "color": INK if met else ORANGE}
    axes.text(edge * 1.07, place, ratio(value), **style)


def _scale(axes: Any, title: str, wanted: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color=INK, lw=0.8)
    axes.set_title(title, fontsize=SMALL, color=INK, loc="left")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high * 1.6, 2.0)
    axes.set_xlim(low, high)
    ticks = [one for one in wanted if low <= one <= high]
    axes.set_xticks(ticks, [f"{one:g}" for one in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def draw_growth(data: Mapping[str, Any], path: Path) -> Path:
    """Time and memory against vectors, size and atoms: one column each, logarithmic."""
    panels = data["panels"]
    figure = Figure(figsize=(10, 5.2), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col")
    for column, panel in enumerate(panels):
        for row, (what, unit) in enumerate((("seconds", "s"), ("peak", "MiB"))):
            one = axes[row][column]
            _bare(one)
            one.grid(True, which="major", color="#E6E6E6", lw=0.6)
            for place, (name, points) in enumerate(panel["lines"].items()):
                x = [point["x"] for point in points]
                y = [point[what] / (2**20 if what == "peak" else 1) for point in points]
                style = {"color": COLOURS[place], "marker": MARKERS[place], "ms": 4, "lw": 1.4}
                one.plot(x, y, label=name, **style)
                if what == "seconds" and all("floor" in point for point in points):
                    floor = [point["floor"] for point in points]
                    one.plot(x, floor, ":", color=COLOURS[place], lw=1)
            one.set_xscale("log", base=2 if panel["by"] != "parameters" else 10)
            if what == "seconds":
                one.set_yscale("log")
                one.set_title(f"against {panel['by']}", fontsize=SMALL + 1, loc="left", color=INK)
                one.legend(fontsize=SMALL - 1, frameon=False)
            else:
                one.set_ylim(0, 1.15 * one.get_ylim()[1])
                one.set_xlabel(panel["by"], fontsize=SMALL, color=INK)
            one.set_ylabel(f"{'time' if unit == 's' else 'peak memory'}, {unit}", fontsize=SMALL)
            ticks = sorted({point["x"] for points in panel["lines"].values() for point in points})
            one.set_xticks(ticks, [_short(tick) for tick in ticks])
            one.xaxis.set_minor_locator(NullLocator())
    title = "in process; dotted: the floor, reading and writing the same bytes"
    figure.suptitle(title, fontsize=SMALL, color=QUIET, x=0.01, ha="left")
    return save_figure(figure, path)


def _short(number: float) -> str:
    """A number of parameters or of vectors for a tick.

    >>> _short(16), _short(1_100_048_384), _short(134_000_000)
    ('16', '1.1 B', '134 M')
    """
    if number >= 1e9:
        return f"{number / 1e9:.2g} B"
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:g}"
