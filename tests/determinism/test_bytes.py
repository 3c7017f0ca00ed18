"""The same inputs give the same bytes, whatever else is different: a matrix over the verbs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from taskbasis import Checkpoint, Engine, TaskVector, merge, method
from taskbasis.plan import cutting

SCRIPT = Path(__file__).with_name("verbs.py")
WIDE = bool(os.environ.get("TASKBASIS_FULL_MATRIX"))

Found = dict[str, str]


def in_a_process(
    folder: Path, *words: object, hashes: int = 0, threads: int = 1, path: Path = SCRIPT
) -> Found:
    """The digest of every output, made in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hashes),
        **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
    }
    said = subprocess.run(
        [sys.executable, path, folder, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    found: Found = json.loads(said.stdout)
    return found


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One worker, one thread, one file."""
    return in_a_process(tmp_path_factory.mktemp("expected") / "x")


ALL_AT_ONCE = [
    pytest.param(
        ("--workers", 2), {"hashes": 4242, "threads": 2}, id="hash seed, 2 workers, 2 BLAS threads"
    ),
    pytest.param(
        ("--workers", 5, "--shards", 3, "--memory", 2 << 30), {}, id="5 workers, shards, memory cap"
    ),
]
ONE_BY_ONE = [
    pytest.param((), {"hashes": 1}, id="hash seed 1"),
    pytest.param((), {"hashes": 2}, id="hash seed 2"),
    pytest.param((), {"threads": 2}, id="2 BLAS threads"),
    pytest.param(("--workers", 2), {}, id="2 workers"),
    pytest.param(("--workers", 5), {}, id="5 workers"),
    pytest.param(("--shards", 2), {}, id="2 shards"),
    pytest.param(("--shards", 5), {}, id="5 shards"),
    pytest.param(("--memory", 1 << 30, "--workers", 5), {}, id="memory cap"),
]


@pytest.mark.promise(
    "The same inputs give the same bytes for any number of workers, any hash seed, 1 or 2 BLAS "
    "threads, any sharding of the inputs and any memory cap: every file of every verb, every "
    "method that needs vectors alone, every kind of basis."
)
@pytest.mark.parametrize(("words", "process"), [*ALL_AT_ONCE, *(ONE_BY_ONE if WIDE else ())])
def test_every_verb_writes_the_same_bytes(
    words: tuple[object, ...], process: dict[str, int], expected: Found, tmp_path: Path
) -> None:
    assert len(expected) > 55
    assert len(set(expected.values())) > 50  # and not the same for all
    assert_same(in_a_process(tmp_path / "x", *words, **process), expected)


@pytest.mark.promise(
    "Cuts are no choice of yours: they depend on the recipe alone. Another size of cuts would "
    "give the same weights, bases and adapters all the same."
)
def test_the_size_of_cuts(expected: Found, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is diagnosed is sums that are printed in full: those differ in their last digits."""
    monkeypatch.setattr(cutting, "_CUT", 4096)
    verbs = _module()
    folder = tmp_path / "x"
    folder.mkdir()
    monkeypatch.chdir(folder)
    verbs.build(1)
    found = {}
    for name, write in verbs.verbs(Engine(workers=2)):
        out = Path(name.replace(" ", "-"))
        write(out)
        found[name] = verbs.digest(out if out.exists() else out.with_suffix(".safetensors"))
    found.pop("diagnose")
    assert_same(found, {name: value for name, value in expected.items() if name != "diagnose"})


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("determinism_verbs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# Threads of BLAS


@pytest.fixture
def matrices(tmp_path: Path) -> tuple[Checkpoint, list[TaskVector]]:
    """Large enough that threads share the work, and so round otherwise."""
    random = np.random.default_rng(0)
    base = {f"{n}.weight": random.standard_normal((320, 320), np.float32) for n in range(2)}
    for task in ("base", "a", "b", "c"):
        step = 0.0 if task == "base" else 0.05
        moved = {
            name: (value + step * random.standard_normal(value.shape)).astype(np.float32)
            for name, value in base.items()
        }
        save_file(moved, tmp_path / f"{task}.safetensors", {"format": "pt"})
    opened = Checkpoint(tmp_path / "base.safetensors")
    return opened, [TaskVector(opened, tmp_path / f"{t}.safetensors") for t in ("a", "b", "c")]


def _merged(world: tuple[Checkpoint, list[TaskVector]], threads: int, workers: int) -> bytes:
    model = merge(*world, method("iso_c"))
    with threadpool_limits(threads, user_api="blas"):
        found = model.tensors(engine=Engine(workers=workers))
    return b"".join(value.tobytes() for _, value in sorted(found.items()))


@pytest.mark.promise("Spectral methods give the same bytes for 1 and 2 threads of BLAS.")
def test_threads_of_blas(matrices: tuple[Checkpoint, list[TaskVector]]) -> None:
    """Without the limit of :mod:`taskbasis.blas` OpenBLAS gives other bits here for 2 threads."""
    found = {_merged(matrices, t, workers) for t in (1, 2) for workers in (1, 2)}
    assert len(found) == 1


# The order of the inputs


@pytest.fixture
def three(tmp_path: Path) -> tuple[Checkpoint, dict[str, TaskVector]]:
    random = np.random.default_rng(1)
    base = random.standard_normal(4000).astype(np.float32)
    for task in ("base", "a", "b", "c"):
        moved = base + (0.0 if task == "base" else 0.1) * random.standard_normal(4000)
        save_file({"w": moved.astype(np.float32)}, tmp_path / f"{task}.safetensors")
    opened = Checkpoint(tmp_path / "base.safetensors")
    return opened, {t: TaskVector(opened, tmp_path / f"{t}.safetensors") for t in "abc"}


@pytest.mark.promise(
    "Sums run over the vectors in the order given: the same order gives the same bytes; another "
    "order gives a sum that differs by its rounding to float32, and nothing else."
)
@pytest.mark.parametrize("of", ["task_arithmetic", "ties", "dare_linear", "average"])
def test_the_order_of_vectors(
    of: str, three: tuple[Checkpoint, dict[str, TaskVector]], tmp_path: Path
) -> None:
    base, vectors = three
    found = []
    for order in ("abc", "abc", "cab"):
        model = merge(base, {name: vectors[name] for name in order}, method(of))
        model.save(tmp_path / f"{len(found)}.safetensors", engine=Engine(workers=2))
        found.append(load_file(tmp_path / f"{len(found)}.safetensors")["w"])
    assert found[0].tobytes() == found[1].tobytes()
    unit = np.spacing(np.abs(found[0]) + 1).astype(np.float64)
    assert np.all(np.abs(found[0].astype(np.float64) - found[2]) <= 2 * unit)
