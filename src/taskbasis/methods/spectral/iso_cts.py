"""Iso-CTS: the common directions and each task's own, all equally strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import (
    RESOLUTION,
    flat,
    is_matrix,
    matrices,
    mean,
    polar,
    svd,
    workspace,
)


@dataclass(frozen=True)
class IsoCts(Method):
    """Isotropic merging in common and task-specific subspaces:
    ``merged = mean(s) polar(U) polar(V)``.

    1. U, s and V begin with the first ``common`` share of the singular triplets of the sum;
       of r = min(out, in) triplets so many that the others can be shared out evenly:
       ``round((r - floor(common * r)) / T)`` for each task.
    2. To them come the first triplets of each task's matrix, after the common left space has
       been projected out of it.
    3. U and V become the orthonormal matrices nearest to them, and all singular values their
       mean.

    With one vector, and with ``common`` 1, this is Iso-C. As there, triplets whose value counts as
    0 (here relative to the longest task vector) are neither taken nor part of the mean.

    Tensors that are no matrices: the mean. Those of more than two axes are matrices
    [shape[0], rest]; the code takes their mean. The paper's best scales of 8, 14 and 20 vision
    tasks are 1.5, 1.2 and 1.1.

    Source: Marczak et al., No Task Left Behind, arXiv 2502.04959; code read at second hand, in
    fusion_bench.

    Raises:
        UsageError: ``common`` is not in [0, 1].

    >>> deltas = np.array([[4.0, 0, 0, 0], [0, 0, 0, 2]])
    >>> IsoCts().apply(Chunk(deltas, shape=(2, 2)), ())
    array([3., 0., 0., 3.])
    """

    name: ClassVar[str] = "iso_cts"
    formula: ClassVar[str] = "mean(s) polar(U) polar(V), triplets of the sum and each task's rest"
    source: ClassVar[str] = "Marczak et al., No Task Left Behind (Iso-CTS), arXiv 2502.04959, 2025"
    when: ClassVar[str] = "Iso-C serves you, but there are many tasks, or unlike ones."
    unit: ClassVar[Unit] = "matrix"
    common: float = 0.8
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise UsageError(f"common {self.common} has no meaning; use [0, 1]")

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not is_matrix(chunk):
            return mean(chunk)
        total, longest = np.zeros(()), 0.0
        for tau in matrices(chunk):
            total = total + tau
            longest = max(longest, float(np.linalg.norm(tau)))
        each = self._each(min(total.shape), len(chunk.deltas))
        shared = min(total.shape) - each * len(chunk.deltas)
        floor = RESOLUTION * longest
        found = [svd(total, shared, self.exact, floor)]
        left = found[0].left
        if each:
            for tau in matrices(chunk):
                found.append(svd(tau - left @ (left.T @ tau), each, self.exact, floor))
        values = np.concatenate([part.values for part in found])
        size = values.sum() / max(len(values), 1)
        left = polar(np.concatenate([part.left for part in found], axis=1), self.exact)
        right = polar(np.concatenate([part.right for part in found]), self.exact)
        return flat((size * left) @ right, chunk)

    def _each(self, rank: int, tasks: int) -> int:
        """How many triplets each task gets."""
        return min(round((rank - int(self.common * rank)) / tasks), rank // tasks)
