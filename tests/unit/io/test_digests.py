"""Digests found while bytes are written: of pieces in any order, by any thread; and the record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskbasis.digest import tensor_digests
from taskbasis.engine import Engine
from taskbasis.errors import HeaderError
from taskbasis.io import digests
from taskbasis.io.digests import KEY, Recorder, read_folder_record, read_record
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.folder import open_tensors
from taskbasis.io.safetensors import read_safetensors
from taskbasis.io.tensors import ArrayBlob, TensorInfo
from taskbasis.io.writer import OutputTensor, Staged

U8 = BY_NAME["uint8"]
HERE = Path("x.safetensors")


def expected(content: np.ndarray[Any, Any]) -> str:
    """The digest that reading the finished tensor gives."""
    info = TensorInfo("w", U8, content.shape, ArrayBlob(content))
    return tensor_digests([info], Engine(workers=1))["w"]


class Written:
    """A tensor written to memory, and read back as a file would be."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        self.content, self.held, self.read = content, np.zeros_like(content), 0
        self.recorder = Recorder(self.fill)
        self.recorder.expect("w", U8, content.shape, content.nbytes)

    def fill(self, name: str, start: int, buffer: memoryview) -> None:
        self.read += buffer.nbytes
        np.frombuffer(buffer, np.uint8)[:] = self.held[start : start + buffer.nbytes]

    def write(self, start: int, stop: int, content: np.ndarray[Any, Any] | None = None) -> None:
        piece = (self.content if content is None else content)[start:stop]
        self.held[start:stop] = piece
        self.recorder.wrote("w", start, piece.data)

    @property
    def found(self) -> str:
        return self.recorder.digests()["w"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "BLOCK", 64)
    monkeypatch.setattr("taskbasis.digest.BLOCK", 64)


def numbers(size: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.lists(st.integers(0, 300), max_size=12), st.randoms())
def test_pieces_in_any_order(size: int, at: list[int], random: Any) -> None:
    written = Written(numbers(size))
    edges = sorted({0, size, *(min(place, size) for place in at)})
    pieces = list(itertools.pairwise(edges))
    random.shuffle(pieces)
    for start, stop in pieces:
        written.write(start, stop)
    assert written.found == expected(written.content)
    assert written.read <= size  # nothing is read twice


def test_whole_blocks_are_not_read_back() -> None:
    written = Written(numbers(200))
    written.write(64, 200)
    written.write(0, 64)
    assert written.found == expected(written.content)
    assert written.read == 0


@pytest.mark.parametrize("second", [(0, 64), (10, 20), (63, 65), (0, 130)])
def test_what_is_written_twice_counts_as_it_was_left(second: tuple[int, int]) -> None:
    written, other = Written(numbers(130)), numbers(130, seed=1)
    written.write(0, 130, other)
    written.write(*second)
    assert written.found == expected(written.held)
    assert not np.array_equal(written.held, written.content) or second == (0, 130)


def test_a_part_and_then_the_whole() -> None:
    """Whoever notes it last need not have written it last."""
    written = Written(numbers(64))
    written.write(0, 10)
    written.write(0, 64)
    written.held[5] ^= 1  # the part's bytes, which came to stand there after all
    assert written.found == expected(written.held)


def test_parts_that_overlap_are_no_whole_block() -> None:
    """Their lengths add up to the block's, and yet a byte of it is written later."""
    written = Written(numbers(64))
    written.write(0, 40)
    written.write(30, 54)
    written.write(54, 64)
    assert written.found == expected(written.content)


def test_what_nobody_wrote_is_read() -> None:
    """So that a run may continue what another began."""
    written = Written(numbers(200))
    written.held[:] = written.content
    written.write(64, 128)
    assert written.found == expected(written.content)
    assert written.read == 64 + 72


def test_many_threads() -> None:
    written = Written(numbers(64 * 200))
    starts = list(range(0, written.content.size, 16))
    np.random.default_rng(1).shuffle(starts)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: written.write(at, at + 16), starts))
    assert written.found == expected(written.content)
    assert written.read == written.content.size  # each block once, by who wrote the last of it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool"])
def test_the_record_of_a_file_is_what_reading_it_gives(
    dtype: str, tmp_path: Path, floats: Callable[..., Any], stage: Callable[..., Path]
) -> None:
    tensors = {
        name: floats(seed, shape).astype("bfloat16" if dtype == "bfloat16" else dtype)
        for seed, (name, shape) in enumerate({"a": (33, 7), "b.c": (), "": (0, 3)}.items())
    }
    for out in (tmp_path / "one.safetensors", tmp_path / "many"):
        stage(out, tensors, shard_size=100)
        files = [out] if out.is_file() else sorted(out.glob("*.safetensors"))
        found = {}
        for file in files:
            store = read_safetensors(file)
            record = read_record(file, store.metadata)
            assert record is not None
            assert record.intact
            found.update(record.tensors)
        assert found == tensor_digests(open_tensors(out).values(), Engine(workers=1))
    assert len(files) > 1


def test_files_beside_the_weights_but_the_readme(tmp_path: Path) -> None:
    with Staged(tmp_path / "m", [OutputTensor("w", U8, (2,))], {}) as staged:
        staged.write_array("w", numbers(2))
        staged.add_file("config.json", b"{}")
        staged.add_file("README.md", b"# mine")
        staged.commit()
    file = tmp_path / "m" / digests.FILE
    record = read_folder_record(file, file.read_text())
    assert record.files == {"config.json": digests.digest(b"{}")}
    assert record.weights == ("model.safetensors",)


def test_a_folder_of_weights_alone_has_no_more_files(tmp_path: Path) -> None:
    with Staged(tmp_path / "m", [OutputTensor("w", U8, (2,))], {}) as staged:
        staged.write_array("w", numbers(2))
        staged.commit()
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["model.safetensors"]


def test_other_metadata_is_seen() -> None:
    metadata = digests.with_record({"w": "00"}, {"format": "pt", "taskbasis": "{}"})
    found = read_record(HERE, metadata)
    changed = read_record(HERE, {**metadata, "format": "np"})
    added = read_record(HERE, {**metadata, "more": ""})
    assert found is not None
    assert changed is not None
    assert added is not None
    assert (found.intact, changed.intact, added.intact) == (True, False, False)
    assert read_record(HERE, {"format": "pt"}) is None


def test_the_blank_record_is_as_long() -> None:
    names = ["a", '\u00e4 "quoted"', "x" * 100]
    full = digests.with_record(dict.fromkeys(names, "f" * 32), {"format": "pt"})
    blank = digests.blank_record(names, {"format": "pt"})
    assert len(json.dumps(full)) == len(json.dumps(blank))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: Expecting property name"),
        ("[" * 100_000, "is damaged"),
        ("[]", "of the format 'None', this taskbasis reads 'xxh3-128/1'"),
        ('{"format": "sha"}', "of the format 'sha'"),
        ('{"format": "xxh3-128/1"}', "names none|does not name the weights"),
        ('{"format": "xxh3-128/1", "tensors": {"a": 1}, "weights": [1]}', "names none|not name"),
    ],
)
def test_a_damaged_record(text: str, message: str) -> None:
    with pytest.raises(HeaderError, match=f"x.safetensors: the record of digests .*({message})"):
        read_record(HERE, {KEY: text})
    with pytest.raises(HeaderError, match=f"x.safetensors: the record of digests .*({message})"):
        read_folder_record(HERE, text)
