"""Means and great circles of whole models, straight from the formulas, point by point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method, parse_method
from taskbasis.methods.averaging.arcee_fusion import ArceeFusion
from taskbasis.methods.averaging.karcher import Karcher
from taskbasis.methods.averaging.linear import Linear
from taskbasis.methods.averaging.lines import Lines
from taskbasis.methods.averaging.model_stock import ModelStock
from taskbasis.methods.averaging.multislerp import MultiSlerp
from taskbasis.methods.averaging.nan import Nan
from taskbasis.methods.averaging.nearswap import NearSwap
from taskbasis.methods.averaging.nuslerp import NuSlerp
from taskbasis.methods.averaging.passthrough import Passthrough
from taskbasis.methods.averaging.slerp import Slerp
from taskbasis.testing import Trial

Vector = NDArray[Any]


def base_of(trial: Trial) -> Vector:
    return np.zeros(trial.length) if trial.base is None else trial.base.astype(np.float64)


def vectors_of(trial: Trial) -> Vector:
    return trial.vectors.astype(np.float64)


def weights_of(trial: Trial) -> Vector:
    return np.array(trial.weights or [1.0] * len(trial.vectors))


def turned(trial: Trial) -> Vector:
    """The vectors without their weights' sizes, but with the signs."""
    return np.array([v / abs(w) for v, w in zip(vectors_of(trial), weights_of(trial), strict=True)])


def groups(trial: Trial, per: str) -> Iterator[Vector]:
    """The numbers of the entries that are one point."""
    places = np.arange(trial.length)
    if per == "tensor" or len(trial.whole_shape) < 2:
        yield places
    elif trial.length:
        rows = places.reshape(trial.whole_shape[0], -1)
        yield from rows if per == "row" else rows.T


def dense_average(of: Any, trial: Trial) -> Vector:
    return vectors_of(trial).mean(axis=0)


def dense_linear(of: Any, trial: Trial) -> Vector:
    weights, base = weights_of(trial), base_of(trial)
    if of.normalize:
        return vectors_of(trial).sum(axis=0) / np.abs(weights).sum()
    models = base + vectors_of(trial) / weights[:, None]
    return np.asarray(weights @ models - base)


def arc(a: Vector, b: Vector, t: float, threshold: float = 1.0) -> Vector:
    """The point at t of the great circle from a to b, neither of them normalised."""
    if t in (0, 1):
        return b if t else a
    size = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = np.clip(a @ b / size, -1, 1) if size > 0 else 1.0
    angle = np.arccos(cosine)
    if cosine < -0.9995 or cosine > threshold or np.sin(angle) == 0:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def dense_slerp(of: Any, trial: Trial) -> Vector:
    base = base_of(trial)
    models = [base, *(base + vectors_of(trial))]
    return arc(models[-2], models[-1], of.t, of.threshold) - base


def dense_nuslerp(of: Any, trial: Trial) -> Vector:
    origin = base_of(trial) * (of.space == "weights")
    first, second = origin + turned(trial)
    one, two = np.abs(weights_of(trial))
    found = np.zeros(trial.length)
    for places in groups(trial, of.per):
        found[places] = arc(first[places], second[places], two / (one + two))
    return found - origin


def unit(vector: Vector) -> Vector:
    size = np.linalg.norm(vector)
    return vector / size if size > 0 else vector


def dense_multislerp(of: Any, trial: Trial) -> Vector:
    """By the tangent plane at the mean direction, as it is defined."""
    origin = base_of(trial) * (of.space == "weights")
    vectors, shares = origin + turned(trial), np.abs(weights_of(trial))
    shares = shares / shares.sum()
    if len(vectors) == 1:
        return vectors[0] - origin
    units = np.array([unit(vector) for vector in vectors])
    mean = shares @ units
    if np.linalg.norm(mean) < 1e-8:
        return np.asarray(shares @ vectors) - origin
    mean = unit(mean)
    tangent = shares @ np.array([u - (u @ mean) * mean for u in units])
    far = np.linalg.norm(tangent)
    landed = np.cos(far) * mean + np.sin(far) * unit(tangent)
    return np.asarray((shares @ np.linalg.norm(vectors, axis=1)) * landed - origin)


def dense_karcher(of: Any, trial: Trial) -> Vector:
    base = base_of(trial)
    models, weights = base + turned(trial), np.abs(weights_of(trial))
    if len(models) == 1:
        return models[0] - base
    pairs = [(w, unit(m)) for w, m in zip(weights, models, strict=True) if np.any(m)]
    total = sum(w for w, _ in pairs)
    mean = sum((w / total * u for w, u in pairs), np.zeros(trial.length))
    if np.linalg.norm(mean) < of.tol:
        return np.asarray(weights @ models / weights.sum()) - base
    mean = unit(mean)
    for _ in range(of.max_iter):
        step = np.zeros(trial.length)
        for w, u in pairs:
            angle = 2 * np.arctan2(np.linalg.norm(u - mean), np.linalg.norm(u + mean))
            if np.sin(angle) > 1e-6:
                step += w / total * angle / np.sin(angle) * (u - np.cos(angle) * mean)
        far = np.linalg.norm(step)
        if far < of.tol:
            break
        mean = unit(np.cos(far) * mean + np.sin(far) * unit(step))
    size = weights @ np.linalg.norm(models, axis=1) / weights.sum()
    return size * mean - base


def dense_model_stock(of: Any, trial: Trial) -> Vector:
    vectors, found = vectors_of(trial), np.zeros(trial.length)
    count = len(vectors)
    for places in groups(trial, "row" if of.filter_wise else "tensor"):
        own, cosines = vectors[:, places], []
        for i in range(count):
            for j in range(i):
                size = np.linalg.norm(own[i]) * np.linalg.norm(own[j])
                cosines.append(own[i] @ own[j] / size if size > 0 else 0.0)
        cosine = max(sum(cosines) / len(cosines), 0.0) if cosines else 1.0
        t = count * cosine / (1 + (count - 1) * cosine)
        found[places] = t * own.sum(axis=0) / count
    return found


def dense_nearswap(of: Any, trial: Trial) -> Vector:
    delta = vectors_of(trial)[0]
    shares = [1.0 if x == 0 else min(of.t / abs(x), 1.0) for x in delta]
    return np.array(shares) * delta


def softmax(row: Vector) -> Vector:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def dense_arcee_fusion(of: Any, trial: Trial) -> Vector:
    if not trial.length:
        return np.zeros(0)
    base, delta = base_of(trial), vectors_of(trial)[0]
    tuned = base + delta * np.sign(weights_of(trial)[0])
    importance = np.zeros(trial.length)
    width = trial.whole_shape[-1]
    for low in range(0, trial.length, width):
        places = slice(low, low + width)
        p, q = softmax(tuned[places]) + 1e-8, softmax(base[places]) + 1e-8
        divergence = max(float(np.sum(p * np.log(p / q))), 0.0)
        importance[places] = np.abs(delta[places]) * divergence
    ranked = sorted(importance)
    lower, median, upper = (ranked[int(q * (trial.length - 1))] for q in (0.25, 0.5, 0.75))
    kept = importance >= median + 1.5 * (upper - lower)
    return np.where(kept, delta, 0)


def dense_passthrough(of: Any, trial: Trial) -> Vector:
    base = base_of(trial)
    return of.scale * (base + vectors_of(trial)[0]) - base


def dense_nan(of: Any, trial: Trial) -> Vector:
    base = base_of(trial)
    norms = [float(np.linalg.norm(base + vector)) for vector in vectors_of(trial)]
    inverse = [float(n == 0) if 0 in norms else 1 / n for n in norms]
    shares = [i / sum(inverse) for i in inverse]
    return sum((c * v for c, v in zip(shares, vectors_of(trial), strict=True)), 0 * base)


def dense_lines(of: Any, trial: Trial) -> Vector:
    """One tensor without a number in its name is all that a trial has."""
    merged = trial.merged(parse_method(of.inner)).astype(np.float64)
    if not of.by_norm:
        return np.asarray(of.alpha * merged)
    size = np.abs(merged).sum()
    mean = np.abs(vectors_of(trial).sum(axis=0)).sum() / len(trial.vectors)
    return np.asarray(of.alpha * merged * (mean / size if size > 0 else 1.0))


DENSE: dict[str, Callable[[Any, Trial], Vector]] = {
    "average": dense_average,
    "linear": dense_linear,
    "slerp": dense_slerp,
    "nuslerp": dense_nuslerp,
    "multislerp": dense_multislerp,
    "karcher": dense_karcher,
    "model_stock": dense_model_stock,
    "nearswap": dense_nearswap,
    "arcee_fusion": dense_arcee_fusion,
    "passthrough": dense_passthrough,
    "nan": dense_nan,
    "lines": dense_lines,
}

OPTIONS: list[Method] = [
    Linear(normalize=False),
    Slerp(t=0.0),
    Slerp(t=1.0),
    Slerp(t=0.3),
    Slerp(t=0.7, threshold=0.9995),
    Slerp(t=0.25, threshold=0.5),
    NuSlerp(space="weights"),
    NuSlerp(per="row"),
    NuSlerp(per="column"),
    NuSlerp(space="weights", per="row"),
    NuSlerp(space="weights", per="column"),
    MultiSlerp(space="weights"),
    Karcher(max_iter=0),
    Karcher(max_iter=2),
    Karcher(max_iter=50, tol=1e-12),
    ModelStock(filter_wise=True),
    NearSwap(t=0.5),
    NearSwap(t=10.0),
    ArceeFusion(),
    Passthrough(scale=0.5),
    Passthrough(scale=0.0),
    Nan(scope="layer"),
    Nan(scope="model"),
    Lines(alpha=0.5),
    Lines(beta=0.0),
    Lines(by_norm=False),
    Lines(alpha=0.2, beta=0.8, by_norm=False),
    Lines(inner="ties:density=0.3"),
    Lines(inner="ties", by_norm=False),
    Lines(inner="average"),
    Lines(inner="model_stock:filter_wise=true"),
    Lines(inner="slerp:t=0.3"),
    Lines(inner="lines:beta=1"),
    Lines(inner="sta:density=0.5", by_norm=False),
]
