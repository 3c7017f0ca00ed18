"""The Karcher mean: the point of the sphere nearest to all models, along its surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskbasis.errors import UsageError
from taskbasis.methods.mixing import Floats, Mixing, angle, directed, length, points

_APART = 1e-6
"""The least sine of an angle whose arc has a direction beyond rounding (angles near half a turn are
known to 1e-8)."""


@dataclass(frozen=True)
class Karcher(Mixing):
    """The Karcher (Riemannian) mean of the models' directions, at their mean length:
    ``theta = mean(|theta_t|) argmin_m sum_t |w_t| angle(m, theta_t)^2``, tensor by tensor.

    From the mean of the directions, ``max_iter`` steps at most: the mean of the arcs to all
    models, then that far along the sphere; no more once a step is shorter than ``tol``. For two
    models this is their ``slerp`` at t = 1/2, made as long as the mean length.

    - Weights are relative: only their sizes count, and a model of negative weight is base - tau.
      mergekit's method weighs all models alike.
    - One vector gives itself. Models that are 0 have no direction, but a length. Where the
      directions cancel, no mean is nearest, and the linear mean is taken; mergekit takes the
      first model's direction.
    - Only tuned models count. mergekit counts a base model that it is given as one more.
    - Lengths and angles come from differences of models; in float32, as mergekit takes them, the
      angles of fine-tuned models are below what an arc cosine resolves (3e-4).

    Source: arXiv 2603.04972, as mergekit 0.1.5 names it and computes it; the paper itself was not
    read. Karcher, Comm. Pure Appl. Math. 1977, for the mean.

    Raises:
        UsageError: ``max_iter`` is negative or ``tol`` is not above 0.

    >>> from taskbasis.testing import merged
    >>> models = np.array([[2.0, 0.0], [0.0, 4.0]])
    >>> merged(Karcher(), models - 1, base=np.ones(2)).round(2).tolist()
    [1.12, 1.12]
    """

    name: ClassVar[str] = "karcher"
    formula: ClassVar[str] = "mean(|theta_t|) argmin_m sum_t |w_t| angle(m, theta_t)^2"
    source: ClassVar[str] = "arXiv 2603.04972, at second hand (mergekit 0.1.5)"
    when: ClassVar[str] = "You mix several models that lie far apart on the sphere."
    signed: ClassVar[bool] = False
    relative: ClassVar[bool] = True
    max_iter: int = 10
    tol: float = 1e-5

    def __post_init__(self) -> None:
        if self.max_iter < 0:
            raise UsageError(f"{self.max_iter} steps cannot be taken; use max_iter of 0 or more")
        if not 0 < self.tol < np.inf:
            raise UsageError(f"a tol of {self.tol} never ends; use a small number above 0")

    def gain(self) -> float:
        return 3.0

    def mix(self, gram: Floats, weights: Floats) -> Floats:
        if len(weights) == 1:
            return np.array([0.0, 1.0])
        shares = weights / weights.sum()
        directions, sizes = directed(gram, points(len(weights)))
        pulls = np.where(sizes > 0, weights, 0.0)
        pulls /= max(pulls.sum(), np.finfo(np.float64).tiny)
        mean, size = directed(gram, pulls @ directions)
        if size < self.tol:
            return np.append(0.0, shares)
        for _ in range(self.max_iter):
            step = _step(gram, mean, directions, pulls)
            ahead, far = directed(gram, step)
            if far < self.tol:
                break
            mean, _ = directed(gram, np.cos(far) * mean + np.sin(far) * ahead)
        mean = mean * (shares @ sizes)
        mean[0] -= 1
        return np.asarray(mean)


def _step(gram: Floats, mean: Floats, directions: Floats, pulls: Floats) -> Floats:
    """The mean of the arcs from one point of the sphere to others, as a tangent there."""
    turns = angle(gram, mean, directions)
    sines = np.sin(turns)
    apart = sines > _APART  # an opposite model pulls nowhere, one that is met has no arc
    stretch = np.where(apart, turns / np.where(apart, sines, 1.0), 1.0)
    # direction - cos(turn) mean, without losing what is left of 1 - cos(turn)
    arcs = directions - mean + length(gram, directions - mean)[:, None] ** 2 / 2 * mean
    return np.asarray((pulls * stretch) @ arcs)
