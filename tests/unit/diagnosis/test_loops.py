"""follow: what becomes of an update in rounding, beside ml_dtypes and NumPy entry by entry."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.diagnosis.loops import SUMS, follow
from taskbasis.io.dtypes import BF16, F16, F32, F64, DType
from taskbasis.methods.noise import draws

TYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}


def rounded(values: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """As stored, widened again."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(TYPES[dtype.code]).astype(values.dtype)


def sums(
    base: NDArray[Any], update: NDArray[Any], dtype: DType, noise: NDArray[np.uint32] | None = None
) -> NDArray[np.float64]:
    out = np.zeros(SUMS)
    words = np.zeros(base.size, np.uint32) if noise is None else noise
    follow(base, update, rounded(base + update, dtype), rounded(base, dtype), words, dtype, out)
    return out


def neighbours(exact: NDArray[np.float64], dtype: DType) -> tuple[Any, Any]:
    """The numbers of the dtype at or below, and above, as ml_dtypes and NumPy know them."""
    kind = TYPES[dtype.code]
    near = exact.astype(kind)
    down, up = kind(-np.inf), kind(np.inf)
    lower = np.where(near.astype(np.float64) > exact, np.nextafter(near, down), near)
    above = np.nextafter(lower.astype(kind), up)
    return lower.astype(np.float64), above.astype(np.float64)


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=lambda d: d.name)
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 300.0])
def test_every_sum_is_that_of_its_definition(dtype: DType, size: float) -> None:
    random = np.random.default_rng(3)
    kind = np.float64 if dtype is F32 else np.float32  # float32 is coarse only beside float64
    base = rounded((size * random.standard_normal(400)).astype(kind), dtype)
    update = (0.01 * size * random.standard_normal(400)).astype(kind)
    update[::7] = 0
    noise = draws("test", 0, 400)
    found = sums(base, update, dtype, noise)
    exact, d = base.astype(np.float64) + update, update.astype(np.float64)
    stored = rounded(base + update, dtype).astype(np.float64)
    error = stored - exact
    size = np.abs(exact)
    below, above = neighbours(size, dtype)
    part = (size - below) / (above - below)
    drawn = np.sign(exact) * (np.where(noise < part * 2.0**32, above, below) - size)
    single = exact.astype(np.float32) - exact
    wanted = [
        (d * d).sum(),
        (error * error).sum(),
        (error * d).sum(),
        ((above - size) * (size - below)).sum(),
        (drawn * drawn).sum(),
        (drawn * d).sum(),
        (single * single).sum(),
        np.count_nonzero(d),
        np.count_nonzero((d != 0) & (stored == rounded(base, dtype))),
        0,
        0,
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-300)
    assert found[1] > 0


def test_a_worked_example() -> None:
    """Steps of bfloat16 between 1 and 2 are 1/128: a quarter of one is lost, all of it."""
    quarter = 1 / 512
    found = sums(np.ones(4, np.float32), np.full(4, quarter, np.float32), BF16)
    assert found[:3].tolist() == [4 * quarter**2, 4 * quarter**2, -4 * quarter**2]
    assert found[3] == 4 * quarter * (3 * quarter)
    assert found[4] == 4 * (3 * quarter) ** 2  # draws of 0 always round away from 0
    assert found[5] == 4 * (3 * quarter) * quarter
    assert found[6:].tolist() == [0, 4, 4, 0, 0]


def test_draws_meet_the_mean_and_are_unbiased() -> None:
    count = 200_000
    base, update = np.ones(count, np.float32), np.full(count, 0.3 / 128, np.float32)
    found = sums(base, update, BF16, draws("many", 0, count))
    assert found[4] == pytest.approx(found[3], rel=0.01)
    deviation = np.sqrt(found[3]) * float(update[0])  # of the sum of s * update
    assert abs(found[5]) < 4 * deviation
    assert found[2] == pytest.approx(-found[0])  # the nearest number loses all of it


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=lambda d: d.name)
def test_what_the_dtype_holds_is_not_touched(dtype: DType) -> None:
    tiny = 2.0**-24 if dtype is F16 else float(ml_dtypes.finfo(TYPES[dtype.code]).tiny)
    base = np.array([0.0, -0.0, 1.0, -1.5, tiny, -tiny, 1024.0])
    found = sums(base, np.zeros_like(base), dtype, np.full(7, 2**32 - 1, np.uint32))
    assert found.tolist() == [0.0] * SUMS
    found = sums(np.zeros(2), np.array([tiny, 1.0]), dtype, np.zeros(2, np.uint32))
    assert found[1:7].tolist() == [0.0] * 6
    assert (found[7], found[8]) == (2, 0)


def test_too_large_numbers_are_counted_and_left_out() -> None:
    base = np.array([65504.0, 65000.0, 1.0], np.float32)
    update = np.array([1000.0, 8.0, 1.0], np.float32)
    found = sums(base, update, F16)
    assert found[9] == 1
    assert found[0] == 1000.0**2 + 64 + 1
    assert found[1] == 256.0  # 65008 lies halfway between 64992 and 65024, an even step
    assert found[3] < 1000


def test_the_largest_number_is_not_rounded_up_to_infinity() -> None:
    found = sums(np.array([65504.0]), np.array([4.0]), F16, np.zeros(1, np.uint32))
    assert found[9] == 0
    assert found[4] == 16.0


def test_float64_is_not_rounded_further() -> None:
    base, update = np.array([1.0, 2.0]), np.array([2.0**-60, 0.5])
    found = sums(base, update, F64)
    assert found[1:7].tolist() == [0.0] * 6  # base + update is what float64 holds of it
    assert (found[7], found[8]) == (2, 1)


@given(
    st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20),
    st.floats(-1, 1, width=32),
    st.sampled_from([F16, BF16]),
)
def test_stochastic_rounding_never_beats_the_nearest(
    values: list[float], update: float, dtype: DType
) -> None:
    base = rounded(np.array(values, np.float32), dtype)
    found = sums(base.astype(np.float64), np.full(base.size, update, np.float64), dtype)
    assert found[3] >= found[1] * (1 - 1e-12)
    assert found[6] <= found[1]
    assert found[8] <= found[7] <= base.size


def test_what_rounding_takes_of_the_base_alone() -> None:
    base = np.array([1 + 1 / 256 + 1 / 1024, 1.0], np.float32)  # stored as 1 + 1/128 and 1
    found = sums(base, np.array([0, 1 / 128], np.float32), BF16)
    assert found[10] == (1 / 256 - 1 / 1024) ** 2
    assert found[1] == found[10]
    assert (found[7], found[8]) == (1, 0)
