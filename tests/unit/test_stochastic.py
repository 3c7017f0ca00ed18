"""Stochastic rounding: one of two neighbours, right on average, a function of key and position."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.io.dtypes import BF16, F16, F32, DType
from taskbasis.passes.stochastic import round_at_random

VALUES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
LAST = {"BF16": 0x7F7F, "F16": 0x7BFF}
MASK = (1 << 64) - 1


def rounded(values: Any, dtype: DType, key: int = 1, first: int = 0) -> NDArray[Any]:
    """Values without a base."""
    out = np.array(values)
    round_at_random(np.zeros_like(out), out, dtype, key, first)
    return out


def neighbours(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All finite numbers of 16 bits from 0 to the last but one, and the next greater ones."""
    words = np.arange(LAST[kind] + 1, dtype=np.uint16)
    exact = words.view(VALUES[kind]).astype(np.float64)
    return exact[:-1], exact[1:]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_stored_number_stays(dtype: DType, sign: float) -> None:
    low, high = neighbours(dtype.code)
    for key in range(3):
        for exact in (sign * low + 0.0, sign * high):  # a sum is never -0
            for compute in (np.float32, np.float64):
                found = rounded(exact.astype(compute), dtype, key)
                assert found.tobytes() == exact.astype(compute).tobytes()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("part", [2.0**-40, 0.25, 0.5, 0.75, 1 - 2.0**-40])
def test_one_of_two_neighbours_everywhere(dtype: DType, sign: float, part: float) -> None:
    """Between any two of the 2^16 numbers, subnormal ones and the largest too; never beyond."""
    low, high = neighbours(dtype.code)
    values = sign * (low + part * (high - low))
    found = rounded(values, dtype, 7)
    up = found == sign * high
    assert np.all(up | (found == sign * low))
    assert abs(up.mean() - part) < 5 * np.sqrt(max(part * (1 - part), 1e-9) / up.size)
    assert np.array_equal(np.signbit(found), np.full(found.shape, sign < 0))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=lambda dtype: dtype.name)
def test_the_largest_number_and_infinity(dtype: DType) -> None:
    """What nearest rounding stores as the largest number is it; what it refuses stays too large."""
    low, high = neighbours(dtype.code)
    largest, step = high[-1], high[-1] - low[-1]
    fits = largest + step * np.array([0.1, 0.25, 0.5 - 2.0**-30])
    broken = largest + step * np.array([0.5, 0.75, 1.0, 3.0, 1e3, 1e30])
    for sign in (1.0, -1.0):
        for key in range(50):
            assert np.all(rounded(sign * fits, dtype, key) == sign * largest)
            assert np.array_equal(rounded(sign * broken, dtype, key), sign * broken)
    special = rounded(np.array([np.inf, -np.inf, np.nan]), dtype)
    assert special[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(special[2])


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda dtype: dtype.name)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), key=st.integers(0, MASK))
def test_any_number_is_rounded_to_a_neighbour(dtype: DType, value: float, key: int) -> None:
    found = float(rounded(np.array([value], np.float64), dtype, key)[0])
    kind = VALUES[dtype.code]
    with np.errstate(over="ignore"):
        near = float(np.float64(value).astype(kind))
    if np.isinf(near):
        assert found == value
        return
    assert float(np.float64(found).astype(kind)) == found
    beside = np.array([near], kind)
    bits = beside.view(np.uint32 if dtype is F32 else np.uint16)
    step = abs(float((bits + 1).view(kind)[0].astype(np.float64)) - abs(near)) if near else 0
    assert abs(found - value) < (step or 2.0**-24)
    assert found == value or near != value


def test_the_mean_is_the_value() -> None:
    """Over many keys, at one position; and over many positions, with one key."""
    draws, part = 100_000, 0.3
    value = 1 + part * 2.0**-7
    ups = [rounded(np.array([value]), BF16, key * 0x9E3779B97F4A7C15 & MASK)[0] > 1
           for key in range(2000)]  # fmt: skip
    assert abs(np.mean(ups) - part) < 5 * np.sqrt(part * (1 - part) / 2000)
    found = rounded(np.full(draws, value), BF16)
    assert abs(np.mean(found) - value) < 5 * 2.0**-7 * np.sqrt(part * (1 - part) / draws)
    up = (found > 1).astype(np.float64) - part
    assert abs(np.mean(up[1:] * up[:-1])) < 5 * part / np.sqrt(draws)  # and neighbours unrelated


def splitmix(seed: int, count: int) -> list[int]:
    """The published generator, in whole numbers of any size."""
    state, found = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_the_draws_are_those_of_splitmix64() -> None:
    assert splitmix(0, 1) == [0xE220A8397B1DCDAF]  # its well-known first output
    key, count = 0x123456789ABCDEF0, 5000
    value = 1 + 0.4 * 2.0**-10
    expected = [(draw >> 12) / 2**52 < 0.4 for draw in splitmix(key, count)]
    assert (rounded(np.full(count, value), F16, key) > 1).tolist() == expected


@pytest.mark.parametrize("cut", [1, 2047, 2048, 2049, 4999])
def test_what_is_drawn_is_a_function_of_the_position(cut: int) -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    whole = rounded(values, BF16)
    parts = [rounded(values[:cut], BF16), rounded(values[cut:], BF16, first=cut)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert rounded(values, BF16, key=2).tobytes() != whole.tobytes()
    far = rounded(values, BF16, first=2**40)
    assert far.tobytes() != whole.tobytes()


def test_an_update_that_a_float32_sum_would_drop_counts() -> None:
    """2^-30 beside 1 is lost in float32; on average it is stored in bfloat16."""
    n = 1 << 22
    base, out = np.ones(n, np.float32), np.full(n, 2.0**-20, np.float32)
    round_at_random(base, out, BF16, 5, 0)
    chance = 2.0**-13
    assert abs(np.mean(out > 1) - chance) < 5 * np.sqrt(chance / n)
    assert np.float32(1) + np.float32(2.0**-30) == 1
    out = np.full(n, 2.0**-30, np.float32)
    round_at_random(base, out, F32, 5, 0)
    assert abs(np.mean(out > 1) - 2.0**-7) < 5 * np.sqrt(2.0**-7 / n)


@pytest.mark.parametrize("compute", [np.float32, np.float64])
def test_what_rounding_took_is_summed(compute: Any) -> None:
    rng = np.random.default_rng(3)
    base = rng.standard_normal(5000).astype(ml_dtypes.bfloat16).astype(compute)
    delta = (1e-3 * rng.standard_normal(5000)).astype(compute)
    out = delta.copy()
    lost = round_at_random(base, out, BF16, 9, 0)
    taken = (out.astype(np.float64) - base) - delta
    assert lost == pytest.approx(float(np.sum(taken**2)), rel=1e-12)
    assert np.array_equal(out.astype(ml_dtypes.bfloat16).astype(compute), out)


def test_an_infinity_of_the_base_is_carried() -> None:
    base, out = np.array([-np.inf, np.inf], np.float32), np.zeros(2, np.float32)
    assert round_at_random(base, out, BF16, 1, 0) == 0
    assert out.tolist() == [-np.inf, np.inf]
    assert round_at_random(np.zeros(0), np.zeros(0), BF16, 1, 0) == 0
