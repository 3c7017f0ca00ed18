"""Counting what a selection keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import counting


class Tally:
    """How many entries of T vectors are kept, together and of each norm.

    Attributes:
        size: how many entries there are.
        together: [T, T] how many entries two vectors both keep; of one, on the diagonal.
        kept, norms: [T] squared norms of what is kept and of all.
    """

    def __init__(self, count: int) -> None:
        self.size = 0
        self.together = np.zeros((count, count), np.int64)
        self.kept, self.norms = np.zeros(count), np.zeros(count)

    @staticmethod
    def count(
        deltas: NDArray[Any], kept: NDArray[np.bool_]
    ) -> tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """What one stretch adds."""
        together = np.zeros((len(kept), len(kept)), np.int64)
        for i, row in enumerate(kept):
            for j in range(i + 1):
                together[i, j] = together[j, i] = np.count_nonzero(row & kept[j])
        pairs = [counting.squares(*row) for row in zip(deltas, kept, strict=True)]
        inside, whole = np.array(pairs, np.float64).reshape(-1, 2).T
        return kept.shape[1], together, inside, whole

    def collect(
        self, note: tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
    ) -> None:
        """Add a stretch."""
        self.size += note[0]
        self.together += note[1]
        self.kept += note[2]
        self.norms += note[3]

    def kept_shares(self) -> Kept:
        """What was counted, as shares."""
        counts = np.diag(self.together)
        pairs = np.minimum(counts[:, None], counts[None])
        return Kept(
            counts / max(self.size, 1),
            self.together / np.maximum(pairs, 1),
            np.sqrt(self.kept / np.where(self.norms > 0, self.norms, 1)),
        )


@dataclass(frozen=True)
class Kept:
    """What a selection keeps of T vectors.

    Attributes:
        density: [T] the share of entries that is kept.
        overlap: [T, T] of the entries that the sparser of two vectors keeps, the share that the
            other keeps, too.
        norm: [T] the norm of what is kept over the norm of the vector; 0 for a zero vector.
    """

    density: NDArray[np.float64]
    overlap: NDArray[np.float64]
    norm: NDArray[np.float64]
