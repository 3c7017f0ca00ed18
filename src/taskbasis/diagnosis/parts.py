"""Norms, angles and conflicts of some tensors together: the model, a layer, a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis.disentangling import mean_cosine
from taskbasis.diagnosis.sums import Sums

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """What T vectors look like in some tensors. All numbers are of exact sums, not of samples.

    Attributes:
        name: of the model, the layer or the tensor.
        entries: how many numbers it holds.
        base: the norm of the base there; None where no base was given.
        norms: per vector its norm.
        relative: per vector its norm over the base's; None without a base, or where it is 0.
        cosine: the mean over pairs of ``|cos|``; vectors that are zero there are left out.
        conflict: over all pairs, the share of entries whose signs differ among those where both
            vectors are not zero. Unrelated vectors have 0.5.
        weighted: the same with every entry counted by ``|a b|``: small ones hardly count.
        cancelled: what adding the vectors cancels, ``1 - sum |sum_t tau_t| / sum_t sum |tau_t|``.
    """

    name: str
    entries: int
    base: float | None
    norms: tuple[float, ...]
    relative: tuple[float, ...] | None
    cosine: float
    conflict: float
    weighted: float
    cancelled: float


def part(name: str, sums: Sums, with_base: bool) -> Part:
    """The numbers of some tensors from their sums."""
    norms = np.sqrt(np.diag(sums.gram))
    own, base = norms[:-1], float(norms[-1])
    pairs = np.triu_indices(len(own), 1)
    opposed = unlike_sizes(sums)
    length = float(sums.lengths[:-1].sum())
    return Part(
        name,
        sums.entries,
        base if with_base else None,
        _plain(own),
        _plain(own / base) if with_base and base > 0 else None,
        mean_cosine(sums.gram[:-1, :-1]),
        _share(sums.opposed[pairs].sum(), sums.both[pairs].sum()),
        _share(opposed[pairs].sum(), sums.sizes[pairs].sum()),
        max(1.0 - float(sums.lengths[-1]) / length, 0.0) if length > 0 else 0.0,
    )


def cosines(sums: Sums) -> tuple[tuple[float, ...], ...]:
    """[T, T] the cosines of the vectors; of a zero vector 0, and 1 with itself."""
    gram = sums.gram[:-1, :-1]
    norms = np.sqrt(np.diag(gram))
    lengths = np.outer(norms, norms)
    found = np.divide(gram, lengths, out=np.zeros_like(gram), where=lengths > 0)
    np.fill_diagonal(found, 1.0)
    return tuple(map(_plain, np.clip(found, -1.0, 1.0)))


def conflicts(sums: Sums) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """[T, T] twice: of every pair the share of unlike signs, counted and weighted."""
    counted = _shares(sums.opposed.astype(np.float64), sums.both.astype(np.float64))
    weighted = _shares(unlike_sizes(sums), sums.sizes)
    return tuple(map(_plain, counted)), tuple(map(_plain, weighted))


def unlike_sizes(sums: Sums) -> Matrix:
    """[T, T] sums of ``|a b|`` where signs differ: half of what ``sum a b`` falls short of."""
    return np.maximum(sums.sizes - sums.gram[:-1, :-1], 0.0) / 2


def _shares(some: Matrix, every: Matrix) -> Matrix:
    return np.divide(some, every, out=np.zeros_like(some), where=every > 0)


def _share(some: float, every: float) -> float:
    return float(some) / float(every) if every > 0 else 0.0


def _plain(row: Matrix) -> tuple[float, ...]:
    return tuple(float(value) for value in row)
