"""The record that travels in a file's metadata, read back or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskbasis import Checkpoint, Design, TaskVector, fit, stored
from taskbasis.errors import HeaderError, TaskbasisError
from taskbasis.io.folder import open_tensors


@pytest.fixture
def vector(tiny_checkpoints: Path) -> Path:
    """A stored task vector."""
    out = tiny_checkpoints / "math.safetensors"
    TaskVector(tiny_checkpoints / "base", tiny_checkpoints / "math").save(out)
    return out


def rewrite(path: Path, record: object, tensors: dict[str, NDArray[Any]] | None = None) -> Path:
    """The file with another record, as text or as what is to be text."""
    text = record if isinstance(record, str) else json.dumps(record)
    out = path.with_name("rewritten.safetensors")
    save_file(tensors or load_file(path), out, {"format": "pt", stored.KEY: text})
    return out


def record_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        found: dict[str, Any] = json.loads(file.metadata()[stored.KEY])
    return found


def test_what_a_vector_records(vector: Path) -> None:
    base = vector.parent / "base"
    record = record_of(vector)
    digests = record["base"].pop("digests")
    tuned = Checkpoint(base.parent / "math").fingerprint
    assert record == {
        "kind": "task_vector",
        "version": 1,
        "base": {"name": str(base), "fingerprint": Checkpoint(base).fingerprint},
        "tuned": {"name": str(base.parent / "math"), "fingerprint": tuned},
        "dtype": "float32",
        "made": [{"vector": str(vector.parent / "math"), "coefficient": 1.0}],
    }
    assert digests.keys() == {"bias", "steps", "weight"}
    with safe_open(vector, framework="np") as file:
        assert file.metadata()["format"] == "pt"


def test_decode_gives_back_what_encode_was_given(tmp_path: Path) -> None:
    fields = {"names": ["\u03c4", 'a "quoted" one'], "number": 1.5}
    metadata = stored.encode(stored.VECTOR, fields)
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "x.safetensors", metadata)
    found = stored.decode(open_tensors(tmp_path / "x.safetensors"))
    assert found == {"kind": "task_vector", "version": 1, **fields}


def test_a_file_that_is_not_ours_has_no_record(tiny_checkpoints: Path) -> None:
    assert stored.decode(open_tensors(tiny_checkpoints / "base")) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "merge"}, "does not say what the file is"),
        ({"kind": None}, "does not say what the file is"),
        ({"kind": ["task_vector"]}, "does not say what the file is"),
        ({"version": 2}, "written as version 2, this taskbasis reads version 1; install"),
        ({"version": None}, "written as version None"),
        ({"base": None}, "does not name the base"),
        ({"base": {"name": "x"}}, "does not name the base"),
        ({"base": {"fingerprint": 7}}, "does not name the base"),
        ({"base": "0123"}, "does not name the base"),
    ],
)
def test_a_record_that_cannot_be(vector: Path, change: dict[str, Any], said: str) -> None:
    changed = rewrite(vector, {**record_of(vector), **change})
    with pytest.raises(HeaderError) as caught:
        TaskVector.open(changed)
    assert said in str(caught.value)
    assert str(changed) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"kind": "task_vector"', "[]", "7", "[" * 100_000])
def test_a_record_that_is_damaged(vector: Path, text: str) -> None:
    with pytest.raises(HeaderError, match="its taskbasis record"):
        TaskVector.open(rewrite(vector, text))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.bool_])
def test_a_delta_is_made_of_floats(vector: Path, dtype: type) -> None:
    """Words of 16 bits would otherwise be taken for halves."""
    tensors = {**load_file(vector), "weight": np.ones((2, 2), dtype)}
    changed = rewrite(vector, record_of(vector), tensors)
    with pytest.raises(HeaderError, match=r"tensor 'weight' .* but a delta is made of floats"):
        TaskVector.open(changed)


def test_a_vector_that_the_base_has_no_place_for(vector: Path) -> None:
    base = Checkpoint(vector.parent / "base")
    for tensors, said in (
        ({"stranger": np.ones(2, np.float32)}, "has no counterpart in the base"),
        ({"weight": np.ones((1, 2), np.float32)}, "has shape"),
        ({"steps": np.ones((), np.float32)}, "holds int64, which nothing is added to"),
    ):
        changed = rewrite(vector, record_of(vector), tensors)
        with pytest.raises(TaskbasisError, match=said):
            (base + TaskVector.open(changed)).tensors()


def test_a_record_without_digests_still_tells_bases_apart(vector: Path) -> None:
    record = record_of(vector)
    record["base"]["digests"] = "lost"
    changed = TaskVector.open(rewrite(vector, record))
    base = Checkpoint(vector.parent / "base")
    np.testing.assert_array_equal((base + changed).tensors()["bias"], [1, 1])
    with pytest.raises(TaskbasisError, match="not from"):
        (Checkpoint(vector.parent / "code") + changed).tensors()


def test_a_basis_is_not_a_vector(vector: Path) -> None:
    library = vector.with_name("library.safetensors")
    fit({"math": TaskVector.open(vector)}, library, Design(1))
    with pytest.raises(HeaderError, match="is a basis, not a task vector; extract"):
        TaskVector.open(library)


@pytest.mark.skipif(os.name != "posix", reason="paths are bytes on POSIX only")
def test_a_path_that_is_not_utf_8(tiny_checkpoints: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tiny_checkpoints) + b"/\xff-\xcf\x84"))
    try:
        (tiny_checkpoints / "base").rename(odd)
    except OSError:  # pragma: no cover - some file systems take UTF-8 only
        pytest.skip("this file system refuses such names")
    out = tiny_checkpoints / "math.safetensors"
    vector = TaskVector(odd, tiny_checkpoints / "math")
    vector.save(out)
    assert TaskVector.open(out).combination.leaves[0].base.name == str(odd)
    (Checkpoint(odd) + vector).save(tiny_checkpoints / "out")
    recipe = json.loads((tiny_checkpoints / "out" / "taskbasis_recipe.json").read_text())
    assert recipe["base"] == str(odd)


def test_a_list_of_excluded_names_that_is_none_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("base", "tuned"):
        tensors = {k: random.standard_normal(3).astype(np.float32) for k in "ab"}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    vector = TaskVector(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", ["a"])
    vector.save(tmp_path / "v.safetensors")
    store = open_tensors(tmp_path / "v.safetensors")
    assert TaskVector.open(tmp_path / "v.safetensors").combination.leaves[0].rules == {
        "excluded": ("a",)
    }
    content = json.loads(store.metadata["taskbasis"])
    content["excluded"] = "a"
    save_file(
        load_file(tmp_path / "v.safetensors"),
        tmp_path / "w.safetensors",
        {**store.metadata, "taskbasis": json.dumps(content)},
    )
    with pytest.raises(HeaderError, match="'excluded' is no list of names"):
        TaskVector.open(tmp_path / "w.safetensors")
