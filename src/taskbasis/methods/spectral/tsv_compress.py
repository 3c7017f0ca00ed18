"""TSV-Compress: every task's first singular triplets, to be used one task at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State, Unit, summed
from taskbasis.methods.matrices import flat, is_matrix, matrices, rank_of_share, svd, workspace
from taskbasis.methods.spectral.tsv_merge import check_rank_share


@dataclass(frozen=True)
class TsvCompress(Method):
    """Task singular vectors, compressed: ``tau_t`` by its first ``r/T`` singular triplets.

    r = min(out, in); with ``rank_share`` that share of them instead of 1/T, rounded down and at
    least one. T tasks then take about the room of one. ``task`` says whose vector is made,
    counted from 1: at inference the task must be known. Task 0 is the sum of all of them, which
    is TSV-Merge without its orthonormalisation.

    Tensors that are no matrices are kept as they are (task 0: their sum; the released code has
    their mean there). Those of more than two axes are matrices [shape[0], rest].

    Which vector is meant depends on their order.

    Source: Gargiulo et al., Task Singular Vectors, CVPR 2025; checked against their code.

    Raises:
        UsageError: the share is not in [0, 1], or there is no such task.

    >>> deltas = np.array([[2.0, 0, 0, 1], [0, 0, 0, 3]])
    >>> TsvCompress(task=1).apply(Chunk(deltas, shape=(2, 2)), ())
    array([2., 0., 0., 0.])
    """

    name: ClassVar[str] = "tsv_compress"
    formula: ClassVar[str] = "the top r/T singular triplets of tau_t; sum_t of them for task 0"
    source: ClassVar[str] = "Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081)"
    when: ClassVar[str] = "You know the task at inference and want to store T models as about two."
    unit: ClassVar[Unit] = "matrix"
    identity: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    rank_share: float = 0.0
    task: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        check_rank_share(self.rank_share)
        if self.task < 0:
            raise UsageError(f"task {self.task} is none; use 1 for the first vector, 0 for all")

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        count = len(chunk.deltas)
        if self.task > count:
            raise UsageError(f"task {self.task} of {count} vectors; use 1 to {count}, 0 for all")
        if self.task:
            chunk = replace(chunk, deltas=chunk.deltas[self.task - 1 : self.task])
        if not is_matrix(chunk):
            return summed(chunk.deltas)
        share = self.rank_share or 1 / count
        total = np.zeros(())
        for tau in matrices(chunk):
            total = total + svd(tau, rank_of_share(share, tau), self.exact).product()
        return flat(total, chunk)
