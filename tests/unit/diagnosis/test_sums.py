"""The pass of sums beside dense arrays: any workers, any cuts, and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.diagnosis import diagnose
from taskbasis.diagnosis.sums import Sums, sums_by_tensor
from taskbasis.engine import Engine
from taskbasis.errors import MemoryCapError, ValueProblem
from taskbasis.io.dtypes import BF16, F16, DType
from taskbasis.plan import Plan, cutting, make_plan
from taskbasis.vectors import Checkpoint, TaskVector


def plan_of(world: Any, with_base: bool = True) -> Plan:
    store = world.base.store
    combinations = [vector.combination for vector in world.vectors.values()]
    return make_plan(combinations, store if with_base else None, store)


def run(world: Any, dtype: DType | None = None, workers: int = 1, scale: float = 1.0) -> Any:
    return sums_by_tensor(plan_of(world), scale, dtype, Engine(workers=workers))


def same(one: Sums, two: Sums) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in Sums.__annotations__
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_sums_are_those_of_dense_arrays(world: Any, dtype: Any) -> None:
    w = world(dtype=dtype)
    found = run(w)
    for name, sums in found.items():
        flat = np.stack([deltas[name].ravel() for deltas in w.deltas.values()])
        flat = flat.astype(np.float32).astype(np.float64) if dtype != np.float64 else flat
        base = w.weights[name].astype(np.float64).ravel()
        rows = np.vstack([flat, base])
        assert sums.entries == base.size
        np.testing.assert_allclose(sums.gram, rows @ rows.T, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(sums.sizes, abs(flat) @ abs(flat).T, rtol=1e-5, atol=1e-6)
        for i, j in np.ndindex(3, 3):
            both = (flat[i] != 0) & (flat[j] != 0)
            assert sums.both[i, j] == both.sum()
            assert sums.opposed[i, j] == (np.sign(flat[i]) != np.sign(flat[j]))[both].sum()
        lengths = [*abs(flat).sum(1), abs(flat.sum(0)).sum()]
        np.testing.assert_allclose(sums.lengths, lengths, rtol=1e-5)
    assert list(found) == sorted(w.weights)


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_change_no_bit(world: Any, workers: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(cutting, "_CUT", 2048)
    w = world()
    one, many = run(w, BF16), run(w, BF16, workers)
    assert all(same(one[name], many[name]) for name in one)


def test_cuts_change_nothing_but_the_last_digits(world: Any, monkeypatch: Any) -> None:
    w = world()
    whole = run(w, BF16, scale=0.3)
    monkeypatch.setattr(cutting, "_CUT", 2048)
    cut = run(w, BF16, scale=0.3)
    for name in whole:
        for part in ("gram", "sizes", "lengths", "rounding"):
            np.testing.assert_allclose(
                getattr(cut[name], part), getattr(whole[name], part), rtol=1e-9, atol=1e-12
            )
        np.testing.assert_array_equal(cut[name].opposed, whole[name].opposed)
        assert cut[name].rounding[8] == whole[name].rounding[8]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", None])
@pytest.mark.parametrize("scale", [1.0, 0.07])
def test_what_is_lost_is_what_saving_says(
    world: Any, tmp_path: Path, dtype: str | None, scale: float
) -> None:
    w = world(dtype=ml_dtypes.bfloat16, size=0.02)
    found = diagnose(w.vectors, w.base, dtype=dtype, scale=scale).rounding
    merged = w.base + scale * sum(w.vectors.values())
    saved = merged.save(tmp_path / "merged", dtype)
    assert found is not None
    assert found.whole.norm == pytest.approx(saved.norm, rel=1e-6)
    assert found.whole.lost == pytest.approx(saved.lost, rel=1e-4, abs=1e-6)
    out = Checkpoint(tmp_path / "merged").store
    changed = unchanged = 0
    for name, info in out.items():
        update = np.zeros(info.shape, np.float32)
        for deltas in w.deltas.values():  # in float32 and in order, as it is saved
            update = update + np.float32(scale) * deltas[name].astype(np.float32)
        moved = info.load().astype(np.float32) != w.weights[name].astype(np.float32)
        changed += np.count_nonzero(update)
        unchanged += np.count_nonzero((update != 0) & ~moved)
    assert found.whole.changed == changed
    assert found.whole.unchanged == unchanged / changed


def test_without_a_base_nothing_is_known_of_rounding(world: Any) -> None:
    w = world()
    found = sums_by_tensor(plan_of(w, with_base=False), 1.0, None, Engine(workers=1))
    for sums in found.values():
        assert sums.gram[-1, 0] == sums.gram[-1, -1] or sums.gram[-1, -1] > 0
    stored = {}
    for name, vector in w.vectors.items():
        path = w.base.path.parent / f"{name}.safetensors"
        vector.save(path)
        stored[name] = TaskVector.open(path)
    plan = make_plan([v.combination for v in stored.values()], None, None)
    for sums in sums_by_tensor(plan, 1.0, None, Engine(workers=1)).values():
        assert not sums.gram[-1].any()
        assert not sums.rounding.any()


def test_masks_of_infinity_in_the_base_are_no_harm(write_folder: Callable[..., Path]) -> None:
    mask = np.array([0, -np.inf, 0, -np.inf], np.float32)
    base = Checkpoint(write_folder("base", {"mask": mask, "w": np.ones((2, 2), np.float32)}))
    tuned = write_folder("tuned", {"mask": mask, "w": np.full((2, 2), 1.5, np.float32)})
    found = diagnose([TaskVector(base, tuned)], base, dtype="bfloat16")
    assert found.whole.norms == (1.0,)
    assert found.whole.base == 2.0
    assert found.rounding is not None
    assert found.rounding.whole.overflow == 0
    assert found.rounding.whole.lost == 0.0


def test_values_that_are_not_finite_are_refused_by_name(write_folder: Callable[..., Path]) -> None:
    good, bad = np.ones(4, np.float32), np.array([1, np.nan, 1, 1], np.float32)
    base, broken = write_folder("base", {"w": good}), write_folder("broken", {"w": bad})
    with pytest.raises(ValueProblem, match=r"tensor 'w': a value is NaN or infinite .*broken"):
        diagnose([TaskVector(base, broken)])


def test_numbers_too_large_to_be_squared(write_folder: Callable[..., Path]) -> None:
    base = write_folder("base", {"w": np.array([1e200, 1.0])})
    tuned = write_folder("tuned", {"w": np.array([1e200, 2.0])})
    with pytest.raises(ValueProblem, match=r"tensor 'w': a number is too large to be squared"):
        diagnose([TaskVector(base, tuned)])


def test_a_base_that_is_not_finite_where_it_is_changed(
    write_folder: Callable[..., Path], write_vector: Callable[..., Path]
) -> None:
    weights = np.array([1, np.inf], np.float32)
    base = Checkpoint(write_folder("base", {"w": weights}))
    vector = TaskVector.open(write_vector("v", base.store, {"w": np.ones(2, np.float32)}))
    with pytest.raises(ValueProblem, match=r"tensor 'w' of .*base.* where a vector changes it"):
        diagnose([vector], base)
    still = TaskVector.open(write_vector("u", base.store, {"w": np.array([1, 0], np.float32)}))
    assert diagnose([still], base).whole.norms == (1.0,)


def test_too_large_numbers_are_counted(write_folder: Callable[..., Path]) -> None:
    base = write_folder("base", {"w": np.full(3, 65000, np.float32)})
    tuned = write_folder("tuned", {"w": np.array([65000, 66000, 70000], np.float32)})
    found = diagnose([TaskVector(base, tuned)], dtype=F16.name)
    assert found.rounding is not None
    assert found.rounding.whole.overflow == 2
    assert found.sentences[0].startswith("2 entries are too large for float16, in w; store them in")


def test_it_keeps_to_a_memory_cap(tmp_path: Path) -> None:
    for name, value in (("base", 1.0), ("tuned", 1.1)):
        save_file({"w": np.full(1000, value, np.float32)}, tmp_path / f"{name}.safetensors")
    vector = TaskVector(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    with pytest.raises(MemoryCapError, match="a memory cap of"):
        diagnose([vector], engine=Engine(memory=1 << 20))
