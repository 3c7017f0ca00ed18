"""Fisher merging: per entry a weighted mean, the weights how much each task depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError, nearest
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, Need, State
from taskbasis.methods.cutoff import check_scope, count_rounded, counted

Scaling = Literal["none", "mean", "norm"]


@dataclass(frozen=True)
class Fisher(Method):
    """The mean weighted by importance: ``merged = sum_t F_t * tau_t / sum_t F_t``, per entry.

    At scale 1 these are the weights ``sum_t F_t * theta_t / sum_t F_t``: the likeliest ones, if
    each task's posterior is Gaussian about its own weights and the diagonal Fisher information F_t
    is its precision. Where all F are 0, the plain mean.

    F is meant to be the diagonal Fisher information, ``E[(d log p / d theta)^2]``: scores made
    with the factor ``fisher``. Any scores are taken, as weights. Only their ratios count, so they
    may be as small as float32 holds.

    ``normalize`` divides every task's scores by their ``mean`` or their Euclidean ``norm`` over
    the tensor, the layer or the whole model (``scope``), so that a task with larger gradients does
    not outvote the others everywhere. The authors' code divides by the norm over the model. Both
    are taken of scores rounded to 8 significant bits, so that counting them is enough.

    Pitfalls: a task that learnt its data by heart has small gradients everywhere, and is hardly
    heard without ``normalize``. A vector without scores of a tensor that it leaves as it is has no
    say there.

    Source: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022. Their
    code also raises the first task's Fisher to at least 1e-6, and weighs tasks by numbers chosen on
    validation; here all tasks count alike.

    Raises:
        UsageError: a word is unknown, or there are no scores.

    >>> fishers = np.array([[3, 0, 1e-30], [1, 0, 3e-30]], np.float32)
    >>> deltas = np.array([[1, 1, 1], [5, 5, 5]], np.float32)
    >>> Fisher().apply(Chunk(deltas, fishers), ())
    array([2., 3., 4.], dtype=float32)
    """

    name: ClassVar[str] = "fisher"
    formula: ClassVar[str] = "sum_t F_t tau_t / sum_t F_t, per entry"
    source: ClassVar[str] = "Matena and Raffel, Fisher-Weighted Averaging, NeurIPS 2022"
    when: ClassVar[str] = "You have scores of the factor fisher, and the tasks share a head."
    scores: ClassVar[Need] = "required"
    normalize: Scaling = "none"
    scope: Granularity = "tensor"

    def __post_init__(self) -> None:
        if self.normalize not in get_args(Scaling):
            hint = nearest(self.normalize, get_args(Scaling))
            raise UsageError(f"normalize {self.normalize!r} is unknown; {hint}")
        check_scope(self.scope)

    def stages(self) -> tuple[Granularity, ...]:
        return () if self.normalize == "none" else (self.scope,)

    def stages_see_deltas(self) -> bool:
        return False

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        if self.normalize == "none":
            return super().observe(stage, chunk, state)
        return count_rounded(_fishers(chunk))

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if self.normalize == "none":
            return super().finish(stage, total, state)
        sizes = np.array([self._size(counts) for counts in total])
        return np.where(sizes > 0, sizes, 1)

    def _size(self, counts: NDArray[np.int64]) -> float:
        """What the scores of one task are divided by."""
        values, numbers = counted(counts)
        if self.normalize == "norm":
            return float(np.sqrt(np.square(values) @ numbers))
        return float(values @ numbers) / max(int(numbers.sum()), 1)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return weighted_mean(chunk.deltas, _fishers(chunk), state[0] if state else None)


def _fishers(chunk: Chunk) -> NDArray[np.float32]:
    if chunk.scores is None:
        raise UsageError("method 'fisher' needs scores, one file for every vector")
    return chunk.scores


def weighted_mean(
    rows: NDArray[Any], weights: NDArray[Any], sizes: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    """The mean of the rows [T, n], weighted per entry; the plain mean where all weights are 0.

    Weights are taken relative to an entry's largest, in float64, so that neither tiny nor huge
    ones leave the range of floats.

    Args:
        rows: [T, n].
        weights: [T, n], 0 or larger.
        sizes: [T], what a row's weights are divided by.
    """
    sizes = np.ones(len(rows)) if sizes is None else sizes
    largest = np.zeros(rows.shape[1])
    for weight, size in zip(weights, sizes, strict=True):
        np.maximum(largest, np.divide(weight, size, dtype=np.float64), out=largest)
    unweighted = largest == 0
    largest[unweighted] = 1
    total, sum_of_shares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for row, weight, size in zip(rows, weights, sizes, strict=True):
        share = np.divide(weight, size, dtype=np.float64) / largest
        share[unweighted] = 1
        sum_of_shares += share
        total += np.multiply(share, row, out=share)
    return np.asarray(total / sum_of_shares, rows.dtype)
