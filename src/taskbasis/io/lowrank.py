"""Products of two thin factors as tensors: rows are computed as they are read, none is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.errors import HeaderError
from taskbasis.io.dtypes import F32
from taskbasis.io.tensors import TensorInfo
from taskbasis.kernels import decode

_PANEL = 1024
"""Columns that are worked on together."""


@jit()
def _add_four(total: Any, w: Any, one: Any, two: Any, three: Any, four: Any) -> None:
    # Four terms per pass save three passes over the total; the order of the sum stays.
    for i in range(total.size):
        half = (total[i] + w[0] * one[i]) + w[1] * two[i]
        total[i] = (half + w[2] * three[i]) + w[3] * four[i]


@jit()
def _add_one(total: Any, weight: Any, row: Any) -> None:
    for i in range(total.size):
        total[i] += weight * row[i]


@jit()
def _product(up: Any, down: Any, skip: int, out: Any, panel: int) -> None:
    rank, width = down.shape
    whole = rank - rank % 4
    total = np.empty(min(panel, width), np.float64)
    # A panel of columns stays in the cache while all rows pass over it.
    for left in range(0, width, panel):
        for row in range(up.shape[0]):
            begin = row * width - skip  # where the row's first entry stands in ``out``
            start = max(left, -begin)
            stop = min(left + panel, width, out.size - begin)
            if start >= stop:
                continue
            part = total[: stop - start]
            part[:] = 0
            for k in range(0, whole, 4):
                # Sliced one at a time: a slice over both axes would lose its contiguity.
                _add_four(
                    part,
                    up[row, k : k + 4],
                    down[k, start:stop],
                    down[k + 1, start:stop],
                    down[k + 2, start:stop],
                    down[k + 3, start:stop],
                )
            for k in range(whole, rank):
                _add_one(part, up[row, k], down[k, start:stop])
            for i in range(part.size):
                out[begin + start + i] = np.float32(part[i])


def product(up: NDArray[np.float64], down: NDArray[np.float64], skip: int, out: Any) -> None:
    """Fill ``out`` with entries of ``up @ down``, from entry ``skip`` of its first row on.

    Every entry is summed in the order of the rank, in float64, and rounded once, so it does not
    depend on where the product is cut. It equals, bit for bit::

        total = 0; for k in range(r): total = total + up[:, k, None] * down[k]
        out[:] = total.astype(float32).ravel()[skip : skip + out.size]

    Args:
        up: [rows, r]. down: [r, columns]. skip: less than the columns. out: float32, [n].

    >>> out = np.empty(3, np.float32)
    >>> product(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]), 1, out)
    >>> out.tolist()
    [10.0, 2.0, 20.0]
    """
    if out.size:
        _product(up, down, skip, out, _PANEL)


@dataclass(frozen=True)
class LowRank:
    """The bytes of ``scaling * B @ A`` in float32, or of its transpose; only factors are stored.

    Rows are formed when they are read: in float64, rounded once to float32, the same bits for any
    way of cutting and any number of threads. Nothing is kept from one read to the next; a read
    holds the factor that all rows share.

    Attributes:
        down: A, [r, in]; a convolution's [r, in, ...] counts as [r, rest].
        up: B, [out, r]; a convolution's has axes of length 1 behind.
        scaling: what the product is multiplied by.
        transposed: whether the tensor is [in, out] instead of [out, in].
    """

    down: TensorInfo
    up: TensorInfo
    scaling: float
    transposed: bool = False

    @property
    def label(self) -> str:
        """The file that the factors stand in."""
        return self.up.blob.label

    @property
    def rank(self) -> int:
        """r, the rows of A and the columns of B."""
        return self.down.shape[0]

    @property
    def height(self) -> int:
        """The rows of the product."""
        return self.down.size // self.rank if self.transposed else self.up.shape[0]

    @property
    def width(self) -> int:
        """The columns of the product."""
        return self.up.shape[0] if self.transposed else self.down.size // self.rank

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with float32 from the byte ``offset`` on, a multiple of 4."""
        out = np.frombuffer(buffer, np.float32)
        if out.size:
            first, skip = divmod(offset // F32.itemsize, self.width)
            rows = -(-(skip + out.size) // self.width)
            product(self._up(first, first + rows), self._down(), skip, out)

    def factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The two factors, scaling and transposition taken in: up [n, r] and down [r, m].

        Their product is the tensor, with what follows its first axis flattened.

        >>> from taskbasis.io.tensors import ArrayBlob
        >>> thin = ArrayBlob(np.array([1, 2], np.float32).view(np.uint8))
        >>> a, b = TensorInfo("A", F32, (1, 2), thin), TensorInfo("B", F32, (2, 1), thin)
        >>> up, down = LowRank(a, b, scaling=0.5).factors()
        >>> (up @ down).tolist()
        [[0.5, 1.0], [1.0, 2.0]]
        """
        return self._up(0, self.height), self._down()

    def working_bytes(self, size: int) -> int:
        """An upper bound of what one read of ``size`` entries takes beside its buffer."""
        rows = min(-(-size // self.width) + 1, self.height)
        return 20 * self.rank * (rows + self.width) + 8 * _PANEL

    def _up(self, start: int, stop: int) -> NDArray[np.float64]:
        """[rows, r] the scaled rows of the factor whose rows the product's are made of."""
        if not self.transposed:
            found = _decoded(self.up, start * self.rank, stop * self.rank)
            return (found * self.scaling).reshape(stop - start, self.rank)
        rows = np.empty((stop - start, self.rank))
        for k in range(self.rank):
            at = k * self.height
            rows[:, k] = _decoded(self.down, at + start, at + stop)
        rows *= self.scaling
        return rows

    def _down(self) -> NDArray[np.float64]:
        """[r, width] the factor that all rows share."""
        if not self.transposed:
            return _decoded(self.down, 0, self.down.size).reshape(self.rank, self.width)
        whole = _decoded(self.up, 0, self.up.size).reshape(self.width, self.rank)
        return np.ascontiguousarray(whole.T)


def _decoded(info: TensorInfo, start: int, stop: int) -> NDArray[np.float64]:
    bits = np.empty(stop - start, info.dtype.bits)
    info.read(start, stop, bits)
    values = np.empty(bits.size)
    decode(bits, values)
    return values


def low_rank(
    name: str, down: TensorInfo, up: TensorInfo, scaling: float, transposed: bool = False
) -> TensorInfo:
    """The tensor ``scaling * B @ A``, float32; nothing is read yet.

    Args:
        name: what it is called.
        down: A, [r, in], or [r, in, ...] of a convolution.
        up: B, [out, r], or [out, r, 1, ...] of a convolution.
        scaling: what the product is multiplied by.
        transposed: whether the tensor is [in, out].

    Raises:
        HeaderError: the factors are not two float matrices that share a rank, none of them empty.
    """
    for info in (down, up):
        if len(info.shape) < 2 or not info.size:
            raise HeaderError(
                f"{info.where} has shape {list(info.shape)}, but a factor is a matrix that is not "
                "empty; it was probably saved from one part of a sharded model"
            )
        if not info.dtype.mergeable:
            raise HeaderError(f"{info.where} holds {info.dtype.name}, but factors are floats")
    alike = len(up.shape) == len(down.shape) and math.prod(up.shape[2:]) == 1
    if up.shape[1] != down.shape[0] or not alike or (transposed and len(up.shape) > 2):
        raise HeaderError(
            f"{up.where} has shape {list(up.shape)} and {down.name!r} has {list(down.shape)}; "
            "factors are [out, r] and [r, in] (with a kernel: [out, r, 1, ...] and [r, in, ...])"
        )
    shape = (up.shape[0], *down.shape[1:])
    return TensorInfo(
        name,
        F32,
        shape[::-1] if transposed else shape,
        LowRank(down, up, scaling, transposed),
    )
