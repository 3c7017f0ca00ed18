"""Whatever is written can be compared with its digests; what differs is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from taskbasis import Checkpoint, Design, Engine, TaskVector, fit, select, stored
from taskbasis.errors import FileError, UsageError
from taskbasis.io.digests import FILE, KEY
from taskbasis.io.folder import open_tensors
from taskbasis.io.safetensors import read_safetensors
from taskbasis.lora import extract_lora
from taskbasis.methods.learnt.sta import Sta
from taskbasis.recipe import Binding
from taskbasis.scores import ImportanceWriter, MomentsWriter, Origin
from taskbasis.verifying import Verified, verify

ONE = Engine(workers=1)
SHAPES = {"h.0.weight": (6, 5), "h.1.weight": (7, 6), "norm.bias": (9,), "steps": ()}
KINDS = {
    "checkpoint.safetensors": "a checkpoint",
    "checkpoint": "a checkpoint",
    "vector.safetensors": "a task vector",
    "vector": "a task vector",
    "basis.safetensors": "a basis",
    "basis": "a basis",
    "masks.safetensors": "a mask",
    "scores.safetensors": "importance scores",
    "moments.safetensors": "activation moments",
    "adapter": "an adapter",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output of every kind, in one file and in shards."""
    here = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    for name in ("base", "a", "b", "other"):
        (here / name).mkdir()
        step = 0 if name == "base" else 0.1
        moved = {
            key: np.asarray(value + step * random.standard_normal(value.shape), np.float32)
            for key, value in base.items()
        }
        save_file(moved, here / name / "model.safetensors", {"format": "pt"})
        (here / name / "config.json").write_text('{"model_type": "tiny"}')
    model = Checkpoint(here / "base")
    vectors = {name: TaskVector(model, here / name) for name in ("a", "b")}
    for out in (here / "checkpoint.safetensors", here / "checkpoint"):
        (model + vectors["a"]).save(out, shard_size=150, engine=ONE)
    for out in (here / "vector.safetensors", here / "vector"):
        vectors["a"].save(out, shard_size=150, engine=ONE)
    for out in (here / "basis.safetensors", here / "basis"):
        fit(vectors, out, Design(k=1), shard_size=150, engine=ONE)
    select(vectors, here / "masks.safetensors", Sta(density=0.5), base=model, engine=ONE)
    bound = stored.bind(Binding("base", open_tensors(here / "base")), ONE)
    shapes = {name: SHAPES[name] for name in ("h.0.weight", "norm.bias")}
    with ImportanceWriter(here / "scores.safetensors", shapes, Origin(bound)) as scores:
        for name, shape in shapes.items():
            scores.write(name, random.random(shape))
        scores.commit()
    with MomentsWriter(here / "moments.safetensors", {"w": (4, 4)}, Origin(bound)) as moments:
        moments.write("w", np.eye(4), 7)
        moments.commit()
    extract_lora(here / "base", vectors["a"], here / "adapter", 2, engine=ONE)
    return here


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or none, for a while."""
    before = file.read_bytes()
    try:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        yield
    finally:
        file.write_bytes(before)


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def said(found: Verified) -> list[str]:
    return [str(fault) for fault in found.faults]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.promise("What taskbasis writes carries digests, and `taskbasis verify` accepts it.")
def test_every_kind_of_output_is_intact(name: str, world: Path) -> None:
    found = verify(world / name, engine=ONE)
    assert found.intact
    assert found.faults == ()
    assert found.kind == KINDS[name]
    stores = [read_safetensors(file) for file in files_of(world / name)]
    assert found.tensors == sum(map(len, stores)) > 0
    assert found.nbytes == sum(store.nbytes for store in stores)
    sharded = (world / name).is_dir() and name != "adapter"
    assert (len(stores) > 1) == sharded


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.promise(
    "`taskbasis verify` finds one flipped bit in any tensor of anything taskbasis writes, and "
    "names the file and the tensor."
)
def test_a_flipped_bit_is_found_wherever_it_is(name: str, world: Path) -> None:
    files = files_of(world / name)

    @settings(max_examples=25, derandomize=True, deadline=None)
    @given(st.data())
    def flip(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(files))
        infos = [info for info in read_safetensors(file).values() if info.nbytes]
        info = data.draw(st.sampled_from(infos))
        at = info.offset + data.draw(st.integers(0, info.nbytes - 1))
        content = bytearray(file.read_bytes())
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        with changed(file, bytes(content)):
            (fault,) = verify(world / name, engine=ONE).faults
        assert (fault.file, fault.tensor) == (str(file), info.name)
        assert str(fault) == f"{file}: tensor {info.name!r} differs from what was written"

    flip()
    assert verify(world / name, engine=ONE).intact


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "vector", "adapter"])
@pytest.mark.promise("A flipped bit in a file's header is found, too.")
def test_a_flipped_bit_of_a_header_is_found(name: str, world: Path) -> None:
    """Be it in a name, a shape, a digest or the record: but not in the padding of spaces."""
    file = files_of(world / name)[0]
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    random = np.random.default_rng(3)
    for at in random.choice(8 + len(header), 150, replace=False):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(random.integers(8))
        with changed(file, bytes(flipped)):
            try:
                assert not verify(world / name, engine=ONE).intact
            except FileError as error:  # the only record is gone
                assert "carries no digests" in str(error)  # noqa: PT017


def test_a_tensor_that_is_gone_and_one_that_is_new(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    tensors = dict(load_file(world / "vector.safetensors"))
    metadata = dict(read_safetensors(world / "vector.safetensors").metadata)
    tensors["new"] = tensors.pop("norm.bias")
    save_file(tensors, file, metadata)
    assert said(verify(file, engine=ONE)) == [
        f"{file}: tensor 'norm.bias' is missing",
        f"{file}: tensor 'new' is not among those written",
    ]


def test_other_metadata(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    metadata = dict(read_safetensors(world / "vector.safetensors").metadata)
    metadata[stored.KEY] = metadata[stored.KEY].replace('"a"', '"b"')
    metadata["more"] = "words"
    save_file(load_file(world / "vector.safetensors"), file, metadata)
    assert said(verify(file, engine=ONE)) == [f"{file}: has other metadata than was written"]


@pytest.mark.parametrize("name", ["checkpoint", "vector", "basis"])
def test_a_shard_that_is_gone(name: str, world: Path) -> None:
    for file in files_of(world / name):
        with changed(file, None):
            assert said(verify(world / name, engine=ONE))[0] == f"{file}: is missing"


def test_weights_without_an_index_are_missed_by_their_record(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.rename(tmp_path / "adapter" / "old.safetensors")
    assert said(verify(tmp_path / "adapter", engine=ONE)) == [
        f"{file}: is missing",
        f"{file.with_name('old.safetensors')}: is not among the files written",
    ]


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_file_that_is_cut_short(cut: int, world: Path) -> None:
    file = files_of(world / "checkpoint")[1]
    with changed(file, file.read_bytes()[:-cut]):
        found = said(verify(world / "checkpoint", engine=ONE))
    assert len(found) == 1
    assert found[0].startswith(f"{file}: cannot be read: ")


@pytest.mark.promise(
    "`taskbasis verify` compares config, tokenizer and the other files beside the weights; the "
    "README may be edited."
)
def test_files_beside_the_weights(world: Path) -> None:
    folder = world / "checkpoint"
    with changed(folder / "config.json", b'{"model_type": "tinY"}'):
        assert said(verify(folder, engine=ONE)) == [
            f"{folder / 'config.json'}: differs from what was written"
        ]
    with changed(folder / "config.json", None):
        assert said(verify(folder, engine=ONE)) == [f"{folder / 'config.json'}: is missing"]
    with changed(folder / "README.md", b"# my model"):
        assert verify(folder, engine=ONE).intact


@pytest.mark.promise("`taskbasis verify` names files that were added beside the weights.")
def test_files_that_were_added(world: Path, tmp_path: Path) -> None:
    """A loader would read them, be it a chat template, a config of an adapter, or code."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(world / "checkpoint", folder)
    (folder / ".cache").mkdir()
    for name in (".cache/lock", ".gitattributes"):
        (folder / name).write_text("")
    assert verify(folder, engine=ONE).intact
    (folder / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "generation_config.json"):
        (folder / name).write_text("{}")
    assert said(verify(folder, engine=ONE)) == [
        f"{folder / name}: is not among the files written"
        for name in ("1_Pooling/config.json", "generation_config.json")
    ]


@pytest.mark.parametrize(
    ("name", "named"),
    [("checkpoint", "taskbasis_recipe.json, config.json"), ("adapter", "adapter_config.json")],
)
def test_a_record_of_the_folder_that_is_gone(name: str, named: str, world: Path) -> None:
    """Without it a changed config would pass."""
    with changed(world / name / FILE, None):
        assert said(verify(world / name, engine=ONE)) == [
            f"{world / name / FILE}: is missing, so {named} cannot be compared"
        ]


def test_an_index_that_says_something_else(world: Path) -> None:
    folder = world / "checkpoint"
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    placed = content["weight_map"]
    first, second = placed["h.0.weight"], placed["h.1.weight"]
    assert first != second
    placed["h.0.weight"] = second
    with changed(index, json.dumps(content).encode()):
        assert said(verify(folder, engine=ONE)) == [
            f"{index}: tensor 'h.0.weight' is placed in {second}, which lacks it",
            f"{index}: tensor 'h.0.weight' is not placed in {first}, which holds it",
        ]
    with changed(index, b"{"):
        assert said(verify(folder, engine=ONE))[0].startswith(
            f"{folder}: cannot be read: {index}: is not valid JSON"
        )


def test_a_damaged_record_of_the_folder(world: Path) -> None:
    folder = world / "checkpoint"
    for content in (b"{", b"\xff\xfe", b"{}"):
        with changed(folder / FILE, content):
            (text,) = said(verify(folder, engine=ONE))
        assert f"{folder / FILE}: the record of digests is" in text
    record = json.loads((folder / FILE).read_text())
    record["files"]["../base/config.json"] = "00"
    with changed(folder / FILE, json.dumps(record).encode()):
        assert said(verify(folder, engine=ONE)) == [
            f"{folder / FILE}: names '../base/config.json', outside it"
        ]


@pytest.mark.promise("A path without digests is never called intact: that is an error.")
def test_nothing_to_compare_with(world: Path, tmp_path: Path) -> None:
    for path in (world / "base", world / "base" / "model.safetensors"):
        with pytest.raises(FileError, match="carries no digests, so there is nothing to verify"):
            verify(path)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(FileError, match=r"x.bin: carries no digests; only .safetensors files"):
        verify(tmp_path / "x.bin")
    with pytest.raises(FileError, match=r"holds no .safetensors file"):
        verify(tmp_path)
    with pytest.raises(FileError, match="nowhere: no such file"):
        verify(tmp_path / "nowhere")


def test_one_shard_of_another_origin(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "vector", tmp_path / "vector")
    file = files_of(tmp_path / "vector")[0]
    metadata = dict(read_safetensors(file).metadata)
    del metadata[KEY]
    save_file(load_file(file), file, metadata)
    assert said(verify(tmp_path / "vector", engine=ONE)) == [f"{file}: carries no digests"]


@pytest.mark.promise(
    "Given a base, `taskbasis verify` names every tensor in which it is not the one recorded."
)
@pytest.mark.parametrize("name", ["vector", "basis.safetensors", "masks.safetensors"])
def test_the_base_it_is_bound_to(name: str, world: Path) -> None:
    assert verify(world / name, open_tensors(world / "base"), ONE).intact
    found = verify(world / name, open_tensors(world / "other"), ONE)
    assert said(found) == [
        f"{world / 'other'}: tensor {tensor!r} differs from the base of {world / name}"
        for tensor in sorted(SHAPES)
    ]
    less = open_tensors(world / "scores.safetensors")
    found = verify(world / name, less, ONE)
    assert (
        f"{less.path}: tensor 'h.1.weight' is missing; the base of {world / name} has it"
        in said(found)
    )
    assert any("is not in the base of" in text for text in said(found))


def test_the_model_that_scores_were_learnt_of(world: Path) -> None:
    assert verify(world / "scores.safetensors", open_tensors(world / "base"), ONE).intact
    found = verify(world / "scores.safetensors", open_tensors(world / "a"), ONE)
    assert "differs from the model of" in said(found)[0]


@pytest.mark.parametrize("name", ["checkpoint", "adapter"])
def test_what_records_no_base(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbasis.io.tensors.FileBlob.read_into", None)  # before tensors are read
    with pytest.raises(UsageError, match=f"{name}: records no base, so it cannot be compared"):
        verify(world / name, open_tensors(world / "base"), ONE)


def test_as_plain_data(world: Path, tmp_path: Path) -> None:
    found = verify(world / "vector.safetensors", open_tensors(world / "other"), ONE).to_json()
    again = json.loads(json.dumps(found))
    assert again["intact"] is False
    assert again["kind"] == "a task vector"
    assert again["faults"][0]["tensor"] == "h.0.weight"


def test_digests_do_not_depend_on_shards(world: Path) -> None:
    def recorded(path: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in files_of(path):
            found.update(json.loads(read_safetensors(file).metadata[KEY])["tensors"])
        return found

    assert recorded(world / "vector") == recorded(world / "vector.safetensors")
    assert recorded(world / "checkpoint") == recorded(world / "checkpoint.safetensors")
