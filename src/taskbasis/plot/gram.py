"""The cosines of task vectors as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskbasis.errors import UsageError, ValueProblem
from taskbasis.plot.page import INK, QUIET, SMALL, new_figure, save_figure


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
    figure, axes = new_figure(side + 0.7, side)
    image = _heat(axes, values)
    size = min(10.0, 16.0 * (side - 1.9) / count)  # cells of 0.62 inches hold 10 points
    axes.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=max(size, 6.0))
    axes.set_title(title or "Cosines of the task vectors", loc="left", color=INK, fontsize=12)
    if count <= 24:
        _numbers(axes, values, image, size)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=SMALL, labelcolor=QUIET)
    figure.set_layout_engine("tight")
    return save_figure(figure, path)


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
        colour = "white" if dark else (QUIET if i == j else INK)
        text = "1" if i == j and abs(values[i, j] - 1) < 5e-3 else f"{values[i, j] + 0.0:.2f}"
        text = text.replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
