"""disentangle: residues of stored vectors, lazily, beside the same in dense arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.basis.disentangling import disentangle as solve
from taskbasis.disentangling import disentangle
from taskbasis.engine import Engine
from taskbasis.errors import BaseError, FileError, UsageError, ValueProblem
from taskbasis.granularity import Granularity, group_name
from taskbasis.vectors import TaskVector

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (9, 6),
    "layers.0.w": (6, 5),
    "layers.0.b": (5,),
    "layers.1.w": (6, 5),
    "norm": (6,),
}
NAMES = ("math", "code", "law", "art")
Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def world(write_folder: Callable[..., Path]) -> tuple[dict[str, TaskVector], dict[str, Arrays]]:
    """Four task vectors with much in common, and the same as arrays."""
    random = np.random.default_rng(0)

    def draw(size: float) -> Arrays:
        return {n: size * random.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}

    base, common = draw(1.0), draw(0.1)
    folder = write_folder("base", base)
    vectors, deltas = {}, {}
    for name in NAMES:
        own = draw(0.08)
        tuned = {n: base[n] + common[n] + own[n] for n in SHAPES}
        vectors[name] = TaskVector(folder, write_folder(name, tuned))
        deltas[name] = {n: tuned[n] - base[n] for n in SHAPES}
    return vectors, deltas


def dense(deltas: dict[str, Arrays], tensors: list[str]) -> NDArray[np.float64]:
    """[d, T] of some tensors."""
    return np.stack(
        [
            np.concatenate([d[t].astype(np.float64).ravel() for t in tensors])
            for d in deltas.values()
        ],
        axis=1,
    )


def mean_abs_cosine(columns: NDArray[np.float64]) -> float:
    units = columns / np.linalg.norm(columns, axis=0)
    inner = np.abs(units.T @ units)
    return float(inner[~np.eye(len(inner), dtype=bool)].mean())


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
def test_residues_are_the_vectors_less_delta(world: Any, granularity: Granularity) -> None:
    vectors, deltas = world
    found = disentangle(vectors, granularity=granularity)
    members: dict[str, list[str]] = {}
    for tensor in sorted(SHAPES):
        members.setdefault(group_name(tensor, granularity), []).append(tensor)
    assert list(found.groups) == list(members)
    left = {name: vector.tensors() for name, vector in found.vectors.items()}
    delta = found.delta.tensors()
    whole = np.trace(dense(deltas, sorted(SHAPES)).T @ dense(deltas, sorted(SHAPES)))
    for group, tensors in members.items():
        columns = dense(deltas, tensors)
        gram = columns.T @ columns
        wanted = solve(gram * whole / np.trace(gram))
        shared = columns @ wanted.coefficients
        assert np.linalg.norm(shared) > 0.01 * np.linalg.norm(columns)
        np.testing.assert_allclose(
            dense(left, tensors), columns - shared[:, None], atol=2e-3 * np.abs(columns).max()
        )
        np.testing.assert_allclose(
            dense({"delta": delta}, tensors)[:, 0], shared, atol=2e-3 * np.abs(columns).max()
        )
        assert found.groups[group].before == pytest.approx(mean_abs_cosine(columns), rel=1e-4)
        after = mean_abs_cosine(dense(left, tensors))
        assert found.groups[group].after == pytest.approx(after, abs=1e-4)
        assert after < 0.7 * found.groups[group].before


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
def test_before_and_after_are_those_of_whole_vectors(world: Any, granularity: Granularity) -> None:
    vectors, deltas = world
    found = disentangle(vectors, granularity=granularity)
    left = {name: vector.tensors() for name, vector in found.vectors.items()}
    everything = sorted(SHAPES)
    assert found.before == pytest.approx(mean_abs_cosine(dense(deltas, everything)), rel=1e-5)
    assert found.after == pytest.approx(mean_abs_cosine(dense(left, everything)), abs=1e-5)
    assert found.after < 0.5 * found.before


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_adding_delta_gives_the_vector_back(world: Any, granularity: Granularity) -> None:
    vectors, deltas = world
    found = disentangle(vectors, granularity=granularity)
    for name, vector in found.vectors.items():
        for tensor, value in (vector + found.delta).tensors().items():
            np.testing.assert_allclose(value, deltas[name][tensor], atol=1e-6)


def test_granularities_are_all_in_the_same_units(world: Any) -> None:
    """A bias is short, but what is taken of it is in proportion; all of it alike if all is."""
    vectors, _ = world
    shares = [one.share for one in disentangle(vectors, granularity="tensor").groups.values()]
    assert len(shares) == len(SHAPES)
    assert all(0.05 < share < 1 for share in shares)


def test_a_vector_that_leaves_a_tensor_as_it_is_keeps_it_so(
    world: Any, write_folder: Callable[..., Path]
) -> None:
    """Less delta it would be -delta there, a change that nobody made."""
    vectors, deltas = world
    base = vectors["law"].combination.leaves[0].base.store
    frozen = {n: i.load() + deltas["law"][n] * (n != "layers.1.w") for n, i in base.items()}
    law = TaskVector(base.path, write_folder("frozen", frozen))
    found = disentangle({**vectors, "law": law}, granularity="tensor")
    assert all(one.share > 0.05 for one in found.groups.values())
    assert not np.any(found.vectors["law"].tensors().get("layers.1.w", 0))
    # The group's vectors count as long as whole ones are on average, the zero one aside.
    changed = {
        n: {t: v * (n != "law" or t != "layers.1.w") for t, v in d.items()}
        for n, d in deltas.items()
    }
    own, whole = (
        columns.T @ columns
        for columns in (dense(changed, t) for t in (["layers.1.w"], sorted(SHAPES)))
    )
    wanted = solve(own * (np.trace(whole) / 4) / (np.trace(own) / 3))
    assert wanted.coefficients[2] == 0
    np.testing.assert_allclose(
        found.groups["layers.1.w"].coefficients, wanted.coefficients, atol=2e-3
    )


def test_of_sums_and_of_residues(world: Any) -> None:
    """Vectors that are expressions already, with numbers of their own for every tensor."""
    vectors, _ = world
    first = disentangle(vectors, granularity="tensor").vectors
    made = {"a": 2 * first["math"] - vectors["code"], "b": first["law"] + vectors["art"]}
    arrays = {name: vector.tensors() for name, vector in made.items()}
    found = disentangle(made, granularity="layer", alpha=0.01)
    for group, one in found.groups.items():
        tensors = [t for t in sorted(SHAPES) if group_name(t, "layer") == group]
        columns = dense(arrays, tensors)
        shared = columns @ one.coefficients
        left = dense({n: v.tensors() for n, v in found.vectors.items()}, tensors)
        np.testing.assert_allclose(left, columns - shared[:, None], atol=1e-5)
    assert any(one.share > 0 for one in found.groups.values())


def test_a_sequence_is_called_by_numbers(world: Any) -> None:
    vectors, _ = world
    named, numbered = disentangle(vectors), disentangle(list(vectors.values()))
    assert list(named.vectors) == list(NAMES)
    assert list(numbered.vectors) == ["0", "1", "2", "3"]
    assert numbered.after == named.after


def test_nothing_is_computed_until_it_is_asked(world: Any) -> None:
    """What comes back are sums of the same leaves; only inner products were read."""
    vectors, _ = world
    found = disentangle(vectors, iterations=0)
    leaves = {id(leaf) for v in vectors.values() for leaf in v.combination.leaves}
    for vector in found.vectors.values():
        assert {id(leaf) for leaf in vector.combination.leaves} <= leaves
    assert not any(np.any(value) for value in found.delta.tensors().values())


def test_the_number_of_workers_does_not_matter(world: Any) -> None:
    vectors, _ = world
    one, four = (disentangle(vectors, engine=Engine(workers)) for workers in (1, 4))
    np.testing.assert_array_equal(
        one.groups["model"].coefficients, four.groups["model"].coefficients
    )


def test_one_vector_and_vectors_without_a_change(
    world: Any, write_folder: Callable[..., Path]
) -> None:
    vectors, deltas = world
    alone = disentangle({"math": vectors["math"]})
    assert (alone.before, alone.after) == (0.0, 0.0)
    np.testing.assert_array_equal(alone.vectors["math"].tensors()["norm"], deltas["math"]["norm"])
    zero = {"w": np.ones((2, 2), np.float32)}
    base, same = write_folder("zero", zero), write_folder("same", zero)
    for granularity in ("model", "tensor"):
        still = disentangle([TaskVector(base, same)] * 2, granularity=granularity)
        assert (still.before, still.after) == (0.0, 0.0)
        assert not any(np.any(v) for v in still.vectors["1"].tensors().values())


def test_saved_whole_or_not_at_all(world: Any, tmp_path: Path) -> None:
    vectors, _ = world
    found = disentangle(vectors)
    saved = found.save(tmp_path / "left", engine=Engine(1))
    assert [one.path for one in saved] == [tmp_path / f"left/{n}.safetensors" for n in NAMES]
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == sorted(
        f"{name}.safetensors" for name in NAMES
    )
    for name in NAMES:
        stored = TaskVector.open(tmp_path / f"left/{name}.safetensors").tensors()
        for tensor, value in found.vectors[name].tensors().items():
            np.testing.assert_array_equal(stored[tensor], value)
    with pytest.raises(FileError, match="already exists; pass --replace"):
        found.save(tmp_path / "left")
    (tmp_path / "left" / "old").write_text("gone")
    found.save(tmp_path / "left", "bfloat16", replace=True)
    assert (tmp_path / "left").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "left" / "old").exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_nothing_is_left_of_a_save_that_fails(world: Any, tmp_path: Path) -> None:
    vectors, _ = world
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "old").write_text("kept")
    with pytest.raises(UsageError, match="float31"):
        disentangle(vectors).save(tmp_path / "left", "float31", replace=True)
    assert (tmp_path / "left" / "old").read_text() == "kept"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_single_file_is_replaced_by_the_folder(world: Any, tmp_path: Path) -> None:
    vectors, _ = world
    (tmp_path / "left").write_text("a file")
    disentangle(vectors).save(tmp_path / "left", replace=True)
    assert (tmp_path / "left" / "art.safetensors").is_file()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_inputs_are_never_written_over(world: Any, tmp_path: Path) -> None:
    vectors, _ = world
    found = disentangle(vectors)
    source = next(iter(vectors["math"].combination.leaves[0].files))
    with pytest.raises(FileError, match="would touch the input"):
        found.save(source if source.is_dir() else source.parent, replace=True)


def test_names_that_are_no_file_names(world: Any, tmp_path: Path) -> None:
    vectors, _ = world
    found = disentangle({"../math": vectors["math"], "code": vectors["code"]})
    with pytest.raises(UsageError, match=r"called '\.\./math' cannot be a file"):
        found.save(tmp_path / "left")


def test_refused(world: Any, write_folder: Callable[..., Path]) -> None:
    vectors, _ = world
    with pytest.raises(ValueProblem, match="no task vector to disentangle"):
        disentangle([])
    with pytest.raises(UsageError, match="granularity 'row' is unknown"):
        disentangle(vectors, granularity="row")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a rate of 0"):
        disentangle(vectors, rate=0)
    other = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    tuned = {name: 2 * value for name, value in other.items()}
    stranger = TaskVector(write_folder("other", other), write_folder("tuned", tuned))
    with pytest.raises(BaseError, match="base"):
        disentangle([vectors["math"], stranger])
    broken = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    base = write_folder("plain", other)
    nan = [
        TaskVector(base, write_folder("nan", broken)),
        TaskVector(base, write_folder("two", tuned)),
    ]
    with pytest.raises(ValueProblem, match="NaN or infinite"):
        disentangle(nan)
