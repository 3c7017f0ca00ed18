"""Electing the sign of every entry, and combining the vectors that agree with it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis.compiling import jit
from taskbasis.kernels import BLOCK

Variant = Literal["paper", "mergekit", "peft"]
"""Whose function is meant by a name that several libraries use."""

Vote = Literal["total", "frequency"]
"""What is voted with: the values, or their signs."""

WEIGHED = 2.0
"""The gain of a mean by weights, of weights of 1/2 or more: one that agrees alone counts in full,
1 / |w| times what it was multiplied by."""


def elect(
    rows: NDArray[Any],
    weights: NDArray[np.float64],
    variant: Variant = "paper",
    vote: Vote = "total",
    normalize: bool = True,
    cutoffs: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """Elect a sign per entry, then combine the entries of that sign; zeros take no part.

    ========  ==========================  =========  =============================================
    variant   what votes                  vote of 0  divided by, with ``normalize``
    ========  ==========================  =========  =============================================
    paper     w_t tau_t                   no sign    how many agree
    mergekit  w_t tau_t                   plus       sum |w_t| of those who agree
    peft      tau_t, without its weight   plus       how many agree
    ========  ==========================  =========  =============================================

    Where no sign is elected the entry is 0. mergekit divides by the signed sum of weights, which
    adds what is to be subtracted, and blows up where weights cancel; here it is the sum of sizes.

    Args:
        rows: [T, n], each multiplied by its weight.
        weights: [T].
        vote: ``total`` adds values, ``frequency`` counts signs.
        normalize: whether the sum of those who agree is divided at all.
        cutoffs: [T]; entries of smaller magnitude are as good as 0. Magnitudes are compared in
            float32, as cutoffs are found.

    >>> rows = np.array([[1.0, -2.0, 3.0], [3.0, 1.0, -3.0]])
    >>> elect(rows, np.ones(2)), elect(rows, np.ones(2), "mergekit")
    (array([ 2., -2.,  0.]), array([ 2., -2.,  3.]))
    """
    unweighted = variant == "peft"
    ballots = 1 / weights if unweighted else np.ones(len(rows))
    powers_of_two = bool(np.all(np.abs(np.frexp(weights)[0]) == 0.5))
    shares = np.abs(weights) if variant == "mergekit" else np.ones(len(rows))
    if not normalize:
        shares = np.zeros(len(rows))
    # Of two numbers the rounded sum has the sign of the sum, and is 0 where that is.
    simple = vote == "frequency" or (len(rows) <= 2 and bool(np.all(np.abs(ballots) == 1)))
    kind = rows.dtype if simple else np.float64
    if _divides_alike(shares):
        shares = shares.astype(rows.dtype)
    out = np.empty(rows.shape[1], rows.dtype)
    _elect(
        rows,
        np.zeros(len(rows), np.float32) if cutoffs is None else cutoffs,
        np.sign(ballots).astype(kind) if vote == "frequency" else ballots.astype(kind),
        vote == "frequency",
        # Taking weights out again rounds, so a tie of values shows as a vote next to 0.
        2 * float(np.finfo(rows.dtype).eps) if unweighted and not powers_of_two else 0.0,
        0.0 if variant == "paper" else 1.0,
        shares,
        out,
    )
    return out


def _divides_alike(shares: NDArray[np.float64]) -> bool:
    """Whether float32 holds every sum of shares, and so divides a float32 as float64 would.

    A quotient of two float32 numbers that float64 rounded, rounded to float32, is the quotient
    rounded once: 53 bits are more than twice 24 and two.
    """
    steps = shares * 2**10
    return bool(np.all(steps == np.rint(steps)) and steps.sum() <= 2**24)


# Short loops over blocks that stay in the first cache, with few arrays each: those vectorise.


@jit()
def _add_values(row: Any, cutoff: Any, ballot: Any, votes: Any) -> None:
    zero = row.dtype.type(0)
    for i in range(row.size):
        x = row[i] if np.float32(abs(row[i])) >= cutoff else zero
        votes[i] += ballot * x


@jit()
def _add_sizes(row: Any, cutoff: Any, ballot: Any, sizes: Any) -> None:
    zero = row.dtype.type(0)
    for i in range(row.size):
        x = row[i] if np.float32(abs(row[i])) >= cutoff else zero
        sizes[i] += abs(ballot * x)


@jit()
def _add_signs(row: Any, cutoff: Any, side: Any, votes: Any) -> None:
    zero, one = row.dtype.type(0), row.dtype.type(1)
    for i in range(row.size):
        x = row[i] if np.float32(abs(row[i])) >= cutoff else zero
        votes[i] += side * (one if x > zero else zero) - side * (one if x < zero else zero)


@jit()
def _find_winners(votes: Any, sizes: Any, slack: Any, sign_of_tie: Any, winners: Any) -> None:
    zero, one = votes.dtype.type(0), winners.dtype.type(1)
    for i in range(winners.size):
        sign = one if votes[i] > zero else -one
        winners[i] = sign if abs(votes[i]) > slack * sizes[i] else sign_of_tie


@jit()
def _add_agreeing(
    row: Any, cutoff: Any, side: Any, share: Any, winners: Any, total: Any, shares: Any
) -> None:
    zero, none = row.dtype.type(0), shares.dtype.type(0)
    for i in range(row.size):
        x = row[i]
        agrees = (np.float32(abs(x)) >= cutoff) & (x * (side * winners[i]) > zero)
        total[i] += x if agrees else zero
        shares[i] += share if agrees else none


@jit()
def _divide(total: Any, shares: Any, out: Any) -> None:
    zero, one = shares.dtype.type(0), shares.dtype.type(1)
    for i in range(out.size):
        out[i] = total[i] / (shares[i] if shares[i] > zero else one)


@jit()
def _elect(
    rows: Any,
    cutoffs: Any,
    ballots: Any,
    count_signs: Any,
    slack: Any,
    sign_of_tie: Any,
    shares: Any,
    out: Any,
) -> None:
    one = rows.dtype.type(1)
    votes, sizes = np.empty(BLOCK, ballots.dtype), np.empty(BLOCK, ballots.dtype)
    parts = np.empty(BLOCK, shares.dtype)
    winners, total = np.empty(BLOCK, rows.dtype), np.empty(BLOCK, rows.dtype)
    for start in range(0, out.size, BLOCK):
        stop = min(start + BLOCK, out.size)
        size = stop - start
        votes[:] = 0
        sizes[:] = 0
        parts[:] = 0
        total[:] = 0
        for t in range(rows.shape[0]):
            row, side = rows[t, start:stop], -one if ballots[t] < 0 else one
            if count_signs:
                _add_signs(row, cutoffs[t], side, votes[:size])
            else:
                _add_values(row, cutoffs[t], ballots[t], votes[:size])
                if slack > 0:
                    _add_sizes(row, cutoffs[t], ballots[t], sizes[:size])
        _find_winners(votes[:size], sizes[:size], slack, sign_of_tie, winners[:size])
        for t in range(rows.shape[0]):
            row, side = rows[t, start:stop], -one if ballots[t] < 0 else one
            _add_agreeing(
                row, cutoffs[t], side, shares[t], winners[:size], total[:size], parts[:size]
            )
        _divide(total[:size], parts[:size], out[start:stop])
