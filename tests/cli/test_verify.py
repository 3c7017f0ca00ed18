"""`taskbasis verify`: what it prints, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def made(desk: Path, call: Any) -> Path:
    assert call("extract base a -o a.safetensors").code == 0
    assert call("add base a -o merged --out-shard-size 150").code == 0
    return desk


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_all_as_written(made: Path, call: Any) -> None:
    said = call("verify a.safetensors merged")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "a.safetensors: a task vector; 4 tensors (380 B) in 1 file compared: all as written",
        "merged: a checkpoint; 4 tensors (380 B) in 5 files compared: all as written",
    ]
    assert call("verify -q a.safetensors merged").out == ""


@pytest.mark.promise("`taskbasis verify` exits with 1 where anything differs, even in one of many.")
def test_a_fault_is_named(made: Path, call: Any) -> None:
    spoil(made / "merged" / "model-00001-of-00003.safetensors")
    (made / "merged" / "config.json").write_text("{}")
    said = call("verify -q a.safetensors merged")
    assert said.code == 1
    assert said.out.splitlines() == [
        "merged/model-00001-of-00003.safetensors: tensor 'embed.weight' differs from what was "
        "written",
        "merged/config.json: differs from what was written",
        "merged: a checkpoint; 4 tensors (380 B) in 5 files compared: 2 faults",
    ]


def test_as_json(made: Path, call: Any) -> None:
    spoil(made / "a.safetensors")
    said = call("verify a.safetensors merged --json")
    assert said.code == 1
    first, second = json.loads(said.out)
    assert (first["path"], first["kind"], first["tensors"]) == ("a.safetensors", "a task vector", 4)
    assert first["faults"] == [
        {"file": "a.safetensors", "tensor": "norm", "what": "differs from what was written"}
    ]
    assert (second["intact"], second["files"], second["faults"]) == (True, 5, [])


def test_with_its_base(made: Path, call: Any) -> None:
    assert call("verify a.safetensors --base base").code == 0
    said = call("verify a.safetensors --base stranger")
    assert said.code == 1
    assert said.out.count("differs from the base of a.safetensors") == 4


def test_nothing_to_compare_with(made: Path, call: Any) -> None:
    said = call("verify base")
    assert said.code == 1
    assert said.sentence == (
        "base: carries no digests, so there is nothing to verify it against; what taskbasis "
        "writes does"
    )
    assert call("verify").code == 2
    said = call("verify nowhere")
    assert (said.code, said.sentence) == (1, "nowhere: no such file or folder")
    assert call("verify merged --base a").code == 2


def test_what_is_wrong_with_one_path_does_not_hide_the_others(made: Path, call: Any) -> None:
    spoil(made / "a.safetensors")
    said = call("verify -q a.safetensors nowhere merged base")
    assert said.code == 1
    assert said.out.splitlines()[0] == (
        "a.safetensors: tensor 'norm' differs from what was written"
    )
    assert "2 things are wrong" in said.err
    assert "nowhere: no such file" in said.err
    assert "base: carries no digests" in said.err
    said = call("verify nowhere a.safetensors --json")
    assert said.code == 1
    assert [one["intact"] for one in json.loads(said.out)] == [False]
    said = call("verify merged a.safetensors --base base")
    assert said.code == 2
    assert "a.safetensors: tensor 'norm' differs" in said.out


def test_a_memory_cap_that_is_too_small(made: Path, call: Any) -> None:
    said = call("verify a.safetensors --memory 1MB")
    assert said.code == 1
    assert "a memory cap of 1.00 MB is too small: this work needs" in said.sentence
