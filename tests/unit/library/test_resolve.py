"""From what people type to vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Basis, Checkpoint, Design, TaskVector, fit
from taskbasis.errors import BaseError, FileError, HeaderError, UsageError
from taskbasis.granularity import group_name, group_tensors
from taskbasis.library.resolve import (
    named_specs,
    open_any,
    open_vector,
    open_vectors,
    task_name,
)


@pytest.fixture(scope="module")
def shelf(tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stored vector ``a.safetensors`` and a basis ``lib`` that holds all."""
    folder = tmp_path_factory.mktemp("shelf")
    tasks.vectors["a"].save(folder / "a.safetensors")
    fit(tasks.vectors, folder / "lib", Design(5, "svd", granularity="tensor"))
    return folder


def test_the_three_kinds_of_spec(tasks: Any, shelf: Path) -> None:
    wanted = tasks.dense()[:, 0]
    for spec in (f"{shelf}/a.safetensors", f"{shelf}/lib:a", str(tasks.folder / "a")):
        found = tasks.flat(open_vector(spec, tasks.base))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    for spec in (f"{shelf}/a.safetensors", f"{shelf}/lib:a"):
        np.testing.assert_allclose(tasks.flat(open_vector(spec)), wanted, atol=1e-6)


@pytest.mark.parametrize("spec", ["{shelf}/a.safetensors", "{shelf}/lib:a", "{tasks}/a"])
def test_exclude_holds_for_every_kind(tasks: Any, shelf: Path, spec: str) -> None:
    path = spec.format(shelf=shelf, tasks=tasks.folder)
    found = open_vector(path, tasks.base, ["layers.*", "embed.*"]).tensors()
    assert found.keys() == {"norm.weight"}
    wanted = tasks.dense(["norm.weight"])[:, 0]
    np.testing.assert_allclose(found["norm.weight"], wanted, atol=1e-6)
    with pytest.raises(UsageError, match=r"'nrm\.weight' matches no tensor; did you mean 'norm"):
        open_vector(path, tasks.base, ["nrm.weight"])


def test_a_pattern_may_match_what_a_vector_leaves_unchanged(toolbox: Any, tmp_path: Path) -> None:
    matrix = toolbox.draw(30, 1)
    matrix[-6:] = 0.0
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    tasks.vectors["task0"].save(tmp_path / "v.safetensors")
    found = open_vector(str(tmp_path / "v.safetensors"), None, ["norm.*"])
    np.testing.assert_array_equal(tasks.flat(found), tasks.dense()[:, 0])


def test_specs_that_lead_nowhere(tasks: Any, shelf: Path) -> None:
    for spec, error, said in (
        (f"{shelf}/lib", UsageError, r"is a basis; name one of its tasks as .*/lib:NAME \(a, b"),
        (f"{shelf}/lib:A", UsageError, "has no task 'A'"),
        (f"{shelf}/nothing", FileError, "no such file or folder"),
        (f"{shelf}/nothing:a", FileError, "no such file or folder"),
        (f"{shelf}/a.safetensors:a", HeaderError, "is not a basis"),
        (str(tasks.folder / "a"), UsageError, "pass its base with --base"),
    ):
        with pytest.raises(error, match=said):
            open_vector(spec)


@pytest.mark.parametrize(
    ("spec", "name", "path"),
    [
        ("runs/math", "math", "runs/math"),
        ("runs/math/", "math", "runs/math/"),
        ("vectors/math.safetensors", "math", "vectors/math.safetensors"),
        ("m=runs/7", "m", "runs/7"),
        ("m=a=b", "m", "a=b"),
        ("=runs/7", "7", "=runs/7"),
        ("runs/math.v2", "math.v2", "runs/math.v2"),
    ],
)
def test_the_name_of_a_task(spec: str, name: str, path: str) -> None:
    assert task_name(spec) == (name, path)


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["org/x@v1"], ["x"]),
        (["hf://org/x@v1/sub", "org/y"], ["x", "y"]),
        (["org/x@v1", "org/x@v2"], ["x@v1", "x@v2"]),
        (["org/x", "org/x@v2"], ["x", "x@v2"]),
        (["runs/x", "org/x@v2", "z=org/x@v3"], ["x", "x@v2", "z"]),
        (["runs/7/x@v1"], ["x@v1"]),
    ],
)
def test_revisions_are_part_of_a_name_only_where_they_must(
    specs: list[str], names: list[str]
) -> None:
    assert [name for name, _ in named_specs(specs)] == names


@pytest.mark.parametrize("specs", [["runs/x", "vectors/x"], ["org/x@v1", "org/x@v1"]])
def test_two_of_one_name(specs: list[str]) -> None:
    with pytest.raises(UsageError, match=r"two vectors are called '.*'; name them as NAME=PATH"):
        named_specs(specs)


def test_a_folder_whose_name_has_a_revision(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x@v1").mkdir(parents=True)
    assert named_specs(["runs/x@v1"]) == [("x@v1", "runs/x@v1")]


def test_what_we_write_opens_behind_a_url(tasks: Any, shelf: Path) -> None:
    """A basis is read by ranges; so are masks and scores, by the same opener."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    (file,) = list((shelf / "lib").rglob("*.safetensors"))
    memory.pipe("/taskbasis-lib/lib.safetensors", file.read_bytes())
    here, there = Basis.open(file), Basis.open("memory://taskbasis-lib/lib.safetensors")
    assert there.names == here.names
    name = here.names[0]
    np.testing.assert_array_equal(tasks.flat(there[name]), tasks.flat(here[name]))


def test_the_name_of_a_task_of_a_basis(shelf: Path) -> None:
    assert task_name(f"{shelf}/lib:c") == ("c", f"{shelf}/lib:c")
    assert task_name(f"mine={shelf}/lib:c") == ("mine", f"{shelf}/lib:c")


def test_a_file_whose_name_holds_the_sign(
    tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks.vectors["a"].save("lr=3:b.safetensors")
    assert task_name("lr=3:b.safetensors") == ("lr=3:b", "lr=3:b.safetensors")
    np.testing.assert_array_equal(
        tasks.flat(open_vector("lr=3:b.safetensors")), tasks.dense()[:, 0]
    )


def test_many_specs(tasks: Any, shelf: Path) -> None:
    found = open_vectors(
        [f"{shelf}/a.safetensors", f"x={shelf}/lib:b", str(tasks.folder / "c")], tasks.base
    )
    assert list(found) == ["a", "x", "c"]
    with pytest.raises(UsageError, match="two vectors are called 'a'; name them as NAME=PATH"):
        open_vectors([f"{shelf}/a.safetensors", f"{shelf}/lib:a"])


def test_open_any(tasks: Any, shelf: Path) -> None:
    assert isinstance(open_any(tasks.folder / "a"), Checkpoint)
    assert isinstance(open_any(shelf / "a.safetensors"), TaskVector)
    assert isinstance(open_any(shelf / "lib"), Basis)
    with pytest.raises(FileError, match="no such file or folder"):
        open_any(shelf / "nothing")


def test_a_task_of_a_basis_is_bound_to_its_base(toolbox: Any, shelf: Path, tmp_path: Path) -> None:
    other = toolbox.make(tmp_path / "other", toolbox.draw(31, 1))
    stranger = Checkpoint(other.folder / "task0")
    with pytest.raises(BaseError, match=r"tensors differ, e\.g\. 'embed\.weight'"):
        (stranger + open_vector(f"{shelf}/lib:a")).tensors()


# Groups.


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.3.mlp.up.weight", "model.layers.3"),
        ("model.layers.13.input_layernorm.weight", "model.layers.13"),
        ("vision.blocks.0.1.weight", "vision.blocks.0"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
        ("0.weight", "0"),
    ],
)
def test_the_group_of_a_tensor(tensor: str, layer: str) -> None:
    assert group_name(tensor, "layer") == layer
    assert group_name(tensor, "tensor") == tensor
    assert group_name(tensor, "model") == "model"


def test_groups_keep_the_order_of_appearance() -> None:
    names = ["b.1.x", "a.w", "b.0.x", "b.1.y"]
    assert group_tensors(names, "layer") == {
        "b.1": ["b.1.x", "b.1.y"],
        "a": ["a.w"],
        "b.0": ["b.0.x"],
    }
