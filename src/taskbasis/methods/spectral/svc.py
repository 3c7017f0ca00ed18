"""SVC: any merged update, each singular direction scaled by how often tasks were counted in it."""

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
    shape_of,
    svd,
    workspace,
)
from taskbasis.methods.spectral.inner import inner_method, merge_within, take_over

_ISOTROPIC = ("iso_c", "iso_cts")


@dataclass(frozen=True)
class Svc(Method):
    """Singular value calibration: ``merged = sum_r gamma_r s_r u_r v_r^T``, where
    ``sum_r s_r u_r v_r^T`` is what the method ``inner`` makes.

    ``gamma_r = T / sum_i max(alpha, c_ri)``, where ``c_ri = <a_r, a_ri> / |a_ri|^2`` says how many
    times the merged update's response ``a_r = s_r v_r`` has that of task i, ``a_ri = u_r^T tau_i``.
    What several tasks added up (c above 1) is turned down; what is left of one task's own (c = 1)
    stays. ``alpha`` is the least that a task counts, so that gamma is at most 1/alpha. T copies of
    a vector, summed, give the vector.

    A task without response in a direction (up to RESOLUTION of its own norm) has no say there,
    where the published formula divides 0 by 0; if none has any, gamma is 1. Where singular values
    are equal the directions, and so the result, are not determined.

    Scaling the inner update by some f is the same as alpha / f and no scale: fusion_bench's alpha
    0.1 after task arithmetic of 0.3 is alpha 1/3 here. The caller's scale comes after.

    Tensors that are no matrices are merged by the inner method as they are. Those of more than two
    axes are matrices [shape[0], rest]. The inner method sees each tensor by itself. The order of
    vectors matters if it does to the inner method.

    Source: Li et al., When Shared Knowledge Hurts, arXiv 2602.05536, at second hand: formula
    and alpha are from fusion_bench's documentation. Its older loop takes each task's own left
    vectors for a_ri, against that documentation.

    Raises:
        UsageError: alpha is not above 0, or the inner method is unknown, takes another number of
            vectors, needs more than vectors, or makes all singular values equal.

    >>> deltas = np.array([[3.0, 0, 0, 0], [3, 0, 0, 2]])
    >>> Svc().apply(Chunk(deltas, shape=(2, 2)), ()).round(12)
    array([3., 0., 0., 2.])
    """

    name: ClassVar[str] = "svc"
    formula: ClassVar[str] = "sum_r (T / sum_i max(alpha, c_ri)) s_r u_r v_r^T of inner's result"
    source: ClassVar[str] = (
        "Li et al., When Shared Knowledge Hurts (SVC), arXiv 2602.05536, 2026, at second hand"
    )
    when: ClassVar[str] = "A method serves you, but what tasks share comes out too strong."
    unit: ClassVar[Unit] = "tensor"
    inner: str = "task_arithmetic"
    alpha: float = 0.1
    exact: bool = False

    def __post_init__(self) -> None:
        inner = inner_method(self.inner)
        if inner.name in _ISOTROPIC:
            raise UsageError(
                f"inner {inner.name!r} makes all singular values equal, so that svc has no "
                "directions to calibrate; use one of both alone"
            )
        take_over(self, inner)
        if not 0 < self.alpha < np.inf:
            raise UsageError(
                f"alpha {self.alpha} has no meaning; use a number above 0, such as 0.1"
            )

    def gain(self) -> float:
        return inner_method(self.inner).gain() / self.alpha

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        inner = inner_method(self.inner)
        if not is_matrix(chunk):
            return merge_within(inner, chunk, chunk.deltas, chunk.shape)
        merged = merge_within(inner, chunk, chunk.deltas.copy(), chunk.shape)
        found = svd(merged.reshape(shape_of(chunk)).astype(np.float64), exact=self.exact)
        responses = found.values[:, None] * found.right
        counted, heard = np.zeros(len(responses)), np.zeros(len(responses))
        for tau in matrices(chunk):
            own = found.left.T @ tau
            squares = np.einsum("ij,ij->i", own, own)
            hears = np.sqrt(squares) > RESOLUTION * np.linalg.norm(tau)
            times = np.einsum("ij,ij->i", responses, own) / np.where(hears, squares, 1)
            counted += np.where(hears, np.maximum(self.alpha, times), 0)
            heard += hears
        gamma = np.where(heard > 0, heard / np.where(heard > 0, counted, 1), 1)
        return flat((found.left * gamma) @ responses, chunk)
