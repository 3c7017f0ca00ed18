"""How many directions a matrix of an update really uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.methods.matrices import Matrix
from taskbasis.passes.reading import quietly, read_cut, widened
from taskbasis.plan import Cut, Merge, Plan


@dataclass(frozen=True)
class Rank:
    """The effective rank of every vector in one matrix.

    Attributes:
        tensor: its name.
        shape: [first axis, all others together].
        effective: per vector the number; 0 for a zero matrix.
    """

    tensor: str
    shape: tuple[int, int]
    effective: tuple[float, ...]

    @property
    def full(self) -> int:
        """The most that it could be."""
        return min(self.shape)


def effective_rank(matrix: Matrix) -> float:
    """``exp(-sum_i p_i ln p_i)`` with ``p_i = s_i^2 / sum_j s_j^2`` of the singular values s.

    k equal values give k, one value gives 1, a zero matrix 0. The squares are the eigenvalues of
    the smaller of ``M M^T`` and ``M^T M``, in float64. Source: the form is that of Roy and
    Vetterli, The effective rank, EUSIPCO 2007, who take ``p_i = s_i / sum_j s_j``; shares of the
    squares, that is of the energy, are our choice.

    >>> round(effective_rank(np.diag([3.0, 3.0, 0.0])), 9), effective_rank(np.zeros((2, 3)))
    (2.0, 0.0)
    """
    size = np.abs(matrix).max(initial=0.0)
    if not size > 0:
        return 0.0
    scaled = matrix / size  # so that no square vanishes or overflows
    small = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.T
    squares = np.maximum(np.linalg.eigvalsh(small @ small.T), 0.0)
    shares = squares[squares > 0] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def ranks(plan: Plan, most: int | None, engine: Engine) -> tuple[Rank, ...]:
    """The effective ranks in the largest matrices of a plan, the largest first.

    A matrix is read whole, and costs about ``min(shape)^2 max(shape)`` multiplications per
    vector.

    Args:
        most: how many matrices; all when None.
    """
    chosen = _largest(plan.merges, most)
    if not chosen:
        return ()
    whole = replace(plan, merges=tuple(chosen), watched=(), unit="matrix")

    def work(cut: Cut, scratch: Scratch) -> Rank:
        merge = whole.merges[cut.index]
        with quietly():
            deltas = widened(read_cut(merge, cut, scratch))
        shape = _shape(merge)
        found = tuple(effective_rank(_matrix(delta, shape)) for delta in deltas)
        return Rank(merge.name, shape, found)

    largest = max(merge.size for merge in chosen)
    square = max(min(_shape(merge)) ** 2 for merge in chosen)
    engine = engine.within(whole.memory(0) + 8 * (2 * largest + 3 * square))
    return tuple(engine.map(work, whole.cuts(), whole.cut_bytes, "effective ranks"))


def _largest(merges: Sequence[Merge], most: int | None) -> list[Merge]:
    matrices = [merge for merge in merges if len(merge.shape) > 1 and merge.size]
    matrices.sort(key=lambda merge: (-merge.size, merge.name))
    return matrices if most is None else matrices[:most]


def _shape(merge: Merge) -> tuple[int, int]:
    return merge.shape[0], merge.size // merge.shape[0]


def _matrix(delta: NDArray[np.floating], shape: tuple[int, int]) -> Matrix:
    return delta.reshape(shape).astype(np.float64)
