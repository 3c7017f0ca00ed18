"""The loop that follows every entry of an update through rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.io.dtypes import DType

SUMS = 11
"""Numbers that :func:`follow` adds to."""

_FORMATS = {  # bits after the point, exponent of the smallest normal number, largest number
    "F16": (10, -14, 65504.0),
    "BF16": (7, -126, float.fromhex("0x1.fep127")),
    "F32": (23, -126, float(np.finfo(np.float32).max)),
    "F64": (52, -1022, float(np.finfo(np.float64).max)),
}


@jit()
def _follow(
    base: Any,
    update: Any,
    stored: Any,
    still: Any,
    draws: Any,
    fraction: int,
    least: int,
    largest: float,
    out: Any,
) -> None:
    for i in range(base.size):
        d = np.float64(update[i])
        exact = np.float64(base[i]) + d
        out[0] += d * d
        if d != 0.0:
            out[7] += 1.0
            if stored[i] == still[i]:
                out[8] += 1.0
        if not np.isfinite(stored[i]):
            out[9] += 1.0
            continue
        alone = np.float64(still[i]) - np.float64(base[i])
        out[10] += alone * alone
        error = np.float64(stored[i]) - exact
        out[1] += error * error
        out[2] += error * d
        single = np.float64(np.float32(exact)) - exact
        if fraction > 23:
            single = error
        out[6] += single * single
        if fraction > 51:  # there is nothing finer to round from
            out[3] += error * error
            out[4] += error * error
            out[5] += error * d
            continue
        power = ((np.float64(exact).view(np.int64) >> 52) & 0x7FF) - 1023
        step = np.int64((max(power, least) - fraction + 1023) << 52).view(np.float64)
        steps = abs(exact) / step
        below = np.floor(steps)
        part = steps - below
        out[3] += part * (1.0 - part) * step * step
        if np.float64(draws[i]) < part * 4294967296.0:
            below += 1.0
        size = min(below * step, largest)
        error = (size if exact > 0.0 else -size) - exact
        out[4] += error * error
        out[5] += error * d


def follow(
    base: NDArray[Any],
    update: NDArray[Any],
    stored: NDArray[Any],
    still: NDArray[Any],
    draws: NDArray[np.uint32],
    dtype: DType,
    out: NDArray[np.float64],
) -> None:
    """Add to ``out`` what becomes of an update when ``base + update`` is stored in ``dtype``.

    With ``x = base + update`` in float64, ``e = stored - x``, and s the error of x when it is
    rounded away from 0 with the chance of its distance from the number on that side of 0, in
    steps (stochastic rounding), the sums are, over the n entries::

        0  update^2     1  e^2     2  e update     3  the mean of s^2 over all draws
        4  s^2 of these draws      5  s update     6  e^2 if x were stored in float32
        7  entries with an update  8  those that are stored as if there were none
        9  entries that are too large for the dtype; they have no part in the errors
       10  the e^2 of the base alone, stored without an update

    A chance is met to within 2^-32. float64 is not rounded: 3 to 6 equal 1 and 2 there.

    Args:
        base, update: [n] numbers that are added.
        stored: [n] their sum as it is stored, to the nearest number.
        still: [n] the base as it is stored.
        draws: [n] uniform words.
        dtype: what is stored.
        out: the :data:`SUMS` sums, float64.

    >>> from taskbasis.io.dtypes import F16
    >>> out, one = np.zeros(SUMS), np.ones(2)
    >>> follow(one, np.array([2.0**-12, 0]), one, one, np.zeros(2, np.uint32), F16, out)
    >>> bool(out[3] == 2.0**-12 * (2.0**-10 - 2.0**-12)), out[7:9].tolist()
    (True, [1.0, 1.0])
    """
    _follow(base, update, stored, still, draws, *_FORMATS[dtype.code], out)
