"""KnOTS: the tasks' output directions aligned by one SVD, then any merging of what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import common_basis, flat, is_matrix, shape_of, workspace
from taskbasis.methods.spectral.inner import inner_method, merge_within, take_over


@dataclass(frozen=True)
class Knots(Method):
    """``merged = U inner(S V_1, ..., S V_T)``, where ``[tau_1, ..., tau_T] = U S [V_1, ..., V_T]``.

    The matrices stand side by side, along the inputs, and share the left singular vectors U. Any
    method (``inner``, by default ``ties``; options after a colon, parted by semicolons) merges what
    each task has in these coordinates, ``S V_t = U^T tau_t``. With ``task_arithmetic`` this is
    the plain sum, but for what is left out next.

    Directions whose singular value counts as 0 (see
    :func:`taskbasis.methods.matrices.common_basis`) are left out. The signs of U are fixed. Where
    singular values are equal the coordinates are not determined, and neither is the result, except
    for linear methods.

    Tensors that are no matrices are merged by the inner method as they are. Those of more than two
    axes are matrices [shape[0], rest]. The order of vectors matters if it does to the inner method.

    Pitfall: rows of a matrix are taken for outputs. GPT-2's Conv1D layers are stored [in, out].

    The inner method sees each tensor by itself; the released code trims for TIES over all matrices
    together.

    Source: Stoica et al., Model Merging with SVD to Tie the KnOTS, ICLR 2025; checked against
    their code.

    Raises:
        UsageError: the inner method is unknown, takes another number of vectors, or needs more
            than vectors.

    >>> deltas = np.array([[3.0, 0, 0, 1], [1, 0, 0, -2]])
    >>> Knots(inner="task_arithmetic").apply(Chunk(deltas, shape=(2, 2)), ()).round(12)
    array([ 4.,  0.,  0., -1.])
    """

    name: ClassVar[str] = "knots"
    formula: ClassVar[str] = "U inner(S V_1, .., S V_T), [tau_1 .. tau_T] = U S [V_1 .. V_T]"
    source: ClassVar[str] = (
        "Stoica et al., Model Merging with SVD to Tie the KnOTS, ICLR 2025 (arXiv 2410.19735)"
    )
    when: ClassVar[str] = "You merge adapters of low rank, whose directions are not aligned."
    unit: ClassVar[Unit] = "tensor"
    inner: str = "ties"
    exact: bool = False

    def __post_init__(self) -> None:
        take_over(self, inner_method(self.inner))

    def gain(self) -> float:
        return inner_method(self.inner).gain()

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        inner, deltas = inner_method(self.inner), chunk.deltas
        if not is_matrix(chunk):
            return merge_within(inner, chunk, deltas, chunk.shape)
        out, width = shape_of(chunk)
        taus = deltas.reshape(len(deltas), out, width)
        basis = common_basis(list(taus), self.exact)
        rank = basis.shape[1]
        cores = deltas[:, : rank * width]
        for core, tau in zip(cores, taus, strict=True):  # each core takes the place of its tau
            core[:] = (basis.T @ tau.astype(np.float64)).ravel()
        merged = merge_within(inner, chunk, cores, (rank, width))
        return flat(basis @ merged.reshape(rank, width).astype(np.float64), chunk)
