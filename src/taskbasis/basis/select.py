"""A subset of the task vectors as the basis."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.codes import Codes, refit
from taskbasis.basis.gram import PINV_CUT, Matrix
from taskbasis.basis.problem import Construction, Problem, everything, one_of

STRATEGIES = ("greedy", "random")


@final
@dataclass(frozen=True)
class Select(Construction):
    """k of the T task vectors, kept as they are; k >= T keeps all.

    `random` draws them without replacement from Python's generator and sorts them, as the
    RandomSample baseline of TVB v4/v5 does. `greedy` takes at each step the vector that lowers
    the total residual ``‖V - proj V‖²`` most, in O(k T²), and stops early when nothing is left
    to recover (derived for this project).

    Args:
        strategy: "greedy" or "random".
        seed: of the random draw.
        recovery: True recovers the other tasks from the kept ones by least squares; False
            recovers only the kept ones, and the others as zero, which is the official baseline.

    `addition` is ones: adding the basis adds the kept vectors.

    >>> Select().fit(np.diag([1.0, 9.0, 4.0]), 2).encoder
    array([[0., 0.],
           [1., 0.],
           [0., 1.]])
    """

    strategy: str = "greedy"
    seed: int = 0
    recovery: bool = True

    name: ClassVar[str] = "select"
    monotone: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("strategy", self.strategy, STRATEGIES)

    def _codes(self, problem: Problem) -> Codes:
        if problem.k >= problem.tasks:
            return everything(problem.tasks)
        kept = self._kept(problem)
        encoder = np.eye(problem.tasks)[:, kept]
        decoder = refit(problem.gram, encoder, problem.tasks) if self.recovery else encoder.T
        return Codes(encoder, decoder, np.ones(len(kept)))

    def _kept(self, problem: Problem) -> list[int]:
        if self.strategy == "random":
            return sorted(random.Random(self.seed).sample(range(problem.tasks), problem.k))
        return sorted(greedy(problem.gram, problem.k)) or [0]


def greedy(gram: Matrix, k: int) -> list[int]:
    """At most k vectors, in the order in which each lowers the total residual most.

    With G the Gram matrix of the residuals, vector j removes ``Σ_t G[t, j]² / G[j, j]`` of their
    energy; then G is downdated by it. Ties go to the first.

    >>> greedy(np.array([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), 3)
    [0, 2]
    """
    left = gram.copy()
    own = np.diag(gram)
    kept: list[int] = []
    for _ in range(k):
        free = np.diag(left) > PINV_CUT * own
        if not free.any():
            break
        sizes = np.where(free, np.diag(left), 1.0)
        gains = np.where(free, np.sum(left**2, axis=0) / sizes, -1.0)
        best = int(np.argmax(gains >= (1.0 - 1e-9) * gains.max()))
        left = left - np.outer(left[:, best], left[best]) / left[best, best]
        left[best, :] = left[:, best] = 0.0
        kept.append(best)
    return kept
