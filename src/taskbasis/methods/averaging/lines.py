"""LiNeS: scale what another method makes by depth, little in early layers, more in late ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods.base import Chunk, Method, State, summed
from taskbasis.methods.registry import parse_inner

_LAYERS = 1024
_UNBOUNDED = 1e12
_NEEDS = (
    "unit",
    "takes",
    "base",
    "scores",
    "moments",
    "factors",
    "identity",
    "double",
    "signed",
    "keeps_base",
    "ordered",
    "float_sums",
)


@dataclass(frozen=True)
class Lines(Method):
    """Another method's delta, scaled by layer:
    ``merged = (alpha r + beta l / (L - 1)) inner(tau)`` for layer l of L.

    - ``inner`` is another method and its options in one text, as ``ties:density=0.3``. Semicolons
      part its options where commas part ours: ``lines:inner=sta:density=0.5;scope=layer,beta=1``.
    - With ``by_norm``, ``r = (||sum_t tau_t||_1 / ||inner(tau)||_1) / T`` over the whole model:
      the size of the mean vector, whatever the inner method does to it; 1/T for
      ``task_arithmetic``. Otherwise r = 1. L1 norms are as in the released code.
    - l is the first number in a tensor's dotted name, and L the largest of all plus 1. Other
      tensors (embeddings, heads) get ``alpha r``, as does everything where L is 1. Towers of
      different depth share one L. The released code matches the smallest number in a name
      instead, which is another only where there are two (the experts of a layer).

    For several tasks the paper tunes ``beta`` alone, here from 0 to 1. To forget less after one
    task it has the released code go from alpha in the first layer to 1 in the last: give
    ``beta = 1 - alpha`` and ``by_norm=False``.

    Source: Wang et al., LiNeS, ICLR 2025 (arXiv 2410.17146), norms and names by its released code.

    Raises:
        UsageError: a number is not finite, or the inner method is unknown.

    >>> chunk = Chunk(np.array([[1.0, 2.0]]), tensor="layers.3.weight")
    >>> lines = Lines(alpha=0.2, beta=0.8, by_norm=False)
    >>> counts = lines.observe(0, chunk, ())
    >>> lines.apply(chunk, [lines.finish(0, counts, ())])
    array([1., 2.])
    """

    name: ClassVar[str] = "lines"
    formula: ClassVar[str] = "(alpha r + beta l/(L-1)) inner(tau), r = (|sum tau|/|inner(tau)|)/T"
    source: ClassVar[str] = "Wang et al., LiNeS, ICLR 2025, arXiv 2410.17146, and its code"
    when: ClassVar[str] = "You want late layers, which hold the task, to move more than early ones."
    inner: str = "task_arithmetic"
    alpha: float = 1.0
    beta: float = 0.5
    by_norm: bool = True

    def __post_init__(self) -> None:
        for what, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not np.isfinite(value):
                raise UsageError(f"{what} {value} has no meaning; use a finite number")
        made = parse_inner(self.inner)
        object.__setattr__(self, "_made", made)
        for what in _NEEDS:
            object.__setattr__(self, what, getattr(made, what))
        if self.by_norm:
            object.__setattr__(self, "float_sums", True)

    @property
    def method(self) -> Method:
        """The inner method."""
        made: Method = vars(self)["_made"]
        return made

    def stages(self) -> tuple[Granularity, ...]:
        return (*self.method.stages(), "model")

    def stages_see_deltas(self) -> bool:
        return self.by_norm or self.method.stages_see_deltas()

    def gain(self) -> float:
        even = not self.by_norm or self.method.coefficients(np.ones(self.takes[0])) is not None
        return self.method.gain() * (abs(self.alpha) + abs(self.beta)) if even else _UNBOUNDED

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        if stage < len(self.method.stages()):
            return self.method.observe(stage, chunk, state)
        found = np.zeros(2 + _LAYERS)
        layer = layer_number(chunk.tensor)
        if layer is not None:
            found[2 + layer] = 1
        if self.by_norm:
            found[0] = np.abs(_total(chunk)).sum(dtype=np.float64) / len(chunk.deltas)
            found[1] = np.abs(self.method.apply(chunk, state)).sum(dtype=np.float64)
        return found

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        if stage < len(self.method.stages()):
            return self.method.finish(stage, total, state)
        mean, merged = total[:2]
        ratio = float(mean / merged) if merged > 0 else 1.0
        return (ratio, int(np.max(np.flatnonzero(total[2:]), initial=0)))

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return self.method.workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        ratio, last = state[-1]
        layer = layer_number(chunk.tensor) or 0
        factor = self.alpha * ratio + self.beta * layer / max(last, 1)
        merged = self.method.apply(chunk, state[:-1])
        return np.asarray(merged * merged.dtype.type(factor))


def _total(chunk: Chunk) -> NDArray[Any]:
    """The sum of the vectors, dense or from their factors."""
    if chunk.factors:
        return np.asarray(sum(pair.up @ pair.down for pair in chunk.factors))
    return summed(chunk.deltas)


def layer_number(tensor: str) -> int | None:
    """The first number in a dotted name; None where there is none below 1024.

    >>> layer_number("model.layers.3.mlp.experts.1.weight"), layer_number("head.weight")
    (3, None)
    """
    number = next((int(part) for part in tensor.split(".") if part.isdecimal()), None)
    return number if number is not None and number < _LAYERS else None
