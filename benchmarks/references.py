"""Dense NumPy references: what a merge must be, tensor by tensor, by the formula and nothing else.

Differences are taken in float32 and multiplied by their weight there, as both programs do; all else
is float64. A whole tensor of every model is held at once, which the programs under test never do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from compare import Agreement, Tensor, compare_arrays, tensors
from numpy.typing import NDArray

from taskbasis.methods.noise import drawn
from taskbasis.methods.trimming import key
from taskbasis.scores import Importance

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Merge = Callable[[str, Floats, Singles], Floats]

SAMPLED_ABOVE = 150_000_000  # numbers of a model; beyond, a sample of its tensors is compared
LINEAR_ABOVE = 0.9995  # cosine beyond which slerp goes straight, as mergekit has it


@dataclass(frozen=True)
class Models:
    """A base and what was tuned from it, at a weight each."""

    base: Path
    tuned: Sequence[Path]
    weights: Sequence[float]

    @cached_property
    def tensors(self) -> tuple[Mapping[str, Tensor], ...]:
        """Of the base, then of each tuned model."""
        return tuple(map(tensors, (self.base, *self.tuned)))

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self.tensors[0])

    def load(self, name: str) -> tuple[Floats, Singles]:
        """The base [n] and the weighted deltas [T, n] of one tensor."""
        base, *tuned = (one[name].block(0, one[name].count) for one in self.tensors)
        origin = base.astype(np.float32)
        rows = np.empty((len(tuned), origin.size), np.float32)
        for row, one in zip(rows, tuned, strict=True):
            row[:] = one
        rows -= origin
        rows *= np.asarray(self.weights, np.float32)[:, None]
        return origin.astype(np.float64), rows

    def sample(self) -> list[str]:
        """The tensors that are compared: all of a small model; of a large one those of its first
        and last layer and those of no layer."""
        sizes = {name: one.count for name, one in self.tensors[0].items()}
        if sum(sizes.values()) <= SAMPLED_ABOVE:
            return self.names
        layers = {name: _layer(name) for name in sizes}
        last = max((layer for layer in layers.values() if layer is not None), default=0)
        return [name for name, layer in layers.items() if layer in (None, 0, last)]


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def compare_with(
    result: Path, models: Models, merge: Merge, parts_of: Callable[[str], Floats] | None = None
) -> Agreement:
    """How a checkpoint agrees with the base plus what ``merge(name, base, deltas)`` gives.

    One bf16 unit is one rounding. Where a result all but cancels, what float32 cannot hold of its
    parts may be more than a unit of it; that is allowed, too. ``parts_of`` gives the summed
    magnitudes of parts that are not deltas.
    """
    found, names = tensors(result), models.sample()
    parts = []
    for name in names:
        base, rows = models.load(name)
        slack = np.abs(base)
        for row in rows:
            slack += np.abs(row)
        exact = merge(name, base, rows)
        slack += np.abs(exact) if parts_of is None else parts_of(name)
        exact += base
        ours = found[name].block(0, found[name].count) if name in found else None
        parts.append(compare_arrays(name, ours, exact, slack * 2.0**-21))
    whole = sorted({*found} ^ {*models.names})
    return Agreement.together(parts, whole)


def _total(rows: Singles) -> Floats:
    return np.asarray(rows.sum(axis=0, dtype=np.float64))


def plain_sum(name: str, base: Floats, rows: Singles) -> Floats:
    """``sum_t w_t tau_t``; with weights that sum to 1 the mean of the models, less the base."""
    return _total(rows)


def kth_largest(sizes: Singles, density: float) -> np.float32:
    """The k-th largest of some magnitudes, k = max(1, floor(density n)).

    >>> float(kth_largest(np.array([3, 1, 2, 4], np.float32), 0.5))
    3.0
    """
    k = max(1, int(density * sizes.size))
    found: np.float32 = np.partition(sizes, sizes.size - k)[sizes.size - k]
    return found


def global_cutoffs(models: Models, density: float) -> list[np.float32]:
    """Of each vector the k-th largest magnitude of the whole model."""
    count = sum(one.count for one in models.tensors[0].values())
    found = []
    for place, weight in enumerate(models.weights):
        one = Models(models.base, models.tuned[place : place + 1], (weight,))
        sizes, at = np.empty(count, np.float32), 0
        for name in models.names:
            row = one.load(name)[1][0]
            np.abs(row, out=sizes[at : at + row.size])
            at += row.size
        k = max(1, int(density * count))
        sizes.partition(count - k)
        found.append(np.float32(sizes[count - k]))
    return found


def paper_ties(cutoffs: Sequence[np.float32]) -> Merge:
    """Entries below the model's cutoff are 0; the sum elects; those who agree are averaged."""

    def merge(name: str, base: Floats, rows: Singles) -> Floats:
        for row, cutoff in zip(rows, cutoffs, strict=True):
            row[np.abs(row) < cutoff] = 0
        sign = np.sign(rows.sum(axis=0, dtype=np.float64)).astype(np.float32)
        agree = rows * sign > 0
        return _divided(_kept_sum(rows, agree), agree.sum(axis=0))

    return merge


def mergekit_ties(density: float, weights: Sequence[float]) -> Merge:
    """Each tensor is trimmed alone, a vote of 0 is plus, means are by weight."""

    def merge(name: str, base: Floats, rows: Singles) -> Floats:
        for row in rows:
            row[np.abs(row) < kth_largest(np.abs(row), density)] = 0
        return _elected(rows, weights, normalize=True)

    return merge


def dare_ties(models: Models, density: float, seed: int = 0) -> Merge:
    """Draws are the library's own; what is kept is scaled to the sum of magnitudes before."""

    def merge(name: str, base: Floats, rows: Singles) -> Floats:
        for path, row in zip(models.tuned, rows, strict=True):
            before = np.abs(row).sum(dtype=np.float64)
            row *= drawn(key("dare_ties", seed, str(path), name), density, 0, row.size)
            after = np.abs(row).sum(dtype=np.float64)
            row *= np.float32(before / after if after > 0 else 1.0)
        return _elected(rows, models.weights, normalize=False)

    return merge


def _elected(rows: Singles, weights: Sequence[float], normalize: bool) -> Floats:
    sign = np.where(rows.sum(axis=0, dtype=np.float64) >= 0, 1, -1).astype(np.float32)
    agree = rows * sign > 0
    total = _kept_sum(rows, agree)
    return _divided(total, np.abs(weights) @ agree) if normalize else total


def _kept_sum(rows: Singles, kept: NDArray[np.bool_]) -> Floats:
    return _total(np.where(kept, rows, np.float32(0)))


def _divided(total: Floats, by: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(total, by, out=np.zeros_like(total), where=by > 0))


def slerp(t: float) -> Merge:
    """From the base to the one other model along the great circle, straight where it is short."""

    def merge(name: str, base: Floats, rows: Singles) -> Floats:
        other = base + rows[0]
        cosine = base @ other / math.sqrt((base @ base) * (other @ other))
        if abs(cosine) > LINEAR_ABOVE:
            return np.asarray(t * rows[0].astype(np.float64))
        angle = math.acos(cosine)
        a, b = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        return np.asarray(a * base + b * other - base)

    return merge


def model_stock(name: str, base: Floats, rows: Singles) -> Floats:
    """``t mean(tau)`` with ``t = N cos / (1 + (N - 1) cos)``, for two vectors; 0 below 0."""
    first, second = (row.astype(np.float64) for row in rows)
    cosine = first @ second / math.sqrt((first @ first) * (second @ second))
    cosine = max(cosine, 0.0)
    return np.asarray(2 * cosine / (1 + cosine) * (first + second) / 2)


def masked_sum(scores: Sequence[Path], density: float) -> Merge:
    """STA: of each tensor the entries of highest score; who scores higher for its size has them.

    Scores are divided by their tensor's mean, taken of scores rounded to 8 significant bits.
    """
    opened = [Importance.open(path) for path in scores]

    def merge(name: str, base: Floats, rows: Singles) -> Floats:
        best, winner = np.full(base.size, -1, np.float32), np.full(base.size, -1)
        for place, one in enumerate(opened):
            found = one.scores(name).reshape(-1)
            rounded = (found.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
            found = found * np.float32(1 / rounded.view(np.float32).mean(dtype=np.float64))
            found[found < kth_largest(found, density)] = -1
            better = (found > best) & (found > 0)
            best[better], winner[better] = found[better], place
        return sum(
            (
                np.where(winner == place, row, 0).astype(np.float64)
                for place, row in enumerate(rows)
            ),
            np.zeros(base.size),
        )

    return merge
