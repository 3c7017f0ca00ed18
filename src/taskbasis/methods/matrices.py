"""Tensors as matrices, and their singular triplets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, summed

Matrix = NDArray[np.float64]

RESOLUTION = 2.0**-21
"""Singular values below this share of the largest count as 0: four roundings of float32."""


@dataclass(frozen=True, eq=False)
class Triplets:
    """Singular triplets, the largest first: ``matrix = left @ diag(values) @ right``.

    Attributes:
        left: [out, k] orthonormal columns.
        values: [k], all above 0.
        right: [k, in] orthonormal rows.
    """

    left: Matrix
    values: Matrix
    right: Matrix

    def product(self) -> Matrix:
        """[out, in], the matrix that the triplets make."""
        return np.asarray((self.left * self.values) @ self.right)

    def first(self, count: int) -> Triplets:
        """The largest ``count`` triplets."""
        return Triplets(self.left[:, :count], self.values[:count], self.right[:count])


def svd(matrix: Matrix, rank: int | None = None, exact: bool = False, floor: float = 0) -> Triplets:
    """The singular triplets of a matrix, the largest first.

    By default from the eigenvectors of the smaller of ``M M^T`` and ``M^T M``, in float64: the
    vectors of that side are the eigenvectors U, and the rest is ``U^T M`` row by row (or ``M U``),
    its lengths the values. So U is orthonormal to the last bits, the product is the matrix (but
    for what is left out), and a value is off by at most about 1e-8 of the largest, s_1. The other
    side's vector of a value s, and how far U's is turned towards others as small, are off by about
    1e-16 (s_1 / s)^2. The rounding of weights to float32 turns it by about 1e-8 (s_1 / s), which is
    more wherever s is above RESOLUTION. ``exact`` is LAPACK's SVD, several times slower on wide
    matrices; it turns small directions by 1e-16 s_1 / s only.

    Values of at most RESOLUTION of the largest are left out with their vectors, which the rounding
    of float32 weights alone would decide; so they are with ``exact``, and of float64 weights.

    Nothing is random, and -1 times a matrix gives the same U and values. Other numbers of threads
    of the linear algebra library may round the last bits differently.

    Args:
        matrix: [out, in] float64.
        rank: how many triplets at most; all by default.
        exact: whether LAPACK's SVD is used.
        floor: values up to this are left out as well.

    >>> found = svd(np.array([[0.0, 3.0], [4.0, 0.0]]), rank=1)
    >>> found.values, found.product()
    (array([4.]), array([[0., 0.],
           [4., 0.]]))
    """
    out, inputs = matrix.shape
    if out > inputs:
        turned = svd(matrix.T, rank, exact, floor)
        return Triplets(turned.right.T, turned.values, turned.left.T)
    most = out if rank is None else min(rank, out)
    if exact:
        u, s, rows = np.linalg.svd(matrix, full_matrices=False)
        found = Triplets(u, s, rows).first(most)
    else:
        u = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :most]
        rows = u.T @ matrix
        s = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        found = Triplets(u, s, rows / np.where(s > 0, s, 1)[:, None])
    kept = found.values > max(RESOLUTION * found.values.max(initial=0), floor)
    return Triplets(found.left[:, kept], found.values[kept], found.right[kept])


def polar(matrix: Matrix, exact: bool = False) -> Matrix:
    """The orthonormal matrix that is nearest, ``U V^T`` of the matrix's SVD.

    Of dependent columns (or rows) there is no single nearest one: directions whose singular value
    counts as 0 are left out, so that the result only has directions that the matrix has.

    >>> polar(np.array([[2.0, 0.0], [0.0, -0.5]]))
    array([[ 1.,  0.],
           [ 0., -1.]])
    """
    found = svd(matrix, exact=exact)
    return np.asarray(found.left @ found.right)


def common_basis(parts: Sequence[NDArray[Any]], exact: bool = False) -> Matrix:
    """[out, r] the left singular vectors of ``[part_1, ..., part_T]``: a basis of all columns.

    The basis is the same for parts in another order or times -1, up to rounding. The sign of
    each vector is such that its entry of largest magnitude is positive, the first of those that
    are equal to within rounding.

    What spans fewer dimensions than it has rows (the thin factors of low-rank deltas) is always
    factorised exactly, and then only what is 0 to within float64 is left out.

    Args:
        parts: matrices [out, in_t].
        exact: whether LAPACK's SVD is used.
    """
    out, width = len(parts[0]), sum(part.shape[1] for part in parts)
    if exact or width < out:
        u, s, _ = np.linalg.svd(np.concatenate(parts, 1).astype(np.float64), full_matrices=False)
        resolution = RESOLUTION if width >= out else np.finfo(np.float64).eps * out
    else:
        gram = np.zeros((out, out))
        for part in parts:
            wide = part.astype(np.float64)
            gram += wide @ wide.T
        squares, u = np.linalg.eigh(gram)
        u, s = u[:, ::-1], np.sqrt(np.maximum(squares[::-1], 0))
        resolution = RESOLUTION
    return _signed(u[:, s > resolution * s.max(initial=0)])


def _signed(basis: Matrix) -> Matrix:
    if not basis.size:
        return basis
    sizes = np.abs(basis)
    places = np.argmax(sizes >= (1 - 1e-6) * sizes.max(axis=0), axis=0)
    return np.asarray(basis * np.sign(basis[places, np.arange(basis.shape[1])]))


def is_matrix(chunk: Chunk) -> bool:
    """Whether the tensor has two axes or more."""
    return len(chunk.shape) > 1


def shape_of(chunk: Chunk) -> tuple[int, int]:
    """(out, in) of a tensor as a matrix: its first axis, and all others together."""
    return chunk.shape[0], math.prod(chunk.shape[1:])


def matrices(chunk: Chunk) -> Iterator[Matrix]:
    """The deltas of a whole tensor as matrices [out, in] in float64, one after the other."""
    for delta in chunk.deltas:
        yield delta.reshape(shape_of(chunk)).astype(np.float64)


def flat(matrix: Matrix, chunk: Chunk) -> NDArray[Any]:
    """A merged matrix as methods return it: [n], in the type of the deltas."""
    return matrix.ravel().astype(chunk.deltas.dtype)


def mean(chunk: Chunk) -> NDArray[Any]:
    """[n] the mean of the deltas, the rule of most methods for tensors that are no matrices."""
    return np.asarray(summed(chunk.deltas) / len(chunk.deltas), chunk.deltas.dtype)


def rank_of_share(share: float, matrix: Matrix) -> int:
    """How many triplets a share of them is: rounded down, at least one."""
    return max(1, int(share * min(matrix.shape)))


def workspace(shape: tuple[int, ...], count: int, copies: int = 4) -> int:
    """Bytes that factorising a tensor takes: copies of it in float64, and of its smaller Gram
    matrix.

    Args:
        shape: of the tensor.
        count: T, how many vectors there are; each has a copy.
        copies: how many more.
    """
    size = math.prod(shape)
    if len(shape) < 2 or not size:
        return 32 * count * size
    side = min(shape[0], size // shape[0])
    return 8 * ((copies + count) * size + 8 * side * side)


def check_share(what: str, share: float) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        UsageError: naming it.
    """
    if not 0 < share <= 1:
        raise UsageError(f"{what} {share} keeps nothing sensible; use (0, 1]")
