"""NuSLERP: along the great circle between two task vectors, or models, as far as weights say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskbasis.errors import check_word
from taskbasis.methods.mixing import ENLARGED, Floats, Mixing, Per, Space, between, points


@dataclass(frozen=True)
class NuSlerp(Mixing):
    """Spherical linear interpolation of two, at ``t = |w_2| / (|w_1| + |w_2|)``:
    ``[sin((1-t) angle) x_1 + sin(t angle) x_2] / sin(angle)``.

    - ``space``: the two are task vectors (``deltas``), or whole models (``weights``). mergekit
      does the first when it is given a base model and the second when it is not.
    - ``per``: one angle for the whole ``tensor``, for each ``row`` [i, :] of the matrix
      [shape[0], rest], or for each ``column`` [:, j]. Tensors of less than two axes are taken
      whole. In mergekit's words ``row`` is ``nuslerp_flatten: false``, and ``column`` is that
      with ``nuslerp_row_wise: true``, whatever its name says (and rest is the last axis alone).

    Weights are relative: their sizes say how much each of the two counts, and a negative one
    turns its vector around, ``x = -tau``. Equal weights, the default, mean t = 1/2. mergekit
    divides by the signed sum: weights of 1 and -0.9 are t = -9 there, and of 1 and -1 t = 1/2.

    Lengths are not normalised. Where one of the two is 0, or they are opposite (cosine below
    -0.9995), the interpolation is linear; above that cosine the result may be up to 32 times
    longer than they.

    Source: mergekit 0.1.5 (no paper), but for the sign of the divisor and for opposite vectors.

    Raises:
        UsageError: a word is unknown.

    >>> from taskbasis.testing import merged
    >>> merged(NuSlerp(), np.array([[4.0, 0.0], [0.0, 4.0]])).round(2).tolist()
    [2.83, 2.83]
    """

    name: ClassVar[str] = "nuslerp"
    formula: ClassVar[str] = "[sin((1-t)a) x_1 + sin(t a) x_2] / sin(a), t = |w_2|/(|w_1|+|w_2|)"
    source: ClassVar[str] = "mergekit 0.1.5, NuSLERP"
    when: ClassVar[str] = "You mix two task vectors that are far apart without losing length."
    takes: ClassVar[tuple[int, int | None]] = (2, 2)
    signed: ClassVar[bool] = False
    relative: ClassVar[bool] = True
    space: Space = "deltas"
    per: Per = "tensor"

    def __post_init__(self) -> None:
        check_word("space", self.space, Space)
        check_word("per", self.per, Per)
        if self.space == "deltas":
            object.__setattr__(self, "base", "ignored")
        if self.per != "tensor":
            object.__setattr__(self, "unit", "matrix")

    def per_group(self) -> Per:
        return self.per

    def gain(self) -> float:
        return ENLARGED

    def mix(self, gram: Floats, weights: Floats) -> Floats:
        first, second = points(2, self.space)
        a, b, excess = between(gram, first, second, weights[1] / weights.sum())
        if self.space == "deltas":
            excess = np.zeros_like(a)
        return np.stack([excess, a, b], axis=-1)
