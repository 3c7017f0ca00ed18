"""Weights with an update on them: the sum, its rounding, and any way of cutting it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.io.adapted import adapted, stored_dtype
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.lowrank import low_rank
from taskbasis.io.tensors import ArrayBlob, Forming, TensorInfo


def tensor(name: str, values: NDArray[Any]) -> TensorInfo:
    kind = BY_NAME[values.dtype.name]
    return TensorInfo(name, kind, values.shape, ArrayBlob(values.reshape(-1).view(np.uint8), name))


def draw(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


UP, DOWN = draw(7, 3, seed=1), draw(3, 11, seed=2)
UPDATE = low_rank("q", tensor("A", DOWN), tensor("B", UP), 0.5)
PRODUCT = (0.5 * UP.astype(np.float64) @ DOWN.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("named", [None, "float32", "bfloat16", "float16"])
def test_the_sum_is_rounded_to_its_dtype(stored: Any, named: str | None) -> None:
    weights = draw(7, 11, seed=3).astype(stored)
    info = adapted(tensor("w", weights), UPDATE, BY_NAME[named] if named else None)
    wide = np.float64 if stored == np.float64 else np.float32
    assert info.dtype.name == (named or np.dtype(wide).name)
    assert (info.name, info.shape) == ("w", (7, 11))
    assert stored_dtype(info).name == np.dtype(stored).name
    total = weights.astype(wide) + UPDATE.load()
    found = info.load()
    np.testing.assert_array_equal(found, total.astype(found.dtype))
    np.testing.assert_allclose(UPDATE.load(), PRODUCT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_any_cut_gives_the_same_bits(named: str) -> None:
    weights = tensor("w", draw(7, 11, seed=3).astype(ml_dtypes.bfloat16))
    info = adapted(weights, UPDATE, BY_NAME[named])
    whole = info.load().reshape(-1)
    for start, stop in ((0, 1), (5, 40), (11, 22), (76, 77), (30, 30)):
        part = np.empty(stop - start, info.dtype.bits)
        info.read(start, stop, part)
        assert part.tobytes() == whole[start:stop].tobytes()


def test_what_it_is_made_of_is_told() -> None:
    info = adapted(tensor("w", draw(7, 11, seed=3)), UPDATE)
    assert info.blob.label == "w with B"
    assert stored_dtype(UPDATE).name == "float32"


def test_the_room_of_both_parts_counts() -> None:
    info = adapted(tensor("w", draw(7, 11, seed=3)), UPDATE)
    twice = adapted(info, UPDATE)  # an adapter on a model that has one
    assert isinstance(info.blob, Forming)
    assert isinstance(twice.blob, Forming)
    assert isinstance(UPDATE.blob, Forming)
    assert info.blob.working_bytes(100) > UPDATE.blob.working_bytes(100)
    assert twice.blob.working_bytes(100) > info.blob.working_bytes(100)
    np.testing.assert_allclose(twice.load(), info.load() + PRODUCT, rtol=1e-5, atol=1e-5)


def test_what_overflows_is_infinite_without_a_warning() -> None:
    info = adapted(tensor("w", np.full((7, 11), 65500, np.float32)), UPDATE, BY_NAME["float16"])
    large = low_rank("q", tensor("A", DOWN), tensor("B", UP), 1e6)
    assert np.isfinite(info.load()).all()
    more = adapted(tensor("w", draw(7, 11, seed=3)), large, BY_NAME["float16"])
    assert np.isinf(more.load()).any()
