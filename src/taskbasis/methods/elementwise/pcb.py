"""PCB merging: entries compete within their vector and between vectors; winners are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.cutoff import check_density, count_lower, count_upper, find_cutoffs
from taskbasis.methods.elementwise.tall import total_of


@dataclass(frozen=True)
class Pcb(Method):
    """Parameter competition balancing: ``merged = sum_t b_t tau_t / sum_t b_t``, per entry.

    1. within a vector: ``intra_t = exp(T * norm(|tau_t|)^2)``, where norm maps magnitudes to
       [0, 1], from the smallest of the vector to the largest;
    2. between vectors: ``inter_t = tanh(tau_t * sum_s tau_s)``, below 0 where the vector is
       opposed to the sum;
    3. ``score_t = intra_t * inter_t``, and ``b_t = max(0, score_t - c_t) / (top_t - c_t)`` with the
       largest score top_t, and c_t the largest score below the ``density`` fraction that is kept,
       k = max(1, floor(density * d)); c_t is at least 0.

    All three are of whole vectors over the whole model; magnitudes and scores are counted by their
    float32 bits, exactly and out of core, in four passes. Magnitudes beyond the floor(clip * d)
    largest and smallest count as the next one, so that an outlier does not stretch the scale; the
    largest are cut to it in the mean, too. At density 1 and clip 0 one vector gives itself.

    At most 80 vectors: of more, float32 cannot hold the smaller ones of the scores ``exp(T ...)``.

    To be used at a scale of about 1.2. The product in ``inter`` is not without units: of vectors
    with entries far below 1, as most are, tanh is linear.

    Source: Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, by the
    released code's description of its key steps; at second hand, the paper itself has softmax of
    products of normalised vectors in place of exp and tanh. Beside that code: c_t is the largest
    score that is dropped, there the smallest that is kept; it is never below 0, so that an entry
    opposed to the sum never counts; and the smallest magnitudes are not raised in the mean.

    Raises:
        UsageError: the density is not in (0, 1], or clip is not in [0, 0.5).

    >>> from taskbasis.testing import merged
    >>> deltas = np.array([[4.0, 1.0, -2.0, 0.5], [2.0, 3.0, 0.5, -2.5]])
    >>> merged(Pcb(density=0.75, clip=0), deltas).round(2)
    array([ 3.56,  2.75, -2.  , -2.5 ])
    """

    name: ClassVar[str] = "pcb"
    formula: ClassVar[str] = "sum_t b_t tau_t / sum_t b_t, b_t of exp(T |tau_t|^2) tanh(tau_t sum)"
    source: ClassVar[str] = "Du et al., Parameter Competition Balancing, NeurIPS 2024"
    when: ClassVar[str] = "You merge tasks without data, and can read the vectors five times."
    takes: ClassVar[tuple[int, int | None]] = (1, 80)
    density: float = 0.1
    clip: float = 0.0001

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0 <= self.clip < 0.5:
            raise UsageError(f"a clip of {self.clip} leaves no magnitudes; use [0, 0.5)")

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",) * 4

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        if stage < 2:
            rows = np.abs(chunk.deltas.astype(np.float32, copy=False))
        else:
            rows = np.stack(list(_scores(chunk.deltas, state[1])))
        if stage % 2 == 0:
            return count_upper(rows)
        return np.stack([count_lower(rows, bins) for bins in state[stage - 1]])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if stage % 2:
            return [
                find_cutoffs(counts, b) for counts, b in zip(total, state[stage - 1], strict=True)
            ]
        d = int(total[0].sum())
        if stage:
            ranks = (max(1, int(self.density * d)) + 1, 1)
        else:
            ranks = (d - int(self.clip * d), 1 + int(self.clip * d))
        return [[_bin(counts, rank) for counts in total] for rank in ranks]

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        merged, shares = np.zeros(deltas.shape[1]), np.zeros(deltas.shape[1])
        scores, largest = _scores(deltas, state[1]), state[1][1]
        for row, score, cut, top, limit in zip(deltas, scores, *state[3], largest, strict=True):
            share = _share(score, float(cut), float(top))
            merged += share * np.clip(row, -limit, limit)
            shares += share
        np.divide(merged, shares, out=merged, where=shares > 0)
        return np.asarray(merged, deltas.dtype)


def _scores(deltas: NDArray[Any], ends: Any) -> Iterator[NDArray[np.float32]]:
    """[n] of each vector: ``intra * inter``, but 0 where that is less.

    Divided by exp(T), which makes no difference to their shares, lest they overflow.
    """
    total, count = total_of(deltas), len(deltas)
    for row, smallest, largest in zip(deltas, *ends, strict=True):
        low, span = float(smallest), float(largest) - float(smallest)
        norm = (np.clip(np.abs(row, dtype=np.float64), low, low + span) - low) / (span or 1.0)
        score = np.exp(count * (np.square(norm) - 1)) * np.tanh(row * total)
        yield np.maximum(score, 0).astype(np.float32)


def _share(score: NDArray[np.float32], cut: float, top: float) -> NDArray[np.float64]:
    """[n]: what lies above the cut, the top as 1; equal shares where all that is kept is equal."""
    if top > cut:
        return np.maximum(score.astype(np.float64) - cut, 0) / (top - cut)
    return ((score >= cut) & (score > 0)).astype(np.float64)


def _bin(counts: NDArray[Any], rank: int) -> tuple[int, int]:
    """The bin of the ``rank``-th largest number, and the rank within it; 0 beyond the last."""
    above = np.cumsum(counts[::-1])
    place = min(int(np.searchsorted(above, rank)), len(counts) - 1)
    return len(counts) - 1 - place, rank - (int(above[place - 1]) if place else 0)
