"""Stored words as numbers, and numbers as stored words: one value at a time, inside loops.

``uint16`` means bfloat16 and ``int16`` means float16. Widening is exact; narrowing rounds once, to
nearest even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from taskbasis.compiling import chosen_by_type, jit


def widen(x: Any) -> Any:
    """A stored word as a number: bfloat16 and float16 to float32, the others as they are."""
    raise NotImplementedError


@chosen_by_type(widen)
def _widen_for(x: Any) -> Any:
    if x.name == "uint16":

        def bfloat16(x: Any) -> Any:
            return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)

        return bfloat16
    if x.name == "int16":

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


@jit()
def _single(x: Any) -> Any:
    """The bits of a float32 that is rounded to 16 bits as the number itself would be.

    From float64 it is rounded to odd: cut off, and made odd if anything was lost, so that a tie
    and what lies beside it stay apart (Boldo and Melquiond, IEEE Trans. Computers 57, 2008).
    """
    near = np.float32(x)
    wide = np.float64(near)
    away = np.uint32(abs(wide) > abs(x))
    lost = np.uint32(wide < x or wide > x)
    return np.uint32((near.view(np.uint32) - away) | lost)


def narrow(x: Any, like: Any) -> Any:
    """A number as the stored word of the type of ``like``, rounded once, to nearest even."""
    raise NotImplementedError


@chosen_by_type(narrow)
def _narrow_for(x: Any, like: Any) -> Any:
    if like.name == "uint16":

        def bfloat16(x: Any, like: Any) -> Any:
            bits = _single(x)
            odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint32(bits + np.uint32(0x7FFF) + odd)
            nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            kept = np.uint32(bits | np.uint32(0x400000)) if nan else rounded
            return np.uint16(kept >> np.uint32(16))

        return bfloat16
    if like.name == "int16":

        def float16(x: Any, like: Any) -> Any:
            bits = _single(x)
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
    if like.name == "float32":

        def float32(x: Any, like: Any) -> Any:
            return np.float32(x)

        return float32

    def unchanged(x: Any, like: Any) -> Any:
        return x

    return unchanged
