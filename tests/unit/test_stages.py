"""A method's stages with scores: what they sum, over which group, and what they are told."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import stored
from taskbasis.engine import Engine
from taskbasis.granularity import Granularity, group_name
from taskbasis.kernels import BLOCK
from taskbasis.merging import merge
from taskbasis.methods import Chunk, Method
from taskbasis.methods.base import Need
from taskbasis.methods.learnt.fisher import Fisher
from taskbasis.methods.learnt.sta import Sta
from taskbasis.passes import run_stages
from taskbasis.plan import Plan, make_plan
from taskbasis.plan import cutting as plan_module
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Origin
from taskbasis.vectors import Checkpoint, TaskVector

Matrix = NDArray[Any]
Tensors = Mapping[str, Matrix]

SHAPES = {
    "h.0.b": (9,),
    "h.0.w": (70, 60),
    "h.1.w": (2049,),
    "norm.b": (5,),
    "norm.w": (5,),
    "empty": (0, 3),
    "scalar": (),
    "frozen.w": (500,),
}
FROZEN = "frozen.w"
SCOPES: tuple[Granularity, ...] = ("tensor", "layer", "model")


def write_scores(out: Path, folder: Path, scores: Tensors) -> Importance:
    model = stored.bind(Binding(str(folder), Checkpoint(folder).store), Engine(1))
    shapes = {name: array.shape for name, array in scores.items()}
    with ImportanceWriter(out, shapes, Origin(model)) as writer:
        for name, array in scores.items():
            writer.write(name, array)
        writer.commit()
    return Importance.open(out)


class World:
    """Two models of one base; a tensor that neither of them changes but both of them scored."""

    def __init__(self, write_folder: Any, place: Path) -> None:
        rng = np.random.default_rng(0)
        start = {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}
        self.start = start
        self.base = write_folder("base", start)
        self.vectors, self.importances, self.scores = [], [], list[Tensors]()
        self.place = place
        for t in range(2):
            moves = {
                n: np.asarray(rng.standard_normal(a.shape), np.float32) for n, a in start.items()
            }
            tuned = {n: a if n == FROZEN else np.asarray(a + moves[n]) for n, a in start.items()}
            folder = write_folder(f"t{t}", tuned)
            self.vectors.append(TaskVector(self.base, folder))
            # On a grid that float16 and counting hold exactly, of another size in each tensor.
            self.scores.append(
                {
                    n: np.asarray(rng.integers(0, 99, s) * 2.0**i, np.float32)
                    for i, (n, s) in enumerate(SHAPES.items())
                }
            )
            self.importances.append(
                write_scores(place / f"s{t}.safetensors", folder, self.scores[t])
            )

    def plan(self, vectors: Sequence[TaskVector] = ()) -> Plan:
        store = Checkpoint(self.base).store
        combinations = [vector.combination for vector in vectors or self.vectors]
        return make_plan(
            combinations, store, store, scores=[part.learnt for part in self.importances]
        )

    def stored(self) -> list[TaskVector]:
        """Vectors as files, which lack what they do not change."""
        found = []
        for t, vector in enumerate(self.vectors):
            path = self.place / f"v{t}.safetensors"
            if not path.exists():
                vector.save(path)
            found.append(TaskVector.open(path))
        return found

    def deltas(self, name: str) -> Matrix:
        """[T, n], as the library takes them."""
        return np.stack([vector.tensors()[name].ravel() for vector in self.vectors])


@pytest.fixture
def world(write_folder: Any, tmp_path: Path) -> World:
    return World(write_folder, tmp_path)


def grouped(scope: Granularity) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in SHAPES:
        groups.setdefault(group_name(name, scope), []).append(name)
    return groups


# What a stage sums


@dataclass(frozen=True)
class Watching(Method):
    """Sums sizes and scores in four stages, and keeps what it was told meanwhile."""

    name: ClassVar[str] = "watching"
    scores: ClassVar[Need] = "optional"

    def stages(self) -> tuple[Granularity, ...]:
        return ("tensor", "layer", "model", "tensor")

    def observe(self, stage: int, chunk: Chunk, state: Any) -> Matrix:
        assert len(state) == stage
        assert chunk.tensor == "" or all(known is not None for known in state)
        rows = chunk.scores if chunk.scores is not None else chunk.deltas
        return np.array([[row.size, row.sum(dtype=np.float64)] for row in rows])

    def finish(self, stage: int, total: Matrix, state: Any) -> Any:
        """With the stages of the same granularity that it was told of, by number."""
        return total.tolist(), [at for at, known in enumerate(state) if known is not None]

    def apply(self, chunk: Chunk, state: Any) -> Matrix:
        return chunk.deltas[0]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("limit", [BLOCK, 1 << 18])
def test_sums_are_those_of_each_group(
    world: World, workers: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_CUT", limit)
    found = run_stages(world.plan(), Watching(), range(2), Engine(workers))
    for stage, scope in enumerate(Watching().stages()):
        for names in grouped(scope).values():
            wanted = [
                [
                    sum(mine[n].size for n in names),
                    sum(float(mine[n].sum(dtype=np.float64)) for n in names),
                ]
                for mine in world.scores
            ]
            for name in names:
                told = found.of(name)[stage]
                assert told == (wanted, [0] if stage == 3 else [])


def test_members_are_chosen_with_their_scores(world: World) -> None:
    both = run_stages(world.plan(), Watching(), [0, 1], Engine(1))
    second = run_stages(world.plan(), Watching(), [1], Engine(1))
    for name in SHAPES:
        for (whole, _), (part, _) in zip(both.of(name), second.of(name), strict=True):
            assert part == whole[1:]


def test_without_scores_deltas_are_summed(world: World) -> None:
    store = Checkpoint(world.base).store
    plan = make_plan([vector.combination for vector in world.vectors], store, store)
    found = run_stages(plan, Watching(), range(2), Engine(1))
    for name in SHAPES:
        (sums, _), *_ = found.of(name)
        rows = world.deltas(name)
        np.testing.assert_allclose(
            sums, [[r.size, r.sum(dtype=np.float64)] for r in rows], rtol=1e-6
        )


def test_a_tensor_that_nothing_was_found_of(world: World) -> None:
    found = run_stages(world.plan(), Watching(), range(2), Engine(1))
    assert found.of("elsewhere")[0] is None
    assert found.of("elsewhere")[2] is not None, "the model's own sums are everybody's"
    assert found.alike("layer", "h.0")[0] is None
    assert found.alike("layer", "h.0")[1] is not None


# Tensors that have scores but do not change


def test_tensors_that_do_not_change_are_watched(world: World) -> None:
    """A stored vector lacks them, a checkpoint has them: what is found is the same."""
    plan = world.plan(world.stored())
    assert {merge.name: merge.shape for merge in plan.watched} == {
        name: SHAPES[name] for name in ("empty", FROZEN)
    }
    found = run_stages(plan, Watching(), range(2), Engine(2))
    wanted = run_stages(world.plan(), Watching(), range(2), Engine(2))
    for name in SHAPES:
        assert found.of(name) == wanted.of(name)
    assert [merge.name for merge in plan.observed] == sorted(SHAPES)


def test_a_tensor_that_only_one_task_scored_is_zero_for_the_other(
    world: World, tmp_path: Path
) -> None:
    """Where neither vector changes it; a vector that does must have its scores."""
    less = {name: array for name, array in world.scores[1].items() if name != FROZEN}
    folder = tmp_path / "t1"
    world.importances[1] = write_scores(tmp_path / "less.safetensors", folder, less)
    found = run_stages(world.plan(world.stored()), Watching(), range(2), Engine(1))
    (sums, _), *_ = found.of(FROZEN)
    assert sums == [[500, float(world.scores[0][FROZEN].sum())], [500, 0]]


def test_scores_of_what_is_no_tensor_of_the_base_are_left_alone(
    world: World, tmp_path: Path
) -> None:
    more = {**world.scores[0], "head.w": np.ones(3, np.float32)}
    world.importances[0] = write_scores(tmp_path / "more.safetensors", tmp_path / "t0", more)
    plan = world.plan()
    assert {merge.name for merge in (*plan.merges, *plan.watched)} == set(SHAPES)


# Selection by scores over groups, densely


def compared(world: World, of: Sta, name: str) -> Matrix:
    """[T, n] what is compared; on this grid the mean of rounded scores is that of the scores."""
    rows = np.stack([mine[name].ravel() for mine in world.scores])
    if of.scope != "tensor" and rows.size:
        means = rows.mean(axis=1, dtype=np.float64)
        rows = rows * np.float32(1 / np.where(means > 0, means, 1))[:, None]
    return rows * np.abs(world.deltas(name)) if of.effect else rows


def dense(world: World, of: Sta) -> dict[str, Matrix]:
    """Masks [T, n] of every tensor, by sorting."""
    masks = {}
    for names in grouped(of.scope).values():
        values = {name: compared(world, of, name) for name in names}
        together = np.concatenate(list(values.values()), axis=1)
        k = max(1, int(of.density * together.shape[1]))
        cutoffs = np.sort(together)[:, -k] if together.size else np.zeros(2)
        for name in names:
            masks[name] = (values[name] >= cutoffs[:, None]) & (values[name] > 0)
    return masks


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("density", [0.002, 0.2, 0.75])
@pytest.mark.parametrize("effect", [False, True])
def test_selection_is_that_of_sorting(
    world: World, scope: Granularity, density: float, effect: bool
) -> None:
    of = Sta(density, scope, effect=effect, exclusive=False)
    found = merge(world.base, world.vectors, of, scores=world.importances).tensors(Engine(2))
    for name, masks in dense(world, of).items():
        total = np.zeros(masks.shape[1], np.float32)
        for row in np.where(masks, world.deltas(name), np.float32(0)):
            total = total + row
        np.testing.assert_array_equal(found[name].ravel(), world.start[name].ravel() + total)


def test_scopes_differ(world: World) -> None:
    """Otherwise the test above would say less than it seems to."""
    masks = [dense(world, Sta(0.2, scope, exclusive=False)) for scope in SCOPES]
    masks += [dense(world, Sta(0.2, scope, effect=True, exclusive=False)) for scope in SCOPES]
    for one, other in itertools.combinations(masks, 2):
        assert any(np.any(one[name] != other[name]) for name in SHAPES)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["mean", "rank", "max"])
def test_stored_vectors_and_checkpoints_are_selected_alike(
    world: World, scope: Granularity, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any cuts and by any workers, although the ones lack what the others leave unchanged."""
    of = Sta(0.3, scope, kind, exclusive=True)
    wanted = merge(world.base, world.vectors, of, scores=world.importances).tensors(Engine(1))
    stored_vectors = world.stored()
    for limit, workers in ((1 << 18, 2), (BLOCK, 1), (BLOCK, 3)):
        monkeypatch.setattr(plan_module, "_CUT", limit)
        model = merge(world.base, stored_vectors, of, scores=world.importances)
        found = model.tensors(Engine(workers))
        for name in SHAPES:
            assert found[name].tobytes() == wanted[name].tobytes()


def test_watched_scores_take_their_part_of_the_density(world: World, tmp_path: Path) -> None:
    """Raised above all others, the unchanged tensor takes what may be kept of the model."""
    for t in range(2):
        loud = {n: np.zeros_like(a) for n, a in world.scores[t].items()}
        for name in ("h.1.w", FROZEN):
            loud[name] = np.arange(1, loud[name].size + 1, dtype=np.float32)
        world.importances[t] = write_scores(
            tmp_path / f"loud{t}.safetensors", tmp_path / f"t{t}", loud
        )
    size = sum(a.size for a in world.start.values())
    of = Sta(1000 / size, "model", "rank", exclusive=False)
    assert int(of.density * size) in (999, 1000)
    saved = merge(world.base, world.stored(), of, scores=world.importances).save(tmp_path / "out")
    assert saved.kept is not None
    # Of 1000 entries kept by rank, those of the unchanged tensor number about 500 in 2549.
    kept = saved.kept.density * (size - 500)
    assert np.all((kept > 700) & (kept < 900))


def test_memory_counts_the_scores(world: World) -> None:
    store = Checkpoint(world.base).store
    without = make_plan([vector.combination for vector in world.vectors], store, store)
    plan = world.plan()
    assert plan.memory(4) > without.memory(4)
    cut = max(plan.cuts(), key=plan.cut_bytes)
    assert plan.cut_bytes(cut) > without.cut_bytes(cut)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_is_kept_depends_neither_on_storage_nor_on_the_dtype(
    scope: Any, scored: bool, dtype: str | None, world: World, tmp_path: Path
) -> None:
    """Stored vectors lack unchanged tensors, and another dtype converts them."""
    scores = world.importances if scored else ()
    of = Sta(0.3, scope, exclusive=False)
    kept = []
    for name, vectors in (("checkpoints", world.vectors), ("stored", world.stored())):
        saved = merge(world.base, vectors, of, scores=scores).save(tmp_path / name, dtype)
        assert saved.kept is not None
        kept.append(saved.kept)
        found = Checkpoint(tmp_path / name).store
        if name == "stored":
            other = Checkpoint(tmp_path / "checkpoints").store
            for tensor in SHAPES:
                assert found[tensor].load().tobytes() == other[tensor].load().tobytes()
    np.testing.assert_array_equal(kept[0].norm, kept[1].norm)


def test_methods_that_need_scores_convert_what_no_vector_changes(
    world: World, tmp_path: Path
) -> None:
    model = merge(world.base, world.stored(), Fisher(), scores=world.importances)
    model.save(tmp_path / "half", "float16")
    model.save(tmp_path / "same")
    half, same = (Checkpoint(tmp_path / name).store for name in ("half", "same"))
    for tensor in SHAPES:
        np.testing.assert_array_equal(half[tensor].load(), same[tensor].load().astype(np.float16))
