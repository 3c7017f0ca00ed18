"""Philox in compiled loops: the bits that NumPy's has, from any place on, for a use of their own.

Philox 4x64 of ten rounds (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011)
encrypts a counter, so any word is found without those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import chosen_by_type, jit, many_registers, spread

BLOCK = 1 << 14
"""Words of 32 bits that share all of a counter but its lowest part."""

_COUNTERS = BLOCK // 8
"""Counters that make a block: each gives eight of its words."""

_AT_ONCE = 128
"""Words of 32 bits that are made at once, of sixteen counters."""

_BUFFER = 1 << 12
"""Words that stay in the first cache until they are used."""

_HALF = (1 << 64) - 1
_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


def encrypt(key: Any, other_key: Any, counter: Any, out: Any, place: Any) -> Any:
    """Put the words of sixteen counters, from one on, into ``out``, from a place on."""
    raise NotImplementedError


@chosen_by_type(encrypt)
def _encrypt_for(key: Any, other_key: Any, counter: Any, out: Any, place: Any) -> Any:
    encrypted = _encrypting()

    def sixteen(key: Any, other_key: Any, counter: Any, out: Any, place: Any) -> Any:
        return encrypted(key, other_key, counter, out, place)

    return sixteen


def _encrypting() -> Any:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    long, int32 = ir.IntType(64), ir.IntType(32)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        key, other_key, counter, out, place = values
        array = context.make_array(signature.args[3])(context, builder, out)
        count = 16 if many_registers(context) else 8
        for first in range(0, 16, count):
            numbers = ir.Constant(ir.VectorType(long, count), list(range(first, first + count)))
            at = builder.add(spread(builder, counter, numbers.type), numbers)
            words = interleaved(builder, rounds(builder, at, key, other_key))
            target = builder.gep(array.data, [builder.add(place, long(8 * first))])
            builder.store(words, builder.bitcast(target, words.type.as_pointer()), align=4)
        return context.get_dummy_value()

    def rounds(builder: Any, at: Any, key: Any, other_key: Any) -> Sequence[Any]:
        """The four words of 64 bits of every counter."""

        def all_of(number: int) -> Any:
            return ir.Constant(at.type, [number] * at.type.count)

        lower, half = all_of(0xFFFFFFFF), all_of(32)

        def product(factor: int, y: Any) -> tuple[Any, Any]:
            """The lower and the upper 64 of 128 bits, from halves: those multiply in vectors."""
            x0, x1 = all_of(factor & 0xFFFFFFFF), all_of(factor >> 32)
            y0, y1 = builder.and_(y, lower), builder.lshr(y, half)
            least = builder.mul(x0, y0)
            one = builder.add(builder.mul(x1, y0), builder.lshr(least, half))
            two = builder.add(builder.mul(x0, y1), builder.and_(one, lower))
            most = builder.add(builder.mul(x1, y1), builder.lshr(one, half))
            low = builder.or_(builder.shl(two, half), builder.and_(least, lower))
            return low, builder.add(most, builder.lshr(two, half))

        a = builder.add(builder.and_(at, all_of(_COUNTERS - 1)), all_of(1))
        b = builder.lshr(at, all_of(_COUNTERS.bit_length() - 1))
        c = d = all_of(0)
        for _ in range(_ROUNDS):
            (low_a, high_a), (low_c, high_c) = product(_FACTORS[0], a), product(_FACTORS[1], c)
            a = builder.xor(builder.xor(high_c, b), spread(builder, key, at.type))
            c = builder.xor(builder.xor(high_a, d), spread(builder, other_key, at.type))
            b, d = low_c, low_a
            key, other_key = (
                builder.add(key, long(_STEPS[0])),
                builder.add(other_key, long(_STEPS[1])),
            )
        return a, b, c, d

    def interleaved(builder: Any, parts: Sequence[Any]) -> Any:
        """``a[0], b[0], c[0], d[0], a[1], ...``"""
        count = parts[0].type.count

        def merged(x: Any, y: Any, order: list[int]) -> Any:
            return builder.shuffle_vector(
                x, y, ir.Constant(ir.VectorType(int32, len(order)), order)
            )

        pairs = [place for i in range(count) for place in (i, count + i)]
        fours = [2 * i + place for i in range(count) for place in (0, 1, 2 * count, 2 * count + 1)]
        a, b, c, d = parts
        return merged(merged(a, b, pairs), merged(c, d, pairs), fours)

    @intrinsic  # type: ignore[untyped-decorator]
    def encrypted(
        context: Any, key: Any, other_key: Any, counter: Any, out: Any, place: Any
    ) -> Any:
        return types.void(types.uint64, types.uint64, types.uint64, out, types.intp), build

    return encrypted


@jit()
def _fill(key: Any, other_key: Any, start: int, out: Any) -> None:
    """Words from ``start`` on; it and their number are multiples of :data:`_AT_ONCE`."""
    for place in range(0, out.size, _AT_ONCE):
        encrypt(key, other_key, np.uint64((start + place) // 8), out, place)


@jit()
def _multiply(row: Any, drawn: Any, bound: Any) -> None:
    one, zero = row.dtype.type(1), row.dtype.type(0)
    for i in range(row.size):
        row[i] *= one if drawn[i] < bound else zero


@jit()
def _keep_below(row: Any, key: Any, other_key: Any, start: int, bound: Any) -> None:
    words = np.empty(_BUFFER, np.uint32)
    done = 0
    while done < row.size:
        skipped = (start + done) % _AT_ONCE
        count = min(words.size - skipped, row.size - done)
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
