"""Weights with a LoRA update on them, as tensors: rows are summed as they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskbasis.io.dtypes import F32, F64, DType, to_array, widest
from taskbasis.io.gathered import Gathered
from taskbasis.io.tensors import Forming, TensorInfo
from taskbasis.kernels import decode


@dataclass(frozen=True)
class Adapted:
    """The bytes of ``weights + scaling * B @ A``; neither the sum nor the product is stored.

    The product is rounded to float32, and so is the sum (to float64 where the weights are), then
    to the dtype it is read as. The same bits for any way of cutting and any number of threads.

    Attributes:
        weights: what the adapter was trained on, in the dtype it is stored in.
        update: a tensor of low rank of the same shape, float32.
        dtype: what the sum is read as.
    """

    weights: TensorInfo
    update: TensorInfo
    dtype: DType

    @property
    def label(self) -> str:
        """The two files that it is made of."""
        return f"{self.weights.blob.label} with {self.update.blob.label}"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the byte ``offset`` on, which begins an entry."""
        out = np.frombuffer(buffer, self.dtype.bits)
        start = offset // self.dtype.itemsize
        update = np.empty(out.size, np.float32)
        self.update.read(start, start + out.size, update)
        stored = np.empty(out.size, self.weights.dtype.bits)
        self.weights.read(start, start + out.size, stored)
        total = np.empty(out.size, np.float64 if self.weights.dtype == F64 else np.float32)
        decode(stored, total)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
            total += update
            to_array(out, self.dtype)[:] = total

    def working_bytes(self, size: int) -> int:
        """An upper bound of what one read of ``size`` entries takes beside its buffer."""
        inner = [one.blob for one in (self.weights, self.update)]
        more = max((b.working_bytes(size) for b in inner if isinstance(b, Forming)), default=0)
        return 20 * size + more


def adapted(weights: TensorInfo, update: TensorInfo, dtype: DType | None = None) -> TensorInfo:
    """The tensor ``weights + update``, by the name of the weights; nothing is read yet.

    Args:
        dtype: what it is read as; None: float32 (float64 where the weights are), so that small
            updates of 16-bit weights are not rounded away.
    """
    kind = dtype or (F64 if weights.dtype == F64 else F32)
    return TensorInfo(weights.name, kind, weights.shape, Adapted(weights, update, kind))


def stored_dtype(info: TensorInfo) -> DType:
    """What a tensor's own file stores it in, also where it is read as another dtype."""
    if isinstance(info.blob, Gathered):
        return widest([stored_dtype(source) for source in info.blob.sources])
    return info.blob.weights.dtype if isinstance(info.blob, Adapted) else info.dtype
