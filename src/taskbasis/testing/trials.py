"""What methods are tried on, and how: as the engine would, stretch by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.methods import Chunk, Method, Moment

Vectors = NDArray[Any]

LENGTH = 331
"""Entries per vector: a prime, so that no cut fits evenly."""

INPUTS = 5
"""What enters the matrices that methods with moments are tried on."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a method is tried on.

    Attributes:
        vectors: [T, d].
        scores: [T, d] float32, or None.
        moments: one per vector, or none.
        shape: of the tensor; [d] unless said otherwise.
    """

    vectors: Vectors
    scores: NDArray[np.float32] | None = None
    moments: tuple[Moment | None, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """The entries of each vector."""
        return int(self.vectors.shape[1])

    def turned(self, order: Sequence[int]) -> Trial:
        """The same with the vectors in another order."""
        scores = None if self.scores is None else self.scores[list(order)]
        moments = tuple(self.moments[t] for t in order) if self.moments else ()
        return replace(self, vectors=self.vectors[list(order)], scores=scores, moments=moments)

    def merged(
        self,
        method: Method,
        borders: Sequence[int] | None = None,
        workers: int = 1,
        blind: bool | None = None,
    ) -> NDArray[Any]:
        """What a method makes of it, as :func:`merged` has it."""
        vectors, scores = self.vectors, self.scores
        return merged(method, vectors, borders, workers, scores, self.moments, self.shape, blind)


def merged(
    method: Method,
    vectors: Vectors,
    borders: Sequence[int] | None = None,
    workers: int = 1,
    scores: Vectors | None = None,
    moments: Sequence[Moment | None] = (),
    shape: tuple[int, ...] | None = None,
    blind: bool | None = None,
) -> NDArray[Any]:
    """The merged delta [d] of whole vectors [T, d], formed stretch by stretch as by the engine.

    Args:
        borders: where the vectors are cut, from 0 to d; by default they are not cut.
        workers: how many threads work on the stretches.
        scores: [T, d] float32, for methods that take importance.
        moments: one per vector, for methods that take them.
        shape: of the tensor that the vectors are flattened from; [d] by default.
        blind: whether zeros stand for the deltas in stages; where there are scores, as the method
            asks, by default.

    >>> from taskbasis.methods import Ties
    >>> merged(Ties(density=0.5), np.array([[1.0, 2.0, 3.0, 4.0]]), borders=[0, 1, 4])
    array([0., 0., 3., 4.])
    """
    places = [0, vectors.shape[1]] if borders is None or method.whole else list(borders)
    cuts = list(pairwise(places))

    def chunk(cut: tuple[int, int], blind: bool = False) -> Chunk:
        seen = None if scores is None else scores[:, cut[0] : cut[1]]
        whole = vectors.shape[1:] if shape is None else shape
        deltas = _stretch(np.zeros_like(vectors) if blind else vectors, cut)
        return Chunk(deltas, seen, moments, "tensor", whole, cut[0])

    if blind is None:
        blind = scores is not None and not method.stages_see_deltas()

    state: tuple[Any, ...] = ()
    for stage, _ in enumerate(method.stages()):

        def observe(cut: tuple[int, int], _: Scratch, stage: int = stage, s: Any = state) -> Any:
            return method.observe(stage, chunk(cut, blind), s)

        total: Any = 0
        for partial in Engine(workers).map(observe, cuts, _length, method.name):
            total = total + partial
        state = (*state, method.finish(stage, total, state))

    def apply(cut: tuple[int, int], _: Scratch) -> NDArray[Any]:
        return np.array(method.apply(chunk(cut), state))

    parts = list(Engine(workers).map(apply, cuts, _length, method.name))
    return np.concatenate(parts) if parts else np.zeros(0, vectors.dtype)


def _stretch(vectors: Vectors, cut: tuple[int, int]) -> Vectors:
    """A copy, since a method may overwrite what it is given."""
    return np.array(vectors[:, cut[0] : cut[1]])


def _length(cut: tuple[int, int]) -> int:
    return cut[1] - cut[0]


def samples(count: int, length: int = LENGTH, dtype: Any = np.float32) -> list[Vectors]:
    """Collections of vectors [T, d] that a clause is tried on, the same ones every time.

    Ordinary numbers; numbers from 1e-6 to 1e3; and few distinct ones, multiples of 1/8, so that
    sums are exact, many magnitudes are equal, some entries are zero, and some cancel.

    >>> [vectors.shape for vectors in samples(2, 3)]
    [(2, 3), (2, 3), (2, 3)]
    """
    random = np.random.default_rng([count, length])
    shape = (count, length)
    ordinary = random.standard_normal(shape)
    ranging = random.standard_normal(shape) * 10.0 ** random.uniform(-6, 3, shape)
    coarse = random.integers(-4, 5, shape) / 8
    coarse[1:, : length // 4] = -coarse[:1, : length // 4]
    return [np.asarray(values, dtype) for values in (ordinary, ranging, coarse)]


def score_samples(count: int, length: int = LENGTH) -> list[NDArray[np.float32]]:
    """Collections of scores [T, d] to go with :func:`samples`, and one that is 0 throughout.

    Ordinary numbers; numbers from 1e-38 to 1e3; and few distinct ones, as many of each for every
    vector, so that even scores made comparable are often equal, many are 0, and some are 0 in all
    vectors.

    >>> [scores.shape for scores in score_samples(2, 3)]
    [(2, 3), (2, 3), (2, 3), (2, 3)]
    """
    random = np.random.default_rng([count, length, 1])
    shape = (count, length)
    ordinary = random.standard_normal(shape) ** 2
    ranging = 10.0 ** random.uniform(-38, 3, shape)
    coarse = np.tile(random.integers(0, 4, length) / 8, (count, 1))
    coarse[:, : length // 4] = 0
    coarse[:, length // 4 :] = random.permuted(coarse[:, length // 4 :], axis=1)
    return [np.asarray(s, np.float32) for s in (ordinary, ranging, coarse, np.zeros(shape))]


def moment_samples(count: int, inputs: int = INPUTS) -> list[list[Moment | None]]:
    """Collections of moments [inputs, inputs], one per vector.

    Of many inputs; of two, so that each is singular; of inputs whose first is never active; of
    none at all, zeros; and of all tasks but the last.

    >>> [len(moments) for moments in moment_samples(2)]
    [2, 2, 2, 2, 2]
    """
    random = np.random.default_rng([count, inputs, 2])
    many, few = (random.standard_normal((count, n, inputs)) for n in (4 * inputs, 2))
    without = many * (np.arange(inputs) > 0)
    found: list[list[Moment | None]] = []
    for sets in (many, few, without, 0 * many):
        found.append([_moment(x) for x in sets])
    return [*found, [*found[0][:-1], None]]


def _moment(x: NDArray[Any]) -> Moment:
    return Moment(np.asarray(x.T @ x / len(x), np.float32))


def trials(
    method: Method, count: int, length: int = LENGTH, dtype: Any = np.float32
) -> list[Trial]:
    """All that a clause tries a method on, with scores and moments where it takes them."""
    plain = samples(count, length, dtype)
    found = []
    if "required" not in (method.scores, method.moments):
        found += [Trial(vectors) for vectors in plain]
    if method.scores != "ignored":
        pairs = zip([*plain, plain[0]], score_samples(count, length), strict=True)
        found += [Trial(vectors, scores) for vectors, scores in pairs]
    if method.moments == "ignored":
        return found
    wide = samples(count, length * INPUTS, dtype)
    for at, moments in enumerate(moment_samples(count)):
        turned = [m if m is None else Moment(m.values, True) for m in moments]
        found.append(Trial(wide[at % 3], None, tuple(moments), (length, INPUTS)))
        found.append(Trial(wide[at % 3], None, tuple(turned), (INPUTS, length)))
    for at, scores in enumerate(score_samples(count, length)):
        diagonals = tuple(map(Moment, scores))
        found.append(Trial(plain[at % 3], None, diagonals))
        found.append(Trial(wide[at % 3], None, diagonals, (length, INPUTS)))
    found.append(Trial(plain[0], None, (None,) * count))
    if method.scores == "required":
        ones = [np.ones(trial.vectors.shape, np.float32) for trial in found]
        found = [replace(t, scores=s) for t, s in zip(found, ones, strict=True)]
    return found
