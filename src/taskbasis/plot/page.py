"""What all pictures share: paper, ink, colours, and how a picture becomes a file.

Drawn with matplotlib's Agg canvas directly, never through pyplot, so no global state is touched
and no display is needed. A file is written beside and renamed: whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, UsageError, require
from taskbasis.io.hidden import whole_file

PURPOSE = "drawing"
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#00855F", "#B8578F", "#9C7400", "#1F93A8", "#7A5195", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
INK, QUIET = "#222222", "#767676"
SMALL = 8.5


def style(place: int) -> tuple[str, str]:
    """The colour and marker of the ``place``-th line or family; pairs repeat after 64.

    >>> style(0), style(8)
    (('#0072B2', 'o'), ('#0072B2', 's'))
    """
    count, markers = len(COLOURS), len(MARKERS)
    return COLOURS[place % count], MARKERS[(place + place // count) % markers]


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches with one pair of axes, bare of frames and ticks."""
    figures = require("matplotlib.figure", "plot", PURPOSE)
    agg = require("matplotlib.backends.backend_agg", "plot", PURPOSE)
    figure = figures.Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelcolor=QUIET)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def check_picture(path: str | Path) -> Path:
    """The path, refused before hours of work if nothing can be drawn there.

    Raises:
        UsageError: it does not end in ``.png``. FileError: its folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png, the one format that is drawn")
    if not path.parent.is_dir():
        raise FileError(f"{path}: the folder {path.parent} does not exist; create it first")
    require("matplotlib.figure", "plot", PURPOSE)
    return path


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as a PNG: whole or not at all; equal figures give equal bytes.

    Raises:
        UsageError: the path does not end in ``.png``.
    """
    path = check_picture(path)
    with whole_file(path) as draft, draft.open("wb") as file:
        figure.canvas.print_png(file, metadata={"Software": None})
    return path
