"""Breadcrumbs and TIES: leave out the largest and smallest changes, elect signs, average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import check_word
from taskbasis.methods.electing import WEIGHED, Variant, Vote, elect
from taskbasis.methods.elementwise.breadcrumbs import Breadcrumbs


@dataclass(frozen=True)
class BreadcrumbsTies(Breadcrumbs):
    """Mask as :class:`~taskbasis.methods.elementwise.breadcrumbs.Breadcrumbs`, then elect signs
    and combine as TIES (:func:`~taskbasis.methods.electing.elect`, which has the ``variant``).

    The method is mergekit's: ``variant="mergekit", normalize=False`` is its default, and the sum
    of those who agree. ``paper`` and ``peft`` combine as TIES does there.

    Source: Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, and Yadav et al., TIES-Merging,
    NeurIPS 2023; put together by mergekit 0.1.5.

    Raises:
        UsageError: as for breadcrumbs, or a word is unknown.

    >>> from taskbasis.methods import Chunk
    >>> chunk = Chunk(np.array([[1.0, -2.0], [3.0, 1.0]]))
    >>> BreadcrumbsTies(density=1.0).apply(chunk, ())
    array([ 2., -2.])
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    formula: ClassVar[str] = "mean over t of mask_t * w_t tau_t that have the elected sign"
    source: ClassVar[str] = (
        "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, with Yadav et al., TIES-Merging, "
        "NeurIPS 2023; joined as in mergekit"
    )
    when: ClassVar[str] = "As breadcrumbs, where the tasks' signs clash."
    normalize: bool = True
    variant: Variant = "paper"
    vote: Vote = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("variant", self.variant, Variant)
        check_word("vote", self.vote, Vote)

    def gain(self) -> float:
        return WEIGHED if self.variant == "mergekit" and self.normalize else 1.0

    def coefficients(self, weights: NDArray[np.float64]) -> None:
        return None

    def _combined(self, rows: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
        return elect(rows, weights, self.variant, self.vote, self.normalize)
