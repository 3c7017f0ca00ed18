"""Small models to merge, the same ones every time: what both programs are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Model = dict[str, NDArray[Any]]
World = dict[str, Model]

SHAPES = {"cube": (2, 3, 5), "matrix": (7, 11), "tall": (9, 8), "vector": (13,)}
"""Three axes, two, one; more columns than rows, and more rows than columns."""

TENSORS = tuple(SHAPES)


def in_bfloat16(values: NDArray[np.float64]) -> Array:
    """The nearest bfloat16 numbers, ties to even; float32 holds them exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
    return np.asarray(rounded.view(np.float32))


def in_float32(values: NDArray[np.float64]) -> Array:
    """The nearest float32 numbers."""
    return values.astype(np.float32)


Rounding = Callable[[NDArray[np.float64]], NDArray[Any]]


def _model(make: Callable[[tuple[int, ...]], NDArray[np.float64]], rounding: Rounding) -> Model:
    return {name: rounding(make(shape)) for name, shape in SHAPES.items()}


def _signs(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.where(random.random(shape) < 0.5, -1.0, 1.0)


def _tuned(random: np.random.Generator, base: Model, size: float, rounding: Rounding) -> Model:
    """The base with a change of about ``size`` times each entry; no two changes of one tensor are
    equally large, so that it is clear which are among the largest."""
    found: Model = {}
    for name, weights in base.items():
        flat = weights.reshape(-1)
        tuned = np.zeros_like(flat)
        seen: set[float] = {0.0}
        for place, weight in enumerate(flat):
            distance = 0.0
            while distance in seen:
                change = size * abs(float(weight)) * random.standard_normal()
                tuned[place] = rounding(np.array([float(weight) + change]))[0]
                distance = abs(float(tuned[place]) - float(weight))
            seen.add(distance)
        found[name] = tuned.reshape(weights.shape)
    return found


def near() -> World:
    """A base and four fine-tunes; changes of 1 % of an entry."""
    random = np.random.default_rng(1)
    base = _model(lambda s: _signs(random, s) * random.uniform(0.5, 2, s), in_float32)
    return {"base": base, **{n: _tuned(random, base, 0.01, in_float32) for n in "abcd"}}


def near_half() -> World:
    """The same in bfloat16; changes of 30 % of an entry: of smaller ones many would be equal."""
    random = np.random.default_rng(2)
    base = _model(lambda s: _signs(random, s) * 2 ** random.uniform(-6, 1, s), in_bfloat16)
    return {"base": base, **{n: _tuned(random, base, 0.3, in_bfloat16) for n in "abcd"}}


def _kin(rounding: Rounding, size: float) -> World:
    random = np.random.default_rng(6)
    base = _model(lambda s: _signs(random, s) * random.uniform(0.5, 2, s), rounding)
    shared = _model(lambda s: size * random.standard_normal(s), np.asarray)

    def child() -> Model:
        own = _model(lambda s: 0.4 * size * random.standard_normal(s), np.asarray)
        return {name: rounding(base[name] + shared[name] + own[name]) for name in TENSORS}

    return {"base": base, **{n: child() for n in "abc"}}


def kin() -> World:
    """A base and three fine-tunes that share most of their changes."""
    return _kin(in_float32, 0.01)


def kin_half() -> World:
    """The same in bfloat16, with larger changes."""
    return _kin(in_bfloat16, 0.1)


def _far(rounding: Rounding) -> World:
    random = np.random.default_rng(3)
    found = {n: _model(random.standard_normal, rounding) for n in ("base", "a", "b", "c")}
    against = {name: -2 * values for name, values in found["a"].items()}
    zero = {name: np.zeros_like(values) for name, values in found["a"].items()}
    return {**found, "against": against, "zero": zero}


def far() -> World:
    """Models that have nothing in common, twice one's opposite, and zeros."""
    return _far(in_float32)


def far_half() -> World:
    """The same in bfloat16."""
    return _far(in_bfloat16)


def exact() -> World:
    """Multiples of 1/64: sums are exact, magnitudes often equal, votes cancel, no sum is near 0.
    bfloat16 holds them, too. ``plus`` and ``minus`` are opposite changes, ``same`` is the base."""
    random = np.random.default_rng(4)
    base = _model(lambda s: _signs(random, s) * random.integers(16, 97, s) / 64, in_bfloat16)
    step = _model(lambda s: random.integers(-3, 4, s) / 64, in_bfloat16)
    other = _model(lambda s: random.integers(-3, 4, s) / 64, in_bfloat16)
    return {
        "base": base,
        "plus": {name: base[name] + step[name] for name in TENSORS},
        "minus": {name: base[name] - step[name] for name in TENSORS},
        "other": {name: base[name] + other[name] for name in TENSORS},
        "same": {name: values.copy() for name, values in base.items()},
    }


def small() -> World:
    """Weights and changes as large as those of language models: 0.02, and 1e-4."""
    random = np.random.default_rng(5)
    base = _model(lambda s: _signs(random, s) * random.uniform(0.01, 0.04, s), in_float32)
    return {"base": base, **{n: _tuned(random, base, 0.005, in_float32) for n in "abc"}}


WORLDS: dict[str, tuple[Callable[[], World], str]] = {
    "near": (near, "float32"),
    "near_half": (near_half, "bfloat16"),
    "kin": (kin, "float32"),
    "kin_half": (kin_half, "bfloat16"),
    "far": (far, "float32"),
    "far_half": (far_half, "bfloat16"),
    "exact": (exact, "float32"),
    "exact_half": (exact, "bfloat16"),
    "small": (small, "float32"),
}
"""By name: what makes the models, and the dtype they are stored in."""
