"""Norms, angles and sign conflicts by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.diagnosis import diagnose
from taskbasis.diagnosis.making import shared
from taskbasis.diagnosis.parts import conflicts, cosines, part
from taskbasis.diagnosis.sums import Sums
from taskbasis.vectors import Checkpoint, TaskVector

Write = Callable[..., Path]


def vectors(write_folder: Write, base: Any, *deltas: Any) -> tuple[Checkpoint, list[TaskVector]]:
    start = np.asarray(base, np.float32)
    origin = Checkpoint(write_folder("base", {"w": start}))
    tuned = [write_folder(f"t{n}", {"w": start + np.float32(d)}) for n, d in enumerate(deltas)]
    return origin, [TaskVector(origin, folder) for folder in tuned]


def test_a_worked_example(write_folder: Write) -> None:
    base, made = vectors(write_folder, [3, 0, 0, 4], [1, 2, 0, -1], [2, -1, 5, 0])
    found = diagnose(made, base)
    whole = found.whole
    assert whole.entries == 4
    assert whole.base == pytest.approx(5)
    assert whole.norms == pytest.approx((6**0.5, 30**0.5))
    assert whole.relative == pytest.approx((6**0.5 / 5, 30**0.5 / 5))
    assert found.pairs.cosines[0][1] == pytest.approx(0, abs=1e-7)  # 2 - 2
    assert whole.conflict == 0.5  # of entries 0 and 1, which both have, one has unlike signs
    assert whole.weighted == 0.5  # |1 2| and |2 -1|
    assert whole.cancelled == pytest.approx(1 - 10 / 12)  # [3, 1, 5, -1] of 4 + 8


def test_small_entries_count_little_by_weight(write_folder: Write) -> None:
    base, made = vectors(write_folder, [1, 1, 1], [4, 0.5, 0.5], [4, -0.5, -0.5])
    found = diagnose(made, base)
    assert found.whole.conflict == pytest.approx(2 / 3)
    assert found.whole.weighted == pytest.approx(0.5 / 16.5)
    assert found.pairs.conflicts == ((0.0, found.whole.conflict), (found.whole.conflict, 0.0))
    assert found.pairs.weighted[1][0] == pytest.approx(found.whole.weighted)


@pytest.mark.parametrize(("other", "cosine", "conflict"), [(2, 1, 0), (-1, -1, 1)])
def test_parallel_vectors(write_folder: Write, other: int, cosine: int, conflict: int) -> None:
    own = np.random.default_rng(0).standard_normal(3000).round(1)
    base, made = vectors(write_folder, np.zeros(3000), own, other * own)
    found = diagnose(made, base)
    assert found.pairs.cosines[1][0] == pytest.approx(cosine)
    assert (found.whole.conflict, found.whole.weighted) == (conflict, pytest.approx(conflict))
    assert found.whole.relative is None  # the base is zero
    assert found.origins[0].whole.verdict == "unknown"
    assert found.whole.cancelled == pytest.approx(1.0 if other < 0 else 0.0)


def test_unrelated_vectors_disagree_on_half(world: Any) -> None:
    found = diagnose(world().vectors).whole
    assert found.conflict == pytest.approx(0.5, abs=0.02)
    assert found.weighted == pytest.approx(0.5, abs=0.03)
    assert found.cosine < 0.05


def test_zero_and_empty_and_single_vectors_are_finite(write_folder: Write) -> None:
    base, made = vectors(write_folder, [1, 2], [0, 0], [1, 0])
    found = diagnose(made, base)
    assert found.pairs.cosines == ((1.0, 0.0), (0.0, 1.0))
    assert (found.whole.conflict, found.whole.weighted, found.whole.cosine) == (0, 0, 0)
    assert found.origins[0].whole.verdict == "unknown"
    alone = diagnose(made[:1], base)
    assert (alone.shared, alone.whole.cancelled, alone.whole.norms) == (None, 0.0, (0.0,))
    assert alone.rounding is not None
    assert (alone.rounding.whole.lost, alone.rounding.whole.kept) == (0.0, 1.0)
    assert alone.rounding.in_float32 == ()
    nothing = part("none", Sums.nothing(2), True)
    assert (nothing.norms, nothing.relative, nothing.cancelled) == ((0.0, 0.0), None, 0.0)
    assert cosines(Sums.nothing(1)) == ((1.0,),)
    assert conflicts(Sums.nothing(1)) == (((0.0,),), ((0.0,),))


def test_layers_are_the_sums_of_their_tensors(world: Any) -> None:
    found = diagnose(world().vectors)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    layers = {layer.name: layer for layer in found.layers}
    assert set(layers) == {"embed", "layers.0", "layers.1", "norm", "one", "none"}
    own = [tensors["layers.0.w"], tensors["layers.0.b"]]
    assert layers["layers.0"].entries == sum(t.entries for t in own)
    for t in range(3):
        squares = sum(tensor.norms[t] ** 2 for tensor in own)
        assert layers["layers.0"].norms[t] ** 2 == pytest.approx(squares)
    assert found.whole.norms[0] ** 2 == pytest.approx(sum(p.norms[0] ** 2 for p in found.layers))


def test_what_is_shared() -> None:
    at_right_angles, equal = shared(np.eye(4) * 9), shared(np.full((4, 4), 2.0))
    assert (at_right_angles.mean, at_right_angles.share) == (1, 0)
    assert (equal.mean, equal.share, equal.before) == (4, 1, pytest.approx(1))
    half = shared(np.array([[2.0, 1], [1, 2]]))
    assert (half.share, half.before) == (0.5, pytest.approx(0.5))
    assert half.after < half.before
    assert 0 < half.taken < 1
    opposed = shared(np.array([[1.0, -1], [-1, 1]]))
    assert (opposed.mean, opposed.share) == (0, -1)
    assert shared(np.zeros((2, 2))).share == 0
    long = shared(1e6 * np.array([[2.0, 1], [1, 2]]))
    assert long.after == pytest.approx(half.after)  # whatever the length of the vectors
