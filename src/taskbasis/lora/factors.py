"""Matrices as products of two thin factors, and how far the product is from the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError, finite
from taskbasis.methods.matrices import RESOLUTION, Matrix, Triplets, svd
from taskbasis.methods.noise import draws

_POWER = 4
"""Power iterations: each makes the values that count stand out by another square."""
_MORE = 16
"""Directions that are looked for beside those that are kept, at least."""
_SMALL = 512
"""Up to so many rows or columns all triplets are found; that takes no time."""
_THIN = 8
"""Directions are drawn where the matrix has so many times as many; elsewhere all are found."""
_FIRST = 32
"""Directions looked for first when the rank is not known."""
_SMALLEST, _LARGEST = 1e-60, 1e60
"""Squared norms of matrices whose products float32 holds."""
_PANEL = 1 << 20
"""Entries that are widened to float64 at once."""


@dataclass(frozen=True)
class Cutoff:
    """How many singular triplets of every matrix are kept.

    Attributes:
        rank: at most so many; None for no bound.
        energy: the fewest that hold this share of the matrix's squared norm; None for all that
            ``rank`` allows.

    Raises:
        UsageError: neither is given, the rank is below 1, or the share outside (0, 1].

    >>> Cutoff(rank=16)
    Cutoff(rank=16, energy=None)
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise UsageError("say how much is kept: a rank such as 16, or an energy such as 0.9")
        if self.rank is not None and not isinstance(self.rank, Integral):
            raise UsageError(f"a rank is a whole number, not {self.rank!r}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank of {self.rank} keeps nothing; use at least 1")
        if self.energy is not None and not 0 < finite("the energy", self.energy) <= 1:
            raise UsageError(
                f"an energy of {self.energy:g} is no share of the squared norm; use (0, 1]"
            )

    def most(self, *limits: int) -> int:
        """The largest rank that a matrix with these axes can be given."""
        return min(limits) if self.rank is None else min(self.rank, *limits)

    def count(self, values: Matrix, total: float) -> int | None:
        """How many of the largest singular values are kept; None where they hold too little.

        Args:
            values: the largest first.
            total: the squared norm of the whole matrix.

        >>> Cutoff(energy=0.8).count(np.array([2.0, 1.0]), 5.0)
        1
        """
        reached = len(values)
        if self.energy is not None:
            # The last bits of a sum decide nothing: all that there is counts as all.
            wanted = self.energy * total * (1 - 1e-12)
            reached = int(np.searchsorted(np.cumsum(values**2), wanted)) + 1
        if self.rank is not None and self.rank <= min(reached, len(values)):
            return self.rank
        return reached if reached <= len(values) and self.energy is not None else None

    def __str__(self) -> str:
        parts = [f"rank {self.rank}" if self.rank else ""]
        parts += [f"energy {self.energy:g}" if self.energy else ""]
        return ", ".join(filter(None, parts))


def leading(matrix: NDArray[Any], cutoff: Cutoff, seed: int = 0) -> Triplets:
    """The largest singular triplets of a matrix, as many as are to be kept.

    Where few are wanted of a large matrix, they are found by random projection: ``Y = M S`` with
    random signs S, orthonormalised, then 4 times ``Y = M (M^T Y)``, orthonormalised after each
    product, and the SVD of the small ``Y^T M``. The signs depend on the seed and the matrix's
    width alone. Elsewhere all triplets are found from the eigenvectors of a Gram matrix
    (:func:`~taskbasis.methods.matrices.svd`), and no product of that rank is nearer. A random
    projection finds values that are a little too small where the next ones are nearly as large:
    of pure noise, values may be 1 in 50 too small and the error 3 in 1,000 too large. So an
    energy may take a few more triplets than needed; it is never missed. All products are summed
    in float64, but for ``M S`` and the first three turns where the matrix is in float32: those
    only say where to look.

    Values of at most ``2**-21`` of the largest are left out: rounding alone would decide them.

    Args:
        matrix: [rows, columns], float32 or float64, finite.
        cutoff: how many are kept.
        seed: of the projection.

    Source: Halko, Martinsson, Tropp, Finding structure with randomness, SIAM Review, 2011.

    >>> found = leading(np.array([[0.0, 3.0], [4.0, 0.0]], np.float32), Cutoff(rank=1))
    >>> found.values, found.product()
    (array([4.]), array([[0., 0.],
           [4., 0.]]))
    """
    least, most = min(matrix.shape), cutoff.most(*matrix.shape)
    total = squared_norm(matrix)
    wanted = most if cutoff.energy is None else min(most, _FIRST)
    while True:
        drawn = wanted + max(_MORE, wanted // 2)
        if least <= _SMALL or _THIN * drawn > least:
            found = svd(matrix.astype(np.float64))
            break
        found = _projected(matrix, total, drawn, seed).first(wanted)
        if wanted == most or cutoff.count(found.values, total) is not None:
            break
        wanted = min(2 * wanted, most)
    count = cutoff.count(found.values, total)
    if count is not None:
        found = found.first(count)
    kept = found.values > RESOLUTION * found.values.max(initial=0)
    return Triplets(found.left[:, kept], found.values[kept], found.right[kept])


def _projected(matrix: NDArray[Any], total: float, count: int, seed: int) -> Triplets:
    """About the largest ``count`` triplets of a squared norm, from random directions."""
    width = matrix.shape[1]
    bits = draws(f"lora/{seed}/{width}", 0, count * width).reshape(count, width) >> 31
    signs = 1 - 2 * bits.T.astype(np.int8)
    if matrix.dtype == np.float32 and _SMALLEST < total < _LARGEST:
        # What rounding adds to a direction the last turn takes away, as it does what was drawn.
        found = _orthonormal(matrix @ signs.astype(np.float32))
        for _ in range(_POWER - 1):
            found = _orthonormal(matrix @ _orthonormal(matrix.T @ found))
        found = _turned(matrix, found.astype(np.float64))
    else:
        found = _orthonormal(_times(matrix, signs.astype(np.float64)))
        for _ in range(_POWER):
            found = _turned(matrix, found)
    u, s, rows = np.linalg.svd(_transposed_times(matrix, found).T, full_matrices=False)
    return Triplets(found @ u, s, rows)


def _turned(matrix: NDArray[Any], found: Matrix) -> Matrix:
    """Directions nearer to the leading ones, by a product with ``M M^T``."""
    return _orthonormal(_times(matrix, _orthonormal(_transposed_times(matrix, found))))


def _orthonormal(columns: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.linalg.qr(columns)[0])


def _panels(matrix: NDArray[Any]) -> Iterator[tuple[slice, Matrix]]:
    """A matrix in float64, some rows at a time: a copy of it all would be as large again."""
    step = max(_PANEL // max(matrix.shape[1], 1), 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        yield rows, matrix[rows].astype(np.float64)


def _times(matrix: NDArray[Any], thin: Matrix) -> Matrix:
    out = np.empty((len(matrix), thin.shape[1]))
    for rows, part in _panels(matrix):
        out[rows] = part @ thin
    return out


def _transposed_times(matrix: NDArray[Any], thin: Matrix) -> Matrix:
    out = np.zeros((matrix.shape[1], thin.shape[1]))
    for rows, part in _panels(matrix):
        out += part.T @ thin[rows]
    return out


def squared_norm(matrix: NDArray[Any]) -> float:
    """The sum of all squares, in float64."""
    return float(sum(np.vdot(part, part) for _, part in _panels(matrix)))


def residual(matrix: NDArray[Any], up: NDArray[Any], down: NDArray[Any]) -> float:
    """``||M - up down||_F``, entry by entry, so that nothing cancels.

    >>> residual(np.eye(2, dtype=np.float32), np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    1.0
    """
    wide, total = down.astype(np.float64), 0.0
    for rows, part in _panels(matrix):
        part -= up[rows].astype(np.float64) @ wide
        total += float(np.vdot(part, part))
    return float(np.sqrt(total))


def balanced(found: Triplets) -> tuple[Matrix, Matrix]:
    """Two factors of equal norms, ``U sqrt(s)`` and ``sqrt(s) V``: neither over- nor underflows."""
    roots = np.sqrt(found.values)
    return found.left * roots, found.right * roots[:, None]


def compressed(up: Matrix, down: Matrix, cutoff: Cutoff) -> tuple[Matrix, Matrix]:
    """The best factors of fewer columns: the truncated SVD of ``up down``, never formed.

    Both factors are made orthonormal by QR; what is left is the SVD of a core as small as the rank,
    in float64. Among all products of that rank it is the nearest in Frobenius norm.

    Args:
        up: [out, r]. down: [r, in].
        cutoff: how much is kept.

    Source: Eckart, Young, The approximation of one matrix by another of lower rank, 1936.

    >>> up, down = compressed(np.array([[1.0, -1.0]]), np.array([[2.0], [2.0]]), Cutoff(rank=1))
    >>> up.shape, down.shape  # the sum is zero
    ((1, 0), (0, 1))
    """
    left, upper = np.linalg.qr(up)
    right, lower = np.linalg.qr(down.T)
    u, s, rows = np.linalg.svd(upper @ lower.T, full_matrices=False)
    # What cancelled is not quite zero: it counts as that where rounding could have made it.
    floor = len(s) * np.finfo(np.float64).eps * np.linalg.norm(up) * np.linalg.norm(down)
    found = Triplets(left @ u, s, rows @ right.T)
    count = cutoff.count(s, float(np.vdot(s, s)))
    kept = (s > floor) & (np.arange(len(s)) < (len(s) if count is None else count))
    return balanced(Triplets(found.left[:, kept], s[kept], found.right[kept]))


def product_norm(up: Matrix, down: Matrix) -> float:
    """``||up down||_F`` without the product: the norm of the core between two QRs.

    >>> round(product_norm(np.array([[3.0], [0.0]]), np.array([[0.0, 2.0]])), 12)
    6.0
    """
    if not up.shape[1]:
        return 0.0
    upper, lower = (np.asarray(np.linalg.qr(side, mode="r")) for side in (up, down.T))
    return float(np.linalg.norm(upper @ lower.T))


def distance(one: tuple[Matrix, Matrix], other: tuple[Matrix, Matrix]) -> float:
    """``||B A - D C||_F`` of two pairs of factors, whose products are never formed."""
    return product_norm(
        np.concatenate([one[0], -other[0]], axis=1), np.concatenate([one[1], other[1]])
    )
