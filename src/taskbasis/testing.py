"""The contract of a method, for everybody who writes one.

    from taskbasis.testing import check_method

    def test_mine():
        check_method(Mine(strength=0.3))

A method works on stretches of tensors that it does not choose, on threads that it does not see,
and its result must not show it. :func:`check_method` runs every clause below on small arrays;
each clause is a function that can be called alone. A breach is an :class:`AssertionError` naming
the method and the clause. No file is touched, and nothing is random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.methods import Chunk, Method

Vectors = NDArray[Any]

COUNTS = (1, 2, 5)
"""How many vectors the clauses are tried with."""

WORKERS = (1, 2, 5)
"""How many workers the result must not depend on."""

LENGTH = 331
"""Entries per vector: a prime, so that no cut fits evenly."""


class BrokenContract(AssertionError):
    """A method does not keep its contract; the message names the method and the clause."""


def check_method(method: Method, *, ordered: bool = False, tolerance: float = 0.0) -> None:
    """Check that a method keeps its contract.

    Args:
        method: the method, with the options it is to be tried with.
        ordered: whether its result may depend on the order of the vectors. Say so in the
            method's docstring, too.
        tolerance: how far, relative to the largest entry, results may differ when vectors are cut
            elsewhere. 0 means the same bits, which a method without stages, or with stages that
            count, always gives; one whose stages sum floats needs about 1e-6.

    Raises:
        BrokenContract: naming the first clause that is broken.

    >>> from taskbasis.methods import MagMax, TaskArithmetic
    >>> check_method(TaskArithmetic())
    >>> check_method(MagMax())
    Traceback (most recent call last):
        ...
    taskbasis.testing.BrokenContract: magmax: the order of the vectors changes the result; \
declare it with ordered=True where that is meant
    >>> check_method(MagMax(), ordered=True)
    """
    check_record(method)
    check_shape(method)
    check_finite(method)
    check_zeros(method)
    check_pure(method)
    check_cuts(method, tolerance)
    check_workers(method)
    check_linear(method)
    if not ordered:
        check_order(method)


def merged(
    method: Method,
    vectors: Vectors,
    borders: Sequence[int] | None = None,
    workers: int = 1,
    scores: Vectors | None = None,
) -> NDArray[Any]:
    """The merged delta [d] of whole vectors [T, d], formed stretch by stretch as by the engine.

    Args:
        borders: where the vectors are cut, from 0 to d; by default they are not cut.
        workers: how many threads work on the stretches.
        scores: [T, d] float32, for methods that take importance.

    >>> from taskbasis.methods import Ties
    >>> merged(Ties(density=0.5), np.array([[1.0, 2.0, 3.0, 4.0]]), borders=[0, 1, 4])
    array([0., 0., 3., 4.])
    """
    places = [0, vectors.shape[1]] if borders is None or method.whole else list(borders)
    cuts = list(pairwise(places))

    def chunk(cut: tuple[int, int]) -> Chunk:
        seen = None if scores is None else _stretch(scores, cut)
        return Chunk(_stretch(vectors, cut), seen, (), "tensor", vectors.shape[1:], cut[0])

    state: tuple[Any, ...] = ()
    for stage, _ in enumerate(method.stages()):

        def observe(cut: tuple[int, int], _: Scratch, stage: int = stage, s: Any = state) -> Any:
            return method.observe(stage, chunk(cut), s)

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


def check_record(method: Method) -> None:
    """It is a frozen dataclass with a name; its options are plain data, as recipes need."""
    name = getattr(method, "name", None)
    _demand(isinstance(name, str) and bool(name), method, "it has no name")
    parameters = vars(type(method)).get("__dataclass_params__")
    _demand(
        is_dataclass(method) and parameters is not None and parameters.frozen,
        method,
        "its class is not decorated with @dataclass(frozen=True)",
    )
    options = {field.name: getattr(method, field.name) for field in fields(method)}
    try:
        again = json.loads(json.dumps(options))
    except TypeError:
        again = None
    _demand(again == options, method, "its options are not numbers, words, true or false")
    _demand(type(method)(**options) == method, method, "its options do not make it again")


def check_shape(method: Method) -> None:
    """From [T, n] it makes [n], in the dtype that it was given."""
    for count in COUNTS:
        for dtype in (np.float32, np.float64):
            for vectors in samples(count, dtype=dtype):
                found = merged(method, vectors)
                _demand(
                    found.shape == vectors.shape[1:] and found.dtype == vectors.dtype,
                    method,
                    f"{vectors.dtype} of shape {vectors.shape} becomes {found.dtype} of shape "
                    f"{found.shape}",
                )


def check_finite(method: Method) -> None:
    """One vector, one entry and no entry at all are nothing special; nothing blows up."""
    for count in COUNTS:
        for length in (0, 1, LENGTH):
            for vectors in samples(count, length):
                for signed in (vectors, -vectors):
                    with np.errstate(all="ignore"):
                        found = merged(method, signed)
                    _demand(
                        found.shape == (length,) and bool(np.all(np.isfinite(found))),
                        method,
                        f"the result of {count} finite vectors of {length} entries is not finite",
                    )


def check_zeros(method: Method) -> None:
    """Zero vectors give zero: the base comes back as it is."""
    for count in COUNTS:
        found = merged(method, np.zeros((count, LENGTH), np.float32))
        _demand(not np.any(found), method, "zero vectors do not give zero")


def check_pure(method: Method) -> None:
    """The same vectors give the same bits again, and no call leaves a trace in the method."""
    for count in COUNTS:
        for vectors in samples(count):
            before = repr(method)
            first, second = merged(method, vectors), merged(method, vectors)
            _demand(_same(first, second), method, "a second call gives another result")
            _demand(repr(method) == before, method, "a call changes the method")


def check_cuts(method: Method, tolerance: float = 0.0) -> None:
    """Wherever the vectors are cut, the result is that of the whole vectors.

    Args:
        tolerance: as for :func:`check_method`.
    """
    steps = (1, 7, 64, 330)
    places = [[*range(0, LENGTH, step), LENGTH] for step in steps]
    for count in COUNTS:
        for vectors in samples(count):
            whole = merged(method, vectors)
            for borders in [*places, [0, 0, 100, 100, LENGTH]]:
                found = merged(method, vectors, borders)
                _demand(
                    _same(found, whole) or _near(found, whole, tolerance),
                    method,
                    f"vectors that are cut into {len(borders) - 1} give another result",
                )


def check_workers(method: Method) -> None:
    """The same bits for any number of workers."""
    borders = [*range(0, LENGTH, 3), LENGTH]
    for vectors in samples(3):
        alone = merged(method, vectors, borders)
        for workers in WORKERS:
            found = merged(method, vectors, borders, workers)
            _demand(_same(found, alone), method, f"{workers} workers give another result than one")


def check_linear(method: Method) -> None:
    """A method that gives weights is that weighted sum; one vector times -1 is subtracted.

    For one vector v this says ``base + merged(-v) == base - v``, bit for bit. Methods that are
    not linear give no weights and are left alone.
    """
    if method.weights(1) is None:
        return
    for count in COUNTS:
        weights = np.asarray(method.weights(count), np.float64)
        _demand(weights.shape == (count,), method, f"{count} vectors need {count} weights")
        for vectors in samples(count, dtype=np.float64):
            wanted = weights @ vectors
            _demand(
                _near(merged(method, vectors), wanted, 1e-12, np.abs(weights) @ np.abs(vectors)),
                method,
                "the result is not the sum that its weights promise",
            )
    base = samples(1)[1][0]
    for vectors in samples(1):
        found = base + merged(method, -vectors)
        _demand(_same(found, base - vectors[0]), method, "-1 times a vector does not subtract it")
    _demand(
        float(np.asarray(method.weights(1))[0]) == 1.0, method, "one vector weighs other than 1"
    )


def check_order(method: Method) -> None:
    """The order of the vectors is immaterial, up to the rounding of their sum."""
    for count in COUNTS:
        for vectors in samples(count):
            wanted, size = merged(method, vectors), np.abs(vectors).sum(axis=0)
            for turned in (vectors[::-1], np.roll(vectors, 1, axis=0)):
                _demand(
                    _near(merged(method, turned), wanted, 1e-5, size),
                    method,
                    "the order of the vectors changes the result; declare it with ordered=True "
                    "where that is meant",
                )


def _demand(kept: bool, method: Method, breach: str) -> None:
    if not kept:
        raise BrokenContract(f"{getattr(method, 'name', type(method).__name__)}: {breach}")


def _same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def _near(found: NDArray[Any], wanted: NDArray[Any], tolerance: float, size: Any = None) -> bool:
    """Whether entries differ by at most a share of their size, by default of the largest."""
    if found.shape != wanted.shape:
        return False
    scale = np.max(np.abs(wanted), initial=0.0) if size is None else size
    missed = np.abs(found.astype(np.float64) - wanted)
    return bool(np.all(missed <= tolerance * scale))
