"""Damaged and hostile basis files are refused in a sentence, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskbasis import Basis, Design, fit
from taskbasis.errors import HeaderError

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def libraries(tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stored basis of two groups' worth of shapes, and a random one."""
    folder = tmp_path_factory.mktemp("libraries")
    for method in ("svd", "random"):
        design = Design(2, method, granularity="layer")
        fit(tasks.vectors, folder / f"{method}.safetensors", design)
    return {method: folder / f"{method}.safetensors" for method in ("svd", "random")}


def rewritten(source: Path, out: Path, change: Callable[[dict[str, Any], Tensors], Any]) -> Path:
    """A copy whose record and tensors were changed; the change may give the record as text."""
    with safe_open(source, framework="np") as file:
        record = json.loads(file.metadata()["taskbasis"])
    tensors = load_file(source)
    text = change(record, tensors)
    text = text if isinstance(text, str) else json.dumps(record)
    save_file(tensors, out, {"format": "pt", "taskbasis": text})
    return out


def edit(path: str, value: Any) -> Callable[[dict[str, Any], Tensors], None]:
    """Sets what stands at ``path`` in the record; ``...`` deletes it."""

    def change(record: dict[str, Any], tensors: Tensors) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
        place: Any = record
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return change


def tensor(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any], Tensors], None]:
    """Changes a tensor; what becomes None is left out."""

    def change(record: dict[str, Any], tensors: Tensors) -> None:
        made = make(tensors.pop(name))
        if made is not None:
            tensors[name] = np.ascontiguousarray(made)

    return change


def spoiled(array: Any) -> Any:
    found = array.copy()
    found.reshape(-1)[0] = np.nan
    return found


ARRAYS = ("encoder", "decoder", "addition", "gram", "error")
DAMAGE = {
    **{f"{name} missing": tensor(f"basis.{name}", lambda a: None) for name in ARRAYS},
    **{f"{name} NaN": tensor(f"basis.{name}", spoiled) for name in ARRAYS},
    **{f"{name} of float32": tensor(f"basis.{name}", np.float32) for name in ARRAYS},
    **{
        f"{name} longer": tensor(
            f"basis.{name}", lambda a: np.pad(a, [(0, 0)] + [(0, 1)] * (a.ndim - 1))
        )
        for name in ARRAYS
    },
    **{f"{name} shorter": tensor(f"basis.{name}", lambda a: a[..., :-1]) for name in ARRAYS},
    **{f"{name} of fewer groups": tensor(f"basis.{name}", lambda a: a[:-1]) for name in ARRAYS},
    **{f"{name} flat": tensor(f"basis.{name}", np.ravel) for name in ARRAYS},
    **{f"{name} a number": tensor(f"basis.{name}", lambda a: a.ravel()[0]) for name in ARRAYS},
    "names missing": edit("names", ...),
    "names fewer": edit("names", ["a", "b"]),
    "names more": edit("names", [*"abcdef"]),
    "names twice": edit("names", [*"abcda"]),
    "names a number": edit("names", 5),
    "names empty": edit("names", []),
    "groups missing": edit("groups", ...),
    "groups empty": edit("groups", []),
    "groups a word": edit("groups", "model"),
    "group without tensors": edit("groups/0/tensors", []),
    "group with a strange tensor": edit("groups/0/tensors", ["strange"]),
    "tensor in two groups": edit("groups/0/tensors", ["norm.weight"]),
    "atoms negative": edit("groups/0/atoms", -1),
    "atoms too many": edit("groups/0/atoms", 3),
    "atoms a word": edit("groups/0/atoms", "two"),
    "shapes missing": edit("shapes", ...),
    "shape of a tensor missing": edit("shapes/norm.weight", ...),
    "shape negative": edit("shapes/norm.weight", [-6]),
    "shape infinite": edit("shapes/norm.weight", [float("inf")]),
    "shape a word": edit("shapes/norm.weight", "six"),
    "options missing": edit("options", ...),
    "base missing": edit("base", ...),
    "base without a fingerprint": edit("base/fingerprint", ...),
    "version later": edit("version", 2),
    "version missing": edit("version", ...),
    "kind another": edit("kind", "task_vector"),
    "kind unknown": edit("kind", "library"),
    "record truncated": lambda record, tensors: json.dumps(record)[:-20],
    "record empty": lambda record, tensors: "{}",
    "record a list": lambda record, tensors: json.dumps([record]),
}
OF_ATOMS = {
    "atom missing": tensor("atom.1:norm.weight", lambda a: None),
    "atom of another shape": tensor("atom.1:norm.weight", lambda a: a.reshape(2, 3)),
    "atom of another dtype": tensor("atom.1:norm.weight", np.float16),
    "dtype another": edit("dtype", "BF16"),
    "dtype unknown": edit("dtype", "F7"),
    "dtype missing": edit("dtype", ...),
    "dtype empty": edit("dtype", ""),
    "dtype null, though atoms are stored": edit("dtype", None),
    "a tensor that nobody names": lambda record, tensors: tensors.update(more=np.ones(3)),
}


@pytest.mark.parametrize("library", ["svd", "random"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(
    libraries: dict[str, Path], tmp_path: Path, library: str, damage: str
) -> None:
    broken = rewritten(libraries[library], tmp_path / "broken.safetensors", DAMAGE[damage])
    with pytest.raises(HeaderError) as caught:
        Basis.open(broken)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", OF_ATOMS)
def test_damage_of_atoms_is_refused(
    libraries: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    broken = rewritten(libraries["svd"], tmp_path / "broken.safetensors", OF_ATOMS[damage])
    with pytest.raises(HeaderError):
        Basis.open(broken)


def test_atoms_of_integers_are_refused(libraries: dict[str, Path], tmp_path: Path) -> None:
    """Words of 16 bits would otherwise be taken for halves."""

    def change(record: dict[str, Any], tensors: Tensors) -> None:
        record["dtype"] = "I16"
        for name in [name for name in tensors if name.startswith("atom.")]:
            tensors[name] = tensors[name].astype(np.int16)

    with pytest.raises(HeaderError, match="atoms of int16"):
        Basis.open(rewritten(libraries["svd"], tmp_path / "broken.safetensors", change))


@pytest.mark.parametrize("seed", [..., "x", None])
def test_a_random_basis_without_its_seed(
    libraries: dict[str, Path], tmp_path: Path, seed: Any
) -> None:
    out = tmp_path / "broken.safetensors"
    with pytest.raises(HeaderError):
        Basis.open(rewritten(libraries["random"], out, edit("options/seed", seed)))


def test_a_copy_without_damage_opens(libraries: dict[str, Path], tmp_path: Path) -> None:
    """So that the refusals above are of the damage and not of the copying."""
    for method, source in libraries.items():
        out = tmp_path / f"{method}.safetensors"
        copy, original = Basis.open(rewritten(source, out, lambda r, t: None)), Basis.open(source)
        for name, value in original["b"].tensors().items():
            np.testing.assert_array_equal(copy["b"].tensors()[name], value)


@pytest.mark.parametrize("size", [0, 7, 100, 3000])
def test_a_truncated_file(libraries: dict[str, Path], tmp_path: Path, size: int) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(libraries["svd"].read_bytes()[:size])
    with pytest.raises(HeaderError):
        Basis.open(cut)


def test_what_is_no_basis(tasks: Any, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="is not a basis; make one with 'taskbasis basis fit'"):
        Basis.open(tasks.folder / "a")
    tasks.vectors["a"].save(tmp_path / "v.safetensors")
    with pytest.raises(HeaderError, match="is not a basis"):
        Basis.open(tmp_path / "v.safetensors")
