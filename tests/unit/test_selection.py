"""Masks in files: made by a method, multiplied with vectors, and tasks taken out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from taskbasis.engine import Engine
from taskbasis.errors import (
    BaseError,
    FileError,
    HeaderError,
    MismatchError,
    UsageError,
    ValueProblem,
)
from taskbasis.library import Design, fit
from taskbasis.masks import Mask, Masks, packed_size
from taskbasis.merging import merge
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.methods.learnt.sta import Sta
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Origin
from taskbasis.selection import restore, select
from taskbasis.vectors import Checkpoint, TaskVector

NAMES = ("math", "code", "law")
SHAPES = {"blocks.0.w": (37, 70), "blocks.1.w": (41, 5), "bias": (13,), "empty": (0, 4)}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return np.float32 if request.param == "float32" else ml_dtypes.bfloat16


def draw(seed: int, spread: float = 1.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {n: (random.standard_normal(s) * spread).astype("f4") for n, s in SHAPES.items()}


@pytest.fixture
def world(write_folder: Callable[..., Path], dtype: Any) -> dict[str, Path]:
    """A base and three fine-tunes."""
    start = draw(0)
    made = {"base": write_folder("base", {n: a.astype(dtype) for n, a in start.items()})}
    for seed, name in enumerate(NAMES, start=1):
        moved = draw(seed, 0.1)
        tuned = {n: (a + moved[n]).astype(dtype) for n, a in start.items()}
        made[name] = write_folder(name, tuned)
    return made


@pytest.fixture
def vectors(world: dict[str, Path]) -> dict[str, TaskVector]:
    return {name: TaskVector(world["base"], world[name]) for name in NAMES}


@pytest.fixture
def scores(world: dict[str, Path], tmp_path: Path) -> list[Importance]:
    """Random scores of every fine-tune, bound to it."""
    found = []
    for seed, name in enumerate(NAMES, start=11):
        model = Binding(str(world[name]), None, Checkpoint(world[name]).fingerprint)
        out = tmp_path / f"{name}-scores.safetensors"
        with ImportanceWriter(out, SHAPES, Origin(model)) as writer:
            for tensor, values in draw(seed).items():
                writer.write(tensor, np.abs(values))
            writer.commit()
        found.append(Importance.open(out))
    return found


def dense(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def same_bytes(left: Path, right: Path) -> None:
    one, two = Checkpoint(left).store, Checkpoint(right).store
    assert set(one) == set(two)
    for name, info in one.items():
        assert info.load().tobytes() == two[name].load().tobytes(), name


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
def test_masks_are_what_the_method_keeps(
    workers: int,
    exclusive: bool,
    scope: Any,
    vectors: Any,
    scores: Any,
    world: Any,
    tmp_path: Path,
) -> None:
    """Masked vectors add up to what the method merges, to the last bit of the written files."""
    method = Sta(density=0.3, scope=scope, exclusive=exclusive)
    engine = Engine(workers)
    made = select(vectors, tmp_path / "masks.safetensors", method, scores, engine=engine)
    masked = [made.masks[name] * vectors[name] for name in NAMES]
    merge(world["base"], masked).save(tmp_path / "by-masks")
    fused = merge(world["base"], vectors.values(), method, scores=scores)
    saved = fused.save(tmp_path / "at-once", engine=engine)
    same_bytes(tmp_path / "by-masks", tmp_path / "at-once")
    assert saved.kept is not None
    np.testing.assert_array_equal(saved.kept.overlap, made.kept.overlap)
    kept = np.concatenate(
        [[made.masks[n].entries(t).ravel() for n in NAMES] for t in SHAPES], axis=1
    )
    np.testing.assert_allclose(made.kept.density, kept.mean(axis=1))
    if exclusive:
        assert kept.sum(axis=0).max() == 1
        assert made.kept.overlap[0, 1] == 0
    for t, name in enumerate(NAMES):
        whole, part = dense(vectors[name].tensors()), dense(masked[t].tensors())
        for tensor in SHAPES:
            entries = made.masks[name].entries(tensor)
            np.testing.assert_array_equal(part[tensor], np.where(entries, whole[tensor], 0))
        norms = [sum(float((a**2).sum()) for a in x.values()) ** 0.5 for x in (part, whole)]
        assert made.kept.norm[t] == pytest.approx(norms[0] / norms[1], rel=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_forgetting_what_was_fused_is_fusing_without_it(
    stored: bool, vectors: Any, scores: Any, world: Any, tmp_path: Path, dtype: Any
) -> None:
    """With masks that exclude each other a task is taken out to the last bit, in any dtype."""
    if stored:
        for name in NAMES:
            vectors[name].save(tmp_path / f"{name}.safetensors")
        vectors = {n: TaskVector.open(tmp_path / f"{n}.safetensors") for n in NAMES}
    masks = select(vectors, tmp_path / "m.safetensors", Sta(0.4, exclusive=True), scores).masks
    assert masks.exclusive
    parts = {name: masks[name] * vectors[name] for name in NAMES}
    merge(world["base"], parts.values(), scale=1.7).save(tmp_path / "fused")
    without = [parts[name] for name in NAMES if name != "code"]
    merge(world["base"], without, scale=1.7).save(tmp_path / "without")
    saved = restore(
        tmp_path / "fused", world["base"], masks["code"], tmp_path / "out", engine=Engine(2)
    )
    same_bytes(tmp_path / "out", tmp_path / "without")
    recipe = (tmp_path / "out" / "taskbasis_recipe.json").read_text()
    assert "m.safetensors:code" in recipe
    fused, base = (
        dense(merge(p, []).tensors()) for p in (tmp_path / "fused", tmp_path / "without")
    )
    moved = sum(float(((fused[t] - base[t]) ** 2).sum()) for t in SHAPES) ** 0.5
    assert saved.norm == pytest.approx(moved, rel=1e-5)


def test_all_tasks_taken_out_leave_the_base(
    vectors: Any, scores: Any, world: Any, tmp_path: Path
) -> None:
    masks = select(vectors, tmp_path / "m.safetensors", Sta(0.4, exclusive=True), scores).masks
    here = tmp_path / "0"
    merge(world["base"], [masks[name] * vectors[name] for name in NAMES]).save(here)
    for step, name in enumerate(NAMES, start=1):
        restore(here, world["base"], masks[name], tmp_path / str(step))
        here = tmp_path / str(step)
    same_bytes(here, world["base"])


def test_a_masked_vector_is_a_vector(vectors: Any, world: Any, tmp_path: Path) -> None:
    """It is stored, scaled, merged by other methods, masked again, and put into a basis."""
    masks = select(vectors, tmp_path / "m.safetensors", Sta(0.5, exclusive=False)).masks
    part = masks["math"] * vectors["math"]
    wanted = dense(part.tensors())
    part.save(tmp_path / "part.safetensors")
    again = dense(TaskVector.open(tmp_path / "part.safetensors").tensors())
    halves = dense((0.5 * part).tensors())
    twice = dense((vectors["math"] * masks["math"] * masks["code"]).tensors())
    assert again.keys() == SHAPES.keys() - {"empty"}, "what equals the base is not stored"
    for tensor in again:
        np.testing.assert_array_equal(again[tensor], wanted[tensor])
        np.testing.assert_array_equal(halves[tensor], wanted[tensor] * np.float32(0.5))
        both = masks["math"].entries(tensor) & masks["code"].entries(tensor)
        np.testing.assert_array_equal(twice[tensor], np.where(both, wanted[tensor], 0))
    parts = {name: masks[name] * vectors[name] for name in NAMES}
    basis = fit(parts, tmp_path / "lib.safetensors", Design(k=3, method="svd"))
    for name in NAMES:
        found, exact = dense(basis[name].tensors()), dense(parts[name].tensors())
        for tensor in found:
            np.testing.assert_allclose(found[tensor], exact[tensor], atol=1e-6)
    flat = np.stack(
        [np.concatenate([dense(p.tensors())[t].ravel() for t in SHAPES]) for p in parts.values()]
    )
    sign = np.sign(flat.sum(0))
    agreeing = np.where((np.sign(flat) == sign) & (sign != 0), flat, 0)
    mean = agreeing.sum(0) / np.maximum((agreeing != 0).sum(0), 1)
    merged = merge(world["base"], parts.values(), Ties(density=1.0)).tensors()
    start = dense(merge(world["base"], []).tensors())
    at = 0
    for tensor, shape in SHAPES.items():
        size = int(np.prod(shape))
        exact = (start[tensor].ravel() + mean[at : at + size]).astype(merged[tensor].dtype)
        np.testing.assert_allclose(
            dense(merged)[tensor].ravel(), exact.astype("f4"), rtol=1e-2, atol=1e-6
        )
        at += size


def test_the_file_is_bits(vectors: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    made = select(vectors, out, Sta(0.5, exclusive=False))
    sizes = sum(packed_size(shape) for shape in SHAPES.values())
    with safe_open(out, framework="np") as file:
        keys = list(file.keys())
        assert len(keys) == len(NAMES) * len(SHAPES)
        assert sum(file.get_tensor(key).nbytes for key in keys) == len(NAMES) * sizes
        bits = np.unpackbits(file.get_tensor("mask.1:bias"), bitorder="little")[:13]
    np.testing.assert_array_equal(bits.astype(bool), made.masks["code"].entries("bias"))
    size = np.abs(dense(vectors["code"].tensors())["bias"])
    np.testing.assert_array_equal(bits.astype(bool), size >= np.sort(size)[-6])


def test_sharded_masks(vectors: Any, tmp_path: Path) -> None:
    one = select(vectors, tmp_path / "m.safetensors", Sta(0.5)).masks
    many = select(vectors, tmp_path / "m", Sta(0.5), shard_size=300).masks
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    for name in NAMES:
        for tensor in SHAPES:
            np.testing.assert_array_equal(many[name].entries(tensor), one[name].entries(tensor))


def test_bases_and_models_are_checked(
    vectors: Any, scores: Any, world: Any, tmp_path: Path, write_folder: Any, dtype: Any
) -> None:
    masks = select(vectors, tmp_path / "m.safetensors", Sta(0.5, exclusive=True)).masks
    other = write_folder("other", {n: a.astype(dtype) for n, a in draw(99).items()})
    stranger = TaskVector(other, world["math"])
    with pytest.raises(BaseError, match=r"m.safetensors:math \* .* was taken from the base"):
        merge(other, [masks["math"] * stranger]).save(tmp_path / "x")
    with pytest.raises(BaseError, match="belongs to the base"):
        restore(world["math"], other, masks["math"], tmp_path / "x")
    with pytest.raises(MismatchError, match=r"scores .* were learnt of the model"):
        select(vectors, tmp_path / "x.safetensors", Sta(), scores[::-1])
    with pytest.raises(UsageError, match="3 vectors need as many files of scores, not 2"):
        select(vectors, tmp_path / "x.safetensors", Sta(), scores[:2])
    with pytest.raises(UsageError, match="takes no scores"):
        merge(world["base"], vectors.values(), Ties(), scores=scores).save(tmp_path / "x")
    with pytest.raises(FileError, match="would touch the input"):
        select(vectors, world["math"] / "m.safetensors", Sta(), scores)
    with pytest.raises(UsageError, match="no mask 'maht'; did you mean 'math'"):
        masks["maht"]
    with pytest.raises(MismatchError, match="no 'bia'; did you mean 'bias'"):
        masks["math"].entries("bia")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.safetensors").exists()


def test_a_vector_with_more_tensors_than_the_mask(vectors: Any, world: Any, tmp_path: Path) -> None:
    part = {n: TaskVector(world["base"], world[n], exclude=["bias"]) for n in NAMES}
    masks = select(part, tmp_path / "m.safetensors", Sta(0.5)).masks
    with pytest.raises(MismatchError, match="says nothing of tensor 'bias'"):
        masks["math"] * vectors["math"]
    fewer = masks["math"] * part["math"]
    assert "bias" not in fewer.tensors()


def test_damaged_files_of_masks(vectors: Any, tmp_path: Path, forge: Any) -> None:
    out = tmp_path / "m.safetensors"
    select(vectors, out, Sta(0.5))
    with pytest.raises(HeaderError, match="a mask, not importance scores; make them with"):
        Importance.open(out)
    with pytest.raises(HeaderError, match="a checkpoint, not a mask; make masks with"):
        Masks.open(forge({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    raw = out.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = raw[8 : 8 + size].decode()
    for old, new, said in (
        ('\\"bias\\":[13]', '\\"bias\\":[99]', "is not the 13 bytes it should be"),
        ('\\"names\\":[', '\\"nam_s\\":[', "does not say what is masked"),
        ('\\"bias\\":[13],', "", "holds tensors that its record does not know"),
    ):
        assert old in head
        forged = forge(head.replace(old, new).rstrip(), raw[8 + size :], name="broken.safetensors")
        with pytest.raises(HeaderError, match=said):
            Masks.open(forged)


def test_masks_do_not_add(vectors: Any, tmp_path: Path) -> None:
    mask: Any = select(vectors, tmp_path / "m.safetensors", Sta(0.5)).masks["math"]
    assert isinstance(mask, Mask)
    with pytest.raises(TypeError):
        mask + mask
    with pytest.raises(Exception, match=r"delta .* \+ mask"):
        vectors["math"] + mask


def test_restoring_needs_masks_that_exclude_each_other(
    vectors: Any, world: Any, tmp_path: Path
) -> None:
    shared = select(vectors, tmp_path / "shared.safetensors", Sta(0.5, exclusive=False)).masks
    alone = select({"math": vectors["math"]}, tmp_path / "alone.safetensors").masks
    for masks in (shared, alone):
        assert not masks.exclusive
        with pytest.raises(UsageError, match="would take from other tasks"):
            restore(world["math"], world["base"], masks["math"], tmp_path / "x")


def test_restoring_refuses_what_overflows(write_folder: Any, tmp_path: Path) -> None:
    base = write_folder("b", {"w": np.array([1e6, 1.0, 2.0], np.float32)})
    tuned = [
        write_folder(
            f"t{t}", {"w": np.array([1e6, 1, 2], np.float32) - 1e6 * np.eye(3, dtype="f4")[t]}
        )
        for t in (0, 1)
    ]
    parts = {f"t{t}": TaskVector(base, path) for t, path in enumerate(tuned)}
    masks = select(parts, tmp_path / "m.safetensors", Sta(0.4)).masks
    merge(base, [masks["t0"] * parts["t0"]]).save(tmp_path / "fused", "float16")
    with pytest.raises(ValueProblem, match="too large for float16"):
        restore(tmp_path / "fused", base, masks["t0"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_layers_and_the_model_need_the_base_of_stored_vectors(
    vectors: Any, world: Any, tmp_path: Path
) -> None:
    for name in NAMES:
        vectors[name].save(tmp_path / f"{name}.safetensors")
    stored = {n: TaskVector.open(tmp_path / f"{n}.safetensors") for n in NAMES}
    of = Sta(0.3, "model")
    with pytest.raises(UsageError, match="give the base"):
        select(stored, tmp_path / "x.safetensors", of)
    with pytest.raises(BaseError, match="not from"):
        select(stored, tmp_path / "x.safetensors", of, base=world["math"])
    one = select(stored, tmp_path / "one.safetensors", of, base=world["base"]).masks
    two = select(vectors, tmp_path / "two.safetensors", of).masks
    for name in NAMES:
        for tensor in one.shapes:
            np.testing.assert_array_equal(one[name].entries(tensor), two[name].entries(tensor))


def test_equal_infinities_stay_where_a_mask_is_applied(write_folder: Any, tmp_path: Path) -> None:
    start = {"bias": np.array([-np.inf, 0, 1, 2], np.float32)}
    base = write_folder("b", start)
    tuned = write_folder("t", {"bias": start["bias"] + np.array([0, 1, 2, 3], np.float32)})
    vector = TaskVector(base, tuned)
    masks = select({"t": vector, "u": 0.5 * vector}, tmp_path / "m.safetensors", Sta(0.5)).masks
    found = (Checkpoint(base) + masks["t"] * vector).tensors()["bias"]
    assert found.tolist() == [-np.inf, 0, 3, 5]
    (Checkpoint(base) + masks["t"] * vector).save(tmp_path / "fused")
    restore(tmp_path / "fused", base, masks["t"], tmp_path / "out")
    assert Checkpoint(tmp_path / "out").store["bias"].load().tolist() == start["bias"].tolist()


def test_scores_of_another_model_are_refused_behind_a_mask(
    vectors: Any, scores: Any, world: Any, tmp_path: Path
) -> None:
    masks = select(vectors, tmp_path / "m.safetensors").masks
    parts = [masks[name] * vectors[name] for name in NAMES]
    with pytest.raises(MismatchError, match="were learnt of the model"):
        merge(world["base"], parts, Sta(), scores=scores[::-1]).save(tmp_path / "x")


def test_what_is_added_onto_a_merged_model_stays_there(vectors: Any, world: Any) -> None:
    onto = merge(world["base"], [vectors["law"]]).base
    edited = merge(world["base"], [vectors["math"]], onto=world["law"]) + vectors["code"]
    assert onto.path == world["base"]
    assert edited.onto is not None
    assert edited.onto.path == world["law"]


@pytest.mark.parametrize("exclusive", [False, True])
def test_shares_of_a_mask_are_counted(exclusive: bool, vectors: Any, tmp_path: Path) -> None:
    of = Sta(0.3, exclusive=exclusive)
    made = select(vectors, tmp_path / "m.safetensors", of)
    flat = np.stack(
        [np.concatenate([made.masks[n].entries(t).ravel() for t in SHAPES]) for n in NAMES]
    )
    for at, name in enumerate(NAMES):
        others = np.delete(flat, at, axis=0).any(axis=0)
        share, common = made.masks.shares(name)
        assert share == pytest.approx(flat[at].mean())
        assert common == pytest.approx((flat[at] & others).sum() / flat[at].sum())
    with pytest.raises(UsageError, match="no mask 'maht'"):
        made.masks.shares("maht")
