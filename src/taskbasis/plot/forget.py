"""What forgetting costs: the target's score against what the controls keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskbasis.errors import UsageError, require
from taskbasis.evaluate import ForgetChoice, ForgetPoint
from taskbasis.plot.labels import Box, box_of, free_place, shared
from taskbasis.plot.page import INK, PURPOSE, QUIET, SMALL, new_figure, save_figure, style

_TINY = 7.0
_NEAR = 16.0
"""Pixels that a scale may stand away from its point; farther off nobody knows whose it is."""

_NUMBERED = 6
"""About how many scales of a line are written out."""


def forget_plot(choice: ForgetChoice, path: str | Path, title: str | None = None) -> Path:
    """The target against the control on validation: one line per density, scales along it.

    Every line starts at the untouched model, a star. Points that lose a control are hollow, the
    floor is dashed, and the chosen point is ringed. With several controls the smallest share of
    its own score that one of them keeps stands for all.

    Args:
        choice: a finished search, whose whole grid is drawn.
        path: a ``.png`` file, 1350 x 840 pixels; replaced if it exists.
        title: above the picture.

    Returns:
        The path.

    Raises:
        UsageError: the search tried no scale but 0, or the path does not end in .png.
        MissingExtraError: matplotlib is not installed.
    """
    untouched, *tried = choice.points
    if not tried:
        raise UsageError("the search tried no scale but 0; there is no curve to draw")
    figure, axes = new_figure(9.0, 5.6)
    figure.subplots_adjust(left=0.085, right=0.81, top=0.915, bottom=0.125)
    _limits(axes, choice)
    _floor(axes, choice)
    densities = list(dict.fromkeys(point.density for point in choice.points))
    for place, density in enumerate(densities):
        points = [untouched, *(point for point in tried if point.density == density)]
        points.sort(key=lambda point: point.scale)
        _line(axes, choice, points, f"density {density:.3g}", *style(place))
    _mark(axes, choice, untouched)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=SMALL,
        labelcolor=INK, handlelength=1.6, borderaxespad=0.0,
    )  # fmt: skip
    only = next(iter(choice.kept)) if len(choice.kept) == 1 else None
    several = f"smallest share of its own score that one of {len(choice.kept)} controls keeps"
    axes.set_xlabel(f"{only} (control)" if only else several)
    axes.set_ylabel(f"{choice.target} (target: lower is better)")
    kept = only or "the controls"
    axes.set_title(
        title or f"Forgetting {choice.target}, keeping {kept}", loc="left", color=INK, fontsize=12,
        pad=16,
    )  # fmt: skip
    note = "validation split; numbers are scales; hollow points are below the floor"
    figure.text(0.985, 0.018, note, ha="right", color=QUIET, fontsize=SMALL)
    _scales(figure, axes, choice, [*tried])
    return save_figure(figure, path)


def place_of(choice: ForgetChoice, point: ForgetPoint) -> tuple[float, float]:
    """Where a point stands: what the control scores, or the smallest share kept; the target."""
    if len(choice.kept) == 1:
        return next(iter(point.controls.values())), point.target
    return point.share, point.target


def _limits(axes: Any, choice: ForgetChoice) -> None:
    places = [place_of(choice, point) for point in choice.points]
    across = [*(x for x, _ in places), _floor_at(choice)]
    for values, set_limits in (
        (across, axes.set_xlim),
        ([y for _, y in places], axes.set_ylim),
    ):
        room = max(max(values) - min(values), 0.02) * 0.07
        set_limits(min(values) - room, max(values) + room)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def _floor_at(choice: ForgetChoice) -> float:
    own = next(iter(choice.kept.values())) if len(choice.kept) == 1 else 1.0
    return choice.keep * own


def _floor(axes: Any, choice: ForgetChoice) -> None:
    at = _floor_at(choice)
    axes.axvline(at, color=QUIET, linewidth=1.1, linestyle="--", zorder=1)
    axes.axvspan(axes.get_xlim()[0], at, color="#F5F5F5", linewidth=0, zorder=0)
    own = next(iter(choice.kept.values()))
    what = f" = {choice.keep:.4g} x {own:.3f}" if len(choice.kept) == 1 else ""
    axes.annotate(
        f"floor {at:.3f}{what}", (at, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 3),
        textcoords="offset points", ha="center", color=QUIET, fontsize=SMALL,
    )  # fmt: skip


def _line(
    axes: Any,
    choice: ForgetChoice,
    points: Sequence[ForgetPoint],
    name: str,
    colour: str,
    marker: str,
) -> None:
    places = [place_of(choice, point) for point in points]
    axes.plot(
        [x for x, _ in places], [y for _, y in places], color=colour, linewidth=1.1, alpha=0.55,
        marker=marker, markersize=0, zorder=2,
    )  # fmt: skip
    for point, (x, y) in zip(points, places, strict=True):
        if point.scale != 0:
            axes.plot(
                [x], [y], marker=marker, color=colour, markersize=6.0, linestyle="none",
                markerfacecolor=colour if point.feasible else "white", zorder=3,
            )  # fmt: skip
    axes.plot([], [], color=colour, marker=marker, markersize=6.0, linewidth=1.1, label=name)


def _mark(axes: Any, choice: ForgetChoice, untouched: ForgetPoint) -> None:
    """The model as it is, and a ring around the chosen point."""
    x, y = place_of(choice, untouched)
    axes.plot(
        [x], [y], marker="*", color=INK, markersize=12, markeredgecolor="white",
        linestyle="none", label="untouched", zorder=5,
    )  # fmt: skip
    x, y = place_of(choice, choice.chosen)
    where = f"scale {choice.scale:g},\ndensity {choice.density:.3g}"
    name = f"chosen: {where}" if choice.scale else "chosen: untouched"
    axes.plot(
        [x], [y], marker="o", color=INK, markersize=14, markerfacecolor="none",
        markeredgewidth=1.4, linestyle="none", label=name, zorder=6,
    )  # fmt: skip


def _numbered(choice: ForgetChoice, tried: Sequence[ForgetPoint]) -> list[ForgetPoint]:
    """The points whose scale is written out: the chosen one, then every line's end, then some."""
    ends, some = [], []
    for density in dict.fromkeys(point.density for point in tried):
        line = sorted((p for p in tried if p.density == density), key=lambda p: -abs(p.scale))
        step = -(-len(line) // _NUMBERED)
        ends += line[:1]
        some += line[step::step]
    first = [choice.chosen] if choice.scale else []
    return [*first, *(point for point in (*ends, *some) if point is not choice.chosen)]


def _scales(figure: Any, axes: Any, choice: ForgetChoice, tried: Sequence[ForgetPoint]) -> None:
    """The scale beside a point, where there is room close to it."""
    effects = require("matplotlib.patheffects", "plot", PURPOSE)
    renderer = figure.canvas.get_renderer()
    frame = box_of(axes, renderer)
    places = [axes.transData.transform(place_of(choice, point)) for point in choice.points]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    densities = list(dict.fromkeys(point.density for point in choice.points))
    for point in _numbered(choice, tried):
        x, y = map(float, axes.transData.transform(place_of(choice, point)))
        text = axes.annotate(
            f"{point.scale:g}", (x, y), xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", color=style(densities.index(point.density))[0],
            fontsize=_TINY, zorder=4,
            path_effects=[effects.withStroke(linewidth=2.0, foreground="white")],
        )  # fmt: skip
        left, bottom, right, top = box_of(text, renderer)
        ring = [(x - 14, y - 14, x + 14, y + 14)] if point is choice.chosen else []
        box = free_place((x, y), (right - left, top - bottom), [*taken, *ring], frame)
        away = max(box[0] - x, x - box[2], box[1] - y, y - box[3])
        near = _NEAR + (14 if ring else 0)
        if away > near or any(shared(box, other) for other in taken):
            text.remove()
            continue
        taken.append(box)
        text.set_position(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
