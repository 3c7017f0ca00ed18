"""Philox in compiled loops: the bits that NumPy's has, from any place on, for a use of their own.

Philox 4x64 of ten rounds (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011)
encrypts a counter, so any word is found without those before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import chosen_by_type, jit

BLOCK = 1 << 14
"""Words of 32 bits that share all of a counter but its lowest part."""

_AT_ONCE = 8
"""Words of 32 bits that one counter gives."""

_HALF = (1 << 64) - 1
_FIRST, _SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_STEP, _OTHER_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10


def high_half(x: Any, y: Any) -> Any:
    """The upper 64 of the 128 bits of a product."""
    raise NotImplementedError


@chosen_by_type(high_half)
def _high_half_for(x: Any, y: Any) -> Any:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def product(context: Any, x: Any, y: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            whole = ir.IntType(128)
            left, right = (builder.zext(value, whole) for value in values)
            upper = builder.lshr(builder.mul(left, right), whole(64))
            return builder.trunc(upper, ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), build

    def high(x: Any, y: Any) -> Any:
        return product(x, y)

    return high


@jit()
def _split(word: Any, out: Any, place: int) -> None:
    out[place] = np.uint32(word & np.uint64(0xFFFFFFFF))
    out[place + 1] = np.uint32(word >> np.uint64(32))


@jit()
def _fill(key: Any, other_key: Any, start: int, out: Any) -> None:
    """Words from ``start`` on; it and their number are multiples of eight."""
    for place in range(0, out.size, _AT_ONCE):
        at = start + place
        a, b = np.uint64(at % BLOCK // _AT_ONCE + 1), np.uint64(at // BLOCK)
        c, d = np.uint64(0), np.uint64(0)
        left, right = key, other_key
        for _ in range(_ROUNDS):
            low_a, high_a = _FIRST * a, high_half(_FIRST, a)
            low_c, high_c = _SECOND * c, high_half(_SECOND, c)
            a, b, c, d = high_c ^ b ^ left, low_c, high_a ^ d ^ right, low_a
            left, right = left + _STEP, right + _OTHER_STEP
        _split(a, out, place)
        _split(b, out, place + 2)
        _split(c, out, place + 4)
        _split(d, out, place + 6)


@jit()
def _multiply(row: Any, drawn: Any, bound: Any) -> None:
    one, zero = row.dtype.type(1), row.dtype.type(0)
    for i in range(row.size):
        row[i] *= one if drawn[i] < bound else zero


@jit()
def _keep_below(row: Any, key: Any, other_key: Any, start: int, bound: Any) -> None:
    words = np.empty(BLOCK, np.uint32)
    done = 0
    while done < row.size:
        skipped = (start + done) % _AT_ONCE
        count = min(BLOCK - skipped, row.size - done)
        drawn = words[: -(-(skipped + count) // _AT_ONCE) * _AT_ONCE]
        _fill(key, other_key, start + done - skipped, drawn)
        _multiply(row[done : done + count], drawn[skipped:], bound)
        done += count


def words(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """Words ``start`` to ``start + count`` of an endless row, uniform over 32 bits.

    Every :data:`BLOCK` of them equals ``Philox(key=key, counter=[0, block, 0, 0])`` in NumPy, whose
    raw words are taken as two halves, the lower one first.

    Args:
        key: of 128 bits.

    >>> raw = np.random.Philox(key=5, counter=[0, 1, 0, 0]).random_raw(2)
    >>> words(5, BLOCK, 4).tolist() == raw.astype("<u8").view("<u4").tolist()
    True
    """
    skipped = start % _AT_ONCE
    out = np.empty(-(-(skipped + count) // _AT_ONCE) * _AT_ONCE, np.uint32)
    _fill(*_halves(key), start - skipped, out)
    return out[skipped : skipped + count]


def keep_below(row: NDArray[Any], key: int, start: int, bound: int) -> None:
    """Multiply each entry by whether its word is below a bound: ``row *= words < bound``.

    Args:
        row: [n] float32 or float64, overwritten.
        key: of 128 bits.
        start: where the row begins in the endless one.
        bound: at most 2**32.

    >>> row = np.ones(4, np.float32)
    >>> keep_below(row, 5, 8, 1 << 31)
    >>> bool(np.all(row == (words(5, 8, 4) < 1 << 31)))
    True
    """
    _keep_below(row, *_halves(key), start, np.uint64(bound))


def _halves(key: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(key & _HALF), np.uint64(key >> 64)
