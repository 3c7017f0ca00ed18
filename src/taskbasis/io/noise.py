"""Seeded random tensors that are never stored: each entry is a function of its position.

Entries are +1 or -1 with equal chance, straight from the bits of Philox, whose raw stream NumPy
guarantees for ever; Gaussian draws would depend on the NumPy that makes them. In many
dimensions, after orthonormalisation, the two span equally random subspaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from taskbasis.io.dtypes import F32
from taskbasis.io.tensors import TensorInfo

_BLOCK = 1 << 14


@dataclass(frozen=True)
class NoiseBlob:
    """Random signs as float32 bytes, the same for any way of reading them.

    >>> blob, whole, part = NoiseBlob("demo"), np.empty(100, np.float32), np.empty(40, np.float32)
    >>> blob.read_into(0, whole.view(np.uint8).data)
    >>> blob.read_into(60 * 4, part.view(np.uint8).data)
    >>> np.array_equal(whole[60:], part), sorted(set(whole.tolist()))
    (True, [-1.0, 1.0])
    """

    key: str

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"seeded noise {self.key}"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        out = np.frombuffer(buffer, np.float32)
        start = offset // 4
        for block in range(start // _BLOCK, -(-(start + out.size) // _BLOCK)):
            signs = self._signs(block)
            low, high = max(block * _BLOCK, start), min((block + 1) * _BLOCK, start + out.size)
            out[low - start : high - start] = signs[low - block * _BLOCK : high - block * _BLOCK]

    def _signs(self, block: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        key = xxhash.xxh3_128_intdigest(self.key.encode())
        words = np.random.Philox(key=key, counter=[0, block, 0, 0]).random_raw(_BLOCK // 64)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
        return bits.astype(np.float32) * 2 - 1


def noise_tensor(name: str, shape: tuple[int, ...], seed: int, index: int) -> TensorInfo:
    """Tensor ``name`` of the ``index``-th random vector of a seed."""
    return TensorInfo(name, F32, shape, NoiseBlob(f"{seed}/{index}/{name}"))
