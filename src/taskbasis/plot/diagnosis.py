"""A diagnosis on one page: norms, cosines, sign conflicts, and what rounding leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.diagnosis import Diagnosis
from taskbasis.diagnosis.rounding import Survival
from taskbasis.plot.page import INK, QUIET, SMALL, check_picture, new_figure, save_figure, style

_NAMED = 16
_LEGEND = 10


def diagnosis_plot(found: Diagnosis, path: str | Path) -> Path:
    """A diagnosis as four pictures: norms by layer, cosines, sign conflicts by layer, rounding.

    Without a base norms are absolute and there is no picture of rounding.

    Args:
        found: the diagnosis.
        path: a ``.png`` file; replaced if it exists.

    Returns:
        The path.

    Raises:
        UsageError: the path does not end in .png.
        MissingExtraError: matplotlib is not installed.
    """
    check_picture(path)
    figure, first = new_figure(13.0, 8.6)
    first.remove()
    grid = figure.add_gridspec(
        2, 2, left=0.07, right=0.975, top=0.94, bottom=0.16, hspace=0.62, wspace=0.2
    )
    _norms(_axes(figure, grid[0, 0]), found)
    _cosines(figure, _axes(figure, grid[0, 1]), found)
    _conflicts(_axes(figure, grid[1, 0]), found)
    _rounding(_axes(figure, grid[1, 1]), found)
    return save_figure(figure, path)


def _axes(figure: Any, place: Any) -> Any:
    """One pair of axes, as bare as those of a page of its own."""
    axes = figure.add_subplot(place)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=QUIET, labelsize=SMALL)
    axes.set_axisbelow(True)
    return axes


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontsize=11, pad=9)


def _over_layers(axes: Any, names: Sequence[str]) -> None:
    """Layers along the bottom; of many only some are named."""
    step = -(-len(names) // _NAMED)
    places = range(0, len(names), step)
    axes.set_xticks(places, [_short(names[p]) for p in places],
                    rotation=35, ha="right", rotation_mode="anchor")  # fmt: skip
    axes.set_xlim(-0.6, max(len(names) - 0.4, 0.6))
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)


def _short(name: str) -> str:
    return name if len(name) <= 22 else "..." + name[-19:]


def _lines(axes: Any, names: Sequence[str], values: Callable[[int], Sequence[float]]) -> None:
    """One line per vector; beyond some, only the first are in the legend."""
    for t, name in enumerate(names):
        colour, marker = style(t)
        row = values(t)
        axes.plot(
            range(len(row)), row, color=colour, marker=marker, markersize=4.5, linewidth=1.1,
            alpha=0.9, label=_short(name) if t < _LEGEND else None,
        )  # fmt: skip


def _legend(axes: Any, columns: int = 1) -> None:
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, ncols=columns, loc="best")


def _norms(axes: Any, found: Diagnosis) -> None:
    relative = found.base is not None

    def values(t: int) -> list[float]:
        rows = [layer.relative if relative else layer.norms for layer in found.layers]
        return [row[t] if row is not None and row[t] > 0 else np.nan for row in rows]

    _title(
        axes, "Norm of the vector" + (" over the base's, by layer" if relative else ", by layer")
    )
    _lines(axes, found.names, values)
    _over_layers(axes, [layer.name for layer in found.layers])
    if any(norm > 0 for layer in found.layers for norm in layer.norms):
        axes.set_yscale("log")
        axes.tick_params(which="minor", length=0, labelcolor=QUIET, labelsize=SMALL)
    _legend(axes, 1 if len(found.names) <= 4 else 2)


def _cosines(figure: Any, axes: Any, found: Diagnosis) -> None:
    count = len(found.names)
    values = np.asarray(found.pairs.cosines)
    own = np.eye(count, dtype=bool)
    reach = max(float(np.abs(values[~own]).max(initial=0.0)), 0.05)
    axes.set_facecolor("#E4E4E4")
    image = axes.imshow(
        np.ma.masked_array(values, mask=own), cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto"
    )

    few = [_short(name) if count <= 24 else "" for name in found.names]
    axes.set_xticks(range(count), few, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), few)
    for i, j in np.ndindex(count, count) if count <= 12 else ():
        strong = i != j and abs(values[i, j]) > 0.6 * reach
        text = "1" if i == j else f"{values[i, j] + 0.0:.2f}".replace("-0.00", "0.00")
        axes.text(
            j, i, text.replace("-", "\N{MINUS SIGN}"), ha="center", va="center", fontsize=SMALL,
            color="white" if strong else (QUIET if i == j else INK),
        )  # fmt: skip
    _title(axes, "Cosines of the vectors")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=SMALL, labelcolor=QUIET)


def _conflicts(axes: Any, found: Diagnosis) -> None:
    layers = found.layers
    _title(axes, "Sign conflict over all pairs, by layer")
    if len(found.names) < 2:
        _nothing(axes, "one vector has nothing to be in conflict with")
        return
    places = range(len(layers))
    for number, (label, values) in enumerate(
        (
            ("of entries", [layer.conflict for layer in layers]),
            ("weighted by size", [layer.weighted for layer in layers]),
            ("cancelled by adding", [layer.cancelled for layer in layers]),
        )
    ):
        colour, marker = style(number)
        axes.plot(places, values, color=colour, marker=marker, markersize=4.5, linewidth=1.1,
                  label=label)  # fmt: skip
    axes.axhline(0.5, color=QUIET, linewidth=1.0, linestyle="--", zorder=1)
    axes.annotate("chance", (1, 0.5), xycoords=axes.get_yaxis_transform(), xytext=(0, 3),
                  textcoords="offset points", ha="right", color=QUIET, fontsize=SMALL)  # fmt: skip
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _over_layers(axes, [layer.name for layer in layers])
    _legend(axes, 3)


def _rounding(axes: Any, found: Diagnosis) -> None:
    if found.rounding is None:
        _title(axes, "What rounding leaves")
        _nothing(axes, "not known without the base")
        return
    of = found.rounding
    kinds: tuple[tuple[str, Callable[[Survival], float]], ...] = (
        ("norm lost", lambda s: s.lost),
        ("entries unchanged", lambda s: s.unchanged),
        ("step made", lambda s: s.kept),
        ("step made, stochastic", lambda s: s.drawn_kept),
    )
    what = of.dtype if of.dtype == of.whole.dtype else f"{of.dtype}, {of.whole.dtype}"
    _title(axes, f"Rounding the update of scale {of.scale:g} ({what})")
    for number, (label, value) in enumerate(kinds):
        colour, marker = style(number)
        axes.plot(
            range(len(of.layers)), [value(layer) for layer in of.layers], color=colour,
            marker=marker, markersize=4.5, linewidth=1.1, label=label,
        )  # fmt: skip
    axes.axhline(of.target, color=QUIET, linewidth=1.0, linestyle="--", zorder=1)
    axes.annotate(
        f"target {of.target:.0%}", (1, of.target), xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3), textcoords="offset points", ha="right", color=QUIET, fontsize=SMALL,
    )  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _over_layers(axes, [layer.name for layer in of.layers])
    _legend(axes, 2)


def _nothing(axes: Any, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", color=QUIET, transform=axes.transAxes)
