"""Which tensors to keep in float32: the fewest, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.diagnosis import diagnose
from taskbasis.diagnosis.loops import SUMS
from taskbasis.diagnosis.rounding import fewest, patterns
from taskbasis.vectors import Checkpoint, TaskVector


def total(square: float, lost: float, single: float = 0.0) -> Any:
    row = np.zeros(SUMS)
    row[[0, 1, 6]] = square, lost, single
    return row


def test_the_tensors_that_lose_most_come_first() -> None:
    sums = {"a": total(50, 1), "b": total(25, 9), "c": total(25, 4)}
    assert fewest(sums, 0.4) == ((), pytest.approx(0.14**0.5))
    assert fewest(sums, 0.3) == (("b",), pytest.approx(0.05**0.5))
    assert fewest(sums, 0.15) == (("b", "c"), pytest.approx(0.1))
    assert fewest(sums, 0.0) == (("b", "c", "a"), 0.0)


def test_tensors_that_float32_does_not_help_are_not_named() -> None:
    sums = {"a": total(1, 0.5, 0.5), "b": total(1, 0.5, 0.4)}
    chosen, then = fewest(sums, 0.05)
    assert chosen == ("b",)
    assert then == pytest.approx(0.45**0.5)
    assert fewest({"a": total(0, 1)}, 0.05) == ((), 0.0)
    assert fewest({}, 0.05) == ((), 0.0)


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=6),
    st.floats(0, 0.9),
)
def test_no_smaller_set_reaches_the_target(rows: list[tuple[int, int]], target: float) -> None:
    sums = {str(n): total(square, square * part / 100) for n, (square, part) in enumerate(rows)}
    chosen, then = fewest(sums, target)
    squares = sum(s[0] for s in sums.values())
    for names in combinations(sums, max(len(chosen) - 1, 0)):
        if not chosen:
            break
        left = sum(s[1] for name, s in sums.items() if name not in names)
        assert left / squares > target**2 * (1 - 1e-12)
    assert then <= target * (1 + 1e-9) + 1e-12


def test_patterns_match_the_chosen_names_and_no_other() -> None:
    known = [f"layers.{n}.{part}" for n in range(12) for part in ("up", "norm")] + ["a[1]*", "a1x"]
    ups = [name for name in known if name.endswith("up")]
    assert patterns(ups, known) == ("layers.*.up",)
    assert patterns(ups[:-1], known) == tuple(ups[:-1])
    assert patterns(["layers.3.norm", "a[1]*"], known) == ("layers.3.norm", "a[[]1][*]")
    assert patterns([], known) == ()
    assert patterns(known, known) == ("*",)


@given(st.lists(st.text("ab.01*?[", min_size=1, max_size=4), unique=True, max_size=12), st.data())
def test_any_names_are_matched_exactly(known: list[str], data: st.DataObject) -> None:
    chosen = [name for name in known if data.draw(st.booleans())]
    found = patterns(chosen, known)
    matched = [n for n in known if any(fnmatchcase(n, pattern) for pattern in found)]
    assert matched == chosen
    assert len(found) <= len(chosen)


def small_step(write_folder: Callable[..., Path], by: float) -> tuple[Checkpoint, TaskVector]:
    """A bfloat16 base; matrix ``big`` moves by a part of its steps, ``far`` by many of them."""
    random = np.random.default_rng(0)
    base = {n: random.uniform(1, 1.9, (50, 40)).astype(ml_dtypes.bfloat16) for n in ("big", "far")}
    steps = {"big": by / 128, "far": 1.0}
    tuned = {n: v.astype(np.float32) + np.float32(steps[n]) for n, v in base.items()}
    origin = Checkpoint(write_folder("base", base))
    return origin, TaskVector(origin, write_folder("tuned", tuned))


def test_a_step_too_small_for_bfloat16_is_lost_whole(write_folder: Callable[..., Path]) -> None:
    base, vector = small_step(write_folder, 0.25)
    found = diagnose([vector], base, target=1e-4).rounding
    assert found is not None
    rows = {row.name: row for row in found.tensors}
    assert rows["big"].lost == pytest.approx(1)
    assert rows["big"].kept == pytest.approx(0, abs=1e-6)
    assert rows["big"].unchanged == 1
    assert rows["big"].stochastic == pytest.approx(3**0.5, rel=1e-3)  # sqrt(1/4 3/4) / (1/4)
    assert rows["big"].drawn == pytest.approx(3**0.5, rel=0.1)
    assert rows["big"].drawn_kept == pytest.approx(1, abs=0.2)
    assert rows["big"].float32 < 1e-5
    assert found.whole.lost < 0.03
    assert found.in_float32 == ("far", "big") or found.in_float32 == ("big",)
    assert found.dtype == "as in the base"
    assert found.whole.dtype == "bfloat16"
    assert found.more_bytes == 2 * 2000 * len(found.in_float32)
    assert found.then < found.whole.lost


def test_scale_decides_what_survives(write_folder: Callable[..., Path]) -> None:
    base, vector = small_step(write_folder, 1.0)
    lost = [
        diagnose([vector], base, scale=scale).rounding.tensors[0].lost  # type: ignore[union-attr]
        for scale in (1.0, 0.75, 0.25)
    ]
    assert lost == pytest.approx([0, 1 / 3, 1], abs=1e-6)
    zero = diagnose([vector], base, scale=0.0).rounding
    assert zero is not None
    assert (zero.whole.norm, zero.whole.lost, zero.whole.changed) == (0, 0, 0)


def test_float32_and_float64_lose_next_to_nothing(world: Any) -> None:
    w = world()
    for dtype in ("float32", "float64"):
        found = diagnose(w.vectors, w.base, dtype=dtype)
        assert found.rounding is not None
        assert found.rounding.whole.lost < 1e-5
        assert found.rounding.in_float32 == ()
        assert found.rounding.enough
        assert not any("rounding" in sentence for sentence in found.sentences)


def test_every_tensor_has_its_own_dtype_where_none_is_asked(
    write_folder: Callable[..., Path],
) -> None:
    base = {"a": np.ones(3000, ml_dtypes.bfloat16), "b": np.ones(10, np.float32)}
    tuned = {name: value.astype(np.float32) * np.float32(1.001) for name, value in base.items()}
    found = diagnose([TaskVector(write_folder("base", base), write_folder("tuned", tuned))])
    assert found.rounding is not None
    assert [(r.name, r.dtype) for r in found.rounding.tensors] == [
        ("a", "bfloat16"),
        ("b", "float32"),
    ]
    assert found.rounding.whole.dtype == "bfloat16"
    assert found.rounding.in_float32 == ("a",)


def test_what_the_vectors_leave_alone_is_not_stored_in_float32(
    write_folder: Callable[..., Path],
) -> None:
    """As of an adapter: layers above it have the same names, and cost the most room."""
    random = np.random.default_rng(0)
    names = [f"h.{n}.w" for n in range(4)]
    base = {n: random.uniform(1, 1.9, (20, 30)).astype(ml_dtypes.bfloat16) for n in names}
    tuned = {n: v.astype(np.float32) + np.float32(1 / 512) for n, v in base.items()}
    origin = Checkpoint(write_folder("base", base))
    write_folder("tuned", tuned)
    some = TaskVector(origin, origin.path.parent / "tuned", exclude=["h.2.w", "h.3.w"])
    found = diagnose([some]).rounding
    assert found is not None
    assert found.in_float32 == ("h.0.w", "h.1.w")
    assert found.keep == ("h.0.w", "h.1.w")
    assert found.more_bytes == 2 * 2 * 600
    assert found.advice["float32"] == ["--keep-float32", "h.0.w", "--keep-float32", "h.1.w"]
    whole = diagnose([TaskVector(origin, origin.path.parent / "tuned")]).rounding
    assert whole is not None
    assert whole.advice["float32"] == ["--dtype", "float32"]
    assert whole.more_bytes == 2 * 4 * 600
