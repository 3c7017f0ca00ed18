"""Growing a basis by tasks: what is promised of the errors, against the original vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from taskbasis import Basis, Design, Engine, TaskVector, fit, update
from taskbasis.errors import BaseError, FileError, UsageError

METHODS = ("autoencoder", "pca", "svd", "cluster", "select")


@pytest.fixture
def half(tasks: Any) -> dict[str, TaskVector]:
    """The first three of five tasks."""
    return {name: tasks.vectors[name] for name in "abc"}


def sizes(basis: Basis) -> dict[str, int]:
    """Atoms per group; of a single number rounding decides whether there is a second one."""
    found = {group.name: group.atoms for group in basis.contents.groups}
    found.pop("layers.1.scale", None)
    return found


def assert_bounds(tasks: Any, basis: Basis) -> None:
    """What each task really loses is at most what the basis says, and not by far."""
    dense = tasks.dense()
    order = [tasks.names.index(name) for name in basis.names]
    missed = np.linalg.norm(tasks.recovered(basis) - dense[:, order], axis=0)
    true = missed / np.linalg.norm(dense[:, order], axis=0)
    said = np.array(list(basis.errors.values()))
    assert np.all(true <= said + 1e-4), (true, said)
    assert np.all(said <= 3 * true + 1e-3), "a bound that says nothing"


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
@pytest.mark.parametrize("method", METHODS)
def test_errors_stay_upper_bounds_over_updates(
    tasks: Any, half: dict[str, TaskVector], tmp_path: Path, method: str, granularity: Any
) -> None:
    basis = fit(half, tmp_path / "0", Design(2, method, granularity=granularity))
    before = sizes(basis)
    for number, name in enumerate("de", start=1):
        basis = update(basis, name, tasks.vectors[name], tmp_path / str(number))
        assert sizes(basis) == before
        assert_bounds(tasks, basis)
    assert basis.names == tuple("abcde")
    assert basis.contents.options["updates"] == 2
    norms = np.linalg.norm(tasks.dense(), axis=0)
    np.testing.assert_allclose(list(basis.norms.values()), norms, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_with_room_for_every_task_nothing_is_lost(
    tasks: Any, half: dict[str, TaskVector], tmp_path: Path, method: str
) -> None:
    basis = fit(half, tmp_path / "0", Design(3, method))
    basis = update(basis, "d", tasks.vectors["d"], tmp_path / "1", k=4)
    basis = update(basis, "e", tasks.vectors["e"], tmp_path / "2", k=5)
    assert basis.contents.options["k"] == 5
    np.testing.assert_allclose(tasks.recovered(basis), tasks.dense(), atol=2e-6)
    assert max(basis.errors.values()) < 2e-3


def test_the_size_of_an_update(tasks: Any, half: dict[str, TaskVector], tmp_path: Path) -> None:
    basis = fit(half, tmp_path / "0", Design(2, "svd"))
    for number, (k, atoms) in enumerate([(None, 2), (1, 1), ("3", 3), (0.5, 2), (4, 3)]):
        made = update(basis, "d", tasks.vectors["d"], tmp_path / f"u{number}", k)
        assert made.contents.atoms == atoms, k  # four tasks, but of rank three
    with pytest.raises(UsageError, match="out of range; give a count from 1 to 4"):
        update(basis, "d", tasks.vectors["d"], tmp_path / "x", k=5)


def test_a_basis_of_uneven_groups_keeps_their_sizes(toolbox: Any, tmp_path: Path) -> None:
    matrix = toolbox.draw(19, 5)
    matrix[: 9 * 6] = matrix[: 9 * 6, :1]  # the embedding moves in one direction only
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    vectors = tasks.vectors
    new = vectors.pop("task4")
    design = Design(2, "svd", granularity="tensor", budget="spectrum")
    basis = fit(vectors, tmp_path / "0", design)
    grown = update(basis, "task4", new, tmp_path / "1")
    assert len(set(sizes(basis).values())) > 1
    assert sizes(grown) == sizes(basis)
    assert_bounds(tasks, grown)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_a_task_that_moves_tensors_nobody_moved_before(
    toolbox: Any, tmp_path: Path, granularity: Any
) -> None:
    matrix = toolbox.draw(20, 3)
    matrix[: 9 * 6, :2] = 0.0  # only the third task touches the embedding
    matrix[-6:, 2] = 0.0  # and it alone leaves the norm as it was
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    some = {name: tasks.vectors[name] for name in ("task0", "task1")}
    basis = fit(some, tmp_path / "0", Design(2, "svd", granularity=granularity))
    assert "embed.weight" not in basis.contents.shapes
    grown = update(basis, "task2", tasks.vectors["task2"], tmp_path / "1", k=3)
    assert "embed.weight" in grown.contents.shapes
    np.testing.assert_allclose(tasks.recovered(grown), tasks.dense(), atol=2e-6)
    assert_bounds(tasks, grown)


def test_a_zero_vector_and_a_duplicate(
    tasks: Any, half: dict[str, TaskVector], tmp_path: Path
) -> None:
    basis = fit(half, tmp_path / "0", Design(3, "autoencoder"))
    grown = update(basis, "again", tasks.vectors["b"], tmp_path / "1")
    assert max(grown.errors.values()) < 2e-3
    nothing = TaskVector(tasks.base, tasks.folder / "base")
    grown = update(grown, "nothing", nothing, tmp_path / "2")
    assert grown.errors["nothing"] == 0.0
    assert not np.any(tasks.flat(grown["nothing"]))
    np.testing.assert_allclose(tasks.flat(grown["again"]), tasks.dense()[:, 1], atol=2e-6)


def test_the_dtype_and_the_shards_of_an_update(
    tasks: Any, half: dict[str, TaskVector], tmp_path: Path
) -> None:
    basis = fit(half, tmp_path / "0", Design(2, "svd"), dtype="bfloat16")
    kept = update(basis, "d", tasks.vectors["d"], tmp_path / "kept.safetensors")
    told = update(
        basis, "d", tasks.vectors["d"], tmp_path / "told", dtype="float32", shard_size=600
    )
    assert kept.contents.dtype == basis.contents.dtype
    assert load_file(tmp_path / "kept.safetensors")["atom.0:norm.weight"].dtype == np.dtype(
        ml_dtypes.bfloat16
    )
    assert told.contents.dtype is not None
    assert told.contents.dtype.name == "float32"
    assert len(list((tmp_path / "told").glob("*.safetensors"))) > 1


def test_the_same_bytes_for_any_number_of_workers(
    tasks: Any, half: dict[str, TaskVector], tmp_path: Path
) -> None:
    basis = fit(half, tmp_path / "0", Design(2, "autoencoder", granularity="layer"))
    written = set()
    for workers in (1, 2, 5):
        out = tmp_path / f"{workers}.safetensors"
        update(basis, "d", tasks.vectors["d"], out, engine=Engine(workers))
        written.add(out.read_bytes())
    assert len(written) == 1


def test_only_the_basis_and_the_new_vector_are_read(toolbox: Any, tmp_path: Path) -> None:
    tasks = toolbox.make(tmp_path / "tasks", toolbox.draw(21, 3))
    vectors = tasks.vectors
    new = vectors.pop("task2")
    basis = fit(vectors, tmp_path / "0", Design(2, "svd"))
    for name in vectors:
        (tasks.folder / name / "model.safetensors").unlink()
    grown = update(basis, "task2", new, tmp_path / "1", k=3)
    np.testing.assert_allclose(tasks.recovered(grown), tasks.dense(), atol=2e-6)


def test_what_update_refuses(
    tasks: Any, half: dict[str, TaskVector], toolbox: Any, tmp_path: Path
) -> None:
    basis = fit(half, tmp_path / "svd", Design(2, "svd"))
    random = fit(half, tmp_path / "random", Design(2, "random"))
    merged = fit(half, tmp_path / "ties", Design(2, "cluster", options={"inner": "ties"}))
    other = toolbox.make(tmp_path / "other", toolbox.draw(22, 1), ["z"])
    stranger = TaskVector(other.folder / "z", other.folder / "base")
    new, out = tasks.vectors["d"], tmp_path / "out"
    for wrong, error, said in (
        (lambda: update(basis, "b", new, out), UsageError, "already holds a task 'b'; choose"),
        (lambda: update(random, "d", new, out), UsageError, "has no atoms to recompress"),
        (lambda: update(merged, "d", new, out), UsageError, "merged by ties cannot be"),
        (lambda: update(basis, "z", stranger, out), BaseError, "not from"),
        (lambda: update(basis, "d", new, out, dtype="int8"), UsageError, "not a float type"),
        (lambda: update(basis, "d", new, tmp_path / "svd"), FileError, "touch the input"),
        (lambda: update(basis, "d", new, tmp_path / "svd" / "x"), FileError, "touch the input"),
    ):
        with pytest.raises(error, match=said):
            wrong()
        assert not out.exists()
