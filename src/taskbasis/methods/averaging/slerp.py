"""SLERP: along the great circle from one model to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskbasis.errors import UsageError
from taskbasis.methods.mixing import ENLARGED, Floats, Mixing, between, points


@dataclass(frozen=True)
class Slerp(Mixing):
    """Spherical linear interpolation of two models, tensor by tensor:
    ``theta = [sin((1-t) angle) theta_1 + sin(t angle) theta_2] / sin(angle)``.

    - One vector: from the base (t = 0) to the tuned model (t = 1).
    - Two vectors: from the first tuned model to the second, so their order matters.

    The angle is that of the flattened tensors. Lengths are not normalised: the result's length
    goes from one model's to the other's. A weight multiplies its vector: with -1 the model is
    base - tau. Where one of the two is 0, or they are opposite (cosine below -0.9995), the
    interpolation is linear; above that cosine the result may be up to 32 times longer than they.

    mergekit interpolates linearly also where the cosine is above 0.9995: wherever two models
    differ by less than about 3% of their length, as fine-tuned ones may throughout.
    ``threshold=0.9995`` does the same. The default, 1, takes the formula everywhere; at such
    cosines the two differ by less than 1.3e-4 of the weights. mergekit takes 90 degrees for the
    angle to a tensor that is 0, which multiplies the other one by ``sin(t pi/2)``.

    Source: Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985; for models as in
    mergekit 0.1.5.

    Raises:
        UsageError: ``t`` is not in [0, 1], or ``threshold`` not in (0, 1].

    >>> from taskbasis.testing import merged
    >>> merged(Slerp(t=0.5), np.array([[-3.0, 4.0]]), base=np.array([3.0, 0.0])).round(2).tolist()
    [-0.88, 2.83]
    """

    name: ClassVar[str] = "slerp"
    formula: ClassVar[str] = "[sin((1-t)a) theta_1 + sin(t a) theta_2] / sin(a), a their angle"
    source: ClassVar[str] = "Shoemake, SIGGRAPH 1985; for models as in mergekit 0.1.5"
    when: ClassVar[str] = "You mix two models and want neither to lose length."
    takes: ClassVar[tuple[int, int | None]] = (1, 2)
    signed: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    t: float = 0.5
    threshold: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise UsageError(f"t {self.t} is beyond the two models; use [0, 1]")
        if not 0 < self.threshold <= 1:
            raise UsageError(f"a cosine is never above {self.threshold} alone; use (0, 1]")

    def gain(self) -> float:
        return ENLARGED

    def mix(self, gram: Floats, weights: Floats) -> Floats:
        models = points(len(weights))
        base = np.eye(1 + len(weights))[0]
        first, second = (base, *models)[-2:]
        a, b, excess = between(gram, first, second, self.t, self.threshold)
        return np.asarray(a * (first - base) + b * (second - base) + excess * base)
