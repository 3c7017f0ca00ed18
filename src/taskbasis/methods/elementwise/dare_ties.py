"""DARE and TIES: drop entries at random, scale up the rest, elect signs, average who agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import check_word
from taskbasis.methods.electing import WEIGHED, Vote, elect
from taskbasis.methods.elementwise.dare_linear import DareLinear


@dataclass(frozen=True)
class DareTies(DareLinear):
    """Drop and rescale as :class:`~taskbasis.methods.elementwise.dare_linear.DareLinear`, then
    elect signs and combine as TIES (:func:`~taskbasis.methods.electing.elect`).

    Nothing is trimmed by magnitude, as in mergekit and PEFT; the DARE authors' released code runs
    all of TIES on what its draw left, so it trims to the largest fifth, too. ``variant`` is that
    of both halves: ``paper`` divides by the density and by how many agree, ``mergekit`` restores
    sums of magnitudes and averages by weight, ``peft`` lets vectors vote without their weights.
    mergekit's own default is ``normalize=False``: those who agree are summed.

    Source: Yu et al., Language Models are Super Mario, ICML 2024, and Yadav et al., TIES-Merging,
    NeurIPS 2023; put together as in mergekit 0.1.5 and PEFT 0.21.2.

    Raises:
        UsageError: a density is not in (0, 1], or a word is unknown.

    >>> from taskbasis.methods import Chunk
    >>> chunk = Chunk(np.array([[1.0, -2.0], [3.0, 1.0]]))
    >>> DareTies(density=1.0).apply(chunk, ())
    array([ 2., -2.])
    """

    name: ClassVar[str] = "dare_ties"
    formula: ClassVar[str] = "mean over t of m_t * w_t tau_t / density that have the elected sign"
    source: ClassVar[str] = (
        "Yu et al., Language Models are Super Mario, ICML 2024, with Yadav et al., TIES-Merging, "
        "NeurIPS 2023; joined as in mergekit and PEFT"
    )
    when: ClassVar[str] = "As dare_linear, where the tasks' signs clash."
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
