"""Arcee Fusion: of one model the entries that matter by their change and their row's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, Need, State, Unit

_BLOCK = 1 << 18
_EPSILON = 1e-8


@dataclass(frozen=True)
class ArceeFusion(Method):
    """Keep the entries of one vector whose importance is extreme in their tensor.

    1. importance = ``|tau| KL(softmax(theta) || softmax(base))``, softmax and divergence over the
       last axis (over a flat tensor as a whole), 1e-8 added to every probability;
    2. threshold = median + 1.5 (upper - lower quartile), of the whole tensor;
    3. entries of at least that importance are kept, the others are the base's.

    Quartiles are the entries at floor(q (n - 1)) in order. mergekit draws a random million from
    larger tensors for them; here all count, so results do not vary. It also sums divergences in
    the tensors' own precision, where those of small changes are lost in rounding, or negative.
    Where three quarters of a tensor have no importance, the threshold is 0 and everything is
    kept; so it is where the last axis has length 1, since every divergence is 0 then.

    A vector of negative weight keeps what its opposite keeps, and is then subtracted.

    Whole tensors are held in memory, some numbers of float64 for each entry.

    Source: mergekit 0.1.5 (arcee.ai; no paper).

    >>> base, delta = np.zeros(5), np.array([[0.0, 0.0, 0.0, 0.1, 2.0]])
    >>> ArceeFusion().apply(Chunk(delta, shape=(5,), base=base), ())
    array([0., 0., 0., 0., 2.])
    """

    name: ClassVar[str] = "arcee_fusion"
    formula: ClassVar[str] = "mask tau, mask: |tau| KL(theta || base) >= median + 1.5 IQR"
    source: ClassVar[str] = "mergekit 0.1.5, Arcee Fusion"
    when: ClassVar[str] = "You want the outstanding changes of one model, tensor by tensor."
    takes: ClassVar[tuple[int, int | None]] = (1, 1)
    unit: ClassVar[Unit] = "tensor"
    base: ClassVar[Need] = "required"
    double: ClassVar[bool] = True

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        delta: NDArray[Any] = chunk.deltas[0]
        if not delta.size or chunk.base is None:
            return delta
        width = chunk.shape[-1] if chunk.shape else 1
        sign = np.sign(chunk.vector_weights()[0])
        importance = np.abs(delta)
        rows = importance.reshape(-1, width)
        bases, changes = chunk.base.reshape(rows.shape), delta.reshape(rows.shape)
        step = max(_BLOCK // width, 1)
        for low in range(0, len(rows), step):
            some = slice(low, low + step)
            rows[some] *= _divergence(bases[some] + sign * changes[some], bases[some])
        return np.where(importance >= _threshold(importance), delta, 0.0)


def _divergence(tuned: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    """[rows, 1]: how far the softmax of each row is from the base's."""
    p, q = _softmax(tuned) + _EPSILON, _softmax(base) + _EPSILON
    return np.asarray(np.maximum(np.sum(p * np.log(p / q), axis=1, keepdims=True), 0.0))


def _softmax(rows: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _threshold(importance: NDArray[Any]) -> float:
    places = [int(q * (importance.size - 1)) for q in (0.25, 0.5, 0.75)]
    lower, median, upper = np.partition(importance, places)[places]
    return float(median + 1.5 * (upper - lower))
