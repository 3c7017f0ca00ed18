"""What methods are tried on, and how: as the engine would, stretch by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.methods import Chunk, Factors, Method, Moment

Vectors = NDArray[Any]

LENGTH = 331
"""Entries per vector: a prime, so that no cut fits evenly."""

INPUTS = 5
"""What enters the matrices that methods with moments are tried on."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a method is tried on.

    Attributes:
        vectors: [T, d], each multiplied by its weight.
        scores: [T, d] float32, or None.
        moments: one per vector, or none.
        shape: of the tensor; [d] unless said otherwise.
        base: [d] the base's weights; zeros unless said otherwise.
        weights: what the vectors have been multiplied by; none means 1.
        names: what the vectors are called; none means by their numbers.
        tensor: the tensor's name.
        factors: one per vector, for methods that take factors; the vectors are their products.
    """

    vectors: Vectors
    scores: NDArray[np.float32] | None = None
    moments: tuple[Moment | None, ...] = ()
    shape: tuple[int, ...] | None = None
    base: Vectors | None = None
    weights: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    tensor: str = "tensor"
    factors: tuple[Factors, ...] = ()

    @property
    def length(self) -> int:
        """The entries of each vector."""
        return int(self.vectors.shape[1])

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return (self.length,) if self.shape is None else self.shape

    def turned(self, order: Sequence[int]) -> Trial:
        """The same with the vectors in another order."""
        names = self.names or tuple(map(str, range(len(self.vectors))))
        return replace(
            self,
            vectors=self.vectors[list(order)],
            scores=None if self.scores is None else self.scores[list(order)],
            moments=tuple(self.moments[t] for t in order) if self.moments else (),
            weights=tuple(self.weights[t] for t in order) if self.weights else (),
            names=tuple(names[t] for t in order),
            factors=tuple(self.factors[t] for t in order) if self.factors else (),
        )

    def negated(self) -> Trial:
        """The same with every weight times -1."""
        weights = self.weights or (1.0,) * len(self.vectors)
        factors = tuple(Factors(-pair.up, pair.down) for pair in self.factors)
        minus = tuple(-w for w in weights)
        return replace(self, vectors=-self.vectors, weights=minus, factors=factors)

    def chunk(
        self, method: Method, cut: tuple[int, int] | None = None, blind: bool = False
    ) -> Chunk:
        """What a method sees of a stretch; a copy, since it may overwrite what it is given.

        Args:
            cut: where the stretch begins and ends; everything by default.
            blind: whether zeros stand for the deltas.
        """
        start, stop = cut or (0, self.length)
        dtype = np.float64 if method.double else self.vectors.dtype
        vectors = np.zeros_like(self.vectors) if blind else self.vectors
        base = np.zeros(self.length) if self.base is None else self.base
        factored = bool(self.factors) and method.factors != "ignored"
        return Chunk(
            vectors[:, :0].astype(dtype) if factored else vectors[:, start:stop].astype(dtype),
            None if self.scores is None else self.scores[:, start:stop],
            self.moments,
            self.tensor,
            self.whole_shape,
            start,
            None if method.base == "ignored" else base[start:stop].astype(dtype),
            self.weights,
            self.names,
            self.factors if factored else (),
        )

    def merged(
        self,
        method: Method,
        borders: Sequence[int] | None = None,
        workers: int = 1,
        blind: bool | None = None,
    ) -> NDArray[Any]:
        """What a method makes of it [d], formed stretch by stretch as by the engine.

        Args:
            borders: where the vectors are cut, from 0 to d, if the method's unit allows it; by
                default they are not cut.
            workers: how many threads work on the stretches.
            blind: whether zeros stand for the deltas in stages; where there are scores, as the
                method asks, by default.
        """
        places = [0, self.length] if borders is None or self.uncut(method) else list(borders)
        cuts = list(pairwise(places))
        if blind is None:
            blind = self.scores is not None and not method.stages_see_deltas()
        state: tuple[Any, ...] = ()
        for stage, _ in enumerate(method.stages()):

            def observe(
                cut: tuple[int, int], _: Scratch, stage: int = stage, s: Any = state
            ) -> NDArray[Any]:
                return method.observe(stage, self.chunk(method, cut, blind), s)

            total: Any = 0
            for partial in Engine(workers).map(observe, cuts, _length, method.name):
                total = total + partial
            state = (*state, method.finish(stage, total, state))

        def apply(cut: tuple[int, int], _: Scratch) -> NDArray[Any]:
            return np.array(method.apply(self.chunk(method, cut), state))

        parts = list(Engine(workers).map(apply, cuts, _length, method.name))
        return np.concatenate(parts) if parts else np.zeros(0, self.vectors.dtype)

    def uncut(self, method: Method) -> bool:
        """Whether the method must see the tensor whole."""
        flat = len(self.whole_shape) < 2 and not self.moments
        return method.unit == "tensor" or (method.unit == "matrix" and not flat)


def merged(
    method: Method,
    vectors: Vectors,
    borders: Sequence[int] | None = None,
    workers: int = 1,
    *,
    blind: bool | None = None,
    **more: Any,
) -> NDArray[Any]:
    """The merged delta [d] of whole vectors [T, d], formed stretch by stretch as by the engine.

    Args:
        borders, workers, blind: as for :meth:`Trial.merged`.
        more: further attributes of the :class:`Trial`, such as scores or the shape.

    >>> from taskbasis.methods import method
    >>> merged(method("ties", density=0.5), np.array([[1.0, 2.0, 3.0, 4.0]]), borders=[0, 1, 4])
    array([0., 0., 3., 4.])
    """
    return Trial(vectors, **more).merged(method, borders, workers, blind)


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
    """All that a clause tries a method on, with what it takes: scores, moments, the base's weights.

    Flat tensors, and matrices where the method never cuts them; the last ones with weights of both
    signs.
    """
    if method.moments == "ignored":
        found = _plain_trials(method, count, length, dtype)
    else:
        found = _moment_trials(method, count, length, dtype)
    if method.base == "ignored":
        return found
    return [replace(trial, base=base_sample(trial.length, dtype)) for trial in found]


def _plain_trials(method: Method, count: int, length: int, dtype: Any) -> list[Trial]:
    plain = samples(count, length, dtype)
    found = [] if method.scores == "required" else [Trial(vectors) for vectors in plain]
    if method.scores != "ignored":
        pairs = zip([*plain, plain[0]], score_samples(count, length), strict=True)
        found += [Trial(vectors, scores) for vectors, scores in pairs]
    if method.unit != "element":
        wide = samples(count, length * INPUTS, dtype)
        found += [Trial(vectors, shape=(length, INPUTS)) for vectors in wide]
        found += [Trial(wide[0], shape=(INPUTS, length))]
        deep = samples(count, INPUTS * 3 * 2, dtype)
        found += [Trial(vectors, shape=(INPUTS, 3, 2)) for vectors in deep]
        found = [_with_ones(trial) if method.scores == "required" else trial for trial in found]
    if method.factors != "ignored" and length:
        found.append(factored(count, length, dtype))
    return [*found, weighted(found[0]), weighted(found[-1])]


def factored(count: int, length: int, dtype: Any = np.float32, rank: int = 2) -> Trial:
    """Vectors of low rank, with their factors; the last has more of them than the others."""
    random = np.random.default_rng([count, length, 4])
    pairs = tuple(
        Factors(
            random.standard_normal((length, rank + (t == count - 1))),
            random.standard_normal((rank + (t == count - 1), INPUTS)),
        )
        for t in range(count)
    )
    vectors = np.stack([(pair.up @ pair.down).ravel() for pair in pairs]).astype(dtype)
    return Trial(vectors, shape=(length, INPUTS), factors=pairs)


def weighted(trial: Trial) -> Trial:
    """The trial with weights of both signs."""
    weights = tuple(float(w) for w in np.resize([1.0, -0.9, 0.5, 2.0, -0.25], len(trial.vectors)))
    column = np.asarray(weights, trial.vectors.dtype)[:, None]
    factors = tuple(
        Factors(w * pair.up, pair.down)
        for w, pair in zip(weights, trial.factors, strict=bool(trial.factors))
    )
    return replace(trial, vectors=trial.vectors * column, weights=weights, factors=factors)


def base_sample(length: int, dtype: Any = np.float32) -> Vectors:
    """Base weights [d] that go with :func:`samples`."""
    return np.asarray(np.random.default_rng([length, 3]).standard_normal(length) * 3, dtype)


def _with_ones(trial: Trial) -> Trial:
    if trial.scores is not None:
        return trial
    return replace(trial, scores=np.ones(trial.vectors.shape, np.float32))


def _moment_trials(method: Method, count: int, length: int, dtype: Any) -> list[Trial]:
    plain, wide = samples(count, length, dtype), samples(count, length * INPUTS, dtype)
    found = [] if method.moments == "required" else [Trial(vectors) for vectors in plain]
    for at, moments in enumerate(moment_samples(count)):
        turned = [m if m is None else Moment(m.values, True) for m in moments]
        found.append(Trial(wide[at % 3], None, tuple(moments), (length, INPUTS)))
        found.append(Trial(wide[at % 3], None, tuple(turned), (INPUTS, length)))
    for at, scores in enumerate(score_samples(count, length)):
        diagonals = tuple(map(Moment, scores))
        found.append(Trial(plain[at % 3], None, diagonals))
        found.append(Trial(wide[at % 3], None, diagonals, (length, INPUTS)))
    found.append(Trial(plain[0], None, (None,) * count))
    found.append(weighted(found[0]))
    return [_with_ones(trial) if method.scores == "required" else trial for trial in found]
