"""Gram matrices: checked once, then replaced by small dense stand-ins for the task vectors."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskbasis.errors import UsageError, ValueProblem

Matrix: TypeAlias = NDArray[np.float64]

RANK_CUT = 1e-13
"""Eigenvalues of a unit-diagonal Gram matrix below this part of the largest one are rounding."""

PINV_CUT = 1e-12
"""Singular values of unit-length atoms below this part of the largest one are rounding."""

DEFECT = 1e-3
"""How far, relative to its diagonal, a matrix may be from symmetric and positive: float32 noise."""


def checked(gram: ArrayLike) -> Matrix:
    """The matrix as float64, exactly symmetric: ``(G + Gᵀ) / 2``.

    Args:
        gram: [N, N], real; inner products of N vectors. Slight asymmetry from rounding is fine.

    Raises:
        UsageError: when it is not a non-empty square matrix of real numbers.
        ValueProblem: for NaN or infinity (the vectors are named by position), or when no vectors
            can have these inner products (asymmetric, or clearly not positive semidefinite).

    >>> checked([[1, 2], [2, 4]])
    array([[1., 2.],
           [2., 4.]])
    """
    found = np.asarray(gram)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or found.size == 0:
        raise UsageError(f"a Gram matrix is square and not empty; got shape {found.shape}")
    if found.dtype.kind not in "fiu":
        raise UsageError(f"a Gram matrix holds real numbers; got dtype {found.dtype}")
    matrix = found.astype(np.float64)
    _refuse_non_finite(matrix)
    lengths = np.sqrt(np.abs(np.diag(matrix)))
    allowed = DEFECT * np.outer(lengths, lengths)
    if np.any(np.abs(matrix - matrix.T) > allowed):
        raise ValueProblem("this is no Gram matrix: it is not symmetric; sum it again")
    symmetric: Matrix = (matrix + matrix.T) / 2
    _refuse_indefinite(symmetric)
    return symmetric


def _refuse_non_finite(matrix: Matrix) -> None:
    broken = ~np.isfinite(matrix)
    if not broken.any():
        return
    own = np.flatnonzero(np.diag(broken))
    rows = own if own.size else np.flatnonzero(broken.any(axis=1))
    listed = ", ".join(str(row) for row in rows[:8]) + (", ..." if rows.size > 8 else "")
    raise ValueProblem(
        f"the Gram matrix has NaN or infinity at vector {listed} (counted from 0); "
        "check these task vectors, or leave them out"
    )


def _refuse_indefinite(matrix: Matrix) -> None:
    unit = _unit_diagonal(matrix)[0]
    values = np.linalg.eigvalsh(unit)
    if values[0] < -DEFECT * max(values[-1], 1.0):
        raise ValueProblem(
            f"this is no Gram matrix: its smallest eigenvalue is {values[0]:.3g} on unit diagonal, "
            "but inner products of vectors never give a negative one; sum it again"
        )


def _unit_diagonal(gram: Matrix) -> tuple[Matrix, Matrix]:
    """``D^-1/2 G D^-1/2`` and the lengths ``D^1/2``; a zero vector keeps length 0 here."""
    lengths = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    safe = np.where(lengths > 0.0, lengths, 1.0)
    return (gram / safe) / safe[:, None], lengths


def root(gram: Matrix) -> Matrix:
    """Small vectors with these inner products: R [N, N] with ``RᵀR = G``.

    Its columns stand in for the task vectors, so least squares, norms and singular values are
    computed on R itself and not on its square, which keeps the digits that the square loses. The
    eigenvalues are taken on unit diagonal, so a vector a million times shorter than the others is
    not mistaken for rounding; directions below :data:`RANK_CUT` become exact zeros.

    >>> R = root(np.array([[4.0, 2.0], [2.0, 1.0]]))
    >>> np.allclose(R.T @ R, [[4, 2], [2, 1]]), rank(R)
    (True, 1)
    """
    unit, lengths = _unit_diagonal(gram)
    values, vectors = np.linalg.eigh(unit)
    values = np.where(values > RANK_CUT * max(values[-1], 0.0), values, 0.0)
    small: Matrix = (np.sqrt(values)[:, None] * vectors.T)[::-1] * lengths
    return small


def rank(stand_in: Matrix) -> int:
    """How many independent vectors there are: the rows of :func:`root` that are not zero.

    >>> rank(root(np.ones((3, 3)))), rank(root(np.zeros((3, 3))))
    (1, 0)
    """
    return int(np.count_nonzero(np.any(stand_in != 0.0, axis=1)))


def cosine(left: Matrix, right: Matrix) -> float:
    """Cosine of two vectors; 0.0 when either is zero.

    >>> cosine(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    0.0
    """
    lengths = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return float(left @ right) / lengths if lengths > 0.0 else 0.0


def oriented(rows: Matrix) -> Matrix:
    """Rows with a fixed sign: the entry of largest magnitude positive, the first one on ties.

    Entries within one part in a million of the largest count as tied, so rounding does not decide.

    >>> oriented(np.array([[0.6, -0.8], [-1.0, 1.0]]))
    array([[-0.6,  0.8],
           [ 1. , -1. ]])
    """
    sizes = np.abs(rows)
    first = np.argmax(sizes >= (1.0 - 1e-6) * sizes.max(axis=1, keepdims=True), axis=1)
    signs = np.sign(rows[np.arange(len(rows)), first])
    turned: Matrix = rows * np.where(signs == 0.0, 1.0, signs)[:, None]
    return turned
