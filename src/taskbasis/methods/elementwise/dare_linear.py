"""DARE: drop entries at random, scale up the rest, and sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import check_word
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, PerVector, State, per_vector
from taskbasis.methods.cutoff import check_density
from taskbasis.methods.electing import Variant
from taskbasis.methods.trimming import (
    UNBOUNDED,
    coefficients,
    drop,
    key,
    multiplied,
    norms,
    restoring,
    smallest,
    total,
)


@dataclass(frozen=True)
class DareLinear(Method):
    """Drop and rescale: ``merged = sum_t m_t * w_t tau_t / density``, m_t 1 with chance density.

    Every entry of every vector is kept by a draw of its own, with the chance ``density``; the
    paper's drop rate p is 1 - density (for fine-tuned language models, whose deltas are tiny, it
    drops 0.9 and more). With ``rescale`` what is kept is scaled up again, by ``variant``:

    - ``paper`` and ``peft``: divided by the density, so that each vector keeps its expected value;
    - ``mergekit``: so that each tensor of each vector keeps its sum of magnitudes. That is about
      1 / density for large tensors, but says nothing of single entries of small ones.

    With ``normalize`` the sum is divided by ``sum_t |w_t|``. At density 1 the method is task
    arithmetic, bit for bit.

    Draws are a function of the seed, the vector's name, the tensor's name and the entry's position
    in it, so the result depends neither on the order of the vectors nor on cuts and workers. A
    sparser draw of the same seed is part of a denser one.

    Source: Yu et al., Language Models are Super Mario, ICML 2024; mergekit 0.1.5 and PEFT 0.21.2
    as they compute.

    Raises:
        UsageError: a density is not in (0, 1], or a word is unknown.

    >>> DareLinear(density=0.5).apply(Chunk(np.ones((1, 8), np.float32), tensor="w"), ())
    array([0., 0., 0., 0., 0., 0., 2., 0.], dtype=float32)
    """

    name: ClassVar[str] = "dare_linear"
    formula: ClassVar[str] = "sum_t m_t * w_t tau_t / density, m_t ~ Bernoulli(density)"
    source: ClassVar[str] = "Yu et al., Language Models are Super Mario, ICML 2024"
    when: ClassVar[str] = "Fine-tunes of language models, whose small deltas are redundant."
    float_sums: ClassVar[bool] = True
    density: PerVector = 0.5
    rescale: bool = True
    seed: int = 0
    variant: Variant = "paper"
    normalize: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        check_word("variant", self.variant, Variant)

    @property
    def _restores(self) -> bool:
        """Whether sums of magnitudes are restored."""
        return self.rescale and self.variant == "mergekit" and smallest(self.density) < 1

    def gain(self) -> float:
        if self._restores:
            return UNBOUNDED
        return 1 / smallest(self.density) if self.rescale else 1.0

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if smallest(self.density) < 1:
            return None
        return coefficients(weights, self.normalize)

    def stages(self) -> tuple[Granularity, ...]:
        return ("tensor",) if self._restores else ()

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        whole = norms(chunk.deltas)
        return np.stack([whole, norms(self._kept(chunk))])

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        return restoring(*total)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        rows = self._kept(chunk)
        if self._restores:
            multiplied(rows, state[0])
        elif self.rescale:
            for row, density in zip(rows, self._densities(chunk), strict=True):
                row /= rows.dtype.type(density)
        return self._combined(rows, chunk.vector_weights())

    def _densities(self, chunk: Chunk) -> list[float]:
        found: list[float] = per_vector(self.density, len(chunk.deltas), "density").tolist()
        return found

    def _kept(self, chunk: Chunk) -> NDArray[Any]:
        """The deltas [T, n], overwritten: 0 where they are dropped."""
        names = chunk.vector_names()
        for row, name, density in zip(chunk.deltas, names, self._densities(chunk), strict=True):
            if density < 1:
                drop(row, key(self.name, self.seed, name, chunk.tensor), chunk.start, density)
        return chunk.deltas

    def _combined(self, rows: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
        return total(rows, weights, self.normalize)
