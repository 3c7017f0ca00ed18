"""Core space: adapters of low rank merged as small matrices between two shared bases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Factors, Method, State, Unit
from taskbasis.methods.matrices import common_basis, flat, is_matrix, matrices, svd, workspace
from taskbasis.methods.spectral.inner import inner_method, merge_within, take_over


@dataclass(frozen=True)
class CoreSpace(Method):
    """``merged = U inner(U^T B_1 A_1 V, ..., U^T B_T A_T V) V^T``, of deltas ``tau_t = B_t A_t``.

    U is a basis of all columns of ``[B_1, ..., B_T]``, V of all rows of ``[A_1; ...; A_T]``: their
    singular vectors. So nothing is lost, and T adapters of rank r meet in cores of at most T r
    rows and columns. Any method (``inner``, by default ``ties``; options after a colon, parted by
    semicolons) merges them, spectral ones too. With ``task_arithmetic`` this is the plain sum
    (of dense deltas, but for singular values below 2^-21 of the largest).

    Deltas that come as factors are never made dense on the way. Of dense ones the factors are
    ``B = U_t S_t^(1/2)``, ``A = S_t^(1/2) V_t`` of their own SVD (our choice); of full rank they
    gain nothing over :class:`~taskbasis.methods.spectral.knots.Knots` in time.

    Pitfall: which directions U and V single out depends on how a delta is split into its factors;
    ``(2 B)(A / 2)`` is the same delta, but its core is rotated, and element-wise methods merge it
    otherwise. The signs of U and V are fixed, and the inner method sees each tensor by itself.

    Tensors that are no matrices are merged by the inner method as they are. Those of more than two
    axes are matrices [shape[0], rest]. The order of vectors matters if it does to the inner method.

    Source: Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, NeurIPS
    2025; checked against their code.

    Raises:
        UsageError: the inner method is unknown, takes another number of vectors, or needs more
            than vectors.

    >>> deltas = np.array([[3.0, 0, 0, 1], [1, 0, 0, -2]])
    >>> CoreSpace(inner="task_arithmetic").apply(Chunk(deltas, shape=(2, 2)), ()).round(12)
    array([ 4.,  0.,  0., -1.])
    """

    name: ClassVar[str] = "core_space"
    formula: ClassVar[str] = "U inner(U^T B_1 A_1 V, .., U^T B_T A_T V) V^T, tau_t = B_t A_t"
    source: ClassVar[str] = (
        "Panariello et al., Low-Rank Model Merging in Core Space, NeurIPS 2025 (arXiv 2509.17786)"
    )
    when: ClassVar[str] = "You merge adapters of low rank, and want it fast."
    unit: ClassVar[Unit] = "tensor"
    factors: ClassVar[Literal["ignored", "optional"]] = "optional"
    inner: str = "ties"
    exact: bool = False

    def __post_init__(self) -> None:
        take_over(self, inner_method(self.inner))

    def gain(self) -> float:
        return inner_method(self.inner).gain()

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count, 4 + count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        inner = inner_method(self.inner)
        if not is_matrix(chunk):
            return merge_within(inner, chunk, chunk.deltas, chunk.shape)
        pairs = chunk.factors or self._factors(chunk)
        left = common_basis([pair.up for pair in pairs], self.exact)
        right = common_basis([pair.down.T for pair in pairs], self.exact)
        cores = [(left.T @ pair.up) @ (pair.down @ right) for pair in pairs]
        shape = (left.shape[1], right.shape[1])
        rows = np.stack([core.ravel() for core in cores]).astype(chunk.deltas.dtype)
        merged = merge_within(inner, chunk, rows, shape)
        return flat(left @ merged.reshape(shape).astype(np.float64) @ right.T, chunk)

    def _factors(self, chunk: Chunk) -> Sequence[Factors]:
        found = []
        for tau in matrices(chunk):
            own = svd(tau, exact=self.exact)
            roots = np.sqrt(own.values)
            found.append(Factors(own.left * roots, roots[:, None] * own.right))
        return found
