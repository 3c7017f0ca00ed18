"""References for methods of masks, competition and changed entries: loops over whole vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method
from taskbasis.methods.elementwise.consensus import Consensus
from taskbasis.methods.elementwise.emr import Emr
from taskbasis.methods.elementwise.pcb import Pcb
from taskbasis.methods.elementwise.ram import Ram
from taskbasis.methods.elementwise.ramplus_tl import RamPlus
from taskbasis.methods.elementwise.sce import Sce
from taskbasis.methods.elementwise.tall import Tall
from taskbasis.testing import Trial

Matrix = NDArray[Any]


def column_sums(V: Matrix) -> list[float]:
    return [math.fsum(column) for column in V.T]


def tall_mask(V: Matrix, lam: float) -> Matrix:
    mask = np.zeros(V.shape, bool)
    for j, total in enumerate(column_sums(V)):
        for t in range(len(V)):
            mask[t, j] = abs(V[t, j]) > lam * abs(total - V[t, j])
    return mask


def dense_tall(of: Any, trial: Trial) -> Matrix:
    total = np.array(column_sums(trial.vectors))
    if of.task == 0:
        return total
    return total * tall_mask(trial.vectors, of.lam)[of.task - 1]


def dense_consensus(of: Any, trial: Trial) -> Matrix:
    mask = tall_mask(trial.vectors, of.lam)
    needed = min(of.agree, len(mask))
    total = column_sums(trial.vectors)
    return np.array([s if sum(m) >= needed else 0.0 for s, m in zip(total, mask.T, strict=True)])


def dense_emr(of: Any, trial: Trial) -> Matrix:
    V = trial.vectors
    unified = np.zeros(V.shape[1])
    for j, total in enumerate(column_sums(V)):
        agreeing = [v for v in V[:, j] if v * total > 0]
        unified[j] = max(agreeing, key=abs, default=0.0)
    if of.task == 0:
        return unified
    own = V[of.task - 1]
    kept = np.where(own * unified > 0, unified, 0)
    if not np.any(kept):
        return kept
    return kept * np.mean(np.abs(own)) / np.mean(np.abs(kept))


def dense_magmax(of: Method, trial: Trial) -> Matrix:
    out = []
    for column in trial.vectors.T:
        best = column[0]
        for value in column[1:]:
            best = value if abs(value) >= abs(best) else best
        out.append(best)
    return np.array(out)


def dense_ram(of: Any, trial: Trial) -> Matrix:
    return ram(trial, of.epsilon, [1.0] * len(trial.vectors))


def dense_ramplus(of: Any, trial: Trial) -> Matrix:
    changed = changes(trial, of.epsilon)
    scales = []
    for t in range(len(changed)):
        shared = sum(changed[t, j] and sum(changed[:, j]) > 1 for j in range(trial.length))
        unique = sum(changed[t, j] and sum(changed[:, j]) == 1 for j in range(trial.length))
        rho = shared / unique if unique else 0.0
        scales.append(1 + of.r * min(rho, of.alpha))
    return ram(trial, of.epsilon, scales)


def changes(trial: Trial, epsilon: float) -> Matrix:
    weights = trial.weights or (1.0,) * len(trial.vectors)
    rows = [np.abs(v / w) > epsilon for v, w in zip(trial.vectors, weights, strict=True)]
    return np.array(rows)


def ram(trial: Trial, epsilon: float, unique_scales: list[float]) -> Matrix:
    V, changed = trial.vectors, changes(trial, epsilon)
    out = np.zeros(trial.length)
    for j in range(trial.length):
        who = [t for t in range(len(V)) if changed[t, j]]
        if len(who) == 1:
            out[j] = unique_scales[who[0]] * V[who[0], j]
        elif who:
            out[j] = sum(V[t, j] for t in who) / len(who)
    return out


def dense_sce(of: Any, trial: Trial) -> Matrix:
    V = np.array(trial.vectors, np.float64)
    if of.select_topk < 1 and V.size:
        variance = np.var(V, axis=0)
        variance[[len(set(column)) == 1 for column in V.T]] = 0
        varying = np.sort(variance[variance > 0])[::-1]
        if len(varying):
            least = varying[max(1, int(of.select_topk * len(varying))) - 1]
            V[:, variance < least * (1 - 1e-9)] = 0
    weights = np.array([np.mean(row**2) if row.size else 0 for row in V])
    out = np.zeros(trial.length)
    for j, total in enumerate(column_sums(V)):
        agreeing = [t for t in range(len(V)) if V[t, j] * total > 0]
        if agreeing:
            out[j] = np.average(V[agreeing, j], weights=weights[agreeing])
    return out


def dense_pcb(of: Any, trial: Trial) -> Matrix:
    V = trial.vectors
    T, d = V.shape
    if d == 0:
        return np.zeros(0)
    total, outer = np.array(column_sums(V)), int(of.clip * d)
    cut, shares = np.zeros((T, d)), np.zeros((T, d))
    for t in range(T):
        sizes = np.sort(np.abs(V[t]))
        low, high = sizes[outer], sizes[d - 1 - outer]
        within = np.clip(np.abs(V[t]), low, high)
        norm = (within - low) / (high - low) if high > low else np.zeros(d)
        score = np.maximum(np.exp(T * norm**2) * np.tanh(V[t] * total), 0)
        descending = np.sort(score)[::-1]
        k = max(1, int(of.density * d))
        first, dropped = descending[0], descending[k] if k < d else 0.0
        if first > dropped:
            shares[t] = np.maximum(score - dropped, 0) / (first - dropped)
        else:
            shares[t] = (score >= dropped) & (score > 0)
        shares[t][np.abs(score - dropped) < 1e-6 * dropped] = first == dropped
        cut[t] = np.sign(V[t]) * np.minimum(np.abs(V[t]), high)
    weight = shares.sum(axis=0)
    return np.where(weight > 0, (shares * cut).sum(axis=0) / np.where(weight > 0, weight, 1), 0)


DENSE: dict[str, Callable[[Any, Trial], Matrix]] = {
    "tall": dense_tall,
    "consensus": dense_consensus,
    "emr": dense_emr,
    "pcb": dense_pcb,
    "magmax": dense_magmax,
    "sce": dense_sce,
    "ram": dense_ram,
    "ramplus_tl": dense_ramplus,
}

OPTIONS: list[Method] = [
    Tall(task=1),
    Tall(lam=1.0, task=1),
    Tall(lam=0.0, task=1),
    Consensus(agree=1),
    Consensus(agree=0),
    Consensus(lam=0.2, agree=3),
    Consensus(lam=1.5, agree=9),
    Emr(task=1),
    Pcb(density=0.5),
    Pcb(density=1.0, clip=0.0),
    Pcb(density=0.3, clip=0.05),
    Sce(select_topk=0.5),
    Sce(select_topk=0.01),
    Ram(epsilon=0.2),
    Ram(epsilon=0.0),
    RamPlus(epsilon=0.3),
    RamPlus(r=1.0, epsilon=0.5),
    RamPlus(alpha=2.0, epsilon=0.5, scope="model"),
    RamPlus(r=0.0, alpha=0.0, scope="layer"),
]
