"""Merging by inner products: the result is a combination of the base and the task vectors.

Everything is computed on coordinates. A vector of T + 1 numbers stands for that combination of
[base, tau_1, ..., tau_T]; lengths and angles follow from the inner products of these. So weights
are read once for the products and once for the result, whatever a method does in between, and
what fine-tuned models share cancels before anything is rounded.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis.granularity import Granularity
from taskbasis.kernels import mixed
from taskbasis.methods.base import Chunk, Method, Need, State

Floats = NDArray[np.float64]

Space = Literal["weights", "deltas"]
"""Whether the points are the models, base + tau_t, or the task vectors, tau_t."""

Per = Literal["tensor", "row", "column"]
"""What is one point: a whole tensor, a row [i, :] or a column [:, j] of [shape[0], rest]."""

_ROUNDED = 1e-13
"""A square below this share of what it is the sum of has no right digit."""

OPPOSITE = -0.9995
"""Below this cosine two points are opposite: no great circle is shortest, and rounding would
choose one of them."""

ENLARGED = 37.0
"""How much longer than its ends a point between two almost opposite ones may be."""


@dataclass(frozen=True)
class Mixing(Method):
    """A combination of the base and the task vectors, by their inner products.

    One number for each of them in every tensor, or in every row or column of a matrix
    (:meth:`per_group`); tensors of less than two axes are always taken whole. Where all vectors
    are 0 the result is exactly 0.
    """

    base: ClassVar[Need] = "required"
    double: ClassVar[bool] = True
    float_sums: ClassVar[bool] = True
    relative: ClassVar[bool] = False
    """Whether a weight says how much a model counts. The model is then base + sign(w) tau, and
    :meth:`mix` is given ``|w|``; otherwise it is base + w tau, and the weights are all 1."""

    @abstractmethod
    def mix(self, gram: Floats, weights: Floats) -> Floats:
        """Coordinates [..., 1 + T] of the merged delta.

        Args:
            gram: [..., 1 + T, 1 + T] inner products of the base (zeros where the method ignores
                it) and the vectors.
            weights: [T], all above 0.
        """

    def per_group(self) -> Per:
        """What has coefficients of its own."""
        return "tensor"

    def stages(self) -> tuple[Granularity, ...]:
        return ("tensor",)

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        size = 1 + len(chunk.deltas)
        found = np.zeros((size, size))
        if self._cut_up(chunk):
            return found
        found[1:, 1:] = chunk.deltas @ chunk.deltas.T
        if chunk.base is not None:
            found[0, 0] = chunk.base @ chunk.base
            found[0, 1:] = found[1:, 0] = chunk.deltas @ chunk.base
        return found

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        return total

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        if not self._cut_up(chunk):
            numbers = self._coordinates(np.asarray(state[0]), chunk)
            return _combined(numbers, chunk.base, chunk.deltas)
        rows, axis = chunk.shape[0], "ac"[self.per_group() == "column"]
        shape = (rows, chunk.deltas.shape[1] // max(rows, 1))
        base = None if chunk.base is None else chunk.base.reshape(shape)
        deltas = chunk.deltas.reshape(len(chunk.deltas), *shape)
        numbers = self._coordinates(_grams(base, deltas, axis), chunk).T
        along = numbers[:, :, None] if axis == "a" else numbers[:, None, :]
        return _combined(along, base, deltas).reshape(-1)

    def _cut_up(self, chunk: Chunk) -> bool:
        """Whether rows or columns have coefficients of their own; the tensor is whole then."""
        return self.per_group() != "tensor" and len(chunk.shape) > 1

    def _coordinates(self, gram: Floats, chunk: Chunk) -> Floats:
        """[..., 1 + T] of the merged delta, for the deltas as they are in the chunk."""
        weights = np.ones(len(chunk.deltas))
        if self.relative:
            weights = np.abs(chunk.vector_weights())
        sizes = np.append(1.0, weights)
        numbers = self.mix(gram / np.outer(sizes, sizes), weights) / sizes
        moved = np.any(np.diagonal(gram, axis1=-2, axis2=-1)[..., 1:] > 0, axis=-1)
        return np.where(moved[..., None], numbers, 0.0)


def _combined(numbers: Any, base: NDArray[Any] | None, deltas: NDArray[Any]) -> NDArray[Any]:
    """``numbers[0] base + sum_t numbers[t] deltas[t]``, the numbers broadcast to their shape."""
    with_base = base is not None and np.any(numbers[0])
    if np.ndim(numbers) == 1:
        parts = (base, deltas, numbers) if with_base else (deltas[0], deltas[1:], numbers[1:])
        return mixed(*parts)
    total = np.zeros(deltas.shape[1:])
    if with_base:
        total += numbers[0] * base
    for number, row in zip(numbers[1:], deltas, strict=True):
        row *= number
        total += row
    return total


def _grams(base: NDArray[Any] | None, deltas: NDArray[Any], axis: str) -> Floats:
    """[m, 1 + T, 1 + T] inner products of the m rows (axis "a") or columns ("c")."""
    parts = [base, *deltas]
    width = deltas.shape[1 if axis == "a" else 2]
    found = np.zeros((width, len(parts), len(parts)))
    for i, left in enumerate(parts):
        for j, right in enumerate(parts[: i + 1]):
            if left is not None and right is not None:
                found[:, i, j] = found[:, j, i] = np.einsum(f"ac,ac->{axis}", left, right)
    return found


def points(count: int, space: Space = "weights") -> Floats:
    """[T, 1 + T]: the coordinates of the T models, or of the T vectors.

    >>> points(2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    found = np.eye(1 + count)[1:]
    found[:, 0] = space == "weights"
    return found


def length(gram: Floats, point: Floats) -> Floats:
    """[...]: the length of a point; 0 where it is no more than the rounding of the products.

    >>> float(length(np.diag([9.0, 16.0]), np.array([1.0, 1.0])))
    5.0
    """
    squares = np.einsum("...i,...ij,...j->...", point, gram, point)
    parts = np.einsum("...i,...ij,...j->...", np.abs(point), np.abs(gram), np.abs(point))
    return np.asarray(np.sqrt(np.where(squares > _ROUNDED * parts, squares, 0.0)))


def directed(gram: Floats, point: Floats) -> tuple[Floats, Floats]:
    """A point of length 1 in the same direction (0 for a point of length 0), and the length."""
    size = length(gram, point)
    return point / np.where(size > 0, size, np.inf)[..., None], size


def angle(gram: Floats, left: Floats, right: Floats) -> Floats:
    """[...]: the angle between two points of length 1.

    From their difference and sum: the cosine of fine-tuned models is 1 but for rounding, so an
    arc cosine would find noise.
    """
    return np.asarray(2 * np.arctan2(length(gram, left - right), length(gram, left + right)))


def between(
    gram: Floats, first: Floats, second: Floats, t: Floats | float, threshold: float = 1.0
) -> tuple[Floats, Floats, Floats]:
    """Spherical linear interpolation: the numbers a, b of ``a first + b second``, and a + b - 1.

    ``a = sin((1 - t) angle) / sin(angle)`` and ``b = sin(t angle) / sin(angle)``, multiplied with
    the points as they are: between points of one length the length stays, and otherwise it goes
    from one to the other. Linear, ``1 - t`` and ``t``, where one of them is 0, the cosine is
    above ``threshold``, or they are opposite. All is exact at t = 0 and t = 1.

    >>> gram, (first, second) = np.eye(2), np.eye(2)
    >>> a, b, excess = between(gram, first, second, 0.5)
    >>> round(float(a), 4), round(float(b), 4), round(float(excess), 4)
    (0.7071, 0.7071, 0.4142)
    """
    (u, size), (v, other) = directed(gram, first), directed(gram, second)
    turn = angle(gram, u, v)
    cosine = np.cos(turn)
    straight = (size == 0) | (other == 0) | (turn == 0)
    straight |= (cosine > threshold) | (cosine < OPPOSITE)
    turn = np.where(straight, 1.0, turn)
    a = np.where(straight, 1 - t, np.sin((1 - t) * turn) / np.sin(turn))
    b = np.where(straight, t, np.sin(t * turn) / np.sin(turn))
    halves = np.sin(t * turn / 2) * np.sin((1 - t) * turn / 2)  # so that 1 is not cancelled
    return a, b, np.where(straight, 0.0, 2 * halves / np.cos(turn / 2))
