"""The clauses of the contract, one function each."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Chunk, Method
from taskbasis.methods.base import Need, Unit
from taskbasis.testing.trials import LENGTH, Trial, trials, weighted

COUNTS = (1, 2, 5)
"""How many vectors the clauses are tried with."""

WORKERS = (1, 2, 5)
"""How many workers the result must not depend on."""


def counts(method: Method) -> list[int]:
    """How many vectors a method is tried with: those counts that it takes."""
    least, most = method.takes
    return [n for n in sorted({*COUNTS, least}) if least <= n and (most is None or n <= most)]


class BrokenContract(AssertionError):
    """A method does not keep its contract; the message names the method and the clause."""


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
    for what in ("formula", "source", "when"):
        text = getattr(method, what, None)
        _demand(
            isinstance(text, str) and bool(text) and "\n" not in text,
            method,
            f"it says nothing of its {what!r}, in one line",
        )
    options = {field.name: getattr(method, field.name) for field in fields(method)}
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
    try:
        again = json.loads(json.dumps(options))
    except TypeError:
        again = None
    _demand(again == options, method, "its options are not numbers, words, true or false")
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    _demand(type(method)(**options) == method, method, "its options do not make it again")


def check_needs(method: Method) -> None:
    """It says what it takes: the base, scores, moments (with whole matrices), how many vectors."""
    for what in ("base", "scores", "moments", "factors"):
        need, known = getattr(method, what), [*get_args(Need)]
        if what == "factors":
            known.remove("required")
        _demand(
            need in known, method, f"its need of {what} is {need!r}, none of {', '.join(known)}"
        )
    _demand(
        method.unit in get_args(Unit),
        method,
        f"its unit is {method.unit!r}, none of {', '.join(get_args(Unit))}",
    )
    _demand(
        method.moments == "ignored" or method.unit != "element",
        method,
        'it takes moments, but matrices in parts; say unit = "matrix"',
    )
    least, most = method.takes
    _demand(
        least >= 1 and (most is None or least <= most),
        method,
        f"it takes from {least} to {most} vectors, which are none",
    )


def check_shape(method: Method) -> None:
    """From [T, n] it makes [n], in the dtype that it was given."""
    for count in counts(method):
        for dtype in (np.float32, np.float64):
            for trial in trials(method, count, dtype=dtype):
                vectors, found = trial.vectors, trial.merged(method)
                computed = np.dtype(np.float64) if method.double else vectors.dtype
                _demand(
                    found.shape == vectors.shape[1:] and found.dtype == computed,
                    method,
                    f"{computed} of shape {vectors.shape} becomes {found.dtype} of shape "
                    f"{found.shape}",
                )


def check_finite(method: Method) -> None:
    """One vector, one entry and no entry at all are nothing special; nothing blows up."""
    for count in counts(method):
        for length in (0, 1, LENGTH):
            for trial in trials(method, count, length):
                for signed in (trial, trial.negated()):
                    with np.errstate(all="ignore"):
                        found = signed.merged(method)
                    _demand(
                        found.shape == trial.vectors.shape[1:] and bool(np.all(np.isfinite(found))),
                        method,
                        f"the result of {count} finite vectors of {trial.length} entries is not "
                        "finite",
                    )


def check_zeros(method: Method) -> None:
    """Zero vectors give zero: the base comes back as it is, unless the method says otherwise."""
    if not method.keeps_base:
        return
    for count in counts(method):
        for trial in trials(method, count):
            zero = replace(trial, vectors=np.zeros_like(trial.vectors), factors=())
            found = zero.merged(method)
            _demand(not np.any(found), method, "zero vectors do not give zero")


def check_pure(method: Method) -> None:
    """The same vectors give the same bits again, and no call leaves a trace in the method."""
    for count in counts(method):
        for trial in trials(method, count):
            before = repr(method)
            first, second = trial.merged(method), trial.merged(method)
            _demand(_same(first, second), method, "a second call gives another result")
            _demand(repr(method) == before, method, "a call changes the method")


def check_learnt(method: Method) -> None:
    """All but the deltas is left as it is: the base, scores, moments and factors."""
    for count in counts(method):
        for trial, before in zip(trials(method, count), trials(method, count), strict=True):
            trial.merged(method)
            if trial.scores is not None and before.scores is not None:
                _demand(_same(trial.scores, before.scores), method, "it overwrites the scores")
            for moment, kept in zip(trial.moments, before.moments, strict=True):
                if moment is not None and kept is not None:
                    unchanged = _same(moment.values, kept.values)
                    _demand(unchanged, method, "it overwrites the moments")
            for pair, known in zip(trial.factors, before.factors, strict=True):
                unchanged = _same(pair.up, known.up) and _same(pair.down, known.down)
                _demand(unchanged, method, "it overwrites the factors")
            if trial.base is not None:
                _keeps_the_base(method, trial)


def _keeps_the_base(method: Method, trial: Trial) -> None:
    """The chunk's own copy of the base is what may be overwritten, so that is what is compared."""
    state: tuple[Any, ...] = ()
    for stage, _ in enumerate(method.stages()):
        chunk = trial.chunk(method)
        total = method.observe(stage, chunk, state)
        _demand(_same_base(chunk, trial), method, "it overwrites the base")
        state = (*state, method.finish(stage, total, state))
    chunk = trial.chunk(method)
    method.apply(chunk, state)
    _demand(_same_base(chunk, trial), method, "it overwrites the base")


def _same_base(chunk: Chunk, trial: Trial) -> bool:
    return chunk.base is None or trial.base is None or bool(np.all(chunk.base == trial.base))


def check_stages(method: Method) -> None:
    """Stages that say they see no deltas where there are scores do not depend on them."""
    if method.stages_see_deltas():
        return
    for count in counts(method):
        for trial in trials(method, count):
            if trial.scores is not None:
                blind, seeing = (trial.merged(method, blind=blind) for blind in (True, False))
                _demand(_same(blind, seeing), method, "its stages depend on deltas after all")


def check_cuts(method: Method, tolerance: float = 0.0) -> None:
    """Wherever the vectors are cut, the result is that of the whole vectors.

    Args:
        tolerance: as for :func:`check_method`.
    """
    places = [[*range(0, LENGTH, step), LENGTH] for step in (11, 64, 330)]
    places += [[*range(20), LENGTH], [0, 0, 100, 100, LENGTH]]
    for count in counts(method):
        for trial in trials(method, count):
            whole = trial.merged(method)
            for borders in places:
                found = trial.merged(method, borders)
                _demand(
                    _same(found, whole) or _near(found, whole, tolerance),
                    method,
                    f"vectors that are cut into {len(borders) - 1} give another result",
                )


def check_workers(method: Method) -> None:
    """The same bits for any number of workers."""
    for trial in trials(method, counts(method)[-1]):
        borders = [*range(0, trial.length, 17), trial.length]
        alone = trial.merged(method, borders)
        for workers in WORKERS:
            found = trial.merged(method, borders, workers)
            _demand(_same(found, alone), method, f"{workers} workers give another result than one")


def check_linear(method: Method) -> None:
    """A method that gives coefficients is that sum; one vector of weight 1 is itself.

    Methods that are not linear give none and are left alone.
    """
    if method.coefficients(np.ones(method.takes[0])) is None:
        return
    for count in counts(method):
        for trial in trials(method, count, dtype=np.float64):
            given = np.asarray(trial.weights or np.ones(count))
            found = np.asarray(method.coefficients(given), np.float64)
            _demand(found.shape == (count,), method, f"{count} vectors need {count} coefficients")
            vectors = trial.vectors
            _demand(
                _near(
                    trial.merged(method), found @ vectors, 1e-12, np.abs(found) @ np.abs(vectors)
                ),
                method,
                "the result is not the sum that its coefficients promise",
            )
    if method.takes[0] == 1:
        one = np.asarray(method.coefficients(np.ones(1)))
        _demand(float(one[0]) == 1.0, method, "one vector counts other than 1")


def check_signs(method: Method) -> None:
    """Weight -1 subtracts what weight 1 adds, and weights of both signs never blow up.

    One vector of weight -1 gives minus what it gives with 1; and two vectors a and b of weights 1
    and -0.9 give at most ``gain() * (|a| + 0.9 |b|)``, entry by entry, or in norm where matrices
    are not cut. Methods that say they are not ``signed`` are left alone.
    """
    if not method.signed:
        return
    least, most = method.takes
    for trial in trials(method, 1) if least == 1 else ():
        added, subtracted = trial.merged(method), trial.negated().merged(method)
        _demand(
            _near(subtracted, -added, 0.0 if method.unit == "element" else 1e-5),
            method,
            "-1 times a vector does not subtract it",
        )
    for trial in trials(method, 2) if least <= 2 and (most is None or most >= 2) else ():
        if trial.weights:
            continue
        pair = weighted(trial)  # by 1 and -0.9
        found, bound = np.abs(pair.merged(method)), np.abs(pair.vectors).sum(axis=0)
        if method.unit != "element" or method.base != "ignored":
            found, bound = np.linalg.norm(found), np.linalg.norm(pair.vectors, axis=1).sum()
        _demand(
            bool(np.all(found <= method.gain() * bound * (1 + 1e-5))),
            method,
            "vectors of weights 1 and -0.9 give more than their sizes together",
        )


def check_order(method: Method) -> None:
    """The order of the vectors is immaterial, up to the rounding of their sum."""
    for count in counts(method):
        for trial in trials(method, count):
            wanted, size = trial.merged(method), np.abs(trial.vectors).sum(axis=0)
            if method.unit != "element" or method.base != "ignored":  # entries are mixed
                size = np.max(size, initial=0.0)
            places = list(range(count))
            for order in (places[::-1], [*places[-1:], *places[:-1]]):
                _demand(
                    _near(trial.turned(order).merged(method), wanted, 1e-5, size),
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
