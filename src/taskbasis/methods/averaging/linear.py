"""The weighted mean of the models, or their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State, summed


@dataclass(frozen=True)
class Linear(Method):
    """The weighted mean of the models: ``merged = sum_t w_t tau_t / sum_t |w_t|``.

    A model of weight -1 is base - tau, and counts as much as one of weight 1. So one vector of
    weight -1 is subtracted, and no pair of weights makes the divisor vanish. With weights of one
    sign this is what mergekit's ``linear`` computes; that divides by the signed sum, which makes
    base + tau of one vector of weight -1.

    With ``normalize=False`` the weights of the models themselves are summed,
    ``theta = sum_t w_t theta_t``, as mergekit does under that name. As a delta this is
    ``(sum_t w_t - 1) base + sum_t w_t tau_t``: unless the weights sum to 1, the base is scaled,
    too, even by vectors that are 0. That is seldom meant; the sum of weighted vectors upon the
    base is ``task_arithmetic``.

    Source: Wortsman et al., Model Soups, ICML 2022. The weighted forms are mergekit's (0.1.5),
    but for the sign of the divisor.

    >>> chunk = Chunk(np.array([[3.0, 6.0], [1.0, -2.0]]), weights=(3.0, -1.0))
    >>> Linear().apply(chunk, ())
    array([1., 1.])
    """

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "sum_t w_t tau_t / sum_t |w_t|"
    source: ClassVar[str] = "Wortsman et al., Model Soups, ICML 2022; weighted as in mergekit"
    when: ClassVar[str] = "You want some models to count more than others in their mean."
    normalize: bool = True

    def __post_init__(self) -> None:
        if not self.normalize:
            for what, value in (
                ("base", "required"),
                ("double", True),
                ("signed", False),
                ("keeps_base", False),
            ):
                object.__setattr__(self, what, value)

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if not self.normalize:
            return None
        return np.full(len(weights), 1.0 / np.abs(weights).sum())

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        weights, total = chunk.vector_weights(), summed(chunk.deltas)
        if self.normalize:
            total /= np.abs(weights).sum()
        elif chunk.base is not None:
            total += (weights.sum() - 1) * chunk.base
        return total
