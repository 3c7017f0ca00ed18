"""Tensors kept in float32, and stochastic rounding, in the files that are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis import Checkpoint, Engine, TaskVector, disentangle, merge, method
from taskbasis.difference import twins
from taskbasis.errors import UsageError, ValueProblem
from taskbasis.plan import cutting

Tensors = dict[str, NDArray[Any]]
SHAPES = {"a.weight": (90, 70), "a.norm": (70,), "b.weight": (3000,), "kept.norm": (30,)}


@pytest.fixture
def world(write_folder: Callable[..., Path]) -> tuple[Path, Tensors]:
    """``base`` in bfloat16 and two fine-tunes of it in float32; ``kept.norm`` is unchanged."""
    random = np.random.default_rng(0)
    base: Tensors = {
        name: random.uniform(1, 1.9, shape).astype(ml_dtypes.bfloat16)
        for name, shape in SHAPES.items()
    }
    base["steps"] = np.array(7)
    folder = write_folder("base", base).parent
    for name in ("math", "code"):
        moved = {
            key: value.astype(np.float32)
            + np.float32(1e-3) * random.random(value.shape, np.float32)
            for key, value in base.items()
        } | {key: base[key] for key in ("kept.norm", "steps")}
        write_folder(name, moved)
    return folder, base


def weights(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_named_tensors_are_float32_whatever_the_dtype(world: Any) -> None:
    folder, base = world
    TaskVector(folder / "base", folder / "code").save(folder / "v.safetensors")
    model = Checkpoint(folder / "base") + TaskVector.open(folder / "v.safetensors")
    exact = model.save(folder / "exact", "float32")
    saved = model.save(folder / "out", "float16", float32=("*.norm",))
    found, wide = weights(folder / "out"), weights(folder / "exact")
    assert {name: value.dtype.name for name, value in found.items()} == {
        "a.weight": "float16",
        "b.weight": "float16",
        "a.norm": "float32",
        "kept.norm": "float32",
        "steps": "int64",
    }
    for name in ("a.norm", "kept.norm", "steps"):
        assert found[name].tobytes() == wide[name].tobytes()
    np.testing.assert_array_equal(found["b.weight"], wide["b.weight"].astype(np.float16))
    assert saved.rules["converted"] == ("kept.norm",)
    assert saved.rules["copied"] == ("steps",)
    assert saved.nbytes == sum(value.nbytes for value in found.values())
    assert 0 < saved.rounding < model.save(folder / "half", "float16").rounding
    assert exact.norm == saved.norm
    own = model.save(folder / "own", float32=["a.norm"])
    assert own.rules["copied"] == ("kept.norm", "steps")
    assert weights(folder / "own")["kept.norm"].tobytes() == base["kept.norm"].tobytes()
    record = json.loads((folder / "own" / "taskbasis_recipe.json").read_text())
    assert record["stored"] == {"float32": ["a.norm"]}
    assert "--keep-float32 a.norm" in (folder / "own" / "README.md").read_text()


def test_a_vector_keeps_named_tensors(world: Any) -> None:
    folder, _ = world
    vector = TaskVector(folder / "base", folder / "code")
    vector.save(folder / "v.safetensors", "bfloat16", float32="*.norm")
    found = load_file(folder / "v.safetensors")
    assert {name: value.dtype.name for name, value in found.items()} == {
        "a.weight": "bfloat16",
        "b.weight": "bfloat16",
        "a.norm": "float32",
    }
    assert found["a.norm"].tobytes() == vector.tensors()["a.norm"].tobytes()
    again = TaskVector.open(folder / "v.safetensors").apply_to(folder / "base").save(folder / "m")
    assert again.rules["merged"] == ("a.norm", "a.weight", "b.weight")


@pytest.mark.parametrize("pattern", ["*.nrm", "steps"])
def test_a_pattern_that_matches_nothing_is_refused_before_the_work(
    world: Any, pattern: str
) -> None:
    folder, _ = world
    vector = TaskVector(folder / "base", folder / "code")
    before = sorted(folder.iterdir())
    for save in (vector.save, vector.apply_to(folder / "base").save):
        with pytest.raises(UsageError, match="matches no tensor of floats; "):
            save(folder / "v.safetensors", "bfloat16", float32=(pattern,))
    assert sorted(folder.iterdir()) == before


def test_stochastic_rounding_keeps_what_nearest_drops(world: Any) -> None:
    folder, base = world
    vectors = [TaskVector(folder / "base", folder / name) for name in ("math", "code")]
    model = merge(folder / "base", vectors, scale=0.3)
    exact = weights(model.save(folder / "exact", "float32").path)
    near = model.save(folder / "near")
    drawn = model.save(folder / "drawn", rounding="stochastic")
    found = weights(folder / "drawn")
    step, error, lost = 0.0, 0.0, 0.0
    for name in ("a.weight", "a.norm", "b.weight"):
        low, high = (
            x.astype(np.float64) for x in (found[name], exact[name])
        )  # within one step of it
        assert np.all(np.abs(low - high) < 2.0**-7)
        origin = base[name].astype(np.float64)
        step += float(((low - origin) * (high - origin)).sum())
        error += float(((high - origin) ** 2).sum())
        lost += float(((low - high) ** 2).sum())
    assert step / error == pytest.approx(1, abs=0.1)
    assert near.lost > 0.9
    assert drawn.norm == near.norm
    assert drawn.rounding == pytest.approx(np.sqrt(lost), rel=1e-5)
    assert found["kept.norm"].tobytes() == base["kept.norm"].tobytes()
    record = json.loads((folder / "drawn" / "taskbasis_recipe.json").read_text())
    assert record["stored"] == {"rounding": "stochastic", "rounding_seed": 0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "slerp", "tsv_merge"])
def test_the_same_bytes_for_any_workers_cuts_and_shards(
    world: Any, dtype: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = world
    vectors = [TaskVector(folder / "base", folder / name) for name in ("math", "code")]
    model = merge(folder / "base", vectors, method(name))
    how: Any = {"rounding": "stochastic", "rounding_seed": 3}
    whole = weights(model.save(folder / "one", dtype, engine=Engine(1), **how).path)
    monkeypatch.setattr(cutting, "_CUT", 2048)
    saved = model.save(folder / "many", dtype, engine=Engine(3), shard_size=4000, **how)
    assert len(list(saved.path.glob("*.safetensors"))) > 1
    many = weights(saved.path)
    assert {n: v.tobytes() for n, v in many.items()} == {n: v.tobytes() for n, v in whole.items()}
    other = weights(model.save(folder / "other", dtype, rounding="stochastic").path)
    if dtype != "float32":  # which may hold every sum
        assert any(other[name].tobytes() != whole[name].tobytes() for name in whole)


def test_disentangled_vectors_are_stored_as_asked(world: Any) -> None:
    folder, _ = world
    vectors = {name: TaskVector(folder / "base", folder / name) for name in ("math", "code")}
    found = disentangle(vectors, iterations=3)
    found.save(folder / "apart", "float16", float32=["a.norm"], rounding="stochastic")
    found.save(folder / "near", "float16", float32=["a.norm"])
    stored, near = (load_file(folder / place / "math.safetensors") for place in ("apart", "near"))
    assert (stored["a.norm"].dtype, stored["a.weight"].dtype) == (np.float32, np.float16)
    assert stored["a.norm"].tobytes() == near["a.norm"].tobytes()
    assert stored["a.weight"].tobytes() != near["a.weight"].tobytes()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_value_too_large_is_refused_either_way(
    write_folder: Callable[..., Path], rounding: Any
) -> None:
    base = Checkpoint(write_folder("base", {"w": np.full(5000, 6e4, np.float32)}))
    tuned = {"w": np.full(5000, 6e4, np.float32)}
    tuned["w"][4000] = 65519  # within half a step of the largest number
    fits = TaskVector(base, write_folder("fits", tuned)).apply_to(base)
    fits.save(base.path.parent / "out", "float16", rounding=rounding)
    assert weights(base.path.parent / "out")["w"][4000] == 65504
    tuned["w"][4000] = 65520
    model = TaskVector(base, write_folder("tuned", tuned)).apply_to(base)
    with pytest.raises(ValueProblem, match="'w': a value is too large for float16"):
        model.save(base.path.parent / "broken", "float16", rounding=rounding)
    assert not (base.path.parent / "broken").exists()


def test_float64_is_not_drawn(write_folder: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    base = Checkpoint(write_folder("base", {"w": random.standard_normal(100)}))
    vector = TaskVector(base, write_folder("tuned", {"w": random.standard_normal(100)}))
    for name, how in (("x", {}), ("y", {"rounding": "stochastic"})):
        (base + 0.3 * vector).save(base.path.parent / name, **how)
    one, two = (weights(base.path.parent / name)["w"] for name in "xy")
    assert one.tobytes() == two.tobytes()
    (base + 0.3 * vector).save(base.path.parent / "z", "float32", rounding="stochastic")
    single = weights(base.path.parent / "z")["w"]
    up = single.astype(np.float64) > one
    assert 20 < up.sum() < 80
    assert np.all(np.abs(single - one) < 2.0**-23 * np.abs(one) + 1e-40)


def test_what_is_stored_twice_stays_equal(write_folder: Callable[..., Path]) -> None:
    """A tied head beside its embeddings; a twin that is tuned otherwise is rounded by itself."""
    random = np.random.default_rng(0)
    embed = random.uniform(1, 1.9, (64, 50)).astype(ml_dtypes.bfloat16)
    other = embed.copy()
    other[-1, -1] = 1.5
    base = {"embed": embed, "head": embed, "other": other, "empty": embed[:0], "none": embed[:0]}
    moved = embed.astype(np.float32) + np.float32(1e-3)
    tuned = {**base, "embed": moved, "head": moved, "other": moved}
    folder = write_folder("base", base).parent
    write_folder("tuned", tuned)
    vector = TaskVector(folder / "base", folder / "tuned")
    vector.save(folder / "v.safetensors", "bfloat16", rounding="stochastic")
    assert twins(Checkpoint(folder / "base").store) == {"head": "embed"}
    for found in (
        weights(vector.apply_to(folder / "base").save(folder / "x", rounding="stochastic").path),
        load_file(folder / "v.safetensors"),
    ):
        assert found["embed"].tobytes() == found["head"].tobytes()
        same = found["embed"][:-1] == found["other"][:-1]
        assert 0.5 < same.mean() < 0.98
