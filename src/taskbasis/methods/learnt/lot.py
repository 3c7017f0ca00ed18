"""LOT merging: per layer the task vector that moves features least from each task's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, Need, State, Unit
from taskbasis.methods.learnt.regmean import (
    by_rows,
    mean,
    mean_by_entry,
    moments_of_all,
    pseudo_inverse,
    summed_moments,
)


@dataclass(frozen=True)
class Lot(Method):
    """Layer-wise optimal task vector: of a linear weight [out, in]
    ``merged = (sum_t tau_t @ G_t) @ pinv(sum_t G_t)``.

    Least feature drift, layer by layer: ``sum_t E_t ||(merged - tau_t) x||^2`` is smallest, where
    ``G_t = E[x x^T]`` over task t's inputs x of the layer, as of its own fine-tuned model.

    - Directions that no task's inputs have stay the base's: of all minima the one of least norm.
      So a single vector gives its part that its inputs see, not itself.
    - Scales of normalisations: each entry's mean, weighted by ``E[x^2]`` of the normalised input.
    - Biases, embeddings, and tensors that any task has no moment of: the plain mean.

    To be used at scale 1. It differs from the method regmean in that moments are taken as they
    are, so that a few samples determine less, and in what it does where they determine nothing.
    Eigenvalues below in * 2^-23 of the largest count as 0, since moments are
    float32. Solved in float64 by an eigendecomposition, in about twice RegMean's time.

    Source: Sun et al., Towards Minimizing Feature Drift in Model Merging, arXiv 2505.23859. That
    linear layers have this closed form with a pseudo-inverse and scales this weighted mean is
    confirmed at second hand, and so is the plain mean of embeddings; that of biases, and equal
    counts of inputs for all tasks, are inferred. The paper's own text and code were not at hand.

    Raises:
        MismatchError: a moment does not go with its tensor. ValueProblem: it is no second moment.

    >>> from taskbasis.methods import Moment
    >>> moment = np.array([[1, 1], [1, 1]], np.float32)
    >>> chunk = Chunk(np.array([[4, 2]], np.float32), None, [Moment(moment)], shape=(1, 2))
    >>> Lot().apply(chunk, ())
    array([3., 3.], dtype=float32)
    """

    name: ClassVar[str] = "lot"
    formula: ClassVar[str] = "(sum_t tau_t G_t) pinv(sum_t G_t), G_t = E[x x^T]"
    source: ClassVar[str] = (
        "Sun et al., Towards Minimizing Feature Drift in Model Merging (LOT), arXiv 2505.23859, "
        "at second hand"
    )
    when: ClassVar[str] = "You have a few unlabelled inputs of every task, and want no scale."
    unit: ClassVar[Unit] = "matrix"
    moments: ClassVar[Need] = "required"

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        moments = moments_of_all(chunk)
        if not moments or (moments[0].values.ndim == 1 and len(chunk.shape) > 1):
            return mean(chunk.deltas)
        if moments[0].values.ndim == 1:
            return mean_by_entry(chunk, moments)
        grams = [moment.values for moment in moments]
        inverse = pseudo_inverse(summed_moments(grams))

        def merged(blocks: Sequence[NDArray[Any]]) -> NDArray[Any]:
            seen = np.zeros_like(blocks[0])
            for block, gram in zip(blocks, grams, strict=True):
                seen += block @ gram.astype(np.float64)
            return np.asarray(seen @ inverse)

        return by_rows(chunk, moments[0].transposed, merged)
