"""merge: weights of both signs, names that random methods draw by, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import Checkpoint, Engine, TaskVector, merge, method
from taskbasis.errors import UsageError, ValueProblem

SHAPES = {"layers.0.w": (4, 6), "layers.1.w": (4, 6), "norm": (6,)}

Models = dict[str, dict[str, NDArray[Any]]]


@pytest.fixture
def models() -> Models:
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    found = {"base": base}
    for task in "abc":
        found[task] = {n: w + 0.1 * random.standard_normal(w.shape) for n, w in base.items()}
    return {k: {n: w.astype(np.float32) for n, w in m.items()} for k, m in found.items()}


@pytest.fixture
def folders(models: Models, write_folder: Callable[..., Path]) -> dict[str, Path]:
    return {name: write_folder(name, tensors) for name, tensors in models.items()}


@pytest.fixture
def vectors(folders: dict[str, Path]) -> dict[str, TaskVector]:
    return {name: TaskVector(folders["base"], folders[name]) for name in "abc"}


def test_weights_multiply_the_vectors(models: Models, folders: Any, vectors: Any) -> None:
    found = merge(folders["base"], vectors, scale=0.5, weights=[1, -0.9, 2]).tensors()
    for name in SHAPES:
        base, a, b, c = (models[key][name] for key in ("base", "a", "b", "c"))
        wanted = base + 0.5 * ((a - base) - 0.9 * (b - base) + 2 * (c - base))
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "average", "task_arithmetic", "median", "iso_c"])
def test_a_weight_is_the_vector_scaled_beforehand(name: str, folders: Any, vectors: Any) -> None:
    numbers = [1.0, -0.5, 2.0]
    scaled = [w * v for w, v in zip(numbers, vectors.values(), strict=True)]
    first = merge(folders["base"], vectors, method(name), weights=numbers).tensors()
    second = merge(folders["base"], scaled, method(name)).tensors()
    for tensor in SHAPES:
        np.testing.assert_array_equal(first[tensor], second[tensor])


@pytest.mark.parametrize("name", ["linear", "ties", "task_arithmetic", "karcher", "wudi"])
def test_weight_minus_one_subtracts(name: str, models: Models, folders: Any, vectors: Any) -> None:
    options = {"ties": {"density": 1.0, "variant": "mergekit"}}.get(name, {})
    found = merge(folders["base"], [vectors["a"]], method(name, **options), weights=[-1]).tensors()
    for tensor in SHAPES:
        base, a = models["base"][tensor], models["a"][tensor]
        np.testing.assert_allclose(found[tensor], base - (a - base), rtol=0, atol=1e-5)


def test_the_delta_of_a_weighted_mean(models: Models, folders: Any, vectors: Any) -> None:
    weights = [3, -1, 1]
    found = merge(folders["base"], vectors, method("linear"), 2.0, weights=weights).delta.tensors()
    for tensor in SHAPES:
        taus = [models[key][tensor] - models["base"][tensor] for key in "abc"]
        wanted = 2 * (3 * taus[0] - taus[1] + taus[2]) / 5
        np.testing.assert_allclose(found[tensor], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("weights", "said"), [
    ([1.0], "3 vectors need as many weights"),
    ([1.0, 0.0, 1.0], "a weight of 0 takes no part; leave the vector out"),
    ([1.0, float("nan"), 1.0], "a weight must be a finite number"),
])  # fmt: skip
def test_weights_that_are_refused(weights: Any, said: str, folders: Any, vectors: Any) -> None:
    with pytest.raises(UsageError, match=said):
        merge(folders["base"], vectors, weights=weights)


def test_random_methods_draw_by_name_not_by_place(folders: Any, vectors: Any) -> None:
    of = method("dare_linear", density=0.5)
    base = Checkpoint(folders["base"])
    turned = {name: vectors[name] for name in "cab"}
    first, second = merge(base, vectors, of).tensors(), merge(base, turned, of).tensors()
    unnamed = merge(base, list(vectors.values()), of).tensors()
    renamed = merge(base, {f"{n}2": v for n, v in vectors.items()}, of).tensors()
    for tensor in SHAPES:
        np.testing.assert_allclose(first[tensor], second[tensor], rtol=0, atol=1e-6)
        assert np.any(first[tensor] != unnamed[tensor])
        assert np.any(first[tensor] != renamed[tensor])


def test_a_method_may_be_named(folders: Any, vectors: Any) -> None:
    named = merge(folders["base"], vectors, "ties:density=0.3").tensors()
    made = merge(folders["base"], vectors, method("ties", density=0.3)).tensors()
    assert {name: array.tobytes() for name, array in named.items()} == {
        name: array.tobytes() for name, array in made.items()
    }
    with pytest.raises(UsageError, match="did you mean 'ties'"):
        merge(folders["base"], vectors, "tees")


def test_a_method_takes_only_so_many_vectors(folders: Any, vectors: Any) -> None:
    for name, said in [
        ("slerp", "method 'slerp' takes 1 to 2 vectors, not 3"),
        ("nearswap", "method 'nearswap' takes 1 vector, not 3"),
        ("nuslerp", "method 'nuslerp' takes 2 vectors, not 3"),
    ]:
        with pytest.raises(UsageError, match=said):
            merge(folders["base"], vectors, method(name)).tensors()


def test_who_looks_at_the_base_is_not_added_elsewhere(folders: Any, vectors: Any) -> None:
    model = merge(folders["base"], vectors, method("karcher"), onto=folders["a"])
    with pytest.raises(UsageError, match="'karcher' looks at the base's weights"):
        model.tensors()


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("name", ["karcher", "nan", "della", "tsv_merge", "lines"])
def test_the_same_bytes_for_any_number_of_workers(
    name: str, workers: int, folders: Any, vectors: Any
) -> None:
    model = merge(folders["base"], vectors, method(name), 0.4)
    alone, found = model.tensors(Engine(1)), model.tensors(Engine(workers))
    for tensor in SHAPES:
        assert alone[tensor].tobytes() == found[tensor].tobytes()


def test_what_is_known_of_the_whole_model_counts_unchanged_tensors(
    models: Models, folders: Any, write_folder: Callable[..., Path]
) -> None:
    """NAN's norms are of the model, whatever tensors a vector changes."""
    partly = {**models["base"], "norm": models["a"]["norm"]}
    one = TaskVector(folders["base"], write_folder("partly", partly))
    two = TaskVector(folders["base"], folders["b"])
    found = merge(folders["base"], [one, two], method("nan", scope="model")).tensors()
    norms = [np.sqrt(sum(np.sum(w.astype(float) ** 2) for w in m.values()))
             for m in (partly, models["b"])]  # fmt: skip
    shares = (1 / np.array(norms)) / sum(1 / n for n in norms)
    for tensor, base in models["base"].items():
        wanted = base + shares[0] * (partly[tensor] - base)
        wanted = wanted + shares[1] * (models["b"][tensor] - base)
        np.testing.assert_allclose(found[tensor], wanted, rtol=0, atol=1e-6)


def test_the_recipe_records_weights_and_names(folders: Any, vectors: Any, tmp_path: Path) -> None:
    merge(folders["base"], vectors, weights=[1, -1, 2]).save(tmp_path / "out")
    text = (tmp_path / "out" / "taskbasis_recipe.json").read_text()
    import json

    recipe = json.loads(text)
    assert recipe["weights"] == [1.0, -1.0, 2.0]
    assert recipe["names"] == ["a", "b", "c"]


@pytest.mark.parametrize("of", [
    method("passthrough", scale=0.0), method("passthrough", scale=0.5),
    method("linear", normalize=False),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("stored", [True, False])
def test_who_scales_the_base_scales_all_of_it(
    of: Any, stored: bool, models: Models, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A stored vector lacks what it does not change; the result must not show it."""
    base = write_folder("base", models["base"])
    tuned = write_folder("tuned", {**models["base"], "norm": models["a"]["norm"]})
    vector = TaskVector(base, tuned)
    if stored:
        vector.save(tmp_path / "v.safetensors")
        vector = TaskVector.open(tmp_path / "v.safetensors")
    found = merge(base, [vector], of, weights=[0.7]).tensors()
    factor = {"linear": 0.7}.get(of.name, getattr(of, "scale", None))
    weight = 1.0 if of.name == "linear" else 0.7
    for name, start in models["base"].items():
        delta = 0.7 * (models["a"][name] - start) if name == "norm" else 0 * start
        wanted = factor * start + (delta if of.name == "linear" else factor * delta)
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-6)
    saved = merge(base, [vector], of, weights=[weight]).save(tmp_path / "out")
    assert set(saved.rules["merged"]) == set(SHAPES)


def test_what_is_excluded_stays_even_so(models: Models, folders: Any, tmp_path: Path) -> None:
    vector = TaskVector(folders["base"], folders["a"], exclude=["norm"])
    of = method("passthrough", scale=0.0)
    saved = merge(folders["base"], [vector], of).save(tmp_path / "out", dtype="bfloat16")
    found = Checkpoint(tmp_path / "out").store
    assert saved.rules["converted"] == ("norm",)
    assert not np.any(found["layers.0.w"].load())
    np.testing.assert_allclose(
        found["norm"].load().astype(np.float32), models["base"]["norm"], rtol=0.01
    )


@pytest.mark.parametrize("of", [
    method("ties", density=0.5), method("nan", scope="model"), method("linear", normalize=False),
], ids=str)  # fmt: skip
def test_what_is_excluded_does_not_count_however_it_was(
    of: Any, folders: Any, tmp_path: Path
) -> None:
    """Excluded from checkpoints, from vectors stored whole, or when the vectors were extracted."""
    from taskbasis.library.resolve import open_vectors

    start, patterns = Checkpoint(folders["base"]), ["layers.0.*"]
    specs = {}
    for name in "ab":
        whole = TaskVector(folders["base"], folders[name])
        whole.save(tmp_path / f"{name}.safetensors")
        TaskVector(folders["base"], folders[name], patterns).save(
            tmp_path / f"{name}-part.safetensors"
        )
        specs[name] = [f"{name}={folders[name]}", f"{name}={tmp_path / name}.safetensors"]
    checkpoints, stored = (open_vectors([specs[n][i] for n in "ab"], start, patterns)
                           for i in (0, 1))  # fmt: skip
    extracted = {n: TaskVector.open(tmp_path / f"{n}-part.safetensors") for n in "ab"}
    wanted = merge(start, checkpoints, of).tensors()
    for vectors in (stored, extracted):
        found = merge(start, vectors, of).tensors()
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(wanted["layers.0.w"], start.store["layers.0.w"].load())


def test_a_base_that_is_not_finite_is_named(
    models: Models, write_folder: Callable[..., Path]
) -> None:
    broken = {**models["base"], "norm": np.full(6, np.inf, np.float32)}
    base = write_folder("broken", broken)
    vector = TaskVector(
        base, write_folder("tuned", {**broken, "layers.0.w": models["a"]["layers.0.w"]})
    )
    with pytest.raises(ValueProblem, match=r"tensor 'norm' of .*broken.*: a value is NaN"):
        merge(base, [vector, 2 * vector], method("nan", scope="model")).tensors()
