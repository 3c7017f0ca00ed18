"""What contenders are made of: the public algebra, on disk once, held against dense references."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.bench import Bench, Recipe
from taskbasis.bench.contenders import contenders
from taskbasis.bench.lab import Lab
from taskbasis.bench.worlds import open_suite
from taskbasis.evaluate.task import Task
from taskbasis.suites.world import World
from taskbasis.vectors import Checkpoint, EditedModel


@pytest.fixture(scope="module")
def lab(cache: Path, tiny: dict[str, Any]) -> Lab:
    bench = Bench("digits", cache.parent / "out", cache, **tiny)
    world, _ = open_suite(bench, 0, lambda sentence: None)
    return Lab(world, bench.place(0), 8, lambda sentence: None)


def dense(path: Path) -> dict[str, Any]:
    return dict(EditedModel(Checkpoint(path)).tensors())


@pytest.fixture(scope="module")
def deltas(lab: Lab) -> dict[str, dict[str, Any]]:
    base = dense(lab.world.base)
    return {
        name: {key: value - base[key] for key, value in dense(path).items()}
        for name, path in lab.world.tuned.items()
    }


def near(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_sum_is_the_base_plus_the_scaled_vectors(lab: Lab, deltas: Any) -> None:
    base = lab.base_tensors
    found = lab.merged(Recipe(), None, 0.3, lab.names).tensors()
    near(found, {k: base[k] + 0.3 * sum(d[k] for d in deltas.values()) for k in base})
    one = lab.merged(Recipe(), None, -0.5, ("high",)).tensors()
    near(one, {k: base[k] - 0.5 * deltas["high"][k] for k in base})


def test_a_line_meets_the_models_that_are_built(lab: Lab) -> None:
    recipe = Recipe("sta", {}, "weight")
    line = lab.line(recipe, 0.3, lab.names)
    assert line(0.0) is lab.base_tensors
    for scale in (1.0, 0.4, -0.7):
        near(line(scale), lab.merged(recipe, 0.3, scale, lab.names).tensors())


def test_selection_by_scores_keeps_the_largest(lab: Lab, deltas: Any) -> None:
    name = "encoder.layer.0.attention.attention.query.weight"
    key = next(k for k in lab.base_tensors if k.endswith("query.weight") or k == name)
    found = lab.merged(Recipe("sta", {}, "weight"), 0.25, 1.0, ("loop",)).tensors()
    moved = (found[key] - lab.base_tensors[key]).ravel() != 0
    scores = lab.scores("weight", "loop").scores(key).ravel()
    count = scores.size // 4
    cut = np.sort(scores)[-count]
    expected = (scores >= cut) & (deltas["loop"][key].ravel() != 0)
    assert moved.sum() > 0.2 * scores.size
    assert (moved == expected).mean() > 0.99  # a delta below the base's resolution is not seen


def test_exclusive_supports_are_disjoint(lab: Lab) -> None:
    recipe = Recipe("sta", {"exclusive": True, "density": 0.3}, "grad")
    whole = lab.merged(recipe, None, 1.0, lab.names).tensors()
    assert any(not np.array_equal(whole[k], lab.base_tensors[k]) for k in whole)
    shared = Recipe("sta", {"exclusive": False, "density": 0.3}, "grad")
    plain = lab.merged(shared, None, 1.0, lab.names).tensors()
    assert any(not np.array_equal(whole[k], plain[k]) for k in whole)


def test_scores_moments_and_vectors_are_made_once(lab: Lab) -> None:
    said: list[str] = []
    again = Lab(lab.world, lab.place, 8, said.append)
    lab.scores("weight", "loop")
    lab.moments("loop")
    assert lab.vectors
    before = {path: path.stat().st_mtime_ns for path in lab.place.rglob("*.safetensors")}
    assert again.scores("weight", "loop").path == lab.scores("weight", "loop").path
    assert again.moments("loop").path.exists()
    assert again.vectors
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in lab.place.rglob("*.safetensors")}
    more = Lab(lab.world, lab.place, 9, said.append)
    assert more.scores("weight", "loop").path != lab.scores("weight", "loop").path
    assert said == ["seed 0: importance (weight) for loop"]
    assert lab.scores("weight", "loop").origin.options["samples"] == 8


def test_a_basis_stands_in_for_the_vectors_and_one_is_kept(lab: Lab, deltas: Any) -> None:
    base, total = lab.base_tensors, {}
    for key in base:
        total[key] = sum(d[key] for d in deltas.values())
    found = lab.merged(Recipe(basis="pca", share=2), None, 1.0, lab.names).tensors()
    near(found, {k: base[k] + total[k] for k in base})  # centred codes cancel in the sum
    assert lab.storage(Recipe(basis="pca", share=2)) < lab.storage(Recipe())
    lab.basis("svd", 4)
    assert [path.name for path in lab.place.glob("basis-*")] == ["basis-svd-4.safetensors"]
    lab.close()
    assert not list(lab.place.glob("basis-*"))


def test_atoms_are_scaled_to_one_coefficient_per_task(lab: Lab, deltas: Any) -> None:
    """The mean coefficient of a task in the scaled atom sum is 1, so one grid serves all."""
    found = lab.merged(Recipe(basis="autoencoder", share=2, atoms=True), None, 1.0, lab.names)
    merged, base = found.tensors(), lab.base_tensors
    matrix = np.stack([np.concatenate([d[k].ravel() for k in base]) for d in deltas.values()])
    delta = np.concatenate([(merged[k] - base[k]).ravel() for k in base])
    weights = np.linalg.lstsq(matrix.T.astype(float), delta.astype(float), rcond=None)[0]
    assert weights.mean() == pytest.approx(1, abs=1e-3)
    lab.close()


def test_what_cannot_be_measured_says_why(lab: Lab) -> None:
    blind = [Task(task.name, task.score) for task in lab.world.tasks]
    world = World(lab.world.base, lab.world.tuned, blind, lab.world.control, 0)
    other = Lab(world, lab.place, 8, print)
    by_label = {one.label: one for one in contenders()}
    for label in ("RegMean", "Fisher", "STA weight 0.1, λ 1"):
        assert lab.lacks(by_label[label]) is None
        assert other.lacks(by_label[label]) == f"{label}: task parity gives nothing to learn from"
    assert other.lacks(by_label["STA magnitude 0.1, λ 1"]) is None


def test_drawn_methods_take_the_worlds_seed(lab: Lab) -> None:
    world = World(lab.world.base, lab.world.tuned, lab.world.tasks, lab.world.control, 5)
    other = Lab(world, lab.place, 8, print)
    recipe = Recipe("dare_linear", {"density": 0.5})
    assert (lab._method(recipe, None).seed, other._method(recipe, None).seed) == (0, 5)  # type: ignore[attr-defined]


def test_a_model_per_task_is_that_tasks(lab: Lab) -> None:
    base, recipe = lab.base_tensors, Recipe("tall", {"lam": 0.5}, per_task=True)
    total = lab.merged(Recipe(), None, 1.0, lab.names).tensors()
    deltas = {n: {k: v - base[k] for k, v in dense(p).items()} for n, p in lab.world.tuned.items()}
    for name in lab.names:
        found = lab.merged(recipe, None, 1.0, lab.names, of=name).tensors()
        for key, weights in base.items():
            summed = total[key] - weights
            kept = np.abs(deltas[name][key]) > 0.5 * np.abs(summed - deltas[name][key])
            wanted = np.where(kept, total[key], weights)
            assert np.mean(np.abs(found[key] - wanted) < 1e-6) > 0.999


def test_what_a_model_per_task_takes(lab: Lab) -> None:
    entries = sum(value.size for value in lab.base_tensors.values())
    bits = sum(-(-value.size // 8) for value in lab.base_tensors.values())
    tasks = len(lab.names)
    found = lab.storage(Recipe("emr", per_task=True))
    assert found == 4 * entries + tasks * bits < lab.storage(Recipe())
    assert lab.storage(Recipe("tsv_compress", per_task=True)) < lab.storage(Recipe())


def test_disentangled_vectors_are_nearer_to_orthogonal(lab: Lab) -> None:
    def cosines(vectors: Any) -> float:
        rows = [np.concatenate([v.ravel() for _, v in sorted(t.tensors().items())])
                for t in vectors.values()]  # fmt: skip
        unit = np.stack([row / np.linalg.norm(row) for row in rows])
        gram = np.abs(unit @ unit.T)
        return float((gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1)))

    assert cosines(lab.disentangled) <= cosines(lab.vectors)
    recipe = Recipe(disentangled=True)
    assert lab._vector(recipe, "high") is lab.disentangled["high"]
