"""References for the aggregators of one-shot federated learning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method
from taskbasis.methods.federated.cclip import CClip
from taskbasis.methods.federated.fedgma import FedGma
from taskbasis.methods.federated.fednova import FedNova
from taskbasis.methods.federated.median import Median
from taskbasis.testing import Trial

Matrix = NDArray[Any]


def dense_fednova(of: Any, trial: Trial) -> Matrix:
    T = len(trial.vectors)
    steps = list(of.steps) if isinstance(of.steps, tuple) else [of.steps] * T
    mean = sum(steps) / T
    out = np.zeros(trial.length)
    for row, own in zip(trial.vectors, steps, strict=True):
        out += (mean / own) * row / T
    return out


def dense_fedgma(of: Any, trial: Trial) -> Matrix:
    out = []
    for column in trial.vectors.T:
        signs = sum((v > 0) - (v < 0) for v in column.tolist())
        agreement = abs(signs) / len(column)
        out.append(math.fsum(column) * (1 if agreement >= of.rho else agreement))
    return np.array(out)


def dense_median(of: Any, trial: Trial) -> Matrix:
    kinds: dict[str, Callable[[list[float]], float]] = {
        "mean": statistics.median,
        "lower": statistics.median_low,
        "upper": statistics.median_high,
    }
    return np.array([kinds[of.middle](column.tolist()) for column in trial.vectors.T])


def dense_cclip(of: Any, trial: Trial) -> Matrix:
    norms = [math.hypot(*row.tolist()) for row in trial.vectors]
    rho = of.rho or statistics.median([norm for norm in norms if norm > 0] or [0.0])
    out = np.zeros(trial.length)
    for row, norm in zip(trial.vectors, norms, strict=True):
        out += row if norm <= rho else row * (rho / norm)
    return out


DENSE: dict[str, Callable[[Any, Trial], Matrix]] = {
    "fednova": dense_fednova,
    "fedgma": dense_fedgma,
    "median": dense_median,
    "cclip": dense_cclip,
}

OPTIONS: list[Method] = [
    FedNova(steps=250.0),
    FedGma(rho=0.0),
    FedGma(rho=0.3),
    FedGma(rho=1.0),
    Median("lower"),
    Median("upper"),
    CClip(rho=2.5),
    CClip(rho=1e-3),
]
