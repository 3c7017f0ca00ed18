"""What is written, what is reported of it, and what is left behind when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskbasis import Checkpoint, Engine, TaskVector, merge, method
from taskbasis.binding import common_base
from taskbasis.errors import FileError, MemoryCapError, UsageError, ValueProblem
from taskbasis.io.writer import Staged
from taskbasis.saving import Saved
from taskbasis.sidefiles import RECIPE_FILE

Tensors = dict[str, NDArray[Any]]
KINDS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def write(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {"dtype": "float32"}))
    return folder


def draw(seed: int, size: float, dtype: str = "float32") -> Tensors:
    random = np.random.default_rng(seed)
    shapes = {"a.weight": (64, 70), "a.bias": (70,), "kept": (30,), "b": (3, 1, 5)}
    return {
        name: np.asarray(size * random.standard_normal(shape), KINDS[dtype])
        for name, shape in shapes.items()
    }


@pytest.fixture(params=["float32", "bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tensors, Tensors]:
    """A folder with ``base`` and ``tuned``, and the tensors of both; ``kept`` is equal."""
    base = {**draw(0, 1.0, request.param), "steps": np.array(7)}
    moves = draw(1, 0.02, request.param)
    tuned = {
        name: value + moves[name] if name in moves and name != "kept" else value
        for name, value in base.items()
    }
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", tuned)
    return tmp_path, base, tuned


def wide(tensors: Tensors) -> dict[str, NDArray[np.float32]]:
    return {n: v.astype(np.float32) for n, v in tensors.items() if n != "steps"}


def norm(parts: dict[str, NDArray[Any]]) -> float:
    return float(np.sqrt(sum(np.sum(part.astype(np.float64) ** 2) for part in parts.values())))


def changed(base: Tensors, tuned: Tensors) -> dict[str, NDArray[np.float32]]:
    old, new = wide(base), wide(tuned)
    return {name: new[name] - old[name] for name in old}


@pytest.mark.parametrize("dtype", list(KINDS))
def test_norm_and_rounding_of_a_vector(world: tuple[Path, Tensors, Tensors], dtype: str) -> None:
    folder, base, tuned = world
    out = folder / "v.safetensors"
    saved = TaskVector(folder / "base", folder / "tuned").save(out, dtype)
    delta = changed(base, tuned)
    lost = {n: v.astype(KINDS[dtype]).astype(np.float32) - v for n, v in delta.items()}
    assert saved.norm == pytest.approx(norm(delta), rel=1e-6)
    assert saved.rounding == pytest.approx(norm(lost), rel=1e-6, abs=1e-12)
    assert saved.lost == saved.rounding / saved.norm
    assert (saved.lost > 0) == (dtype != "float32")
    assert saved.path == out
    assert saved.nbytes == sum(value.nbytes for value in load_file(out).values())
    assert saved.rules == {
        "stored": ("a.bias", "a.weight", "b"),
        "unchanged": ("kept",),
        "integer": ("steps",),
    }


@pytest.mark.parametrize("dtype", [None, *KINDS])
def test_norm_and_rounding_of_a_model(
    world: tuple[Path, Tensors, Tensors], dtype: str | None
) -> None:
    folder, base, tuned = world
    vector = TaskVector(folder / "base", folder / "tuned")
    saved = merge(folder / "base", [vector], scale=0.3).save(folder / "out", dtype)
    old = wide(base)
    delta = {name: np.float32(0.3) * value for name, value in changed(base, tuned).items()}
    own = base["a.bias"].dtype
    stored = {n: (old[n] + v).astype(KINDS[dtype] if dtype else own) for n, v in delta.items()}
    found = load_file(folder / "out" / "model.safetensors")
    for name, value in stored.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    lost = {n: (v.astype(np.float32) - old[n]) - delta[n] for n, v in stored.items()}
    assert saved.norm == pytest.approx(norm(delta), rel=1e-6)
    assert saved.rounding == pytest.approx(norm(lost), rel=1e-5)
    assert saved.nbytes == sum(value.nbytes for value in found.values())


def test_the_share_lost_of_a_zero_delta_is_zero() -> None:
    assert Saved(Path("x"), 0, {}, 0.0, 0.0).lost == 0.0


def test_the_rule_of_every_tensor_of_a_model(world: tuple[Path, Tensors, Tensors]) -> None:
    folder, base, _ = world
    TaskVector(folder / "base", folder / "tuned").save(folder / "v.safetensors")
    model = Checkpoint(folder / "base") + TaskVector.open(folder / "v.safetensors")
    plain = model.save(folder / "plain")
    assert plain.rules == {
        "merged": ("a.bias", "a.weight", "b"),
        "converted": (),
        "copied": ("kept", "steps"),
    }
    halves = model.save(folder / "halves", "float16")
    assert halves.rules["converted"] == ("kept",)
    assert halves.rules["copied"] == ("steps",)
    kept = load_file(folder / "halves" / "model.safetensors")["kept"]
    np.testing.assert_array_equal(kept, base["kept"].astype(np.float16), strict=True)


def test_one_file_holds_the_weights_and_nothing_else(
    world: tuple[Path, Tensors, Tensors],
) -> None:
    folder, base, _ = world
    out = folder / "merged.safetensors"
    model = Checkpoint(folder / "base") + TaskVector(folder / "base", folder / "tuned")
    model.save(out, shard_size=100)
    with safe_open(out, framework="np") as file:
        assert set(file.keys()) == base.keys()
        assert set(file.metadata()) == {"format", "taskbasis_digests"}
    assert not (folder / RECIPE_FILE).exists()


def test_a_vector_in_shards(world: tuple[Path, Tensors, Tensors]) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    vector.save(folder / "shards", shard_size=2000)
    vector.save(folder / "one.safetensors")
    files = sorted(path.name for path in (folder / "shards").iterdir())
    assert files == [
        *(f"task_vector-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)),
        "task_vector.safetensors.index.json",
    ]
    one, many = load_file(folder / "one.safetensors"), TaskVector.open(folder / "shards").tensors()
    for name, value in one.items():
        np.testing.assert_array_equal(many[name], value, strict=True)


def test_the_recipe_names_method_and_options(world: tuple[Path, Tensors, Tensors]) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    merge(folder / "base", [2 * vector, -vector], method("ties", density=0.4), 0.9).save(
        folder / "out"
    )
    assert json.loads((folder / "out" / RECIPE_FILE).read_text()) == {
        "base": str(folder / "base"),
        "method": "ties",
        "options": {
            "density": 0.4,
            "variant": "paper",
            "vote": "total",
            "normalize": True,
        },
        "scale": 0.9,
        "vectors": [
            [{"vector": str(folder / "tuned"), "coefficient": 2.0}],
            [{"vector": str(folder / "tuned"), "coefficient": -1.0}],
        ],
    }


def test_the_card_and_the_recipe_of_the_base_are_not_passed_on(
    world: tuple[Path, Tensors, Tensors],
) -> None:
    folder, _, _ = world
    (folder / "base" / "README.md").write_text("about the base")
    (folder / "base" / RECIPE_FILE).write_text("how the base was made")
    model = Checkpoint(folder / "base") + TaskVector(folder / "base", folder / "tuned")
    model.save(folder / "out")
    card = (folder / "out" / "README.md").read_text(encoding="utf-8")
    assert "about the base" not in card
    assert "# A model made of task vectors" in card
    assert json.loads((folder / "out" / RECIPE_FILE).read_text())["scale"] == 1.0


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_config_tells_the_new_dtype_under_the_key_it_used(tmp_path: Path, key: str) -> None:
    config = {"model_type": "x", key: "float32", "name": "\u03c4"}
    base = Checkpoint(write(tmp_path / "base", draw(0, 1.0), config))
    vector = Checkpoint(write(tmp_path / "tuned", draw(1, 1.0))) - base
    (base + vector).save(tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_bytes() == (
        tmp_path / "base" / "config.json"
    ).read_bytes()
    (base + vector).save(tmp_path / "half", "float16")
    found = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    assert found == {**config, key: "float16"}


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_config_that_is_no_json_object(
    world: tuple[Path, Tensors, Tensors], content: str
) -> None:
    folder, _, _ = world
    (folder / "base" / "config.json").write_text(content)
    model = Checkpoint(folder / "base") + TaskVector(folder / "base", folder / "tuned")
    before = sorted(folder.iterdir())
    with pytest.raises(FileError, match=r"base/config\.json: is not"):
        model.save(folder / "out", "bfloat16")
    assert sorted(folder.iterdir()) == before
    model.save(folder / "out")
    assert (folder / "out" / "config.json").read_text() == content


def test_a_used_destination_is_refused_or_replaced_whole(
    world: tuple[Path, Tensors, Tensors],
) -> None:
    folder, _, _ = world
    model = Checkpoint(folder / "base") + TaskVector(folder / "base", folder / "tuned")
    out = folder / "out"
    out.mkdir()
    model.save(out)  # an empty folder is not in use
    (out / "stale.txt").write_text("from before")
    with pytest.raises(FileError, match="already exists; pass --replace"):
        model.save(out)
    assert (out / "stale.txt").exists()
    model.save(out, replace=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "taskbasis_digests.json",
        RECIPE_FILE,
    ]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["base", "tuned", "base/out", "tuned/out.safetensors", "."])
def test_a_destination_that_touches_an_input_is_refused(
    world: tuple[Path, Tensors, Tensors], place: str
) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    for save in (
        lambda out: vector.save(out, replace=True),
        lambda out: (Checkpoint(folder / "base") + vector).save(out, replace=True),
    ):
        with pytest.raises(FileError, match="would touch the input"):
            save(folder / place)
    assert sorted(path.name for path in folder.rglob("*")) == sorted(
        ["base", "tuned", *["model.safetensors", "config.json"] * 2]
    )


def test_a_stored_vector_s_folder_is_an_input(world: tuple[Path, Tensors, Tensors]) -> None:
    folder, _, _ = world
    TaskVector(folder / "base", folder / "tuned").save(folder / "v")
    stored = TaskVector.open(folder / "v")
    with pytest.raises(FileError, match="would touch the input"):
        (Checkpoint(folder / "base") + stored).save(folder / "v" / "out")


def test_a_missing_parent_and_an_impossible_shard_size(
    world: tuple[Path, Tensors, Tensors],
) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    with pytest.raises(FileError, match="does not exist; create it first"):
        vector.save(folder / "no" / "such" / "v.safetensors")
    with pytest.raises(UsageError, match="shard size of 0"):
        vector.save(folder / "v", shard_size=0)
    with pytest.raises(UsageError, match="'float23' is not a float type"):
        vector.save(folder / "v", "float23")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, FileError("disk"), MemoryError])
def test_whatever_stops_the_work_nothing_is_left(
    world: tuple[Path, Tensors, Tensors],
    monkeypatch: pytest.MonkeyPatch,
    failure: Any,
    workers: int,
) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    written: list[str] = []
    real = Staged.write

    def failing(self: Staged, name: str, start: int, words: NDArray[Any]) -> None:
        real(self, name, start, words)
        written.append(name)
        if len(written) == 3:
            raise failure

    monkeypatch.setattr(Staged, "write", failing)
    before = sorted(folder.iterdir())
    kind = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(kind):
        vector.save(folder / "v.safetensors", engine=Engine(workers))
    written.clear()
    with pytest.raises(kind):
        (Checkpoint(folder / "base") + vector).save(folder / "m", engine=Engine(workers))
    assert sorted(folder.iterdir()) == before


def test_a_memory_cap_that_is_too_small(world: tuple[Path, Tensors, Tensors]) -> None:
    folder, _, _ = world
    vector = TaskVector(folder / "base", folder / "tuned")
    with pytest.raises(MemoryCapError, match=r"cap of 1\.00 MB is too small: this work needs"):
        vector.save(folder / "v.safetensors", engine=Engine(2, memory=1_000_000))
    assert not (folder / "v.safetensors").exists()


def test_no_vector_has_no_base() -> None:
    with pytest.raises(ValueProblem, match="empty sum"):
        common_base([], Engine(1))


def test_modules_are_copied_and_other_weights_are_named(tiny_checkpoints: Path) -> None:
    """A sentence-transformers folder keeps its modules; copies of the model elsewhere are left."""
    base = tiny_checkpoints / "base"
    for name in ("2_Dense/model.safetensors", "onnx/model.onnx", "README.md", "original/w.pth"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(name.encode())
    (base / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    saved = TaskVector(base, tiny_checkpoints / "math").apply_to(base).save(tiny_checkpoints / "o")
    assert saved.left == ("README.md", "onnx/model.onnx", "original/w.pth")
    assert (
        tiny_checkpoints / "o/2_Dense/model.safetensors"
    ).read_bytes() == b"2_Dense/model.safetensors"
    assert not (tiny_checkpoints / "o/onnx").exists()


@pytest.mark.parametrize("listed", ["not json", '{"path": 1}', '[{"name": "x"}]', "[1]"])
def test_a_list_of_modules_that_is_none_lists_nothing(tiny_checkpoints: Path, listed: str) -> None:
    base = tiny_checkpoints / "base"
    (base / "modules.json").write_text(listed)
    saved = TaskVector(base, tiny_checkpoints / "math").apply_to(base).save(tiny_checkpoints / "o")
    assert saved.left == ()
    assert (tiny_checkpoints / "o/modules.json").read_text() == listed
