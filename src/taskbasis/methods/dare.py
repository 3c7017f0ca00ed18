"""DARE: drop entries at random, scale up the rest, and sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis.methods.base import Chunk, Method, State
from taskbasis.methods.cutoff import check_density

_BLOCK = 1 << 14
_DRAWS = 1 << 32


@dataclass(frozen=True)
class Dare(Method):
    """Drop and rescale: ``merged = sum_t m_t * tau_t / density``, m_t 1 with chance ``density``.

    Every entry of every vector is kept by a draw of its own, with the chance ``density``; the
    paper's drop rate p is 1 - density (for fine-tuned language models, whose deltas are tiny, it
    drops 0.9 and more). With ``rescale`` what is kept is divided by the density, so that each
    vector keeps its expected value; at density 1 the method is task arithmetic, bit for bit.

    Draws are a function of the seed, the vector's place in the list, the tensor's name and the
    entry's position in it, so the result depends neither on cuts nor on workers. The order of the
    vectors matters: each place in the list draws its own entries.

    Source: Yu et al., Language Models are Super Mario, ICML 2024.

    Raises:
        UsageError: the density is not in (0, 1].

    >>> Dare(density=0.5).apply(Chunk(np.ones((1, 8), np.float32), tensor="w"), ())
    array([2., 0., 0., 0., 2., 0., 0., 0.], dtype=float32)
    """

    name: ClassVar[str] = "dare"
    density: float = 0.5
    rescale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)

    def weights(self, count: int) -> NDArray[Any] | None:
        return np.ones(count) if self.density == 1 else None

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        total = np.zeros(deltas.shape[1], deltas.dtype)
        for number, row in enumerate(deltas):
            key = f"dare/{self.seed}/{number}/{chunk.tensor}"
            row[~drawn(key, self.density, chunk.start, row.size)] = 0
            total += row
        return total / deltas.dtype.type(self.density) if self.rescale else total


def drawn(key: str, density: float, start: int, count: int) -> NDArray[np.bool_]:
    """Whether each of ``count`` entries from ``start`` on is kept: a function of key and position.

    The raw bits of Philox, which NumPy guarantees for ever, 32 for each entry.
    """
    below = max(round(density * _DRAWS), 1)
    word = xxhash.xxh3_128_intdigest(key.encode())
    out = np.empty(count, np.bool_)
    for block in range(start // _BLOCK, -(-(start + count) // _BLOCK)):
        raw = np.random.Philox(key=word, counter=[0, block, 0, 0]).random_raw(_BLOCK // 2)
        kept = raw.astype("<u8").view("<u4") < below
        low, high = max(block * _BLOCK, start), min((block + 1) * _BLOCK, start + count)
        out[low - start : high - start] = kept[low - block * _BLOCK : high - block * _BLOCK]
    return out
