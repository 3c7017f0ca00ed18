"""CART: the average, and of what sets each task apart from it the first singular triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import finite
from taskbasis.methods.base import Chunk, Method, State, Unit
from taskbasis.methods.matrices import (
    check_share,
    flat,
    is_matrix,
    matrices,
    mean,
    rank_of_share,
    svd,
    workspace,
)


@dataclass(frozen=True)
class Cart(Method):
    """Centred, rank-reduced: ``merged = mean + strength * sum_t low_k(tau_t - mean)``.

    ``low_k`` keeps the first k singular triplets: ``rank_share`` of min(out, in), rounded down and
    at least one. Seen from the mean, task vectors lie apart, and adding their main parts disturbs
    the others little. At ``rank_share`` 1 the sum vanishes, and this is the mean; so
    it is of one or two vectors whatever the options are, because two lie opposite each other.

    The paper's lambda is ``strength``, not the scale, which multiplies the mean as well: use
    scale 1. It has shares from 0.04 to 0.32 and strengths from 0.1 to 10; the defaults are ours.
    Weighted vectors count as they are: the mean is ``sum_t w_t tau_t / T``.

    Tensors that are no matrices: the mean, which the formula makes there as well. Those of more
    than two axes are matrices [shape[0], rest]. The released code lowers the rank of matrices of
    attention and MLP only; the others get the mean.

    Source: Choi et al., Revisiting Weight Averaging for Model Merging, arXiv 2412.12153; checked
    against released code.

    Raises:
        UsageError: the share is not in (0, 1], or the strength not finite.

    >>> deltas = np.array([[4.0, 0, 0, 2], [0, 0, 0, 0]])
    >>> Cart(strength=0.5).apply(Chunk(deltas, shape=(2, 2)), ())
    array([2., 0., 0., 1.])
    """

    name: ClassVar[str] = "cart"
    formula: ClassVar[str] = "mean + strength * sum_t low_k(tau_t - mean)"
    source: ClassVar[str] = (
        "Choi et al., Revisiting Weight Averaging for Model Merging (CART), arXiv 2412.12153, 2024"
    )
    when: ClassVar[str] = "Averaging three models or more works; you can tune share and strength."
    unit: ClassVar[Unit] = "matrix"
    rank_share: float = 0.08
    strength: float = 1.0
    exact: bool = False

    def __post_init__(self) -> None:
        check_share("rank_share", self.rank_share)
        finite("the strength of cart", self.strength)

    def gain(self) -> float:
        return max(1.0, 2 * abs(self.strength))

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not is_matrix(chunk):
            return mean(chunk)
        centre = np.zeros(())
        for tau in matrices(chunk):
            centre = centre + tau
        centre = centre / len(chunk.deltas)
        rank = rank_of_share(self.rank_share, centre)
        apart = np.zeros(centre.shape)
        for tau in matrices(chunk):
            apart += svd(tau - centre, rank, self.exact).product()
        return flat(centre + self.strength * apart, chunk)
