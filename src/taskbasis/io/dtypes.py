"""The element types that tensor files hold, and how the kernels see them.

A kernel never sees a bfloat16 or a float16: it is handed the raw 16-bit words (``bits``, unsigned
for the first and signed for the second) and widens them itself. Every other type has ``bits``
equal to its NumPy type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError, nearest


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        code: the safetensors name, e.g. ``BF16``.
        name: the name people type, e.g. ``bfloat16``.
        itemsize: bytes per element.
        bits: the NumPy type of the raw array that is read and written.
        mergeable: whether arithmetic on it is offered. The others are carried unchanged.
    """

    code: str
    name: str
    itemsize: int
    bits: np.dtype[Any]
    mergeable: bool = False

    @property
    def compute(self) -> np.dtype[Any]:
        """What its values are computed in: float32, and float64 for float64."""
        return np.dtype(np.float64 if self.code == "F64" else np.float32)


def _dtype(code: str, name: str, bits: str, mergeable: bool = False) -> DType:
    return DType(code, name, np.dtype(bits).itemsize, np.dtype(bits), mergeable)


F64 = _dtype("F64", "float64", "<f8", True)
F32 = _dtype("F32", "float32", "<f4", True)
F16 = _dtype("F16", "float16", "<i2", True)
BF16 = _dtype("BF16", "bfloat16", "<u2", True)

BY_CODE: dict[str, DType] = {
    dtype.code: dtype
    for dtype in (
        F64,
        F32,
        F16,
        BF16,
        _dtype("I64", "int64", "<i8"),
        _dtype("I32", "int32", "<i4"),
        _dtype("I16", "int16", "<i2"),
        _dtype("I8", "int8", "i1"),
        _dtype("U64", "uint64", "<u8"),
        _dtype("U32", "uint32", "<u4"),
        _dtype("U16", "uint16", "<u2"),
        _dtype("U8", "uint8", "u1"),
        _dtype("BOOL", "bool", "u1"),
        _dtype("F8_E4M3", "float8_e4m3fn", "u1"),
        _dtype("F8_E5M2", "float8_e5m2", "u1"),
        _dtype("F8_E8M0", "float8_e8m0fnu", "u1"),
        _dtype("C64", "complex64", "<c8"),
    )
}
BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in BY_CODE.values()}


def floating(name: str) -> DType:
    """The float type people call ``name``; a ``torch.`` prefix is accepted.

    Raises:
        UsageError: for anything but float64, float32, float16 and bfloat16.

    >>> floating("torch.bfloat16").code
    'BF16'
    """
    plain = name.removeprefix("torch.")
    found = BY_NAME.get(plain)
    if found is None or not found.mergeable:
        choices = [dtype.name for dtype in BY_NAME.values() if dtype.mergeable]
        raise UsageError(f"{name!r} is not a float type: {nearest(plain, choices)}")
    return found


def widest(dtypes: Sequence[DType]) -> DType:
    """What holds all of them: bfloat16 beside float16 takes float32.

    >>> widest([BF16, F16]).name, widest([F16, F16]).name, widest([F64, BF16]).name
    ('float32', 'float16', 'float64')
    """
    if len(set(dtypes)) == 1:
        return dtypes[0]
    wide = max(dtypes, key=lambda dtype: dtype.itemsize)
    return wide if wide.itemsize > 2 else F32


def to_array(bits: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """The raw array as NumPy values: bfloat16 and float8 through :mod:`ml_dtypes`.

    >>> to_array(np.array([0x3F80], np.uint16), BF16).astype(np.float32)
    array([1.], dtype=float32)
    """
    if dtype.code == "BOOL":
        return bits.view(np.bool_)
    if dtype.code == "F16":
        return bits.view(np.float16)
    if dtype.code == "BF16" or dtype.code.startswith("F8"):
        import ml_dtypes

        return bits.view(getattr(ml_dtypes, dtype.name))
    return bits
