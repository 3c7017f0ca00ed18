"""Limited-memory BFGS for smooth functions of some hundred or thousand numbers.

SciPy has the same method, but its inner step calls LAPACK on tiny matrices with all threads: on a
machine whose cores are busy that took ten times as long as everything else together. Here are only
dot products, so neither the time nor the result depends on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from taskbasis.basis.gram import Matrix

Function: TypeAlias = Callable[[Matrix], tuple[float, Matrix]]
Pair: TypeAlias = tuple[Matrix, Matrix, float]

MEMORY = 20
GAIN, SLOPE = 1e-10, 1e-8
"""A step that gains less than this part, or a gradient below this everywhere, is the end."""

SHRINKS = 25


def minimise(function: Function, start: Matrix, iterations: int) -> tuple[Matrix, float]:
    """The point and the value that L-BFGS reaches from `start` (Nocedal and Wright, 7.4).

    Args:
        function: gives the value and the gradient at a vector.
        start: [n].
        iterations: at most this many; fewer when nothing is gained any more.

    >>> point, value = minimise(lambda x: (float(x @ x), 2 * x), np.array([3.0, -4.0]), 50)
    >>> bool(value < 1e-12)
    True
    """
    point, (value, gradient) = start, function(start)
    history: deque[Pair] = deque(maxlen=MEMORY)
    for _ in range(iterations):
        direction = _direction(gradient, history)
        following, lower, slopes = _search(function, point, value, gradient, direction)
        if not lower < value:
            break
        _remember(history, following - point, slopes - gradient)
        gained, point, value, gradient = value - lower, following, lower, slopes
        if gained <= GAIN * max(abs(value), 1.0) or np.abs(gradient).max() < SLOPE:
            break
    return point, value


def _direction(gradient: Matrix, history: deque[Pair]) -> Matrix:
    """Where to go: minus the inverse curvature, as far as the steps so far tell it, times slope."""
    found = -gradient
    if not history:
        return found / max(1.0, float(np.linalg.norm(gradient)))
    shares: list[float] = []
    for step, change, inverse in reversed(history):
        shares.append(inverse * float(step @ found))
        found -= shares[-1] * change
    _, change, inverse = history[-1]
    found /= inverse * float(change @ change)
    for (step, change, inverse), share in zip(history, reversed(shares), strict=True):
        found += (share - inverse * float(change @ found)) * step
    return found


def _search(
    function: Function, point: Matrix, value: float, gradient: Matrix, direction: Matrix
) -> tuple[Matrix, float, Matrix]:
    """A step along the direction that gains enough (Armijo), shrunk by parabolas until it does."""
    slope = float(gradient @ direction)
    length = 1.0
    for _ in range(SHRINKS):
        following = point + length * direction
        lower, slopes = function(following)
        excess = lower - value - slope * length
        if lower <= value + 1e-4 * length * slope:
            return following, lower, slopes
        length *= min(0.5, max(0.1, -0.5 * slope * length / excess))
    return point, value, gradient


def _remember(history: deque[Pair], step: Matrix, change: Matrix) -> None:
    """Keep a step and the change of slope over it, unless they show no upward curvature."""
    curvature = float(step @ change)
    if curvature > 1e-12 * float(np.linalg.norm(step)) * float(np.linalg.norm(change)):
        history.append((step, change, 1.0 / curvature))
