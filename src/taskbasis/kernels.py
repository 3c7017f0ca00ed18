"""The few fused loops, each beside the NumPy expression that it equals bit for bit.

Arrays come as raw words: ``uint16`` means bfloat16 and ``int16`` means float16 (see
:mod:`taskbasis.io.dtypes`); they are widened in registers, so a value is read from memory once
and written once. Widening and narrowing are exact IEEE operations, rounding to nearest even.
Every loop works in blocks that stay in the first cache; the scratch rows that hold a block are
the caller's, and their type (float32, or float64 for float64 tensors) is what is computed in.
No loop contracts a multiply and an add, so results do not depend on the machine; only the sums
of squares and products may be reordered inside a block, in a way fixed at compile time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core.event import Listener, register, unregister
from numba.extending import overload
from numpy.typing import NDArray

BLOCK = 2048
"""Elements per block: a few rows of it stay in the first cache."""

_SMALL, _LARGE = 1e-30, 1e37
"""Squared norms of blocks that float32 sums without overflow or loss of small entries."""

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(**options: Any) -> Callable[[_F], _F]:
    """A loop compiled for this machine, cached on disk, that lets other threads run."""
    return cast(
        Callable[[_F], _F], numba.njit(nogil=True, cache=True, error_model="numpy", **options)
    )


def _widen(x: Any) -> Any:
    """A stored word as a number: bfloat16 and float16 to float32, the others as they are."""
    raise NotImplementedError


@overload(_widen)
def _widen_for(x: Any) -> Any:
    if x == types.uint16:

        def bfloat16(x: Any) -> Any:
            return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)

        return bfloat16
    if x == types.int16:

        def float16(x: Any) -> Any:
            word = np.uint32(np.uint16(x))
            sign = np.uint32((word & np.uint32(0x8000)) << np.uint32(16))
            magnitude = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13))
            # 2**112 moves the exponent's bias from 15 to 127 and normalises subnormals exactly.
            finite = np.float32(magnitude.view(np.float32) * np.float32(2.0**112))
            special = np.uint32(magnitude | np.uint32(0x7F800000))
            bits = special if magnitude >= np.uint32(0x0F800000) else finite.view(np.uint32)
            return np.uint32(bits | sign).view(np.float32)

        return float16

    def unchanged(x: Any) -> Any:
        return x

    return unchanged


def _narrow(x: Any, like: Any) -> Any:
    """A number as the stored word of the type of ``like``, rounded to nearest even.

    From float64 to 16 bits it is rounded twice, by way of float32.
    """
    raise NotImplementedError


@overload(_narrow)
def _narrow_for(x: Any, like: Any) -> Any:
    if like == types.uint16:

        def bfloat16(x: Any, like: Any) -> Any:
            bits = np.float32(x).view(np.uint32)
            odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint32(bits + np.uint32(0x7FFF) + odd)
            nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            kept = np.uint32(bits | np.uint32(0x400000)) if nan else rounded
            return np.uint16(kept >> np.uint32(16))

        return bfloat16
    if like == types.int16:

        def float16(x: Any, like: Any) -> Any:
            bits = np.float32(x).view(np.uint32)
            sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
            size = np.uint32(bits & np.uint32(0x7FFFFFFF))
            odd = np.uint32((size >> np.uint32(13)) & np.uint32(1))
            normal = np.uint32(size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd)
            # Adding 0.5 lines a subnormal's last bit up with float32's; the sum rounds it.
            aligned = np.float32(size.view(np.float32) + np.float32(0.5)).view(np.uint32)
            subnormal = np.uint32(aligned - np.uint32(0x3F000000))
            small = size < np.uint32(0x38800000)
            half = subnormal if small else np.uint32(normal >> np.uint32(13))
            huge = size >= np.uint32(0x47800000)
            nan = size > np.uint32(0x7F800000)
            special = np.uint32(0x7E00) if nan else np.uint32(0x7C00)
            return np.int16(np.uint16((special if huge else half) | sign))

        return float16
    if like == types.float32:

        def float32(x: Any, like: Any) -> Any:
            return np.float32(x)

        return float32

    def unchanged(x: Any, like: Any) -> Any:
        return x

    return unchanged


@jit()
def _decode(words: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = _widen(words[i])


@jit()
def _decode_difference(words: Any, base: Any, out: Any) -> None:
    # Equal values differ by zero, infinite ones too: an untouched mask of -inf is no NaN.
    zero = out.dtype.type(0)
    for i in range(out.size):
        value = _widen(words[i])
        out[i] = value - base[i] if value != base[i] else zero


@jit()
def _scaled_sum(total: Any, coefficient: Any, row: Any) -> None:
    for i in range(total.size):
        total[i] += coefficient * row[i]


@jit()
def _store_delta(total: Any, out: Any, error: Any) -> None:
    for i in range(total.size):
        word = _narrow(total[i], out[i])
        out[i] = word
        error[i] = _widen(word) - total[i]


@jit()
def _store_weights(base: Any, total: Any, out: Any, error: Any) -> None:
    zero = error.dtype.type(0)
    for i in range(total.size):
        word = _narrow(base[i] + total[i], out[i])
        out[i] = word
        value = _widen(word)
        moved = value - base[i] if value != base[i] or total[i] != zero else zero
        error[i] = moved - total[i]


@jit(fastmath={"reassoc", "nsz"})
def _dot(left: Any, right: Any) -> Any:
    total = left[0] * right[0]
    for i in range(1, left.size):
        total += left[i] * right[i]
    return total


@jit(fastmath={"reassoc", "nsz"})
def _exact_dot(left: Any, right: Any) -> float:
    total = 0.0
    for i in range(left.size):
        total += np.float64(left[i]) * np.float64(right[i])
    return total


@jit()
def _safe(square: float) -> bool:
    return _SMALL < square < _LARGE


@jit()
def _square(row: Any) -> float:
    """The squared norm of a block; in float64 where float32 could overflow or vanish."""
    found = float(_dot(row, row))
    return found if _safe(found) else _exact_dot(row, row)


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
    block = scratch.shape[1]
    for start in range(0, size, block):
        stop = min(start + block, size)
        origin = scratch[inputs, : stop - start]
        total = scratch[inputs + 1, : stop - start]
        error = scratch[inputs + 2, : stop - start]
        if difference or add_base:
            _decode(base[start:stop], origin)
        _rows(origin, words, difference, start, stop, scratch)
        for m in range(out.shape[0]):
            total[:] = 0
            for r in range(inputs):
                _scaled_sum(total, coefficients[m, r], scratch[r, : stop - start])
            if add_base:
                _store_weights(origin, total, out[m, start:stop], error)
            else:
                _store_delta(total, out[m, start:stop], error)
            stats[m, 0] += _square(total)
            stats[m, 1] += _square(error)


@jit()
def _gram(base: Any, words: Any, difference: Any, scratch: Any, out: Any) -> None:
    inputs, size = words.shape
    block = scratch.shape[1]
    squares = np.empty(inputs, np.float64)
    for start in range(0, size, block):
        stop = min(start + block, size)
        origin = scratch[inputs, : stop - start]
        if difference:
            _decode(base[start:stop], origin)
        _rows(origin, words, difference, start, stop, scratch)
        for i in range(inputs):
            row = scratch[i, : stop - start]
            squares[i] = _square(row)
            out[i, i] += squares[i]
            for j in range(i):
                other = scratch[j, : stop - start]
                if _safe(squares[i]) and _safe(squares[j]):
                    out[i, j] += _dot(row, other)
                else:
                    out[i, j] += _exact_dot(row, other)


def scratch_rows(inputs: int) -> tuple[int, int]:
    """The shape of the scratch that ``inputs`` rows need: three rows more, one block wide.

    >>> scratch_rows(2)
    (5, 2048)
    """
    return inputs + 3, BLOCK


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
        coefficients: shape [outputs, inputs], of the type that is computed in.
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
    if words.shape[1]:
        _gram(words[0] if base is None else base, words, difference, scratch, out)


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


class _Once(Listener):  # type: ignore[misc]
    """Tells of the first compilation only; the others follow within seconds."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()

    def on_end(self, event: Any) -> None:
        pass


def on_first_compilation(tell: Callable[[], None]) -> Callable[[], None]:
    """Call ``tell`` when a kernel has to be compiled, not when it comes from the cache.

    Returns:
        What stops the listening.
    """
    listener = _Once(tell)
    register("numba:compile", listener)
    return lambda: unregister("numba:compile", listener)
