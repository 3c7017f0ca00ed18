"""Model Stock: the mean of the models, pulled to the base as far as they disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskbasis.methods.base import Need
from taskbasis.methods.mixing import Floats, Mixing, Per


@dataclass(frozen=True)
class ModelStock(Mixing):
    """The mean of the vectors times how much they agree:
    ``merged = t mean(tau), t = N cos / (1 + (N - 1) cos)`` for N vectors, tensor by tensor.

    cos is the cosine of two task vectors, for more than two its mean over all pairs. Vectors that
    point the same way give their mean, and orthogonal ones give nothing: what fine-tuned models
    do not share is taken for noise. So this is for models of one task; vectors of different tasks
    are close to orthogonal, and little is left of them.

    With ``filter_wise`` each row of the matrix [shape[0], rest] has its own t; tensors of less
    than two axes are taken whole. (mergekit takes the last axis alone for a row.)

    - t is kept in [0, 1]. Where the mean cosine is 0 or less the formula has no meaning, and t is
      0: the base stays. mergekit goes on to negative t, without bound towards
      ``cos = -1/(N - 1)``.
    - One vector gives itself. A vector that is 0 has a cosine of 0 with every other.
    - A weight multiplies its vector; one of -1 turns it around, and its cosines with it.
    - mergekit divides by at least 1e-6: where the lengths of two deltas multiply to less (biases,
      norms), the cosine is too small there, and t with it.

    Source: Jang et al., Model Stock, ECCV 2024 (arXiv 2403.19522): t of two models, and for N. The
    mean over pairs is as in mergekit 0.1.5.

    >>> from taskbasis.testing import merged
    >>> merged(ModelStock(), np.array([[2.0, 0.0], [1.0, 3**0.5]])).round(3).tolist()
    [1.0, 0.577]
    """

    name: ClassVar[str] = "model_stock"
    formula: ClassVar[str] = "t mean(tau), t = N cos / (1 + (N-1) cos)"
    source: ClassVar[str] = "Jang et al., Model Stock, ECCV 2024, arXiv 2403.19522"
    when: ClassVar[str] = "You have a few models of one task, tuned with different seeds."
    base: ClassVar[Need] = "ignored"
    filter_wise: bool = False

    def __post_init__(self) -> None:
        if self.filter_wise:
            object.__setattr__(self, "unit", "matrix")

    def per_group(self) -> Per:
        return "row" if self.filter_wise else "tensor"

    def mix(self, gram: Floats, weights: Floats) -> Floats:
        count = len(weights)
        t = _agreement(gram[..., 1:, 1:]) if count > 1 else np.ones(gram.shape[:-2])
        numbers = np.repeat(t[..., None] / count, 1 + count, axis=-1)
        numbers[..., 0] = 0
        return numbers


def _agreement(gram: Floats) -> Floats:
    """[...]: t of the vectors whose inner products are [..., N, N]."""
    count = gram.shape[-1]
    sizes = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    sizes = np.where(sizes > 0, sizes, np.inf)
    cosines = np.clip(gram / sizes[..., None] / sizes[..., None, :], -1, 1)
    first, second = np.triu_indices(count, 1)
    cosine = np.maximum(cosines[..., first, second].mean(axis=-1), 0)
    return np.asarray(count * cosine / (1 + (count - 1) * cosine))
