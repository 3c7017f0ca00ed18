"""The algebra of checkpoints and task vectors, against dense NumPy arithmetic."""

from __future__ import annotations

import itertools
import json
import operator
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskbasis import Checkpoint, EditedModel, Engine, TaskVector, analogy, merge, method
from taskbasis.errors import (
    BaseError,
    FileError,
    HeaderError,
    MismatchError,
    SpaceError,
    UsageError,
    ValueProblem,
)
from taskbasis.io.tensors import FileBlob
from taskbasis.methods import registered

Tensors = dict[str, NDArray[Any]]
SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (11, 6),
    "layers.0.weight": (6, 5),
    "layers.0.bias": (5,),
    "layers.1.kernel": (2, 3, 1, 2),
    "scale": (),
    "nothing": (0, 4),
}


def write(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    """A checkpoint folder, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(itertools.islice(tensors.items(), number, None, shards))
        save_file(part, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def draw(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Tensors:
    """Weights; the integer tensor is nobody's delta."""
    random = np.random.default_rng(seed)
    found: Tensors = {
        name: np.asarray(random.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }
    return {**found, "steps": np.array([seed, 7], np.int64)}


def tune(seed: int, base: Tensors, size: float = 0.05) -> Tensors:
    """A fine-tune: every float moved a little."""
    moves = draw(seed)
    return {
        name: np.asarray(value + np.float32(size) * moves[name], value.dtype)
        if value.dtype.kind == "f"
        else value
        for name, value in base.items()
    }


class World:
    """A base, three fine-tunes and their task vectors, on the disk and in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base_values = draw(0)
        self.values = {name: tune(n, self.base_values) for n, name in enumerate("abc", start=1)}
        self.base = Checkpoint(write(root / "base", self.base_values))
        for name, tensors in self.values.items():
            write(root / name, tensors)

    def tuned(self, name: str) -> Checkpoint:
        return Checkpoint(self.root / name)

    def vector(self, name: str) -> TaskVector:
        return self.tuned(name) - self.base

    def delta(self, name: str) -> Tensors:
        """Dense, float32."""
        return {
            key: self.values[name][key] - value
            for key, value in self.base_values.items()
            if value.dtype.kind == "f"
        }

    def plus(self, *terms: tuple[float, Tensors]) -> Tensors:
        """``base + ((0 + c_1 delta_1) + c_2 delta_2) ...`` in float32, as the kernels document."""
        found = dict(self.base_values)
        for key in SHAPES:
            total = np.zeros_like(found[key])
            for coefficient, delta in terms:
                total = np.asarray(total + np.float32(coefficient) * delta[key])
            found[key] = np.asarray(found[key] + total)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def assert_same(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    """Equal names, dtypes, shapes and values, bit for bit but for the sign of zero."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def assert_close(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    """Equal up to a few roundings of float32 numbers of size 1."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6, err_msg=name)


# What an expression reads, and when.


def test_building_an_expression_reads_no_tensor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = FileBlob.read_into

    def counted(self: FileBlob, offset: int, buffer: memoryview) -> None:
        reads.append(self.path)
        real(self, offset, buffer)

    monkeypatch.setattr(FileBlob, "read_into", counted)
    a, b, c = map(world.vector, "abc")
    edited = world.base + 0.4 * (a - b / 2) - analogy([a, c], b) + sum([a, -b, 3 * c])
    assert str(world.root / "a") in str(edited - world.base)
    assert reads == []
    edited.tensors()
    assert {path.parent.name for path in reads} == {"base", "a", "b", "c"}


def test_an_expression_outlives_its_files_until_it_is_used(world: World) -> None:
    a, b = world.vector("a"), world.vector("b")
    shutil.rmtree(world.root / "b")
    edited = world.base + (a + 3 * b)
    with pytest.raises(FileError, match=r"b/model\.safetensors: cannot be opened"):
        edited.tensors()


def test_what_cancels_is_not_read(world: World) -> None:
    a, b = world.vector("a"), world.vector("b")
    shutil.rmtree(world.root / "b")
    assert_same((world.base + (a + b - b)).tensors(), world.plus((1.0, world.delta("a"))))


# Identities.


def test_base_plus_vector_is_the_tuned_model_where_the_difference_is_exact(
    tmp_path: Path,
) -> None:
    """Sterbenz: with tuned between base / 2 and 2 base, tuned - base has no rounding."""
    random = np.random.default_rng(3)
    base = {"w": np.asarray(random.standard_normal((40, 50)), np.float32)}
    factor = np.asarray(random.uniform(0.5, 2.0, (40, 50)), np.float32)
    tuned = {"w": np.clip(base["w"] * factor, *np.sort([base["w"] / 2, base["w"] * 2], axis=0))}
    start = Checkpoint(write(tmp_path / "base", base))
    vector = Checkpoint(write(tmp_path / "tuned", tuned)) - start
    assert_same((start + vector).tensors(), tuned)


def test_elsewhere_base_plus_vector_is_the_tuned_model_within_its_rounding(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(4)
    sizes = 10.0 ** random.uniform(-6, 3, (2, 4000))
    base, tuned = np.asarray(random.standard_normal((2, 4000)) * sizes, np.float32)
    start = Checkpoint(write(tmp_path / "base", {"w": base}))
    found = (start + (Checkpoint(write(tmp_path / "tuned", {"w": tuned})) - start)).tensors()["w"]
    half_ulp = np.finfo(np.float32).eps / 2
    allowed = half_ulp * (np.abs(tuned.astype(np.float64) - base) + np.abs(found))
    assert np.all(np.abs(found.astype(np.float64) - tuned) <= allowed)
    assert np.any(found != tuned), "the case is not vacuous"


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_models_come_back_exactly(tmp_path: Path, dtype: Any) -> None:
    """Differences of 16-bit numbers of like size fit into float32."""
    random = np.random.default_rng(5)
    base = {"w": np.asarray(random.uniform(0.25, 4.0, (30, 30)), dtype)}
    tuned = {"w": np.asarray(-random.uniform(0.25, 4.0, (30, 30)), dtype)}
    start = Checkpoint(write(tmp_path / "base", base))
    vector = Checkpoint(write(tmp_path / "tuned", tuned)) - start
    assert_same((start + vector).tensors(), tuned)


def test_weight_minus_one_on_one_vector_is_base_minus_that_vector(world: World) -> None:
    wanted = {
        name: np.asarray(value - world.delta("a")[name]) if name in SHAPES else value
        for name, value in world.base_values.items()
    }
    a = world.vector("a")
    for edited in (
        world.base - a,
        world.base + -a,
        world.base + -1 * a,
        a.apply_to(world.base, -1.0),
        merge(world.base, [a], scale=-1.0),
        merge(world.base, [-a]),
    ):
        assert_same(edited.tensors(), wanted)


def test_the_order_of_sums_is_the_documented_one(world: World) -> None:
    a, b, c = map(world.vector, "abc")
    terms = [(0.3, world.delta("a")), (-0.15, world.delta("b")), (1.5, world.delta("c"))]
    assert_same((world.base + (0.3 * a - 0.3 * (b / 2) + c * 1.5)).tensors(), world.plus(*terms))


def test_adding_and_subtracting_a_vector_read_twice_changes_nothing(world: World) -> None:
    once = (world.base + world.vector("a")).tensors()
    there_and_back = (world.vector("a") + world.vector("b")) - world.vector("b")
    assert_close((world.base + there_and_back).tensors(), once)


def test_sum_is_repeated_addition(world: World) -> None:
    vectors = [world.vector(name) for name in "abc"]
    by_hand = vectors[0] + vectors[1] + vectors[2]
    wanted = (world.base + by_hand).tensors()
    assert_same((world.base + sum(vectors)).tensors(), wanted)
    assert_same((world.base + sum(vectors[1:], vectors[0])).tensors(), wanted)
    assert_same(merge(world.base, vectors).tensors(), wanted)


@pytest.mark.parametrize(
    "scale",
    [
        lambda v: 0.7 * v,
        lambda v: v * 0.7,
        lambda v: v / (1 / 0.7),
        lambda v: np.float64(0.7) * v,
        lambda v: -(0.7 * -v),
        lambda v: 0.35 * v + v * 0.35,
    ],
)
def test_multiples(world: World, scale: Callable[[TaskVector], TaskVector]) -> None:
    wanted = world.plus((0.7, world.delta("a")))
    assert_same((world.base + scale(world.vector("a"))).tensors(), wanted)


def test_zero_times_a_vector_is_the_base(world: World) -> None:
    assert_same((world.base + 0 * world.vector("a")).tensors(), world.base_values)


def test_analogy_is_c_plus_b_minus_a(world: World) -> None:
    a, b, c = map(world.vector, "abc")
    wanted = world.plus((1, world.delta("c")), (1, world.delta("b")), (-1, world.delta("a")))
    assert_same((world.base + analogy([c, b], a)).tensors(), wanted)
    assert_same((world.base + (c + (b - a))).tensors(), wanted)
    with pytest.raises(UsageError, match="at least one"):
        analogy([], a)


def test_the_surface_of_the_2022_reference(world: World) -> None:
    vector = TaskVector(str(world.root / "base"), str(world.root / "a"))
    negated = -vector
    both = sum([vector, TaskVector(world.base, world.tuned("b"))])
    for edited, terms in (
        (vector.apply_to(str(world.root / "base"), scaling_coef=0.8), [(0.8, "a")]),
        (negated.apply_to(world.base, 0.5), [(-0.5, "a")]),
        (both.apply_to(world.root / "base", scaling_coef=0.3), [(0.3, "a"), (0.3, "b")]),
    ):
        wanted = world.plus(*((scale, world.delta(name)) for scale, name in terms))
        assert_same(edited.tensors(), wanted)


def test_an_edited_model_less_a_checkpoint(world: World, tmp_path: Path) -> None:
    a, b = world.vector("a"), world.vector("b")
    edited = world.base + a + 0.5 * b
    wanted = world.plus((2.0, world.delta("a")), (1.0, world.delta("b")))
    assert_same((world.base + 2 * (edited - world.base)).tensors(), wanted)
    assert_close(
        (edited - (world.base + b)).apply_to(world.base).tensors(),
        world.plus((1.0, world.delta("a")), (-0.5, world.delta("b"))),
    )
    assert_close((world.base - edited).apply_to(world.base, -1.0).tensors(), edited.tensors())
    nothing = (EditedModel(world.base) - world.base).save(tmp_path / "nothing.safetensors")
    assert nothing.norm == 0
    assert load_file(tmp_path / "nothing.safetensors") == {}


def test_an_edited_model_less_a_checkpoint_of_another_base(world: World, tmp_path: Path) -> None:
    """(base + a) - b is (base - b) + a: deltas of two bases, which do not mix."""
    with pytest.raises(BaseError, match="tensors differ"):
        ((world.base + world.vector("a")) - world.tuned("b")).save(tmp_path / "v.safetensors")


def test_the_delta_of_a_linear_method(world: World) -> None:
    vectors = [world.vector(name) for name in "ab"]
    mean = merge(world.base, vectors, method("average"), scale=0.6)
    assert_same(
        (world.base + mean.delta).tensors(),
        world.plus((0.3, world.delta("a")), (0.3, world.delta("b"))),
    )
    assert_same((world.base + mean.delta).tensors(), mean.tensors())


@pytest.mark.parametrize("name", ["ties", "magmax"])
def test_a_method_that_is_not_linear_has_no_delta(world: World, name: str) -> None:
    merged = merge(world.base, [world.vector("a"), world.vector("b")], method(name))
    for use in (
        lambda: merged.delta,
        lambda: merged - world.base,
        lambda: merged + world.vector("c"),
    ):
        with pytest.raises(UsageError, match=f"{name} is not linear: save the model"):
            use()


def test_an_edited_model_without_vectors_has_no_delta(world: World) -> None:
    with pytest.raises(ValueProblem, match="nothing was added"):
        _ = EditedModel(world.base).delta


@pytest.mark.parametrize("name", sorted(registered()))
def test_merging_nothing_gives_the_base(world: World, name: str) -> None:
    assert_same(merge(world.base, [], method(name), 0.5).tensors(), world.base_values)


def test_the_delta_in_memory(world: World) -> None:
    found = (world.vector("a") - 0.5 * world.vector("b")).tensors()
    first, second = world.delta("a"), world.delta("b")
    wanted = {name: np.asarray(first[name] - np.float32(0.5) * second[name]) for name in SHAPES}
    assert_same(found, wanted)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_a_coefficient_is_finite(world: World, factor: float) -> None:
    for use in (lambda: factor * world.vector("a"), lambda: merge(world.base, [], scale=factor)):
        with pytest.raises(UsageError, match="finite"):
            use()


# Spaces.

ALLOWED = {
    ("weights", "+", "delta"),
    ("delta", "+", "weights"),
    ("weights", "-", "weights"),
    ("weights", "-", "delta"),
    ("delta", "+", "delta"),
    ("delta", "-", "delta"),
    ("number", "*", "delta"),
    ("delta", "*", "number"),
    ("delta", "/", "number"),
}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
SIDES = {"checkpoint": "weights", "edited": "weights", "vector": "delta", "number": "number"}
PAIRS = [
    pytest.param(left, sign, right, id=f"{left} {sign} {right}")
    for left, sign, right in itertools.product(SIDES, OPERATORS, SIDES)
    if (left, right) != ("number", "number")
]


@pytest.mark.parametrize(("left", "sign", "right"), PAIRS)
def test_every_combination_is_allowed_or_refused_by_name(
    world: World, left: str, sign: str, right: str
) -> None:
    sides = {
        "checkpoint": world.base,
        "edited": world.base + world.vector("b"),
        "vector": world.vector("a"),
        "number": 2.5,
    }
    names = {"checkpoint": "base", "edited": "base", "vector": "a"}
    if (SIDES[left], sign, SIDES[right]) in ALLOWED:
        found = OPERATORS[sign](sides[left], sides[right])
        weights = (SIDES[left] == "weights") != (SIDES[right] == "weights")
        assert isinstance(found, EditedModel if weights else TaskVector)
        return
    with pytest.raises(SpaceError) as caught:
        OPERATORS[sign](sides[left], sides[right])
    said = str(caught.value).split(" has no meaning")[0]
    first, second = said.split(f" {sign} {SIDES[right]}")[0], said
    for side, text in ((left, first), (right, second)):
        assert SIDES[side] in text
        if side in names:
            assert f"({world.root / names[side]}" in text


@pytest.mark.parametrize("stranger", ["a name", None, [1.0]])
def test_what_is_no_vector_at_all_is_a_type_error(world: World, stranger: object) -> None:
    for use in (operator.add, operator.sub, operator.mul):
        with pytest.raises(TypeError, match="neither weights"):
            use(world.vector("a"), stranger)


# Bases.


def test_a_vector_of_another_base_is_refused_by_name(world: World, tmp_path: Path) -> None:
    other = dict(world.base_values)
    other["layers.0.bias"] = other["layers.0.bias"] + np.float32(1)
    start = Checkpoint(write(tmp_path / "other", other))
    stored = tmp_path / "a.safetensors"
    world.vector("a").save(stored)
    for vector in (world.vector("a"), TaskVector.open(stored)):
        with pytest.raises(BaseError) as caught:
            (start + vector).save(tmp_path / "out")
        said = str(caught.value)
        for part in (str(vector), str(world.root / "base"), str(tmp_path / "other")):
            assert part in said
        assert "1 tensors differ, e.g. 'layers.0.bias'" in said
        assert start.fingerprint in said
        assert world.base.fingerprint in said
    assert not (tmp_path / "out").exists()


def test_stored_vectors_of_two_bases_do_not_mix(world: World, tmp_path: Path) -> None:
    other = Checkpoint(write(tmp_path / "other", draw(9)))
    world.vector("a").save(tmp_path / "a.safetensors")
    (world.tuned("b") - other).save(tmp_path / "b.safetensors")
    a, b = (TaskVector.open(tmp_path / f"{name}.safetensors") for name in "ab")
    with pytest.raises(BaseError, match="do not mix"):
        a + b
    with pytest.raises(BaseError, match="not from"):
        (world.vector("a") + b).save(tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_a_base_is_the_same_however_it_is_sharded(world: World, tmp_path: Path) -> None:
    resharded = Checkpoint(write(tmp_path / "resharded", world.base_values, shards=3))
    turned = Checkpoint(write(tmp_path / "turned", dict(reversed(world.base_values.items()))))
    assert resharded.fingerprint == turned.fingerprint == world.base.fingerprint
    world.vector("a").save(tmp_path / "a.safetensors")
    wanted = world.plus((1.0, world.delta("a")))
    for base in (resharded, turned):
        assert_same((base + world.vector("a")).tensors(), wanted)
        assert_same((base + TaskVector.open(tmp_path / "a.safetensors")).tensors(), wanted)


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "one bit"])
def test_a_fingerprint_notices(world: World, tmp_path: Path, change: str) -> None:
    tensors = dict(world.base_values)
    value = tensors.pop("embed")
    match change:
        case "name":
            tensors["embedding"] = value
        case "shape":
            tensors["embed"] = value.reshape(6, 11)
        case "dtype":
            tensors["embed"] = value.view(np.int32)
        case "one bit":
            words = value.copy()
            words.view(np.uint32)[5, 5] ^= 1
            tensors["embed"] = words
    changed = Checkpoint(write(tmp_path / "changed", tensors))
    assert changed.fingerprint != world.base.fingerprint


# Storing.


def test_adding_stored_vectors_gives_the_same_bits_as_adding_checkpoints(
    world: World, tmp_path: Path
) -> None:
    for name in "abc":
        world.vector(name).save(tmp_path / f"{name}.safetensors")
    stored = [TaskVector.open(tmp_path / f"{name}.safetensors") for name in "abc"]
    trained = [world.vector(name) for name in "abc"]
    mixed = [stored[0], trained[1], stored[2]]
    for merged_by in ("task_arithmetic", "average", "magmax", "ties"):
        wanted = merge(world.base, trained, method(merged_by), scale=0.4).tensors()
        for vectors in (stored, mixed):
            found = merge(world.base, vectors, method(merged_by), scale=0.4).tensors()
            assert_same(found, wanted)


def test_a_sum_of_stored_vectors_can_be_stored_again(world: World, tmp_path: Path) -> None:
    for name in "ab":
        world.vector(name).save(tmp_path / f"{name}.safetensors")
    a, b = (TaskVector.open(tmp_path / f"{name}.safetensors") for name in "ab")
    (a + 2 * b).save(tmp_path / "sum.safetensors")
    found = load_file(tmp_path / "sum.safetensors")
    deltas = world.delta("a"), world.delta("b")
    wanted = {name: np.asarray(deltas[0][name] + 2 * deltas[1][name]) for name in SHAPES}
    del wanted["nothing"]  # an empty tensor equals the base's
    assert_same(found, wanted)


def test_tensors_that_equal_the_base_are_not_stored(world: World, tmp_path: Path) -> None:
    tuned = dict(world.values["a"])
    tuned["embed"] = world.base_values["embed"]
    vector = Checkpoint(write(tmp_path / "partly", tuned)) - world.base
    saved = vector.save(tmp_path / "v.safetensors")
    stored = load_file(tmp_path / "v.safetensors")
    assert stored.keys() == SHAPES.keys() - {"embed", "nothing"}
    assert saved.rules["stored"] == tuple(sorted(stored))
    assert saved.rules["unchanged"] == ("embed", "nothing")
    assert saved.rules["integer"] == ("steps",)
    again = TaskVector.open(tmp_path / "v.safetensors")
    assert_same((world.base + again).tensors(), (world.base + vector).tensors())


def test_integers_are_the_base_s(world: World, tmp_path: Path) -> None:
    tuned = {**world.values["a"], "steps": np.array([99, 99], np.int64)}
    vector = Checkpoint(write(tmp_path / "later", tuned)) - world.base
    np.testing.assert_array_equal((world.base + vector).tensors()["steps"], [0, 7])


def test_only_a_stored_vector_opens_as_one(world: World) -> None:
    with pytest.raises(HeaderError, match="not a task vector; extract"):
        TaskVector.open(world.root / "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embed": None}, "lacks 1 tensor (embed)"),
        ({"head": np.zeros(2, np.float32)}, "has 1 tensor (head)"),
        ({"embed": np.zeros((1, 6), np.float32)}, "shape [1, 6]"),
        ({"embed": np.zeros((6, 11), np.float32)}, "shape [6, 11]"),
        ({"embed": np.zeros((11, 6), np.int32)}, "holds int32"),
    ],
)
def test_models_that_do_not_fit(
    world: World, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    tuned = {k: v for k, v in {**world.values["a"], **change}.items() if v is not None}
    stranger = Checkpoint(write(tmp_path / "stranger", tuned))
    with pytest.raises(MismatchError) as caught:
        stranger - world.base
    assert said in str(caught.value)
    assert str(tmp_path / "stranger") in str(caught.value)


def test_exclude(world: World, tmp_path: Path) -> None:
    vector = TaskVector(world.base, world.tuned("a"), exclude=["layers.*", "scal?"])
    wanted = world.plus((1.0, world.delta("a")))
    for name in ("layers.0.weight", "layers.0.bias", "layers.1.kernel", "scale"):
        wanted[name] = world.base_values[name]
    assert_same((world.base + vector).tensors(), wanted)
    saved = vector.save(tmp_path / "v.safetensors")
    assert saved.rules["stored"] == ("embed",)
    assert len(saved.rules["excluded"]) == 4
    with pytest.raises(UsageError, match=r"'embd' matches no tensor; did you mean 'embed'\?"):
        TaskVector(world.base, world.tuned("a"), exclude=["embd"])


def test_exclude_lets_models_meet_that_differ_there(world: World, tmp_path: Path) -> None:
    tuned = {**world.values["a"], "embed": np.zeros((3, 2), np.float32)}
    tuned["head"] = np.ones(4, np.float32)
    stranger = Checkpoint(write(tmp_path / "stranger", tuned))
    vector = TaskVector(world.base, stranger, exclude=["embed", "head"])
    wanted = {**world.plus((1.0, world.delta("a"))), "embed": world.base_values["embed"]}
    assert_same((world.base + vector).tensors(), wanted)


# Numbers that cannot be used.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("merged_by", ["task_arithmetic", "magmax", "ties"])
def test_what_is_not_finite_is_refused_and_nothing_is_left(
    world: World, tmp_path: Path, bad: float, merged_by: str
) -> None:
    tuned = {name: value.copy() for name, value in world.values["a"].items()}
    tuned["layers.0.weight"][2, 3] = bad
    broken = Checkpoint(write(tmp_path / "broken", tuned)) - world.base
    before = sorted(tmp_path.iterdir())
    model = merge(world.base, [world.vector("b"), broken], method(merged_by))
    for use in (
        lambda: broken.save(tmp_path / "v.safetensors"),
        lambda: broken.save(tmp_path / "v"),
        lambda: model.save(tmp_path / "m"),
        lambda: model.tensors(),
    ):
        with pytest.raises(ValueProblem, match=r"'layers.0.weight': a value is NaN or infinite"):
            use()
    assert sorted(tmp_path.iterdir()) == before
    assert (world.base + (broken - broken)).tensors().keys() == world.base_values.keys()


def test_a_value_too_large_for_its_dtype_is_refused(world: World, tmp_path: Path) -> None:
    tuned = {name: value.copy() for name, value in world.values["a"].items()}
    tuned["layers.0.weight"][0, 0] = 70000.0
    vector = Checkpoint(write(tmp_path / "large", tuned)) - world.base
    for use in (
        lambda: vector.save(tmp_path / "v.safetensors", "float16"),
        lambda: (world.base + vector).save(tmp_path / "m", "float16"),
    ):
        with pytest.raises(
            ValueProblem, match=r"'layers\.0\.weight': a value is too large for float16"
        ):
            use()
    vector.save(tmp_path / "v.safetensors", "bfloat16")


# The same bytes however the work is done.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes whose largest tensor takes several cuts, single and sharded."""
    root = tmp_path_factory.mktemp("large")
    shapes = {"wide": (610, 1100), "narrow": (7, 3), "flat": (9001,)}
    base = draw(1, shapes)
    for name, tensors in {
        "base": base,
        **{
            t: {n: v + draw(s, shapes)[n] if n in shapes else v for n, v in base.items()}
            for s, t in enumerate("ab", start=2)
        },
    }.items():
        write(root / name, tensors)
        write(root / f"{name}-sharded", tensors, shards=3)
    return root


def _vectors(large: Path, suffix: str) -> tuple[Checkpoint, list[TaskVector]]:
    base = Checkpoint(large / f"base{suffix}")
    return base, [TaskVector(base, large / f"{name}{suffix}") for name in "ab"]


@pytest.mark.parametrize("merged_by", ["task_arithmetic", "ties"])
def test_the_same_bytes_for_any_number_of_workers_and_any_sharding(
    large: Path, tmp_path: Path, merged_by: str
) -> None:
    written = []
    for suffix, workers in (("", 1), ("", 2), ("", 5), ("-sharded", 1), ("-sharded", 5)):
        base, vectors = _vectors(large, suffix)
        out = tmp_path / f"{workers}{suffix}.safetensors"
        merge(base, vectors, method(merged_by), 0.3).save(out, engine=Engine(workers))
        written.append(out.read_bytes())
    assert len(set(written)) == 1


def test_the_same_vector_file_for_any_number_of_workers(large: Path, tmp_path: Path) -> None:
    base, (a, b) = _vectors(large, "")
    for workers in (1, 2, 5):
        (a - 0.5 * b).save(tmp_path / f"{workers}.safetensors", engine=Engine(workers))
    written = {(tmp_path / f"{workers}.safetensors").read_bytes() for workers in (1, 2, 5)}
    assert len(written) == 1
    sharded, (a, b) = _vectors(large, "-sharded")
    (a - 0.5 * b).save(tmp_path / "sharded.safetensors")
    assert sharded.fingerprint == base.fingerprint
    assert_same(load_file(tmp_path / "sharded.safetensors"), load_file(tmp_path / "1.safetensors"))


def test_large_tensors_equal_the_dense_sum(large: Path) -> None:
    base, vectors = _vectors(large, "-sharded")
    found = merge(base, vectors, scale=0.3).tensors(Engine(2))
    values = {name: load_file(large / name / "model.safetensors") for name in ("base", "a", "b")}
    for name in ("wide", "narrow", "flat"):
        start = values["base"][name]
        deltas = [values[task][name] - start for task in "ab"]
        total = np.float32(0.3) * deltas[0] + np.float32(0.3) * deltas[1]
        np.testing.assert_array_equal(found[name], start + total)


# Any shape, any dtype, any expression.

FLOATS = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@st.composite
def models(draw_from: st.DrawFn) -> tuple[list[Tensors], bool]:
    """A base and three fine-tunes: 1 to 3 tensors of 0 to 4 axes, lengths 0 to 4."""
    count = draw_from(st.integers(1, 3))
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    random = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    mixed = draw_from(st.booleans())
    found: list[Tensors] = [{} for _ in range(4)]
    for number in range(count):
        shape, kind = draw_from(shapes), draw_from(st.sampled_from(list(FLOATS)))
        for model in found:
            own = draw_from(st.sampled_from(["float32", kind])) if mixed else kind
            values = random.choice([0.0, 1.0, 1e-3], shape) * random.uniform(-4, 4, shape)
            model[f"t{number}"] = np.asarray(values, FLOATS[own])
    return found, mixed


LEAVES = st.sampled_from("abc")
FACTORS = st.sampled_from([-1.5, -1.0, -0.3, 0.0, 0.5, 1.0, 2.0])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-"), inner, inner),
        st.tuples(st.just("*"), FACTORS, inner),
        st.tuples(st.just("/"), inner, FACTORS.filter(bool)),
        st.tuples(st.just("neg"), inner),
    ),
    max_leaves=6,
)


def evaluate(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The value of a tree: of task vectors, or of arrays."""
    if isinstance(tree, str):
        return leaves[tree]
    sign, *parts = tree
    values = [part if isinstance(part, float) else evaluate(part, leaves) for part in parts]
    return -values[0] if sign == "neg" else OPERATORS[sign](*values)


def reach(tree: Any, factor: float = 1.0) -> float:
    """An upper bound of the sum of |coefficients|."""
    if isinstance(tree, str):
        return abs(factor)
    match tree:
        case ("*", number, inner):
            return reach(inner, factor * number)
        case ("/", inner, number):
            return reach(inner, factor / number)
        case _:
            return sum(reach(part, factor) for part in tree[1:])


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(drawn=models(), tree=TREES)
def test_any_expression_equals_dense_arithmetic(
    drawn: tuple[list[Tensors], bool], tree: Any
) -> None:
    (base, *tuned), _ = drawn
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = Checkpoint(write(root / "base", base))
        checkpoints = {
            name: Checkpoint(write(root / name, tensors))
            for name, tensors in zip("abc", tuned, strict=True)
        }
        vectors = {name: checkpoint - start for name, checkpoint in checkpoints.items()}
        found = (start + evaluate(tree, vectors)).tensors(Engine(1))
    assert found.keys() == base.keys()
    for name, value in base.items():
        origin = value.astype(np.float64)
        deltas = {t: m[name].astype(np.float64) - origin for t, m in zip("abc", tuned, strict=True)}
        wanted = np.asarray(origin + evaluate(tree, deltas))
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        limits = ml_dtypes.finfo(value.dtype)
        double = np.float64 in {value.dtype.type, *(m[name].dtype.type for m in tuned)}
        computed = (4.0 + 8.0 * reach(tree)) * np.finfo(np.float64 if double else np.float32).eps
        rounded = 0.51 * float(limits.eps) * np.abs(wanted) + float(limits.smallest_subnormal)
        missed = np.abs(found[name].astype(np.float64) - wanted)
        assert np.all(missed <= 16 * computed + rounded), name


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=models(), dtype=st.sampled_from(list(FLOATS)))
def test_any_vector_can_be_stored_and_added_again(
    drawn: tuple[list[Tensors], bool], dtype: str
) -> None:
    (base, tuned, *_), mixed = drawn
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = Checkpoint(write(root / "base", base))
        vector = Checkpoint(write(root / "tuned", tuned)) - start
        saved = vector.save(root / "v.safetensors", dtype, engine=Engine(1))
        stored = load_file(root / "v.safetensors")
        direct = (start + vector).tensors(Engine(1))
        again = (start + TaskVector.open(root / "v.safetensors")).tensors(Engine(1))
    assert set(saved.rules["stored"]) == stored.keys()
    for name, value in stored.items():
        wide = np.float64 in (base[name].dtype, tuned[name].dtype)
        compute = np.float64 if wide else np.float32
        delta = tuned[name].astype(compute) - base[name].astype(compute)
        narrow = delta.astype(np.float32) if dtype.endswith("16") else delta
        np.testing.assert_array_equal(value, narrow.astype(FLOATS[dtype]), strict=True)
    exact = dtype == "float64" or (
        dtype == "float32" and not mixed and all(v.dtype != np.float64 for v in base.values())
    )
    if exact:
        assert_same(again, direct)


def test_a_mask_of_infinities_that_nobody_moved_is_carried(tmp_path: Path) -> None:
    """Buffers such as causal masks hold -inf on both sides; their difference is zero, not NaN."""
    mask = np.array([0.0, -np.inf, -np.inf], np.float32)
    for name, weight in {"base": 1.0, "tuned": 2.0}.items():
        (tmp_path / name).mkdir()
        tensors = {"mask": mask, "w": np.full(3, weight, np.float32)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    vector = TaskVector(tmp_path / "base", tmp_path / "tuned")
    vector.apply_to(tmp_path / "base", 0.5).save(tmp_path / "out", "bfloat16")
    made = Checkpoint(tmp_path / "out").store
    np.testing.assert_array_equal(made["mask"].load().astype(np.float32), mask)
    np.testing.assert_array_equal(made["w"].load().astype(np.float32), np.full(3, 1.5))
    assert vector.save(tmp_path / "v.safetensors").rules["unchanged"] == ("mask",)
