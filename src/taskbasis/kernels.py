"""The few fused loops, each beside the NumPy expression that it equals bit for bit.

Arrays come as raw words: ``uint16`` means bfloat16 and ``int16`` means float16 (see
:mod:`taskbasis.io.dtypes`); they are widened in registers, so a value is read from memory once
and written once. Widening and narrowing are exact IEEE operations, rounding to nearest even.
Every loop works in blocks that stay in the first cache; the scratch rows that hold a block are
the caller's, and their type (float32, or float64 for float64 tensors) is what is computed in.
No loop contracts a multiply and an add or lets the compiler choose an order, so results do not
depend on the machine; squares and products are summed as :mod:`taskbasis.lanes` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.combinations import SUMS, combine_four
from taskbasis.compiling import jit
from taskbasis.lanes import exact_product, products, squares
from taskbasis.words import narrow, widen

BLOCK = 2048
"""Elements per block: a few rows of it stay in the first cache."""

_APART = 16
"""Elements between the rows of a block: at a distance of a power of two they would take each
other's places in the cache."""

_SMALL, _LARGE = 1e-30, 1e37
"""Squared norms of blocks that float32 sums without overflow or loss of small entries."""


@jit()
def _decode(words: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = widen(words[i])


@jit()
def _decode_difference(words: Any, base: Any, out: Any) -> None:
    # Equal values differ by zero, infinite ones too: an untouched mask of -inf is no NaN.
    zero = out.dtype.type(0)
    for i in range(out.size):
        value = widen(words[i])
        out[i] = value - base[i] if value != base[i] else zero


@jit()
def _combined(rows: Any, coefficients: Any, m: int, total: Any) -> None:
    # Four rows at a time: the same sums in the same order, but loaded and stored once for four.
    total[:] = 0
    inputs = coefficients.shape[1]
    fours = inputs // 4 * 4
    for r in range(0, fours, 4):
        by_a, by_b = coefficients[m, r], coefficients[m, r + 1]
        by_c, by_d = coefficients[m, r + 2], coefficients[m, r + 3]
        a, b, c, d = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
        for i in range(total.size):
            two = (total[i] + by_a * a[i]) + by_b * b[i]
            total[i] = (two + by_c * c[i]) + by_d * d[i]
    for r in range(fours, inputs):
        by_a, a = coefficients[m, r], rows[r]
        for i in range(total.size):
            total[i] += by_a * a[i]


@jit()
def _add_scaled(words: Any, origin: Any, difference: Any, coefficient: Any, total: Any) -> None:
    # Widened in registers: what is used once needs no row of its own.
    zero = total.dtype.type(0)
    for i in range(total.size):
        value = widen(words[i])
        if difference:
            value = value - origin[i] if value != origin[i] else zero
        total[i] += coefficient * value


@jit()
def _store_delta(total: Any, out: Any, error: Any) -> None:
    for i in range(total.size):
        word = narrow(total[i], out[i])
        out[i] = word
        error[i] = widen(word) - total[i]


@jit()
def _store_weights(base: Any, total: Any, out: Any, error: Any) -> None:
    zero = error.dtype.type(0)
    for i in range(total.size):
        word = narrow(base[i] + total[i], out[i])
        out[i] = word
        value = widen(word)
        moved = value - base[i] if value != base[i] or total[i] != zero else zero
        error[i] = moved - total[i]


@jit()
def _safe(square: float) -> bool:
    return _SMALL < square < _LARGE


@jit()
def _add_squares(rows: Any, total: int, error: int, size: int, stats: Any) -> None:
    """The squared norms of two rows; in float64 where float32 could overflow or vanish."""
    found = squares(rows, total, error, size)
    for k, row in enumerate((total, error)):
        stats[k] += found[k] if _safe(found[k]) else exact_product(rows, row, row, size)[0]


@jit()
def _rows(base: Any, words: Any, difference: Any, start: int, stop: int, scratch: Any) -> None:
    # Rows are sliced one at a time: a slice over both axes would lose its contiguity.
    for r in range(words.shape[0]):
        if difference:
            _decode_difference(words[r, start:stop], base, scratch[r, : stop - start])
        else:
            _decode(words[r, start:stop], scratch[r, : stop - start])


@jit()
def _form(
    base: Any,
    words: Any,
    difference: Any,
    coefficients: Any,
    add_base: Any,
    out: Any,
    scratch: Any,
    stats: Any,
) -> None:
    inputs, size = words.shape
    outputs = out.shape[0]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        origin = scratch[inputs, : stop - start]
        error = scratch[inputs + 1, : stop - start]
        if difference or add_base:
            _decode(base[start:stop], origin)
        if outputs > 1:
            _rows(origin, words, difference, start, stop, scratch)
        for m in range(outputs):
            sums = inputs + 2 + m % SUMS
            total = scratch[sums, : stop - start]
            if outputs == 1:
                total[:] = 0
                for r in range(inputs):
                    row = words[r, start:stop]
                    _add_scaled(row, origin, difference, coefficients[0, r], total)
            elif m >= outputs // SUMS * SUMS:
                _combined(scratch, coefficients, m, total)
            elif m % SUMS == 0:
                combine_four(scratch, coefficients, m, sums, stop - start)
            if add_base:
                _store_weights(origin, total, out[m, start:stop], error)
            else:
                _store_delta(total, out[m, start:stop], error)
            _add_squares(scratch, sums, inputs + 1, stop - start, stats[m])


@jit()
def _four(first: int, inputs: int) -> Any:
    """Four rows from one on; the last one again where there are fewer."""
    last = inputs - 1
    return first, min(first + 1, last), min(first + 2, last), min(first + 3, last)


@jit()
def _multiply(rows: Any, inputs: int, size: int, found: Any) -> None:
    """The products of all pairs of rows, four by four; of two rows no more than they have."""
    if inputs <= 2:
        both = (0, inputs - 1)
        pair = products(rows, both, both, size)
        found[0, 0], found[1, 0], found[1, 1] = pair[0], pair[2], pair[3]
        return
    for i in range(0, inputs, 4):
        for j in range(0, i + 1, 4):
            tile = products(rows, _four(i, inputs), _four(j, inputs), size)
            for k in range(16):
                found[i + k // 4, j + k % 4] = tile[k]


@jit()
def _gram(base: Any, words: Any, difference: Any, scratch: Any, out: Any) -> None:
    inputs, size = words.shape
    found = np.empty((inputs + 3, inputs + 3), np.float64)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        origin = scratch[inputs, : stop - start]
        if difference:
            _decode(base[start:stop], origin)
        _rows(origin, words, difference, start, stop, scratch)
        _multiply(scratch, inputs, stop - start, found)
        for i in range(inputs):
            for j in range(i + 1):
                # Where float32 could overflow or vanish, float64 has to say.
                if _safe(found[i, i]) and _safe(found[j, j]):
                    out[i, j] += found[i, j]
                else:
                    out[i, j] += exact_product(scratch, i, j, stop - start)[0]


@jit()
def _decode_scaled(words: Any, origin: Any, difference: Any, coefficient: Any, out: Any) -> None:
    zero = out.dtype.type(0)
    for i in range(out.size):
        value = widen(words[i])
        if difference:
            value = value - origin[i] if value != origin[i] else zero
        out[i] = zero + coefficient * value  # -0 becomes 0, as in any sum


@jit()
def _finite(row: Any) -> bool:
    infinite = row.dtype.type(np.inf)
    found = np.int32(0)
    for i in range(row.size):
        found += np.int32(not abs(row[i]) < infinite)
    return bool(found == 0)


@jit()
def _deltas(
    base: Any, words: Any, difference: Any, coefficients: Any, out: Any, scratch: Any
) -> bool:
    finite = True
    for start in range(0, words.shape[1], BLOCK):
        stop = min(start + BLOCK, words.shape[1])
        origin = scratch[0, : stop - start]
        if difference:
            _decode(base[start:stop], origin)
        for r in range(words.shape[0]):
            row = out[r, start:stop]
            _decode_scaled(words[r, start:stop], origin, difference, coefficients[r], row)
            finite = finite and _finite(row)
    return finite


@jit()
def _mixed(first: Any, rows: Any, numbers: Any, out: Any) -> None:
    for start in range(0, out.size, BLOCK):
        stop = min(start + BLOCK, out.size)
        total, row = out[start:stop], first[start:stop]
        for i in range(stop - start):
            total[i] = 0.0 + numbers[0] * row[i]
        for r in range(rows.shape[0]):
            number, row = numbers[r + 1], rows[r, start:stop]
            for i in range(stop - start):
                total[i] += number * row[i]


def scratch_rows(inputs: int) -> tuple[int, int]:
    """The shape of the scratch that ``inputs`` rows need: six rows more, over a block wide.

    >>> scratch_rows(2)
    (8, 2064)
    """
    return inputs + 2 + SUMS, BLOCK + _APART


def form(
    base: NDArray[Any] | None,
    words: NDArray[Any],
    difference: bool,
    coefficients: NDArray[Any],
    add_base: bool,
    out: NDArray[Any],
    scratch: NDArray[Any],
    stats: NDArray[np.float64],
) -> None:
    """Linear combinations of task vectors, rounded and stored, in one pass.

    With ``rows = words - base`` if ``difference`` else ``words``, it equals::

        total[m] = ((0 + c[m, 0] * rows[0]) + c[m, 1] * rows[1]) + ...
        out[m]   = round(base + total[m])  if add_base else  round(total[m])

    Args:
        base: stored words, shape [n]; None when neither ``difference`` nor ``add_base``.
        words: stored words of the inputs, shape [inputs, n].
        difference: whether the inputs are weights whose base is to be subtracted.
        coefficients: shape [outputs, inputs], in C order, of the type that is computed in.
        add_base: whether the outputs are weights.
        out: stored words, shape [outputs, n].
        scratch: as :func:`scratch_rows` says, of the type that is computed in.
        stats: shape [outputs, 2]; the squared norm of ``total`` and of what rounding took from
            it are added here. A value that is not finite shows as a norm that is not finite.

    >>> words = np.array([[1, 2], [3, 4]], np.float32)
    >>> out, stats = np.empty((1, 2), np.float32), np.zeros((1, 2))
    >>> form(None, words, False, np.array([[1, -1]], np.float32), False, out,
    ...      np.empty(scratch_rows(2), np.float32), stats)
    >>> out.tolist(), stats.tolist()
    ([[-2.0, -2.0]], [[8.0, 0.0]])
    """
    origin = words[0] if base is None else base
    if words.shape[1]:
        _form(origin, words, difference, coefficients, add_base, out, scratch, stats)


def gram(
    base: NDArray[Any] | None,
    words: NDArray[Any],
    difference: bool,
    scratch: NDArray[Any],
    out: NDArray[np.float64],
) -> None:
    """Add the inner products of all pairs of rows to the lower triangle of ``out``.

    Equals ``np.tril(rows.astype(float64) @ rows.astype(float64).T)`` up to the rounding of
    float32 sums within a block; blocks are summed in float64. Arguments as for :func:`form`.

    >>> out = np.zeros((2, 2))
    >>> gram(None, np.array([[1, 2], [3, 4]], np.float32), False,
    ...      np.empty(scratch_rows(2), np.float32), out)
    >>> out.tolist()
    [[5.0, 0.0], [11.0, 25.0]]
    """
    if words.size:
        _gram(words[0] if base is None else base, words, difference, scratch, out)


def deltas(
    base: NDArray[Any] | None,
    words: NDArray[Any],
    difference: bool,
    coefficients: NDArray[Any],
    out: NDArray[Any],
    scratch: NDArray[Any],
) -> bool:
    """Every row widened, less the base if that is asked, times a number of its own.

    Equals ``out[r] = 0 + coefficients[r] * (words[r] - base)``: what :func:`form` makes of a
    diagonal matrix, in one pass over each row. Arguments as there.

    Args:
        coefficients: [inputs], of the type that is computed in.
        out: [inputs, n], of that type.

    Returns:
        Whether all of them are finite.

    >>> words, out = np.array([[1, 2], [3, 4]], np.float32), np.empty((2, 2), np.float32)
    >>> scale, scratch = np.array([1, -1], np.float32), np.empty(scratch_rows(2), np.float32)
    >>> deltas(np.ones(2, np.float32), words, True, scale, out, scratch), out.tolist()
    (True, [[0.0, 1.0], [-2.0, -3.0]])
    """
    if not words.size:
        return True
    origin = words[0] if base is None else base
    return bool(_deltas(origin, words, difference, coefficients, out, scratch))


def mixed(
    first: NDArray[np.float64], rows: NDArray[np.float64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``((0 + numbers[0] * first) + numbers[1] * rows[0]) + ...`` in one pass.

    >>> mixed(np.array([1.0, 2.0]), np.array([[3.0, 4.0]]), np.array([1.0, 10.0])).tolist()
    [31.0, 42.0]
    """
    out = np.empty(first.shape)
    _mixed(first, rows, numbers, out)
    return out


def decode(words: NDArray[Any], out: NDArray[Any]) -> None:
    """Widen stored words: ``out = words.astype(out.dtype)``, exact.

    >>> out = np.empty(2, np.float32)
    >>> decode(np.array([0x3F80, 0xC000], np.uint16), out)
    >>> out.tolist()
    [1.0, -2.0]
    """
    _decode(words, out)


def decode_difference(words: NDArray[Any], base: NDArray[Any], out: NDArray[Any]) -> None:
    """Widen stored words and subtract a widened base; equal values, infinite ones too, give 0.

    >>> out = np.empty(2, np.float32)
    >>> decode_difference(np.array([np.inf, 3], np.float32), np.array([np.inf, 1], np.float32), out)
    >>> out.tolist()
    [0.0, 2.0]
    """
    _decode_difference(words, base, out)
