"""The optimised methods, straight from their objectives: slow, dense, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method, method
from taskbasis.testing import Trial

Dense = NDArray[np.float64]


def wudi(of: Any, trial: Trial) -> Dense:
    """Row by row a least squares with the ridge as equations, or the steps of Adam themselves."""
    vectors = trial.vectors.astype(np.float64)
    if len(trial.whole_shape) < 2 or vectors.size == 0:
        return np.asarray(vectors.mean(axis=0))
    outputs = trial.whole_shape[0]
    taus = [vector.reshape(outputs, -1) for vector in vectors]
    merge = least_squares if of.solver == "closed" else descent
    return np.asarray(merge(of, taus).reshape(-1))


def least_squares(of: Any, taus: list[Dense]) -> Dense:
    total, said = sum(taus), [tau for tau in taus if np.any(tau)]
    if not said:
        return np.zeros_like(taus[0])
    inputs = total.shape[1]
    held = np.sqrt(of.ridge * len(said)) * np.eye(inputs)
    stand_ins = [tau / np.linalg.norm(tau) for tau in said]
    left = np.concatenate([*stand_ins, held])
    right = [stand_in @ tau.T for stand_in, tau in zip(stand_ins, said, strict=True)]
    found = np.linalg.lstsq(left, np.concatenate([*right, held @ total.T]), rcond=None)[0]
    return np.asarray(found.T)


def descent(of: Any, taus: list[Dense]) -> Dense:
    merged = sum(taus)
    said = [tau for tau in taus if np.any(tau)]
    first, second = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, of.iterations + 1):
        gradient = np.zeros_like(merged)
        for tau in said:
            gradient += 2 * (merged - tau) @ tau.T @ tau / np.sum(tau**2)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        height, size = first / (1 - 0.9**step), np.sqrt(second / (1 - 0.999**step))
        merged = merged - of.rate * height / (size + 1e-8)
    return np.asarray(merged)


DENSE: dict[str, Callable[[Any, Trial], NDArray[Any]]] = {"wudi": wudi}

OPTIONS: list[Method] = [
    method("wudi", ridge=1e-6),
    method("wudi", ridge=1),
    method("wudi", solver="adam", iterations=0),
    method("wudi", solver="adam", iterations=30),
    method("wudi", solver="adam", iterations=20, rate=0.05),
]
