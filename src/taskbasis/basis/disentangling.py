"""The one vector that task vectors share needlessly, found from their inner products alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskbasis.basis.gram import Matrix, checked, root
from taskbasis.errors import UsageError

ALPHA, RATE, ITERATIONS = 0.1, 0.01, 300
"""The paper's numbers, at second hand."""


@dataclass(frozen=True, eq=False)
class Redundancy:
    """What T task vectors have in common and can do without: ``delta = sum_j c_j tau_j``.

    Attributes:
        coefficients: c [T].
        residues: [T, T]; column t holds the coefficients of ``tau_t - delta``. A zero vector has
            no part in it and stays zero.
        before, after: the mean over pairs of ``|cos|``, of the vectors and of what is left of
            them, as :func:`mean_cosine` has it.
        share: the norm of delta over the mean norm of the vectors that are not zero.
    """

    coefficients: Matrix
    residues: Matrix
    before: float
    after: float
    share: float


def disentangle(
    gram: ArrayLike, alpha: float = ALPHA, rate: float = RATE, iterations: int = ITERATIONS
) -> Redundancy:
    """Adaptive weight disentanglement: the vector delta without which the others are more nearly
    orthogonal, ``L(delta) = mean_{i != j} |cos(tau_i - delta, tau_j - delta)| + alpha ||delta||``.

    Steps ``delta -= rate * dL/ddelta`` from 0. The gradient is a sum of the vectors and of delta,
    so delta stays a sum of vectors, and the descent in millions of dimensions is exactly one of T
    coefficients on the Gram matrix. Of the points on the way the one of least L is taken, 0
    included: a step of fixed length that overshoots leaves the vectors as they are, not worse.

    Pitfalls: ``alpha`` and ``rate`` are in units of the vectors; the paper's suit norms of some 1
    or 2. Of a vector ten times as long a step takes a hundredth of the part, and where the slope
    of the cosines at 0 is less than alpha, as for long vectors and for nearly parallel ones, 0 is
    a local minimum and nothing is found: use a smaller alpha and a larger rate. Short vectors
    overshoot; use a smaller rate.

    Source: Xiong et al., Multi-Task Model Merging via Adaptive Weight Disentanglement,
    arXiv 2411.18729. Objective, steps and numbers are at second hand (no code was released); the
    descent on the Gram matrix and the choice among its points are ours.

    Args:
        gram: [T, T] inner products of the task vectors.
        alpha: how much the length of delta counts.
        rate: how far a step goes, per slope.
        iterations: how many steps.

    Raises:
        UsageError: a number is out of range, or this is no square matrix. ValueProblem: no
            vectors have these inner products.

    >>> found = disentangle([[2, 1], [1, 2]], alpha=0.01)
    >>> round(found.before, 9), found.after < 0.02, found.coefficients.round(1).tolist()
    (0.5, True, [0.2, 0.2])
    """
    check_numbers(alpha, rate, iterations)
    vectors = root(checked(gram))
    present = np.any(vectors != 0, axis=0)
    coefficients = np.zeros(len(vectors))
    best, least, first = coefficients, np.inf, 0.0
    for step in range(iterations + 1):
        value, slope = _mean_cosine(vectors @ _residues(coefficients, present))
        length = float(np.linalg.norm(vectors @ coefficients))
        first = value if step == 0 else first
        if value + alpha * length < least:
            best, least = coefficients, value + alpha * length
        pulled = slope - slope.sum() * coefficients  # sum_i slope_i (tau_i - delta)
        if length > 0:
            pulled = pulled + alpha / length * coefficients
        coefficients = coefficients - rate * pulled
    left = _residues(best, present)
    lengths = np.linalg.norm(vectors[:, present], axis=0)
    share = float(np.linalg.norm(vectors @ best) / lengths.mean()) if present.any() else 0.0
    return Redundancy(best, left, first, _mean_cosine(vectors @ left)[0], share)


def mean_cosine(gram: ArrayLike, residues: ArrayLike | None = None) -> float:
    """The mean over pairs of ``|cos|`` of the vectors, or of sums of them.

    Zero vectors have no angle and are left out; 0 where fewer than two are left.

    Args:
        gram: [T, T] inner products of the vectors.
        residues: [T, T]; column t holds the coefficients of the t-th sum.

    >>> round(mean_cosine([[4, 1], [1, 4]]), 9), mean_cosine([[4, 1], [1, 4]], [[0, 0], [0, 1]])
    (0.25, 0.0)
    """
    vectors = root(checked(gram))
    return _mean_cosine(vectors if residues is None else vectors @ np.asarray(residues))[0]


def _residues(coefficients: Matrix, present: NDArray[np.bool_]) -> Matrix:
    return np.asarray((np.eye(len(present)) - coefficients[:, None]) * present)


def _mean_cosine(residues: Matrix) -> tuple[float, Matrix]:
    """The mean of ``|cos|`` and its slope: g with ``d mean / d delta = sum_i g_i residue_i``.

    Of one pair it is ``sign(cos) * (cos / |r_i|^2 - 1 / (|r_i| |r_j|))`` in r_i, and the same in
    r_j.
    """
    count = residues.shape[1]
    lengths = np.linalg.norm(residues, axis=0)
    inverse = np.divide(1.0, lengths, out=np.zeros(count), where=lengths > 0)
    units = residues * inverse
    cosines = units.T @ units
    np.fill_diagonal(cosines, 0.0)
    present = int(np.count_nonzero(lengths))
    pairs = max(present * (present - 1), 1)
    opposed = np.sum(np.abs(cosines), axis=1) * inverse**2
    aligned = np.sign(cosines) @ inverse * inverse
    return float(np.abs(cosines).sum()) / pairs, (opposed - aligned) * (2.0 / pairs)


def check_numbers(alpha: float, rate: float, iterations: int) -> None:
    """Refuse numbers that no descent can use.

    Raises:
        UsageError: naming the number.
    """
    if not 0 <= alpha < np.inf:
        raise UsageError(f"an alpha of {alpha} has no meaning; use 0 or more")
    if not 0 < rate < np.inf:
        raise UsageError(f"a rate of {rate} leads nowhere; use a number above 0")
    if iterations < 0:
        raise UsageError(f"{iterations} iterations cannot be made; use 0 or more")
