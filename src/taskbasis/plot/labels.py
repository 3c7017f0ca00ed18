"""Labels that stand where nothing else does: boxes in pixels, and the search for a free one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""

_ANGLES = (0, 180, 25, -25, 155, -155, 55, -55, 125, -125, 90, -90)
RADII = (13, 28, 46, 66, 90, 120, 155)


def free_place(
    at: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], frame: Box
) -> Box:
    """The box of a size nearest to a point that is inside the frame and meets nothing taken."""
    (x, y), (width, height) = at, size
    best, least = (x, y, x + width, y + height), float("inf")
    for radius in RADII:
        for angle in np.deg2rad(_ANGLES):
            dx, dy = radius * np.cos(angle), radius * np.sin(angle)
            shift = 0.0 if dx > 1 else (-width if dx < -1 else -width / 2)
            left, bottom = x + dx + shift, y + dy - height / 2
            box = (left, bottom, left + width, bottom + height)
            outside = width * height - shared(box, frame)
            cost = 100 * outside + sum(shared(box, other, 2.0) for other in taken)
            if cost < least - 1e-6:
                best, least = box, cost
            if least < 1e-6:
                return best
    return best


def shared(one: Box, other: Box, margin: float = 0.0) -> float:
    """The area that two boxes share, the first widened by a margin."""
    width = min(one[2] + margin, other[2]) - max(one[0] - margin, other[0])
    height = min(one[3] + margin, other[3]) - max(one[1] - margin, other[1])
    return max(width, 0.0) * max(height, 0.0)


def box_of(drawn: Any, renderer: Any = None) -> Box:
    """The box that a text, or a pair of axes, takes."""
    extent = drawn.get_window_extent(renderer)
    return (float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1))
