"""Stochastic rounding: to one of the two stored numbers around a value, so that the mean is it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels
from taskbasis.compiling import jit
from taskbasis.io.dtypes import DType
from taskbasis.kernels import BLOCK
from taskbasis.lanes import exact_product
from taskbasis.passes.forming import Former
from taskbasis.passes.reading import Stretch

_FORMATS = {  # bits after the point, exponent of the smallest normal number, largest number
    "F16": (10, -14, 65504.0),
    "BF16": (7, -126, float.fromhex("0x1.fep127")),
    "F32": (23, -126, float.fromhex("0x1.fffffep127")),
}


@jit()
def _uniform(key: Any, position: Any) -> Any:
    """A number in [0, 1) of 52 bits: output ``position`` of SplitMix64 from the seed ``key``."""
    z = np.uint64(key + np.uint64(position + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    z = np.uint64(z ^ (z >> np.uint64(31)))
    one = np.uint64(1023 << 52)  # with these bits of exponent, any fraction is a number in [1, 2)
    return np.uint64(z >> np.uint64(12) | one).view(np.float64) - 1.0


@jit()
def _power_of_two(exponent: Any) -> Any:
    bits = np.int64(exponent + 1023) << np.int64(52)
    return np.int64(bits).view(np.float64)


@jit()
def _round(
    base: Any,
    out: Any,
    error: Any,
    key: Any,
    first: Any,
    fraction: int,
    least: int,
    largest: float,
) -> None:
    for i in range(out.size):
        delta, start = np.float64(out[i]), np.float64(base[i])
        exact = start + delta
        power = (np.float64(exact).view(np.int64) >> np.int64(52)) & np.int64(0x7FF)
        exponent = max(np.int64(power - 1023), np.int64(least)) - fraction
        step = _power_of_two(exponent)
        size = abs(exact)
        steps = size * _power_of_two(-exponent)
        below = np.floor(steps)
        chance = _uniform(key, first + np.uint64(i))
        drawn = (below + 1.0 if chance < steps - below else below) * step
        kept = min(drawn, largest) if size < largest + 0.5 * step else size
        value = out.dtype.type(np.copysign(kept, exact))
        out[i] = value
        moved = np.float64(value) - start if value != start or delta != 0.0 else 0.0
        error[i] = moved - delta


@jit()
def _round_all(
    base: Any, out: Any, key: Any, first: Any, fraction: int, least: int, largest: float
) -> float:
    error, lost = np.empty((1, BLOCK), np.float64), 0.0
    for start in range(0, out.size, BLOCK):
        stop = min(start + BLOCK, out.size)
        part = error[0, : stop - start]
        at = first + np.uint64(start)
        _round(base[start:stop], out[start:stop], part, key, at, fraction, least, largest)
        lost += exact_product(error, 0, 0, stop - start)[0]
    return lost


def round_at_random(
    base: NDArray[Any], out: NDArray[Any], dtype: DType, key: int, first: int
) -> float:
    """Replace deltas by ``base + delta``, rounded at random to numbers that ``dtype`` holds.

    With a and b the neighbouring numbers of the dtype, ``a <= x = base + delta < b``, x becomes b
    with the chance (x - a) / (b - a), to within 2^-52, and else a. So the mean over all keys is
    x, and what the dtype holds stays as it is. x is taken in float64: what a sum in float32
    would drop counts, too. Beyond the largest number of the dtype, what rounding to nearest makes
    infinite stays as it is, to be refused, and all before it becomes that largest number.

    Args:
        base: [n] numbers, zeros for none.
        out: [n] deltas, then what is to be stored; float32, or float64 where that is computed in.
        dtype: float32, float16 or bfloat16; float64 is not rounded.
        key: 64 bits; the draw of an entry is a function of the key and its position alone:
            SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
            OOPSLA 2014).
        first: the position of the first entry.

    Returns:
        The squared norm of what rounding took from the deltas.

    >>> from taskbasis.io.dtypes import BF16
    >>> out = np.full(100_000, 2.0**-10, np.float32)  # an eighth of a step of bfloat16 above 1
    >>> round_at_random(np.ones_like(out), out, BF16, 1, 0) > 0
    True
    >>> np.unique(out).tolist(), round(float(np.mean(out - 1)) * 2**10, 1)
    ([1.0, 1.0078125], 1.0)
    """
    return float(_round_all(base, out, np.uint64(key), np.uint64(first), *_FORMATS[dtype.code]))


def form_at_random(
    former: Former,
    stretch: Stretch,
    add_base: bool,
    out: NDArray[Any],
    stats: NDArray[np.float64],
    dtype: DType,
    keys: Sequence[int],
) -> Any:
    """What :meth:`Former.form` does, with outputs that are rounded at random.

    Args:
        dtype: what ``out`` holds.
        keys: [M], by which the outputs are drawn.
    """
    compute, size = stretch.rows.dtype, out.shape[1]
    values = stretch.scratch.array("values to store", out.shape, compute, travels=True)
    note = former.form(stretch, False, values, stats)
    base = stretch.scratch.array("base to store", (size,), compute)
    if add_base and stretch.base is not None:
        kernels.decode(stretch.base, base)
    else:
        base[:] = 0
    rows = stretch.scratch.array("rows to store", kernels.scratch_rows(1), compute)
    one, overflow = np.ones((1, 1), compute), np.zeros((1, 2))
    for m, key in enumerate(keys):
        stats[m, 1] += round_at_random(base, values[m], dtype, key, stretch.cut.start)
        # Nothing is left to round, so what this adds is infinite where a value is too large.
        each, words = values[m : m + 1], out[m : m + 1]
        kernels.form(None, each, False, one, False, words, rows, overflow)
        stats[m, 1] += overflow[0, 1]
    return note
