"""Tensors whose rows stand in other tensors: looked up by number as they are read."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.tensors import Forming, TensorInfo
from taskbasis.kernels import decode

ZERO, AVERAGE, REST = -1, -2, -3
"""What is no source's row: zeros, the mean of some rows, the mean of all others."""

_SPARSE = 4
"""Rows are read one by one where those wanted are fewer than one in so many."""
_PANEL = 1 << 18
"""Entries that are summed together for the mean of all rows."""


@dataclass(frozen=True)
class Gathered:
    """The bytes of a tensor whose row i is row ``number[i]`` of ``sources[origin[i]]``.

    Rows are read when they are asked for, and nothing of them is kept, but for the one mean of
    :data:`REST`. Means are taken in float64 in the order of the sources, and rounded to float32
    and then to ``dtype`` (float64 is not rounded). Every source is widened to ``dtype`` exactly,
    so it has to hold whatever they hold.

    Attributes:
        dtype: of the tensor.
        width: entries of a row.
        sources: tensors of rows of that width.
        origin: [rows] which source; or :data:`ZERO`, :data:`AVERAGE`, :data:`REST`.
        number: [rows] which row of the source, or of ``members``; ignored for the others.
        members: [means, at most the sources] for each mean a row of every source, -1 for none.
    """

    dtype: DType
    width: int
    sources: tuple[TensorInfo, ...]
    origin: NDArray[np.int32] = field(repr=False)
    number: NDArray[np.int64] = field(repr=False)
    members: NDArray[np.int64] = field(repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)
    _kept: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The file of the first source."""
        return self.sources[0].blob.label

    @property
    def key(self) -> str:
        """What tells other look-ups apart from this one."""
        parts = (self.origin, self.number, self.members)
        return xxhash.xxh3_128_hexdigest(b"".join(part.tobytes() for part in parts))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the byte ``offset`` on, a multiple of the entries' size."""
        out = np.frombuffer(buffer, self.dtype.bits)
        if not out.size:
            return
        first, skip = divmod(offset // self.dtype.itemsize, self.width)
        last = -(-(first * self.width + skip + out.size) // self.width)
        out[:] = self._rows(first, last).reshape(-1)[skip : skip + out.size]

    def working_bytes(self, size: int) -> int:
        """An upper bound of what one read of ``size`` entries takes beside its buffer."""
        rows = -(-size // self.width) + 1
        # The rows, what they are picked from, and that as numbers; then the sums of a mean.
        wide = max(info.dtype.itemsize for info in self.sources)
        picked = rows * self.width * (self.dtype.itemsize + (2 * _SPARSE + 2) * max(wide, 4))
        inner = [info.blob for info in self.sources if isinstance(info.blob, Forming)]
        deeper = max((blob.working_bytes(_SPARSE * size) for blob in inner), default=0)
        return picked + deeper + 32 * max(_PANEL, 2 * self.width) + 24 * rows

    def _rows(self, first: int, last: int, rest: bool = True) -> NDArray[Any]:
        """Rows ``first`` to ``last``, [rows, width] of ``dtype.bits``."""
        origin, number = self.origin[first:last], self.number[first:last]
        found = np.zeros((last - first, self.width), self.dtype.bits)
        for source in np.unique(origin[origin >= 0]):
            at = np.flatnonzero(origin == source)
            self._pick(self.sources[source], number[at], found, at)
        for row in np.flatnonzero(origin == AVERAGE):
            found[row] = self._encoded(self._average(self.members[number[row]]))
        if rest and (origin == REST).any():
            found[origin == REST] = self._encoded(self._rest())
        return found

    def _pick(
        self, info: TensorInfo, number: NDArray[np.int64], out: NDArray[Any], at: NDArray[np.intp]
    ) -> None:
        """Read rows of a source into rows ``at`` of ``out``: in one go where that reads little."""
        low, high = int(number.min()), int(number.max()) + 1
        if high - low <= _SPARSE * number.size:
            out[at] = self._read(info, low, high)[number - low]
            return
        breaks = np.flatnonzero(np.diff(number) != 1) + 1
        for start, stop in zip([0, *breaks], [*breaks, number.size], strict=True):
            run = int(number[start])
            out[at[start:stop]] = self._read(info, run, run + int(stop - start))

    def _read(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Rows of a source as ours, [rows, width] of ``dtype.bits``."""
        bits = np.empty((stop - start) * self.width, info.dtype.bits)
        info.read(start * self.width, stop * self.width, bits)
        if info.dtype != self.dtype:
            found = np.empty(bits.size, self.dtype.bits)  # float32 or float64: it is wider
            decode(bits, found)
            bits = found
        return bits.reshape(stop - start, self.width)

    def _average(self, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """[width] the mean of one row of each source that has one."""
        total, count = np.zeros(self.width), 0
        for info, row in zip(self.sources, members, strict=False):
            if row >= 0:
                total += self._numbers(self._read(info, int(row), int(row) + 1))[0]
                count += 1
        return total / count

    def _rest(self) -> NDArray[np.float64]:
        """[width] the mean of all rows that are not this mean; zeros if there are none."""
        with self._lock:
            if 0 not in self._kept:
                total = np.zeros(self.width)
                step = max(_PANEL // self.width, 1)
                for first in range(0, self.origin.size, step):
                    last = min(first + step, self.origin.size)
                    rows = self._numbers(self._rows(first, last, rest=False))
                    total += rows[self.origin[first:last] != REST].sum(axis=0)
                self._kept[0] = total / max(int((self.origin != REST).sum()), 1)
            return self._kept[0]

    def _numbers(self, bits: NDArray[Any]) -> NDArray[np.float64]:
        return to_array(bits, self.dtype).astype(np.float64)

    def _encoded(self, values: NDArray[np.float64]) -> NDArray[Any]:
        found = np.empty(values.size, self.dtype.bits)
        to_array(found, self.dtype)[:] = values.astype(self.dtype.compute)
        return found


def gathered(
    name: str,
    dtype: DType,
    sources: tuple[TensorInfo, ...],
    origin: NDArray[np.int32],
    number: NDArray[np.int64],
    members: NDArray[np.int64] | None = None,
) -> TensorInfo:
    """A tensor whose rows stand in others; nothing is read yet.

    Args:
        name: what it is called.
        dtype: of the tensor, which holds whatever the sources hold.
        sources: of one shape but for the first axis.
        origin, number, members: as for :class:`Gathered`.

    >>> from taskbasis.io.dtypes import F32
    >>> from taskbasis.io.tensors import ArrayBlob
    >>> one = TensorInfo("e", F32, (2, 1), ArrayBlob(np.array([1, 2], np.float32).view(np.uint8)))
    >>> seen = gathered("e", F32, (one,), np.array([0, ZERO, 0]), np.array([1, 0, 0]))
    >>> seen.load().tolist()
    [[2.0], [0.0], [1.0]]
    """
    rest = sources[0].shape[1:]
    width = int(np.prod(rest, dtype=np.int64))
    known = members if members is not None else np.zeros((0, 0), np.int64)
    blob = Gathered(dtype, width, sources, origin, number, known)
    return TensorInfo(name, dtype, (origin.size, *rest), blob)
