"""TSV-Merge: the first singular triplets of every task, made orthonormal together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import (
    flat,
    is_matrix,
    matrices,
    mean,
    polar,
    rank_of_share,
    svd,
    workspace,
)


@dataclass(frozen=True)
class TsvMerge(Method):
    """Task singular vectors, merged: ``merged = polar(U) diag(s) polar(V)``.

    1. Of each task's matrix the first ``r/T`` of its r = min(out, in) singular triplets are kept,
       or ``rank_share`` of them, rounded down and at least one.
    2. The left vectors of all tasks stand side by side in U, the right ones in V.
    3. U and V are replaced by the orthonormal matrices nearest to them, so that tasks that share
       directions no longer add up there. The singular values stay as they were.

    Tensors that are no matrices: the mean. Those of more than two axes are matrices
    [shape[0], rest]; the released code takes their mean, and that of tensors named
    ``text_projection``. It also keeps nothing of a matrix with fewer rows or columns than there
    are tasks; here one triplet of each task.

    Triplets whose value counts as 0 (see :func:`taskbasis.methods.matrices.svd`) are left out,
    where the code takes up whatever vectors rounding gives: so deltas of low rank stay clean.

    Pitfall: two vectors that are almost but not quite the same make a direction of their
    difference, as strong as the one that they share. Equal ones count once.

    Source: Gargiulo et al., Task Singular Vectors, CVPR 2025; checked against their code.

    Raises:
        UsageError: the share is not in [0, 1].

    >>> deltas = np.array([[2.0, 0, 0, 0], [0, 0, 0, 3]])
    >>> TsvMerge().apply(Chunk(deltas, shape=(2, 2)), ())
    array([2., 0., 0., 3.])
    """

    name: ClassVar[str] = "tsv_merge"
    formula: ClassVar[str] = "polar([U_1..U_T]) diag(s) polar([V_1; ..; V_T]), top r/T triplets"
    source: ClassVar[str] = "Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081)"
    when: ClassVar[str] = "You merge many fully fine-tuned models and want no scale to tune."
    unit: ClassVar[Unit] = "matrix"
    rank_share: float = 0.0
    exact: bool = False

    def __post_init__(self) -> None:
        check_rank_share(self.rank_share)

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not is_matrix(chunk):
            return mean(chunk)
        share = self.rank_share or 1 / len(chunk.deltas)
        kept = [svd(tau, rank_of_share(share, tau), self.exact) for tau in matrices(chunk)]
        left = polar(np.concatenate([found.left for found in kept], axis=1), self.exact)
        right = polar(np.concatenate([found.right for found in kept]), self.exact)
        return flat((left * np.concatenate([found.values for found in kept])) @ right, chunk)


def check_rank_share(share: float) -> None:
    """Refuse a share outside [0, 1]; 0 stands for 1/T.

    Raises:
        UsageError: naming it.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"rank_share {share} has no meaning; use (0, 1], or 0 for 1/T")
