"""Iso-C: the sum of the task vectors, all its singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import flat, is_matrix, matrices, mean, svd, workspace


@dataclass(frozen=True)
class IsoC(Method):
    """Isotropic merging in the common subspace: ``merged = mean(s) U V^T``, ``U diag(s) V^T`` the
    sum of the task vectors.

    Directions that tasks share are no longer louder than the others; the sum of the singular
    values stays.

    The mean is over the values that do not count as 0 (see
    :func:`taskbasis.methods.matrices.svd`), and only their directions are filled: of a sum of low
    rank all others stay the base's. The released code has the mean of all min(out, in) values,
    and fills the other directions with whatever vectors rounding gives; of sums of full rank,
    which fully fine-tuned models have, this is the same.

    Tensors that are no matrices: the mean. Those of more than two axes are matrices
    [shape[0], rest]; the code takes their mean. The paper's best scales of 8, 14 and 20 vision
    tasks are 1.3, 1.0 and 0.9.

    Source: Marczak et al., No Task Left Behind, arXiv 2502.04959; code read at second hand, in
    fusion_bench. A copy that comes with TSV makes the mean isotropic, not the sum: 1/T of this.

    >>> deltas = np.array([[2.0, 0, 0, 0], [2, 0, 0, 2]])
    >>> IsoC().apply(Chunk(deltas, shape=(2, 2)), ())
    array([3., 0., 0., 3.])
    """

    name: ClassVar[str] = "iso_c"
    formula: ClassVar[str] = "mean(s) U V^T, U diag(s) V^T = sum_t tau_t"
    source: ClassVar[str] = "Marczak et al., No Task Left Behind (Iso-C), arXiv 2502.04959, 2025"
    when: ClassVar[str] = "A few shared directions drown the rest of the sum, and tasks are few."
    unit: ClassVar[Unit] = "matrix"
    exact: bool = False

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not is_matrix(chunk):
            return mean(chunk)
        total = np.zeros(())
        for tau in matrices(chunk):
            total = total + tau
        found = svd(total, exact=self.exact)
        size = found.values.sum() / max(len(found.values), 1)
        return flat((size * found.left) @ found.right, chunk)
