"""Sums of products, held bit for bit against the order that the page names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskbasis.combinations import SUMS, combine_four
from taskbasis.compiling import jit
from taskbasis.lanes import LANES, exact_product, products, squares


@jit()
def of_two(rows: Any, a: int, b: int, size: int) -> Any:
    return squares(rows, a, b, size)


@jit()
def of_six(rows: Any, left: Any, right: Any, size: int) -> Any:
    return products(rows, left, right, size)


@jit()
def combine(rows: Any, coefficients: Any, m: int, out: int, size: int) -> None:
    combine_four(rows, coefficients, m, out, size)


@jit()
def exactly(rows: Any, a: int, b: int, size: int) -> Any:
    return exact_product(rows, a, b, size)


def in_lanes(x: NDArray[Any], y: NDArray[Any]) -> Any:
    """What the module says, in NumPy."""
    whole = x.size // LANES * LANES
    sums = np.zeros(LANES, x.dtype)
    for at in range(0, whole, LANES):
        sums = sums + x[at : at + LANES] * y[at : at + LANES]
    while sums.size > 1:
        sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
    total = sums[0]
    for one, other in zip(x[whole:], y[whole:], strict=True):
        total = total + one * other
    return total


@settings(deadline=None)
@given(
    st.sampled_from([0, 1, LANES - 1, LANES, LANES + 1, 5 * LANES + 3, 2047, 2048]),
    st.sampled_from([np.float32, np.float64]),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_the_order_is_the_one_that_is_promised(
    size: int, dtype: type, numbers: list[int], seed: int
) -> None:
    rows = np.random.default_rng(seed).standard_normal((5, 2048)).astype(dtype)
    a, b, c, d = numbers
    cut = rows[:, :size]
    assert of_two(rows, a, b, size) == (in_lanes(cut[a], cut[a]), in_lanes(cut[b], cut[b]))
    expected = [in_lanes(cut[x], cut[y]) for x in (a, b) for y in (c, d, a)]
    assert list(of_six(rows, (a, b), (c, d, a), size)) == expected
    wide = cut.astype(np.float64)
    assert exactly(rows, a, b, size) == (in_lanes(wide[a], wide[b]),)


@settings(deadline=None)
@given(
    st.sampled_from([0, 1, 15, 16, 31, 32, 33, 100, 2047, 2048]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 9),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
)
def test_four_sums_at_once_are_four_sums(
    size: int, dtype: type, inputs: int, first: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((inputs + 1 + SUMS, 2048)).astype(dtype)
    coefficients = rng.standard_normal((first + SUMS, inputs)).astype(dtype)
    before = rows.copy()
    combine(rows, coefficients, first, inputs + 1, size)
    for q in range(SUMS):
        total = np.zeros(size, dtype)
        for coefficient, row in zip(coefficients[first + q], before, strict=False):
            total = total + coefficient * row[:size]
        assert rows[inputs + 1 + q, :size].tobytes() == total.tobytes()
        before[inputs + 1 + q, :size] = total
    assert rows.tobytes() == before.tobytes(), "something else was overwritten"


def test_what_is_exact_neither_overflows_nor_vanishes() -> None:
    rows = np.array([[1e30] * 20, [1e30] * 20, [1e-30] * 20], np.float32)
    assert exactly(rows, 0, 1, 20)[0] == pytest.approx(20 * float(np.float32(1e30)) ** 2, rel=1e-12)
    assert exactly(rows, 2, 2, 20)[0] == pytest.approx(
        20 * float(np.float32(1e-30)) ** 2, rel=1e-12
    )
    assert of_two(rows, 0, 2, 20) == (np.inf, 0.0)


PROGRAM = """
import numpy as np
from taskbasis import kernels, philox
from taskbasis.methods.electing import elect
rows = np.random.default_rng(0).standard_normal((9, 5000)).astype(np.float32)
scratch, gram = np.empty(kernels.scratch_rows(9), np.float32), np.zeros((9, 9))
kernels.gram(None, rows, False, scratch, gram)
out, stats = np.empty((6, 5000), np.float32), np.zeros((6, 2))
kernels.form(None, rows, False, rows[:6, :9].copy(), False, out, scratch, stats)
wide, exact = np.empty(kernels.scratch_rows(9), np.float64), np.zeros((9, 9))
kernels.gram(None, rows.astype(np.float64), False, wide, exact)
voted, drawn = elect(out[:2], np.ones(2)), philox.words(7, 3, 999)
for array in (gram, exact, stats, out[:, ::100], voted, drawn):
    print(array.tobytes().hex())
"""


def printed(cache: Path, **variables: str) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **variables}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout


@pytest.mark.promise("Kernels that were compiled just now give the bits of those from the cache.")
@pytest.mark.promise("Kernels give the same bits whatever registers a machine has.")
def test_compiled_anew_from_the_cache_and_for_a_plain_machine(tmp_path: Path) -> None:
    found = [printed(tmp_path) for _ in range(2)]
    assert any(tmp_path.rglob("*.nbc")), "the first run must have left something"
    assert len(found[0]) > 400
    assert found[0] == found[1]
    assert found[0] == printed(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
