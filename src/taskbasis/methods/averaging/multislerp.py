"""Multi-SLERP: the direction of the mean of directions, at the mean length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskbasis.errors import check_word
from taskbasis.methods.mixing import Floats, Mixing, Space, directed, length, points

_NOWHERE = 1e-8


@dataclass(frozen=True)
class MultiSlerp(Mixing):
    """The mean direction of T vectors at their mean length:
    ``merged = mean(|x|) m / |m|, m = mean(x / |x|)``, means weighted by ``|w_t|``.

    mergekit's code maps the directions to the plane that touches the sphere at m/|m|, takes
    their mean there and maps it back. The mean of what is mapped to that plane is 0, because m is
    the mean of the directions, so its result is the above, but for its rounding.

    - ``space``: the vectors are task vectors (``deltas``), or whole models (``weights``).
      mergekit does the first when it is given a base model and the second when it is not.
    - Weights are relative: only their sizes count, and a negative one turns its vector around,
      ``x = -tau``. mergekit divides by the signed sum.
    - One vector gives itself. Where the directions cancel (|m| below 1e-8), the weighted mean of
      the vectors is taken, for any number of them; mergekit does so for two and refuses more.
      Vectors that are 0 have no direction, but a length.
    - Close to such a cancellation the direction is that of a small remainder.

    Source: Goddard, Multi-SLERP (a page on goddard.blog), and mergekit 0.1.5, whose code the
    formula was derived from.

    Raises:
        UsageError: ``space`` is unknown.

    >>> from taskbasis.testing import merged
    >>> merged(MultiSlerp(), np.array([[6.0, 0.0], [0.0, 2.0]])).round(2).tolist()
    [2.83, 2.83]
    """

    name: ClassVar[str] = "multislerp"
    formula: ClassVar[str] = "mean(|x|) m/|m|, m = mean(x/|x|), x_t = tau_t or base + tau_t"
    source: ClassVar[str] = "Goddard, Multi-SLERP; mergekit 0.1.5 (formula derived from its code)"
    when: ClassVar[str] = "You mix several vectors of different lengths, each to count alike."
    signed: ClassVar[bool] = False
    relative: ClassVar[bool] = True
    space: Space = "deltas"

    def __post_init__(self) -> None:
        check_word("space", self.space, Space)
        if self.space == "deltas":
            object.__setattr__(self, "base", "ignored")

    def gain(self) -> float:
        return 3.0

    def mix(self, gram: Floats, weights: Floats) -> Floats:
        if len(weights) == 1:
            return np.array([0.0, 1.0])
        shares = weights / weights.sum()
        vectors = points(len(weights), self.space)
        directions, sizes = directed(gram, vectors)
        mean = shares @ directions
        size = float(length(gram, mean))
        if size < _NOWHERE:
            return np.append(0.0, shares)
        mean *= shares @ sizes / size
        mean[0] -= self.space == "weights"
        return np.asarray(mean)
