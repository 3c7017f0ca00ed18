"""Every method on everything that can be a task vector: files, checkpoints, bases, adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis import Basis, Design, TaskVector, fit, merge, method
from taskbasis.engine import Engine
from taskbasis.methods import Method, registered

SHAPES = {"layers.0.w.weight": (12, 10), "layers.1.w.weight": (9, 12), "layers.1.norm.weight": (9,)}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]
TASKS = "abc"
RANK = 2

Arrays = dict[str, NDArray[Any]]

PLAIN = [
    name for name in registered() if "required" not in (method(name).scores, method(name).moments)
]


def tasks_for(of: Method) -> str:
    """As many tasks as the method takes, three at most."""
    return TASKS[: of.takes[1] or len(TASKS)]


@pytest.fixture(scope="module")
def factors() -> dict[str, dict[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """Per task and matrix B [out, r] and A [r, in]."""
    random = np.random.default_rng(0)
    return {
        task: {
            name: (
                random.standard_normal((SHAPES[name][0], RANK)).astype(np.float32),
                random.standard_normal((RANK, SHAPES[name][1])).astype(np.float32),
            )
            for name in MATRICES
        }
        for task in TASKS
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(1)
    tensors = {n: random.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    folder = tmp_path_factory.mktemp("base")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapters(factors: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters in PEFT's layout; scaling alpha / r is 1/2."""
    found = {}
    for task, pairs in factors.items():
        folder = tmp_path_factory.mktemp(task) / task
        folder.mkdir()
        tensors = {}
        for name, (up, down) in pairs.items():
            module = "base_model.model." + name.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK / 2, "target_modules": ["w"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        found[task] = folder
    return found


def update(factors: Any, task: str, name: str) -> NDArray[Any]:
    up, down = factors[task][name]
    return np.asarray(0.5 * up.astype(float) @ down.astype(float))


@pytest.fixture(scope="module")
def stored(base: Path, factors: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task vectors of the same updates, dense, and of the norms besides."""
    from safetensors.numpy import load_file

    start, folder = load_file(base / "model.safetensors"), tmp_path_factory.mktemp("stored")
    random = np.random.default_rng(2)
    found = {}
    for task in TASKS:
        tuned = {n: (start[n] + update(factors, task, n)).astype(np.float32) for n in MATRICES}
        norm = random.standard_normal(SHAPES["layers.1.norm.weight"]).astype(np.float32)
        tuned["layers.1.norm.weight"] = start["layers.1.norm.weight"] + norm
        save_file(tuned, folder / f"{task}-model.safetensors")
        found[task] = folder / f"{task}.safetensors"
        TaskVector(base, folder / f"{task}-model.safetensors").save(found[task])
    return found


@pytest.fixture(scope="module")
def basis(stored: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Basis:
    out = tmp_path_factory.mktemp("basis") / "lib"
    vectors = {task: TaskVector.open(path) for task, path in stored.items()}
    return fit(vectors, out, Design(2, "svd"))


def same(found: Arrays, wanted: Arrays, tolerance: float) -> None:
    for name, values in wanted.items():
        scale = np.max(np.abs(values), initial=1.0)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", PLAIN)
def test_vectors_recovered_from_a_basis(
    name: str, base: Path, basis: Basis, tmp_path: Path
) -> None:
    """As from the same vectors, recovered and stored first."""
    of = method(name)
    recovered = {task: basis[task] for task in tasks_for(of)}
    files = {}
    for task, vector in recovered.items():
        vector.save(tmp_path / f"{task}.safetensors")
        files[task] = TaskVector.open(tmp_path / f"{task}.safetensors")
    found = merge(base, recovered, of, 0.7, weights=[1.0, -0.5, 2.0][: len(files)]).tensors()
    wanted = merge(base, files, of, 0.7, weights=[1.0, -0.5, 2.0][: len(files)]).tensors()
    same(found, wanted, 1e-5)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "core_space"])
def test_adapters(name: str, base: Path, adapters: Any, tmp_path: Path) -> None:
    """As from dense vectors of the same updates, bit for bit: rows are formed while read."""
    of = method(name)
    lazy = {task: TaskVector(base, adapters[task]) for task in tasks_for(of)}
    dense = {}
    for task, vector in lazy.items():
        vector.save(tmp_path / f"{task}.safetensors")
        dense[task] = TaskVector.open(tmp_path / f"{task}.safetensors")
    found = merge(base, lazy, of, 0.7).tensors()
    wanted = merge(base, dense, of, 0.7).tensors()
    same(found, wanted, 0.0)
    assert any(np.any(found[n] != merge(base, []).tensors()[n]) for n in MATRICES)


def test_the_update_of_an_adapter(base: Path, adapters: Any, factors: Any) -> None:
    found = TaskVector(base, adapters["a"]).tensors()
    assert set(found) == set(MATRICES)
    for name in MATRICES:
        np.testing.assert_allclose(found[name], update(factors, "a", name), rtol=0, atol=1e-6)


def factored(
    base: Path, adapters: Any, inner: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Arrays]:
    """Merges adapters in core space, where no row of an update may be formed."""
    from taskbasis.io.lowrank import LowRank

    def refuse(self: LowRank, offset: int, buffer: memoryview) -> None:
        raise AssertionError("an update was made dense")

    monkeypatch.setattr(LowRank, "read_into", refuse)
    of = method("core_space", inner=inner)

    def merged(weights: Any = (), workers: int = 1) -> Arrays:
        vectors = {task: TaskVector(base, folder) for task, folder in adapters.items()}
        return merge(base, vectors, of, weights=weights).tensors(Engine(workers))

    return merged


def test_core_space_never_makes_adapters_dense(
    base: Path, adapters: Any, factors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = merge(base, []).tensors()
    made = factored(base, adapters, "task_arithmetic", monkeypatch)
    found, weighted = made(), made([1.0, -0.5, 2.0])
    for name in MATRICES:
        a, b, c = (update(factors, task, name) for task in TASKS)
        np.testing.assert_allclose(found[name], start[name] + a + b + c, rtol=0, atol=1e-5)
        wanted = start[name] + a - 0.5 * b + 2 * c
        np.testing.assert_allclose(weighted[name], wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["layers.1.norm.weight"], start["layers.1.norm.weight"])


def test_core_space_by_ties_is_what_its_formula_says(
    base: Path, adapters: Any, factors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cores of all adapters between two common bases, merged by TIES."""
    start = merge(base, []).tensors()
    made = factored(base, adapters, "ties:density=0.5", monkeypatch)
    found, again = made(), made(workers=3)
    for name in MATRICES:
        ups = [factors[task][name][0].astype(float) * 0.5 for task in TASKS]
        downs = [factors[task][name][1].astype(float) for task in TASKS]
        left = signed(np.linalg.svd(np.hstack(ups), full_matrices=False)[0])
        right = signed(np.linalg.svd(np.vstack(downs).T, full_matrices=False)[0])
        cores = [left.T @ up @ down @ right for up, down in zip(ups, downs, strict=True)]
        trimmed = [np.where(np.abs(c) >= np.sort(np.abs(c), None)[-18], c, 0) for c in cores]
        sign = np.sign(np.sum(trimmed, axis=0))
        agree = [np.where(np.sign(c) == sign, c, 0) for c in trimmed]
        count = np.maximum(np.sum([c != 0 for c in agree], axis=0), 1)
        wanted = left @ (np.sum(agree, axis=0) / count) @ right.T
        np.testing.assert_allclose(found[name] - start[name], wanted, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found[name], again[name])


def signed(vectors: NDArray[Any]) -> NDArray[Any]:
    """Each column's entry of largest magnitude is positive."""
    places = np.argmax(np.abs(vectors), axis=0)
    found: NDArray[Any] = vectors * np.sign(vectors[places, np.arange(vectors.shape[1])])
    return found


def test_adapters_beside_dense_vectors_are_merged_as_dense(
    base: Path, adapters: Any, stored: Any
) -> None:
    """Factors are taken only where all vectors have them."""
    of = method("core_space", inner="task_arithmetic")
    mixed = {"a": TaskVector(base, adapters["a"]), "b": TaskVector.open(stored["b"])}
    found = merge(base, mixed, of).tensors()
    wanted = merge(base, mixed).tensors()
    same(found, wanted, 1e-5)
