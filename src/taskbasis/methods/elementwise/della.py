"""DELLA: drop small entries more often than large ones, rescale, elect signs, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import check_word
from taskbasis.methods.electing import WEIGHED, Vote, elect
from taskbasis.methods.elementwise.della_linear import DellaLinear


@dataclass(frozen=True)
class Della(DellaLinear):
    """Drop by rank and rescale as
    :class:`~taskbasis.methods.elementwise.della_linear.DellaLinear`, then elect signs and combine
    (:func:`~taskbasis.methods.electing.elect`).

    ``variant`` is that of both halves: ``paper`` divides by each entry's chance and by how many
    agree, ``mergekit`` restores sums of magnitudes and averages by weight. With weights of 1 the
    combination is the same. Where votes cancel, ``paper`` gives 0, while the released code, whose
    second half is mergekit's, elects plus.

    Source: Deep et al., DELLA-Merging, arXiv 2406.11617, and its released code; mergekit 0.1.5 as
    it computes.

    Raises:
        UsageError: as for della_linear.

    >>> from taskbasis.methods import Chunk
    >>> chunk = Chunk(np.array([[1.0, -2.0], [3.0, 1.0]]), shape=(2,))
    >>> Della(density=1.0).apply(chunk, ())
    array([ 2., -2.])
    """

    name: ClassVar[str] = "della"
    formula: ClassVar[str] = "mean over t of m_t * w_t tau_t / p_t that have the elected sign"
    when: ClassVar[str] = "As della_linear, where the tasks' signs clash."
    normalize: bool = True
    vote: Vote = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("vote", self.vote, Vote)

    def gain(self) -> float:
        weighed = self.variant == "mergekit" and self.normalize
        return super().gain() * (WEIGHED if weighed else 1.0)

    def coefficients(self, weights: NDArray[np.float64]) -> None:
        return None

    def _combined(self, rows: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
        return elect(rows, weights, self.variant, self.vote, self.normalize)
