"""What one tensor of a result is made of, and a stretch of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskbasis.io.dtypes import F64
from taskbasis.io.lowrank import LowRank
from taskbasis.io.tensors import TensorInfo


@dataclass(frozen=True)
class Companion:
    """A tensor that goes with another: its scores, or the moment of what enters it.

    Attributes:
        info: where it stands.
        number: what scores are multiplied by; of how many inputs a moment is the mean.
        transposed: whether a moment's matrix is [in, out] instead of [out, in].
    """

    info: TensorInfo
    number: float
    transposed: bool = False


@dataclass(frozen=True)
class Merge:
    """One tensor of the result and what it is made of.

    Attributes:
        name, shape: of the tensor.
        base: the base's tensor; None where neither adding to nor subtracting it is asked.
        rows: the inputs' tensors, R of them; none for a tensor that is only converted.
        differences: per row, whether the base is subtracted.
        mixing: [T, R]: vector t is the sum over rows of mixing[t, r] * row r.
        masks: per row the packed bits of the masks that it is multiplied by.
        scores, moments: per vector what was learnt of this tensor; None where nothing was. Empty
            when the method takes none.
        moved: whether the method changes it though no vector does.
        wide: whether it is computed in float64 whatever the inputs are.
        factored: whether methods see the rows' low-rank factors instead of their entries.
    """

    name: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    rows: tuple[TensorInfo, ...]
    differences: tuple[bool, ...]
    mixing: NDArray[np.float64] = field(repr=False)
    masks: tuple[tuple[TensorInfo, ...], ...] = ()
    scores: tuple[Companion | None, ...] = ()
    moments: tuple[Companion | None, ...] = ()
    moved: bool = False
    wide: bool = False
    factored: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def double(self) -> bool:
        """Whether it is computed in float64: when that is asked, or any input is stored so."""
        if self.wide:
            return True
        inputs = (*self.rows, self.base) if self.base else self.rows
        return any(info is not None and info.dtype == F64 for info in inputs)

    @property
    def bytes_per_element(self) -> int:
        """Bytes read per element of the tensor."""
        scores = [companion.info for companion in self.scores if companion is not None]
        inputs = [*self.rows, *([self.base] if self.base else []), *scores]
        return sum(info.dtype.itemsize for info in inputs)

    @property
    def matrix(self) -> bool:
        """Whether methods that factorise work on it as a matrix: two axes or more, and a moment
        of all inputs together where moments are given."""
        known = [moment for moment in self.moments if moment is not None]
        joint = not self.moments or any(len(moment.info.shape) > 1 for moment in known)
        return len(self.shape) > 1 and joint

    @property
    def has_factors(self) -> bool:
        """Whether all of its rows are matrices of low rank, known by their factors."""
        known = all(isinstance(info.blob, LowRank) for info in self.rows)
        return bool(self.rows) and known and len(self.shape) > 1 and not any(self.masks)

    def cut_bytes(self, cut: Cut) -> int:
        """Bytes read for a cut."""
        return (cut.stop - cut.start) * self.bytes_per_element + self.moment_bytes

    @property
    def moment_bytes(self) -> int:
        """Bytes of the moments that belong to the tensor."""
        return sum(moment.info.nbytes for moment in self.moments if moment is not None)


@dataclass(frozen=True)
class Cut:
    """A stretch of one tensor of the plan: elements ``start`` to ``stop`` of merge ``index``."""

    index: int
    start: int
    stop: int
