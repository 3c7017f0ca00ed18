"""Whether two checkpoints agree, and how far one lies from the exact sum."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

BF16 = ml_dtypes.bfloat16


def folder(path: Path, **tensors: object) -> Path:
    path.mkdir()
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    save_file(arrays, path / "model.safetensors")
    return path


def bf16(*values: float) -> np.ndarray:
    return np.array(values, BF16)


def test_equal_checkpoints(compare: ModuleType, tmp_path: Path) -> None:
    left = folder(tmp_path / "l", a=bf16(1, 2, 3), b=bf16(), c=bf16(-0.0))
    right = folder(tmp_path / "r", a=bf16(1, 2, 3), b=bf16(), c=bf16(0.0))
    found = compare.compare(left, right)
    assert found == compare.Agreement((), 4, 0, 0, "", 0.0)
    assert found.good


def test_differences_are_counted_in_units_and_in_value(compare: ModuleType, tmp_path: Path) -> None:
    left = folder(tmp_path / "l", near=bf16(1.0, 5.0), far=bf16(2**-120, 7.0))
    right = folder(tmp_path / "r", near=bf16(1.0078125, 5.0), far=bf16(-(2**-120), 7.0))
    found = compare.compare(left, right)
    assert (found.entries, found.differing, found.worst_tensor) == (4, 2, "far")
    assert found.worst_units == 2 * 128 * 7
    assert found.worst_value == 2**-7
    assert not found.good
    assert found.sentence() == (
        "2 of 4 entries differ (50 %), by 1792 bf16 units and by 0.0078 in value at most"
    )


def test_one_unit_is_one_rounding_and_good(compare: ModuleType, tmp_path: Path) -> None:
    left, right = folder(tmp_path / "l", a=bf16(1.0)), folder(tmp_path / "r", a=bf16(1.0078125))
    found = compare.compare(left, right)
    assert found.good
    assert "by 1 bf16 unit and" in found.sentence()


@pytest.mark.parametrize(
    "other",
    [
        {"a": bf16(1, 2), "extra": bf16(1)},
        {"b": bf16(1, 2)},
        {"a": bf16(1, 2, 3)},
        {"a": np.array([1, 2], np.float16)},
    ],
)
def test_tensors_must_match(compare: ModuleType, tmp_path: Path, other: dict[str, object]) -> None:
    found = compare.compare(folder(tmp_path / "l", a=bf16(1, 2)), folder(tmp_path / "r", **other))
    assert not found.good
    assert "do not match" in found.sentence()


def test_blocks_do_not_change_what_is_found(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    left = folder(tmp_path / "l", a=generator.normal(size=1000).astype(BF16))
    right = folder(tmp_path / "r", a=generator.normal(size=1000).astype(BF16))
    whole = compare.compare(left, right)
    monkeypatch.setattr(compare, "BLOCK", 7)
    assert compare.compare(left, right) == whole


def test_a_checkpoint_that_is_the_exact_sum(compare: ModuleType, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    base, one, two = (generator.normal(0.1, 0.02, 500).astype(BF16) for _ in range(3))
    wide = [array.astype(np.float64) for array in (base, one, two)]
    exact = wide[0] + 0.5 * ((wide[1] - wide[0]) + (wide[2] - wide[0]))
    result = folder(tmp_path / "result", a=exact.astype(BF16))
    inputs = (
        folder(tmp_path / "base", a=base),
        [
            folder(tmp_path / "one", a=one),
            folder(tmp_path / "two", a=two),
        ],
    )
    assert compare.compare_with_exact_sum(result, *inputs, 0.5).differing == 0
    assert compare.compare_with_exact_sum(result, *inputs, 0.6).differing > 300


def nearest_bf16(number: Fraction) -> float:
    """By exact arithmetic: the nearer neighbour, the even one at a tie."""
    start = np.array([float(number)], BF16).view(np.int16)
    around = (start + np.array([-1, 0, 1], np.int16)).view(BF16)
    bits = around.view(np.int16)
    return float(
        min(
            zip(around, bits, strict=True),
            key=lambda p: (abs(Fraction(float(p[0])) - number), p[1] & 1),
        )[0]
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("cut", [0.0, 2**-40, -(2**-40), 2**-9, 0.3e-2])
def test_rounding_happens_once(compare: ModuleType, sign: int, cut: float) -> None:
    # Half way between two bf16 numbers, a little off by what float32 cannot hold.
    number = sign * (1 + 2**-8 + cut)
    scratch = compare._Scratch()
    rounded = compare._rounded(_in(scratch, number), scratch)
    assert float(rounded[0]) == nearest_bf16(Fraction(number))


def _in(scratch: object, number: float) -> np.ndarray:
    buffer = scratch.double[1, :1]  # type: ignore[attr-defined]
    buffer[0] = number
    return buffer
