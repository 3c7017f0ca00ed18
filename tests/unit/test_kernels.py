"""The fused loops against NumPy and ml_dtypes, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import kernels

BITS = {"f4": np.float32, "f8": np.float64, "f2": np.int16, "bf": np.uint16}
VALUES = {"f4": np.float32, "f8": np.float64, "f2": np.float16, "bf": ml_dtypes.bfloat16}
SIZES = [0, 1, 2047, 2048, 2049, 5000]


def words(kind: str, seed: int, shape: Any, spread: float = 1.0) -> NDArray[Any]:
    """Stored words of normal numbers, some of them zero, tiny or of like size."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal(shape) * spread
    found *= rng.choice([1.0, 0.0, 1e-6, 8.0], np.shape(found), p=[0.7, 0.1, 0.1, 0.1])
    return found.astype(VALUES[kind]).view(BITS[kind])


def widen(stored: NDArray[Any], kind: str, compute: Any) -> NDArray[Any]:
    return stored.view(VALUES[kind]).astype(compute)


def narrow(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Rounded once, which ml_dtypes does not do from float64 to bfloat16."""
    if kind == "bf" and values.dtype == np.float64:
        step = np.ldexp(1.0, np.maximum(np.frexp(values)[1], -125) - 8)
        values = np.rint(values / step) * step
    return values.astype(VALUES[kind])


def reference(
    base: NDArray[Any] | None,
    rows: NDArray[Any],
    kinds: tuple[str, str, str],
    difference: bool,
    coefficients: NDArray[Any],
    add_base: bool,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The documented expression, and the errors that rounding makes."""
    of_base, of_rows, of_out = kinds
    compute = coefficients.dtype
    wide = widen(rows, of_rows, compute)
    origin = None if base is None else widen(base, of_base, compute)
    if difference:
        wide = wide - origin
    totals = np.zeros((len(coefficients), rows.shape[1]), compute)
    for m, line in enumerate(coefficients):
        for coefficient, row in zip(line, wide, strict=True):
            totals[m] = totals[m] + coefficient * row
    stored = narrow(origin + totals if add_base else totals, of_out)
    back = stored.astype(compute)
    errors = (back - origin) - totals if add_base else back - totals
    return stored, totals, errors


def run(
    base: NDArray[Any] | None,
    rows: NDArray[Any],
    kind: str,
    difference: bool,
    coefficients: NDArray[Any],
    add_base: bool,
) -> tuple[NDArray[Any], NDArray[Any]]:
    out = np.empty((len(coefficients), rows.shape[1]), BITS[kind])
    scratch = np.full(kernels.scratch_rows(len(rows)), np.nan, coefficients.dtype)
    stats = np.zeros((len(coefficients), 2))
    kernels.form(base, rows, difference, coefficients, add_base, out, scratch, stats)
    return out.view(VALUES[kind]), stats


SIGNATURES = [
    ("f4", "f4", "f4"),
    ("f4", "f4", "bf"),
    ("f4", "f4", "f2"),
    ("bf", "bf", "bf"),
    ("bf", "bf", "f4"),
    ("bf", "f4", "bf"),
    ("f2", "f2", "f2"),
    ("f2", "f2", "f4"),
    ("f4", "bf", "f4"),
    ("f8", "f8", "f8"),
    ("f8", "f8", "f2"),
    ("f8", "f4", "bf"),
]


@pytest.mark.parametrize("kinds", SIGNATURES, ids="-".join)
def test_form_is_the_documented_expression(kinds: tuple[str, str, str]) -> None:
    of_base, of_rows, of_out = kinds
    compute = np.float64 if "f8" in kinds else np.float32
    for case, size in enumerate(SIZES):
        for inputs, outputs in ((1, 1), (1, 3), (2, 1), (3, 2), (4, 3), (5, 1), (5, 5), (9, 8)):
            rng = np.random.default_rng([case, inputs])
            base = words(of_base, case, size)
            rows = words(of_rows, inputs, (inputs, size))
            coefficients = rng.standard_normal((outputs, inputs)).astype(compute)
            coefficients[0, 0] = [1.0, -1.0, 0.0, 0.3, 1 / 3, 2.0][case]
            for difference, add_base in ((0, 0), (0, 1), (1, 0), (1, 1)):
                needed = base if difference or add_base else None
                args = (difference == 1, coefficients, add_base == 1)
                found, stats = run(needed, rows, of_out, *args)
                expected, totals, errors = reference(needed, rows, kinds, *args)
                assert found.tobytes() == expected.tobytes(), (size, inputs, args)
                for column, part in enumerate((totals, errors)):
                    squares = np.sum(part.astype(np.float64) ** 2, axis=1)
                    np.testing.assert_allclose(stats[:, column], squares, rtol=3e-6, atol=1e-30)


def test_statistics_are_added_to_what_is_there() -> None:
    rows = words("f4", 0, (1, 3000))
    stats = np.array([[100.0, 7.0]])
    one = np.ones((1, 1), np.float32)
    scratch = np.empty(kernels.scratch_rows(1), np.float32)
    out = np.empty((1, 3000), np.float32)
    kernels.form(None, rows, False, one, False, out, scratch, stats)
    np.testing.assert_allclose(stats, [[100 + np.sum(rows.astype(float) ** 2), 7.0]], rtol=1e-6)


def test_nothing_is_written_beyond_the_cut() -> None:
    rows = np.ones((1, 10), np.float32)
    out = np.full((1, 12), 9, np.float32)
    scratch = np.empty(kernels.scratch_rows(1), np.float32)
    kernels.form(
        None, rows, False, np.ones((1, 1), "f4"), False, out[:, 1:11], scratch, np.zeros((1, 2))
    )
    assert out.tolist() == [[9.0, *[1.0] * 10, 9.0]]


@pytest.mark.parametrize("where", [0, 2047, 2048, 4999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("add_base", [False, True])
def test_a_value_that_is_not_finite_shows(where: int, value: float, add_base: bool) -> None:
    rows = np.ones((2, 5000), np.float32)
    rows[1, where] = value
    base = np.ones(5000, np.float32)
    _, stats = run(base, rows, "f4", False, np.ones((1, 2), np.float32), add_base)
    assert not np.isfinite(stats[0, 0])


def test_infinities_that_cancel_show() -> None:
    rows = np.ones((2, 10), np.float32)
    rows[:, 3] = np.inf
    _, stats = run(None, rows, "f4", False, np.array([[1, -1]], np.float32), False)
    assert not np.isfinite(stats[0, 0])


@pytest.mark.parametrize(("kind", "value"), [("f2", 65520.0), ("f2", -1e6), ("bf", 3.4e38)])
def test_a_value_too_large_for_what_it_is_stored_in_shows(kind: str, value: float) -> None:
    """The delta is finite, and only the part that rounding took is not."""
    rows = np.zeros((1, 3000), np.float32)
    rows[0, 2500] = value * 1e-20
    found, stats = run(None, rows, kind, False, np.full((1, 1), 1e20, np.float32), False)
    assert np.isinf(found[0, 2500].astype(np.float32))
    assert not np.isfinite(stats[0, 1])


@pytest.mark.parametrize("kind", ["bf", "f2"])
def test_every_word_widens(kind: str) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(BITS[kind])
    out = np.empty(2**16, np.float32)
    kernels.decode(every, out)
    expected = every.view(VALUES[kind]).astype(np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(out.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
    assert np.all(np.isnan(out[nan]))
    assert np.array_equal(np.signbit(out), np.signbit(expected))
    assert nan.sum() == {"bf": 2 * 127, "f2": 2 * 1023}[kind]


@pytest.mark.parametrize(("kind", "target"), [("f4", np.float32), ("f8", np.float64)])
def test_wide_types_are_copied(kind: str, target: Any) -> None:
    values = words(kind, 0, 5000)
    out = np.empty(5000, target)
    kernels.decode(values, out)
    assert np.array_equal(out, values)


def stored(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """The kernel's rounding, through a form that multiplies by one."""
    with np.errstate(all="ignore"):
        return run(None, values[None], kind, False, np.ones((1, 1), np.float32), False)[0][0]


def patterns() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    every_high = np.arange(2**16, dtype=np.uint32) << 16
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].astype(np.float32)
    return {
        "any bits": rng.integers(0, 2**32, 2_000_000, np.uint64).astype(np.uint32).view("f4"),
        "ties of bfloat16": (every_high | 0x8000).view(np.float32),
        "next to ties of bfloat16": np.concatenate(
            [(every_high | 0x7FFF).view(np.float32), (every_high | 0x8001).view(np.float32)]
        ),
        "ties of float16": (half[:-1] + half[1:]) / 2,
        "next to ties of float16": np.concatenate(
            [np.nextafter((half[:-1] + half[1:]) / 2, np.float32(at)) for at in (-1e9, 1e9)]
        ),
        "range of float16": (2.0 ** rng.uniform(-27, 17, 500_000)).astype("f4")
        * rng.choice([-1, 1], 500_000).astype("f4"),
        "subnormals": rng.integers(0, 2**23, 100_000).astype(np.uint32).view("f4"),
        "limits": np.array(
            [65504, 65519.996, 65520, 65536, 2**-24, 2**-25, 2**-14, 2**-15, 1e-45, 3.4e38, 0],
            np.float32,
        ),
        "special": np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32),
        "quiet and signalling": np.array(
            [0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0x7F80FFFF], np.uint32
        ).view(np.float32),
    }


@pytest.mark.parametrize("kind", ["bf", "f2"])
@pytest.mark.parametrize("name", patterns())
def test_narrowing_is_round_to_nearest_even(name: str, kind: str) -> None:
    values = patterns()[name]
    found = stored(values, kind)
    with np.errstate(all="ignore"):
        expected = (values + np.float32(0)).astype(VALUES[kind])
    nan = np.isnan(values)
    assert np.array_equal(found[~nan].view(np.uint16), expected[~nan].view(np.uint16))
    assert np.all(np.isnan(found[nan].astype(np.float32)))


@pytest.mark.parametrize("kind", ["bf", "f2"])
def test_float64_is_rounded_once_beside_every_tie(kind: str) -> None:
    """Between any two stored neighbours: a tie goes to the even word, all else to the nearer."""
    last = {"bf": 0x7F7F, "f2": 0x7BFF}[kind]
    words = np.arange(last + 1, dtype=np.uint16)
    exact = words.view(VALUES[kind]).astype(np.float64)
    above = np.append(exact[1:], 2 * exact[-1] - exact[-2])  # beyond the largest is infinity
    middle, step = (exact + above) / 2, above - exact
    even = words + (words & 1)
    for sign, bit in ((1.0, 0), (-1.0, 0x8000)):
        cases = [(middle, even), (exact, words)]
        for part in (2.0**-40, 2.0**-30, 2.0**-20, 2.0**-17, 2.0**-14, 0.4):
            cases += [(middle + part * step, words + 1), (middle - part * step, words)]
        cases += [(np.nextafter(middle, np.inf), words + 1), (np.nextafter(middle, 0), words)]
        for values, expected in cases:
            with np.errstate(all="ignore"):
                one = np.ones((1, 1))
                found = run(None, sign * values[None], kind, False, one, False)[0][0]
            wanted = np.where(values == 0, 0, expected | np.uint16(bit))  # 0 + -0 is 0
            assert np.array_equal(found.view(np.uint16), wanted)
            assert expected is even or not np.any(values == middle)


def test_float64_beyond_any_float32() -> None:
    values = np.array([[1e300, -1e300, np.inf, -np.inf, 1e-300, -1e-300, 5e-324, np.nan]])
    for kind in ("bf", "f2"):
        with np.errstate(all="ignore"):
            found = run(None, values, kind, False, np.ones((1, 1)), False)[0][0]
        special = np.inf
        expected = [special, -special, special, -special, 0.0, -0.0, 0.0]
        assert found.astype(np.float32)[:7].tolist() == expected
        assert np.signbit(found[:7]).tolist() == [False, True, False, True, False, True, False]
        assert np.isnan(found[7].astype(np.float32))


@pytest.mark.parametrize("kinds", [("f4", "f4"), ("bf", "bf"), ("f2", "f2"), ("f8", "f8")])
@pytest.mark.parametrize("difference", [False, True])
def test_gram_against_a_dense_one(kinds: tuple[str, str], difference: bool) -> None:
    of_base, of_rows = kinds
    compute = np.float64 if "f8" in kinds else np.float32
    for size in SIZES:
        for inputs in (1, 2, 3, 5, 8):
            base = words(of_base, 1, size)
            rows = words(of_rows, 2, (inputs, size))
            out = np.zeros((inputs, inputs))
            scratch = np.full(kernels.scratch_rows(inputs), np.nan, compute)
            kernels.gram(base if difference else None, rows, difference, scratch, out)
            wide = widen(rows, of_rows, compute)
            if difference:
                wide = wide - widen(base, of_base, compute)
            dense = wide.astype(np.float64) @ wide.astype(np.float64).T
            lengths = np.sqrt(np.diag(dense))
            np.testing.assert_array_equal(np.triu(out, 1), 0)
            allowed = 1e-6 * np.outer(lengths, lengths)
            assert np.all(np.abs(np.tril(dense) - out) <= allowed + 1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_does_not_depend_on_the_other_rows(dtype: type) -> None:
    """Rows are taken four by four; which four must not show, not in the last bit."""
    rows = np.random.default_rng(0).standard_normal((7, 2 * kernels.BLOCK + 77)).astype(dtype)

    def gram(chosen: list[int]) -> NDArray[np.float64]:
        out = np.zeros((len(chosen), len(chosen)))
        scratch = np.empty(kernels.scratch_rows(len(chosen)), dtype)
        kernels.gram(None, rows[chosen], False, scratch, out)
        return np.tril(out) + np.tril(out, -1).T

    whole = gram(list(range(7)))
    for chosen in ([6], [0, 3], [5, 1, 2], [6, 5, 4, 3, 2, 1, 0], [3, 3, 1, 0]):
        assert gram(chosen).tobytes() == whole[np.ix_(chosen, chosen)].tobytes()


def test_gram_is_added_to_what_is_there() -> None:
    rows = np.array([[1, 2], [3, 4]], np.float32)
    out = np.full((2, 2), 10.0)
    kernels.gram(None, rows, False, np.empty(kernels.scratch_rows(2), np.float32), out)
    assert out.tolist() == [[15.0, 10.0], [21.0, 35.0]]


def test_cosines_of_long_vectors() -> None:
    """Summing millions of squares in float32 alone would be wrong in the third digit."""
    n = 3_000_000
    first = np.abs(np.random.default_rng(0).standard_normal(n)).astype(np.float32) + 1
    rows = np.stack([first, first, 3 * first])
    out = np.zeros((3, 3))
    kernels.gram(None, rows, False, np.empty(kernels.scratch_rows(3), np.float32), out)
    exact = float(np.sum(first.astype(np.float64) ** 2))
    running = np.cumsum(first * first, dtype=np.float32)[-1]
    assert abs(running - exact) > 1e-5 * exact, "the trap must be one"
    assert abs(out[0, 0] - exact) < 1e-6 * exact
    lengths = np.sqrt(np.diag(out))
    cosines = np.tril(out / np.outer(lengths, lengths))
    np.testing.assert_allclose(cosines[np.tril_indices(3)], 1.0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e-22, 1.0, 1e18, 1e25])
def test_norms_of_very_small_and_very_large_values(size: float) -> None:
    """Squares that float32 would lose or overflow are summed in float64."""
    rows = (size * np.array([[1, 2, 3], [1, -1, 2]])).astype(np.float32)
    exact = rows.astype(np.float64)
    stats, gram = np.zeros((1, 2)), np.zeros((2, 2))
    out = np.empty((1, 3), np.float32)
    scratch = np.empty(kernels.scratch_rows(2), np.float32)
    kernels.form(None, rows, False, np.ones((1, 2), np.float32), False, out, scratch, stats)
    assert stats[0, 0] == pytest.approx(np.sum(exact.sum(axis=0) ** 2), rel=1e-5)
    kernels.gram(None, rows, False, scratch, gram)
    np.testing.assert_allclose(gram, np.tril(exact @ exact.T), rtol=1e-5)


@pytest.mark.parametrize("add_base", [False, True])
def test_equal_infinities_differ_by_zero(add_base: bool) -> None:
    """A mask of -inf that fine-tuning left alone is carried, one that it moved is not finite."""
    base = np.array([-np.inf, np.inf, 1.0, -np.inf], np.float32)
    words = np.array([[-np.inf, np.inf, 3.0, -np.inf]], np.float32)
    out, stats = np.empty((1, 4), np.float32), np.zeros((1, 2))
    scratch = np.empty(kernels.scratch_rows(1), np.float32)
    half = np.full((1, 1), 0.5, np.float32)
    kernels.form(base, words, True, half, add_base, out, scratch, stats)
    moved = np.array([0, 0, 1, 0], np.float32)
    np.testing.assert_array_equal(
        out[0], np.where(moved, base + moved, base) if add_base else moved
    )
    assert stats.tolist() == [[1.0, 0.0]]
    words[0, 0] = 5.0
    kernels.form(base, words, True, half, add_base, out, scratch, stats)
    assert not np.isfinite(stats[0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("difference", [False, True])
def test_deltas_are_the_diagonal_case_of_form(dtype: type, difference: bool) -> None:
    """Bit for bit, the sign of zero included."""
    rng = np.random.default_rng(0)
    base, words = rng.standard_normal(5000), rng.standard_normal((3, 5000))
    words[:, 10], words[:, 20], base[10], base[20] = base[10], -0.0, base[10], -0.0
    base, words = base.astype(dtype), words.astype(dtype)
    scale = np.array([1.0, -0.3, 2.0]).astype(dtype)
    scratch = np.empty(kernels.scratch_rows(3), dtype)
    found, wanted = np.empty((3, 5000), dtype), np.empty((3, 5000), dtype)
    assert kernels.deltas(base, words, difference, scale, found, scratch)
    stats = np.zeros((3, 2))
    kernels.form(base, words, difference, np.diag(scale), False, wanted, scratch, stats)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 2047, 2048, 4999])
def test_deltas_tell_of_values_that_are_not_finite(value: float, place: int) -> None:
    words, scratch = np.ones((2, 5000), np.float32), np.empty(kernels.scratch_rows(2), np.float32)
    out, ones = np.empty_like(words), np.ones(2, np.float32)
    assert kernels.deltas(None, words, False, ones, out, scratch)
    words[1, place] = value
    assert not kernels.deltas(None, words, False, ones, out, scratch)


def test_deltas_of_nothing_are_finite() -> None:
    scratch, none = np.empty(kernels.scratch_rows(2), np.float32), np.empty((2, 0), np.float32)
    assert kernels.deltas(None, none, False, np.ones(2, np.float32), none, scratch)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_mixed_is_the_documented_expression(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    first, rows = rng.standard_normal(size), rng.standard_normal((count, size))
    numbers = rng.standard_normal(1 + count)
    total = 0 + numbers[0] * first
    for number, row in zip(numbers[1:], rows, strict=True):
        total = total + number * row
    assert kernels.mixed(first, rows, numbers).tobytes() == total.tobytes()
