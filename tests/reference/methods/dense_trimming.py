"""The trimming family as plain loops over whole tensors: sorts, and one entry at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method, method
from taskbasis.methods.noise import draws
from taskbasis.testing import Trial

Array = NDArray[Any]


def weights_of(trial: Trial) -> list[float]:
    return list(trial.weights) or [1.0] * len(trial.vectors)


def rows_of(trial: Trial) -> list[Array]:
    """The vectors as matrices: the first axis, and the rest; others are one row."""
    shape = trial.shape or (trial.length,)
    rows = shape[0] if len(shape) > 1 else 1
    return [np.array(v, np.float64).reshape(rows, -1) if v.size else v[None] for v in trial.vectors]


def summed(of: Any, kept: list[Array], trial: Trial) -> Array:
    total = sum((row.reshape(-1) for row in kept), np.zeros(trial.length))
    return total / sum(abs(w) for w in weights_of(trial)) if of.normalize else total


def elected(of: Any, kept: list[Array], trial: Trial) -> Array:
    """Entry by entry: who votes, which sign wins, and what those who agree come to."""
    weights, out = weights_of(trial), np.zeros(trial.length)
    flat = [row.reshape(-1) for row in kept]
    for i in range(trial.length):
        values = [float(row[i]) for row in flat]
        ballots = [v / w for v, w in zip(values, weights, strict=True)]
        if of.variant != "peft":
            ballots = values
        if of.vote == "frequency":
            ballots = [float(np.sign(b)) for b in ballots]
        vote = sum(ballots)
        if abs(vote) < 1e-12 * sum(map(abs, ballots)):
            vote = 0.0
        sign = np.sign(vote) if vote or of.variant == "paper" else 1.0
        agreeing = [
            (v, w)
            for v, w in zip(values, weights, strict=True)
            if v and np.sign(v / w if of.variant == "peft" else v) == sign
        ]
        if not agreeing or not sign:
            continue
        divisor = float(len(agreeing))
        if of.variant == "mergekit":
            divisor = sum(abs(w) for _, w in agreeing)
        out[i] = sum(v for v, _ in agreeing) / (divisor if of.normalize else 1.0)
    return out


def trimmed(of: Any, trial: Trial) -> list[Array]:
    """Every entry as large as the k-th largest, as float32 tells them apart."""
    kept = []
    for vector in trial.vectors:
        magnitudes = np.abs(vector).astype(np.float32)
        k = int(of.density * len(vector))
        if of.variant != "peft":
            k = max(1, k)
        cutoff = np.sort(magnitudes)[::-1][k - 1] if k and len(vector) else np.inf
        kept.append(np.where(magnitudes >= cutoff, vector, 0.0))
    return kept


def dropped(of: Any, trial: Trial, chances: list[Array]) -> list[Array]:
    """What stays by chance, scaled up again."""
    names, kept = trial.names or [str(t) for t in range(len(chances))], []
    for vector, name, chance in zip(trial.vectors, names, chances, strict=True):
        key = f"{of.name}/{of.seed}/{name}/{trial.tensor}"
        stays = draws(key, 0, trial.length) / 2.0**32 < chance.reshape(-1)
        row = np.where(stays, vector, 0.0)
        if of.rescale and of.variant == "mergekit":
            norm = np.abs(row).sum()
            row = row * np.abs(vector).sum() / norm if norm else row
        elif of.rescale:
            row = row / chance.reshape(-1)
        kept.append(row)
    return kept


def by_density(of: Any, trial: Trial) -> list[Array]:
    return dropped(of, trial, [np.full(trial.length, of.density) for _ in trial.vectors])


def by_rank(of: Any, trial: Trial) -> list[Array]:
    """Chances from density - epsilon to density + epsilon by how many in the row are smaller."""
    chances = []
    for matrix in rows_of(trial):
        chance = np.full(matrix.shape, float(of.density))
        for r, row in enumerate(np.abs(matrix).astype(np.float32)):
            for c, x in enumerate(row):
                if len(row) > 1 and of.density < 1:
                    place = np.sum(row < x) + (np.sum(row == x) - 1) / 2
                    chance[r, c] += of.epsilon * (2 * place / (len(row) - 1) - 1)
        chances.append(chance)
    return dropped(of, trial, chances)


def between(of: Any, trial: Trial) -> list[Array]:
    """Neither the largest nor the smallest of a tensor, or of its rows."""
    kept = []
    for matrix in rows_of(trial):
        rows = matrix if of.rows else matrix.reshape(1, -1)
        out = np.zeros(rows.shape)
        for r, row in enumerate(rows):
            magnitudes = np.abs(row) if of.rows else np.abs(row).astype(np.float32)
            n = len(row)
            number = max(1, int(of.density * n))
            removed = max(0, min(int(of.gamma * n), n - number))
            ordered = np.sort(magnitudes)[::-1]
            ends = ordered[removed : removed + number]
            for c, x in enumerate(row):
                out[r, c] = x if ends[-1] <= magnitudes[c] <= ends[0] else 0.0
        kept.append(out)
    return kept


Half = Callable[[Any, Trial], list[Array]]


def dense(keep: Half, combine: Callable[[Any, list[Array], Trial], Array]) -> Any:
    return lambda of, trial: combine(of, keep(of, trial), trial)


DENSE: dict[str, Callable[[Method, Trial], Array]] = {
    "task_arithmetic": dense(lambda of, trial: list(trial.vectors), summed),
    "ties": dense(trimmed, elected),
    "dare_linear": dense(by_density, summed),
    "dare_ties": dense(by_density, elected),
    "della_linear": dense(by_rank, summed),
    "della": dense(by_rank, elected),
    "breadcrumbs": dense(between, summed),
    "breadcrumbs_ties": dense(between, elected),
}

OPTIONS: list[Method] = [
    method("task_arithmetic", normalize=True),
    method("ties", density=1.0),
    method("ties", density=0.003),
    method("ties", density=0.5, variant="mergekit"),
    method("ties", density=1.0, variant="mergekit", normalize=False),
    method("ties", density=0.5, variant="peft"),
    method("ties", density=0.003, variant="peft"),
    method("ties", density=1.0, variant="peft", vote="frequency"),
    method("ties", density=0.5, vote="frequency", normalize=False),
    method("dare_linear", density=1.0),
    method("dare_linear", density=1.0, normalize=True, rescale=False),
    method("dare_linear", density=0.01),
    method("dare_linear", rescale=False, seed=7),
    method("dare_linear", variant="mergekit", density=0.3),
    method("dare_linear", variant="peft", normalize=True),
    method("dare_ties", density=0.3, seed=1),
    method("dare_ties", density=1.0),
    method("dare_ties", variant="mergekit"),
    method("dare_ties", variant="mergekit", normalize=False, rescale=False),
    method("dare_ties", variant="peft", vote="frequency"),
    method("della_linear", density=1.0),
    method("della_linear", density=0.5, epsilon=0.3, seed=3),
    method("della_linear", variant="mergekit", normalize=True),
    method("della_linear", rescale=False, epsilon=0.0),
    method("della", density=0.5, epsilon=0.3, seed=3),
    method("della", variant="mergekit"),
    method("della", rescale=False, normalize=False, vote="frequency"),
    method("breadcrumbs", density=0.9, gamma=0.05),
    method("breadcrumbs", density=1.0, normalize=True),
    method("breadcrumbs", density=0.8, gamma=0.5),
    method("breadcrumbs", density=0.3, gamma=0.2, rows=True),
    method("breadcrumbs_ties", density=0.5, gamma=0.1),
    method("breadcrumbs_ties", density=0.5, variant="mergekit", normalize=False),
    method("breadcrumbs_ties", density=0.5, variant="mergekit"),
    method("breadcrumbs_ties", density=0.9, variant="peft", vote="frequency", rows=True),
]
