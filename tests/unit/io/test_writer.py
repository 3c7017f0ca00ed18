"""The writer: whole or not at all, and never over something it was not told to replace."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from taskbasis.errors import FileError, UsageError
from taskbasis.io import hidden, writer
from taskbasis.io.dtypes import BF16, BY_NAME, F32
from taskbasis.io.folder import open_tensors
from taskbasis.io.writer import MemorySink, OutputTensor, Staged, plan_shards

Stage = Callable[..., Path]
Leftovers = Callable[[Path], list[str]]

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(1.5, np.float64),
    "c": np.empty((0, 4), np.float16),
    "d": np.arange(5, dtype=np.int64),
}
OUTPUTS = [OutputTensor(n, BY_NAME[a.dtype.name], a.shape) for n, a in TENSORS.items()]


def four(size: int = 8) -> list[OutputTensor]:
    return [OutputTensor(name, F32, (size // 4,)) for name in "abcd"]


def holds(path: Path, tensors: dict[str, Any] = TENSORS) -> None:
    store = open_tensors(path)
    assert set(store) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(store[name].load(), array, strict=True)


@pytest.fixture(params=["m", "m.safetensors"], ids=["folder", "file"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


# What is written


def test_written_whole(out: Path, stage: Stage, leftovers: Leftovers) -> None:
    stage(out, TENSORS)
    holds(out)
    assert out.is_file() == (out.suffix == ".safetensors")
    assert leftovers(out.parent) == []
    file = out if out.is_file() else out / "model.safetensors"
    assert set(load_file(file)) == set(TENSORS)
    assert set(open_tensors(out).metadata) == {"format", "taskbasis_digests"}


@pytest.mark.parametrize(
    ("size", "files"),
    [
        (None, ["model.safetensors"]),
        (10**9, ["model.safetensors"]),
        (32, ["model.safetensors"]),
        (31, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (16, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (15, [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]),
        (1, [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]),
    ],
)
def test_shards_by_size(size: int | None, files: list[str]) -> None:
    shards = plan_shards(four(), size)
    assert [shard.file for shard in shards] == files
    assert [t.name for shard in shards for t in shard.tensors] == list("abcd")
    for shard in shards:
        held = sum(t.nbytes for t in shard.tensors)
        assert size is None or held <= size or len(shard.tensors) == 1


def test_a_tensor_larger_than_a_shard_stands_alone() -> None:
    tensors = [*four()[:2], OutputTensor("big", F32, (100,)), *four()[2:]]
    shards = plan_shards(tensors, 20)
    assert [[t.name for t in shard.tensors] for shard in shards] == [
        ["a", "b"],
        ["big"],
        ["c", "d"],
    ]
    assert plan_shards([], 20)[0].tensors == ()


def test_shards_and_index_on_disk(tmp_path: Path, stage: Stage) -> None:
    tensors = {f"t{n}": np.full(4, n, np.float32) for n in range(5)}
    stage(tmp_path / "m", tensors, shard_size=32)
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert names == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "m" / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 80
    assert list(index["weight_map"]) == sorted(tensors)
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / "m" / file)[name], tensors[name])
    holds(tmp_path / "m", tensors)


def test_a_file_is_never_sharded(tmp_path: Path, stage: Stage) -> None:
    holds(stage(tmp_path / "m.safetensors", TENSORS, shard_size=8))


def test_another_stem(tmp_path: Path, stage: Stage) -> None:
    stage(tmp_path / "v", TENSORS, shard_size=24, stem="task_vector")
    assert (tmp_path / "v" / "task_vector.safetensors.index.json").is_file()
    holds(tmp_path / "v")


def test_the_names_are_those_of_transformers(tmp_path: Path, stage: Stage) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=31, n_positions=16)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    store = open_tensors(tmp_path / "theirs")
    tensors = {name: info.load() for name, info in store.items()}
    stage(tmp_path / "ours", tensors, shard_size=3000)
    (tmp_path / "ours" / "config.json").write_text(
        (tmp_path / "theirs" / "config.json").read_text()
    )
    ours = {p.name for p in (tmp_path / "ours").iterdir()}
    theirs = {p.name for p in (tmp_path / "theirs").iterdir()}
    pattern = r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json|.*config\.json"
    assert all(re.fullmatch(pattern, name) for name in ours | theirs)
    assert len(ours) > 4
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_mode_whatever_the_umask(out: Path, umask: int) -> None:
    before = os.umask(umask & 0o077)
    try:
        with Staged(out, four(), {}, shard_size=16) as staged:
            if not staged.is_file:
                staged.add_file("config.json", b"{}")
                staged.add_file("sub/notes.txt", b"x")
            staged.commit()
    finally:
        os.umask(before)
    files = [out] if out.is_file() else [p for p in out.rglob("*") if p.is_file()]
    assert len(files) in (1, 6)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}


def test_side_files(tmp_path: Path) -> None:
    source = tmp_path / "config.json"
    source.write_text("abc")
    source.chmod(0o600)
    with Staged(tmp_path / "m", OUTPUTS, {}) as staged:
        staged.copy_file("config.json", source, lambda raw: raw.upper())
        staged.copy_file("deep/er/same.json", source, None)
        staged.commit()
    assert (tmp_path / "m" / "config.json").read_text() == "ABC"
    assert (tmp_path / "m" / "deep" / "er" / "same.json").read_text() == "abc"


def test_pieces_from_several_threads(tmp_path: Path) -> None:
    whole = np.arange(10_000, dtype=np.float32)
    with Staged(tmp_path / "m", [OutputTensor("a", F32, (10_000,))], {}) as staged:
        pieces = [(at, whole[at : at + 500]) for at in range(0, 10_000, 500)]
        threads = [
            threading.Thread(target=staged.write, args=("a", at, piece))
            for at, piece in reversed(pieces)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        staged.commit()
    holds(tmp_path / "m", {"a": whole})


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.arange(1000, dtype=np.float32)
    with Staged(tmp_path / "m", [OutputTensor("a", F32, (1000,))], {}) as staged:
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:13], at))
        staged.write("a", 0, whole)
        monkeypatch.undo()
        staged.commit()
    holds(tmp_path / "m", {"a": whole})


def test_words_of_another_width_are_a_mistake(tmp_path: Path) -> None:
    with (
        Staged(tmp_path / "m", [OutputTensor("a", BF16, (2,))], {}) as staged,
        pytest.raises(ValueError, match="float32 words written as bfloat16"),
    ):
        staged.write("a", 0, np.zeros(2, np.float32))


def test_in_memory() -> None:
    sink = MemorySink([])
    assert sink.arrays() == {}
    sink = MemorySink(OUTPUTS)
    for name, array in TENSORS.items():
        flat = array.reshape(-1).view(BY_NAME[array.dtype.name].bits)
        for at in range(flat.size):
            sink.write(name, at, flat[at : at + 1])
        assert sink.dtype(name).name == array.dtype.name
    for name, array in sink.arrays().items():
        np.testing.assert_array_equal(array, TENSORS[name], strict=True)


# Nothing is left


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit, MemoryError])
def test_nothing_is_left_after_an_exception(
    out: Path, error: type[BaseException], leftovers: Leftovers
) -> None:
    staged = Staged(out, OUTPUTS, {})

    def work() -> None:
        with staged:
            staged.write("d", 0, np.arange(5))
            assert leftovers(out.parent) == [staged.hidden.parent.name]
            raise error

    with pytest.raises(error):
        work()
    assert list(out.parent.iterdir()) == []


def test_nothing_is_left_without_commit(out: Path) -> None:
    with Staged(out, OUTPUTS, {}):
        pass
    assert list(out.parent.iterdir()) == []


def test_no_descriptor_is_left(out: Path, stage: Stage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stage(out, {f"t{n}": np.ones(4, np.float32) for n in range(9)}, shard_size=16)
    with pytest.raises(Broken), Staged(out, OUTPUTS, {}, replace=True):
        raise Broken
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "call", ["mkdir", "pwrite", "posix_fallocate", "fsync", "fchmod", "rename", "replace", "link"]
)
def test_nothing_is_left_after_the_disk_fails(
    out: Path, call: str, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call in ("replace", "link") and (call == "link") == (out.suffix == ""):
        call = "replace" if call == "link" else "link"  # a new folder is renamed, a file linked
    used = {"replace"} if call == "rename" else set()
    monkeypatch.setattr(os, call, full)
    if call == "rename":  # only used when a folder stands in the way and cannot be exchanged
        monkeypatch.undo()
        monkeypatch.setattr(hidden, "exchange", lambda one, other: False)
        out.mkdir()
        (out / "old").write_text("old")
        monkeypatch.setattr(os, call, full)
    with pytest.raises(FileError, match="cannot be written: No space left") as caught:
        stage(out, TENSORS, replace=bool(used))
    monkeypatch.undo()
    assert str(out) in str(caught.value)
    left = [out] if call == "rename" else []
    assert list(out.parent.iterdir()) == left
    assert call != "rename" or (out / "old").read_text() == "old"


def test_what_stood_there_comes_back_when_the_swap_fails(
    out: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    out.mkdir()
    (out / "old").write_text("old")
    monkeypatch.setattr(hidden, "exchange", lambda one, other: False)
    real, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append((source, target))
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(FileError, match="Input/output error"):
        stage(out, TENSORS, replace=True)
    assert len(calls) == 3
    assert list(out.parent.iterdir()) == [out]
    assert (out / "old").read_text() == "old"


def test_a_disk_too_small(
    out: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, leftovers: Leftovers
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = sum(array.nbytes for array in TENSORS.values())
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(100, 0, needed - 1))
    with pytest.raises(FileError, match=f"needs {needed} B but the disk has {needed - 1} B free"):
        stage(out, TENSORS)
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(100, 0, needed))
    holds(stage(out, TENSORS))


# Refused destinations


def test_a_used_folder(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "m").mkdir()
    stage(tmp_path / "m", TENSORS)  # an empty folder is no loss
    before = (tmp_path / "m" / "model.safetensors").stat().st_ino
    with pytest.raises(FileError, match="already exists; pass --replace"):
        stage(tmp_path / "m", TENSORS)
    assert (tmp_path / "m" / "model.safetensors").stat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_used_file(tmp_path: Path, stage: Stage) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("precious")
    with pytest.raises(FileError, match="already exists"):
        stage(path, TENSORS)
    assert path.read_text() == "precious"


def test_a_missing_parent(tmp_path: Path, stage: Stage) -> None:
    with pytest.raises(FileError, match=r"the folder .*no does not exist; create it first"):
        stage(tmp_path / "no" / "m", TENSORS)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="does not exist"):
        stage(tmp_path / "file" / "m", TENSORS)


def test_a_disk_that_cannot_reserve(
    out: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """Some file systems do not offer it; the file is then made sparse."""

    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    holds(stage(out, TENSORS))


@pytest.mark.parametrize("size", [0, -5])
def test_shards_that_hold_nothing(tmp_path: Path, size: int, stage: Stage) -> None:
    with pytest.raises(UsageError, match="holds nothing"):
        stage(tmp_path / "m", TENSORS, shard_size=size)


@pytest.mark.parametrize("target", ["in", "in/new", "in/deep/new", "outer", "./in/../in", "link"])
def test_inputs_are_not_touched(tmp_path: Path, target: str, stage: Stage) -> None:
    base = tmp_path / "outer" if target == "outer" else tmp_path
    source = base / "in"
    source.mkdir(parents=True)
    (source / "deep").mkdir()
    (source / "model.safetensors").write_text("precious")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(FileError, match="would touch the input") as caught:
        stage(tmp_path / target, TENSORS, replace=True, inputs=[tmp_path / "else", source])
    assert str(source) in str(caught.value)
    assert (source / "model.safetensors").read_text() == "precious"


def test_an_input_file_by_another_name(tmp_path: Path, stage: Stage) -> None:
    source = tmp_path / "a.safetensors"
    source.write_text("precious")
    (tmp_path / "b.safetensors").symlink_to(source)
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(FileError, match="would touch the input"):
            stage(tmp_path / name, TENSORS, replace=True, inputs=[source])
    stage(tmp_path / "ab.safetensors", TENSORS, inputs=[source])
    assert source.read_text() == "precious"


# Replaced whole


def standing(path: Path, kind: str, stage: Stage) -> None:
    if kind == "file":
        path.write_text("old")
    elif kind == "folder":
        stage(path, {f"old{n}": np.ones(4, np.float32) for n in range(5)}, shard_size=16)
        (path / "config.json").write_text("old")
        (path / "sub").mkdir()
        (path / "sub" / "x").write_text("old")
    elif kind == "empty folder":
        path.mkdir()
    else:
        target = path.parent / "elsewhere"
        if kind == "link to a folder":
            target.mkdir()
            (target / "precious").write_text("kept")
        elif kind == "link to a file":
            target.write_text("kept")
        path.symlink_to(target)


KINDS = ["file", "folder", "empty folder", "link to a folder", "link to a file", "dead link"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_replaced(tmp_path: Path, name: str, kind: str, stage: Stage, leftovers: Leftovers) -> None:
    out = tmp_path / name
    if kind == "folder":
        standing(tmp_path / "made", kind, stage)
        (tmp_path / "made").rename(out)
    else:
        standing(out, kind, stage)
    stage(out, TENSORS, replace=True)
    assert not out.is_symlink()
    holds(out)
    if name == "m":
        assert [p.name for p in out.iterdir()] == ["model.safetensors"]
    else:
        assert out.is_file()
    assert leftovers(tmp_path) == []
    elsewhere = tmp_path / "elsewhere"
    if kind == "link to a folder":
        assert (elsewhere / "precious").read_text() == "kept"
    if kind == "link to a file":
        assert elsewhere.read_text() == "kept"


def test_until_commit_the_old_one_stands(out: Path, stage: Stage) -> None:
    old = {"old": np.ones(3, np.float32)}
    stage(out, old)
    with Staged(out, OUTPUTS, {}, replace=True) as staged:
        for name, array in TENSORS.items():
            staged.write_array(name, array)
        holds(out, old)
        staged.commit()
        holds(out)


def test_a_failure_leaves_the_old_one(out: Path, stage: Stage, leftovers: Leftovers) -> None:
    old = {"old": np.ones(3, np.float32)}
    stage(out, old)
    with pytest.raises(Broken), Staged(out, OUTPUTS, {}, replace=True):
        raise Broken
    holds(out, old)
    assert leftovers(out.parent) == []


def test_a_reader_sees_one_or_the_other(tmp_path: Path, stage: Stage) -> None:
    """A file is made again and again while another thread opens it by name."""
    out = tmp_path / "m.safetensors"
    versions = [{"a": np.full(50_000, n, np.float32)} for n in range(2)]
    stage(out, versions[0])
    stop, seen, broken = threading.Event(), [], []

    def watch() -> None:
        while not stop.is_set():
            try:
                values = open_tensors(out)["a"].load()
            except FileError as error:
                broken.append(str(error))
            else:
                seen.append((float(values.min()), float(values.max())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(20):
        stage(out, versions[turn % 2], replace=True)
    stop.set()
    watcher.join()
    assert {low == high for low, high in seen} <= {True}
    assert all("was changed since it was opened" in text for text in broken)


def test_a_folder_is_whole_at_every_step(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each step of showing it, its name stands for the old or the new one."""
    out, old = tmp_path / "m", {"old": np.ones(3, np.float32)}
    stage(out, old)
    seen: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            seen.append(f"{name}: {','.join(open_tensors(out))}")
            result = real(*args, **more)
            seen.append(f"{name}: {','.join(open_tensors(out))}")
            return result

        return step

    monkeypatch.setattr(hidden, "exchange", watched("exchange", hidden.exchange))
    monkeypatch.setattr(hidden.shutil, "rmtree", watched("remove", hidden.shutil.rmtree))
    stage(out, TENSORS, replace=True)
    new = "a,b,c,d"
    if "exchange: old" in seen[1:2]:
        pytest.skip("this file system cannot exchange two names")
    assert seen[:4] == ["exchange: old", f"exchange: {new}", f"remove: {new}", f"remove: {new}"]


def test_the_hidden_name_is_never_taken_for_the_output(out: Path) -> None:
    with Staged(out, OUTPUTS, {}) as staged:
        assert not out.exists()
        folder = staged.hidden.parent
        assert folder == out.parent / f".{out.name}.partial"
        for pattern in ("*.safetensors", "*.bin", out.name):
            assert list(out.parent.glob(pattern)) == []


def test_every_byte_is_flushed_before_it_is_shown(
    out: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    events: list[str] = []
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        events.append("sync")
        real_sync(descriptor)

    def watched(real: Callable[..., None]) -> Callable[..., None]:
        def show(source: Path, target: Path, **more: Any) -> None:
            assert not Path(target).exists()
            events.append("show")
            real(source, target, **more)

        return show

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(os, "link", watched(os.link))
    stage(out, {f"t{n}": np.ones(4, np.float32) for n in range(3)}, shard_size=16)
    files = 1 if out.suffix else len(list(out.iterdir()))  # side files, too
    assert events == ["sync"] * (files + 1) + ["show", "sync"]


def test_two_names_are_swapped_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.write_text("a file")
    if not hidden.exchange(one, other):
        pytest.skip("this system cannot exchange two names; two renames are used instead")
    assert one.read_text() == "a file"
    assert other.is_dir()
    assert not hidden.exchange(one, tmp_path / "missing")


@pytest.mark.parametrize("swaps", [True, False])
def test_replacing_works_with_and_without_a_swap(
    out: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    if not swaps:
        monkeypatch.setattr(hidden, "exchange", lambda one, other: False)
    out.mkdir()
    (out / "old").write_text("old")
    stage(out, TENSORS, replace=True)
    holds(out, TENSORS)
    assert list(out.parent.iterdir()) == [out]
