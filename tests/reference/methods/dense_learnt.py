"""Fisher, RegMean, LOT and STA on whole arrays, straight from their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method
from taskbasis.methods.cutoff import Normalizer, count_rounded
from taskbasis.methods.learnt.fisher import Fisher
from taskbasis.methods.learnt.lot import Lot
from taskbasis.methods.learnt.regmean import RegMean
from taskbasis.methods.learnt.sta import Sta
from taskbasis.testing import Trial

Array = NDArray[Any]


def rounded(scores: Array) -> Array:
    """To 8 significant bits, as scores are before they are summed."""
    mantissa, exponent = np.frexp(scores.astype(np.float64))
    found = np.floor(mantissa * 256 + 0.5) / 256 * 2.0**exponent
    return np.where(scores < 2.0**-126, scores, found)


def fisher(of: Fisher, trial: Trial) -> Array:
    assert trial.scores is not None
    total, weight = np.zeros(trial.length), np.zeros(trial.length)
    for tau, scores in zip(trial.vectors, trial.scores.astype(np.float64), strict=True):
        size = 1.0
        if of.normalize == "mean" and scores.size:
            size = float(np.mean(rounded(scores)))
        elif of.normalize == "norm":
            size = float(np.linalg.norm(rounded(scores)))
        total += scores / (size or 1.0) * tau
        weight += scores / (size or 1.0)
    plain = trial.vectors.mean(axis=0)
    found: Array = np.where(weight > 0, total / np.where(weight > 0, weight, 1), plain)
    return found


def regression(trial: Trial, shrunk: float, lost: str) -> Array:
    """The least squares of linear layers; what no input determines is the mean, or the base's."""
    mean = trial.vectors.mean(axis=0)
    if any(moment is None for moment in trial.moments) or not trial.moments:
        return mean
    moments = [moment for moment in trial.moments if moment is not None]
    if moments[0].values.ndim == 1:
        if lost == "base" and len(trial.whole_shape) > 1:
            return mean
        width = int(np.prod(trial.whole_shape[1:]))
        weights = [np.repeat(m.values.astype(np.float64), width) for m in moments]
        total = np.sum(weights, axis=0)
        weighted = np.sum([w * tau for w, tau in zip(weights, trial.vectors, strict=True)], axis=0)
        found: Array = np.where(total > 0, weighted / np.where(total > 0, total, 1), mean)
        return found
    transposed = moments[0].transposed
    shape = trial.whole_shape
    matrices = [row.reshape(shape).T if transposed else row.reshape(shape) for row in trial.vectors]
    grams = [m.values.astype(np.float64) for m in moments]
    kept = [shrunk * G + (1 - shrunk) * np.diag(np.diag(G)) for G in grams]
    total = np.sum(kept, axis=0)
    # Of all minima RegMean takes the shortest in inputs of unit size, LOT the shortest as they are.
    sizes = np.sqrt(np.diag(total)) if lost == "mean" else np.ones(len(total))
    unit = np.where(sizes > 0, 1 / np.where(sizes > 0, sizes, 1), 0)
    scaled = total * unit * unit[:, None]
    cut = len(total) * 2.0**-23
    inverse = np.linalg.pinv(scaled, rcond=cut, hermitian=True) * unit * unit[:, None]
    centre = np.mean(matrices, axis=0) if lost == "mean" else np.zeros_like(matrices[0])
    drift = np.sum([(W - centre) @ G for W, G in zip(matrices, kept, strict=True)], axis=0)
    merged = centre + drift @ inverse
    return np.ravel(merged.T if transposed else merged)


def regmean(of: RegMean, trial: Trial) -> Array:
    return regression(trial, of.off_diagonal, "mean")


def lot(of: Lot, trial: Trial) -> Array:
    return regression(trial, 1.0, "base")


def sta(of: Sta, trial: Trial) -> Array:
    magnitudes = np.abs(trial.vectors).astype(np.float32)
    scores = magnitudes if trial.scores is None else trial.scores
    comparable = np.stack(
        [Normalizer(count_rounded(row[None])[0], of.normalize)(row) for row in scores]
    ).astype(np.float64)
    across = of.scope != "tensor" and of.density < 1
    compared = across or of.threshold > 0 or of.disjoint()
    ranked = (comparable if compared else scores).astype(np.float32)
    if of.effect:
        ranked = (ranked * np.abs(trial.vectors)).astype(np.float32)
    kept = np.ones(scores.shape, bool)
    if of.density < 1 and trial.length:
        k = max(1, int(of.density * trial.length))
        cutoff = np.sort(ranked, axis=1)[:, -k][:, None]
        kept &= (ranked >= cutoff) & (ranked > 0)
    kept &= comparable >= of.threshold
    if of.disjoint():
        for j in range(trial.length):
            best = max((ranked[t, j] for t in range(len(kept)) if kept[t, j]), default=None)
            owner = next((t for t in range(len(kept)) if kept[t, j] and ranked[t, j] == best), None)
            kept[:, j] = [t == owner for t in range(len(kept))]
    merged: Array = np.where(kept, trial.vectors, 0).sum(axis=0)
    return merged


DENSE: dict[str, Callable[[Any, Trial], Array]] = {
    "fisher": fisher,
    "regmean": regmean,
    "lot": lot,
    "sta": sta,
}

OPTIONS: list[Method] = [
    Fisher("mean"),
    Fisher("norm", "model"),
    Fisher("mean", "layer"),
    RegMean(0.0),
    RegMean(1.0),
    Sta(density=1.0),
    Sta(density=0.003, scope="model", normalize="max", exclusive=False),
    Sta(density=1.0, threshold=0.7),
    Sta(density=0.2, scope="model", effect=True, exclusive=False),
    Sta(density=0.5, normalize="rank", exclusive=True),
    Sta(density=0.6, scope="layer", exclusive=False),
]

TOLERANCE = {"regmean": 1e-4, "lot": 1e-4}
