"""Attacks on memory and time, in processes of their own that may not have much of either."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MEMORY = 3 << 30
"""Of addresses, of which numpy and numba alone reserve half a gigabyte."""


def header(raw: bytes) -> Callable[[Path], object]:
    def make(desk: Path) -> None:
        content = struct.pack("<Q", len(raw)) + raw
        (desk / "a" / "model.safetensors").write_bytes(content)

    return make


def zeros(name: str, size: int) -> Callable[[Path], object]:
    """A file of nothing, which takes no room on the disk."""

    def make(desk: Path) -> None:
        with (desk / name).open("wb") as file:
            file.truncate(size)

    return make


def vast(desk: Path) -> None:
    """An honest header of an exabyte, and a base like it."""
    entry = {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}
    for model in ("a", "base"):
        raw = json.dumps({"w": entry}).encode()
        (desk / model / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


TENS = 10_000_000
ATTACKS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "lists": (header(b'{"a":' + b"[]," * (TENS // 3)), "show a", "Error: a/model.safetensors"),
    "entries": (
        header(b"{" + b",".join(b'"%d":1' % n for n in range(TENS // 10)) + b"}"),
        "extract base a -o out",
        "Error: a/model.safetensors",
    ),
    "metadata": (
        header(b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(TENS // 9)) + b"}}"),
        "show a",
        "Error: a/model.safetensors",
    ),
    "a terabyte of header and data": (
        zeros("a/model.safetensors", 2**40),
        "show a",
        "not valid JSON",
    ),
    "an exabyte": (vast, "extract base a -o out", "truncated"),
    "a config of gigabytes": (
        zeros("adapter/adapter_config.json", 2**35),
        "add base adapter -o out",
        "larger than",
    ),
    "a recipe of gigabytes": (zeros("recipe.yml", 2**35), "merge recipe.yml out", "larger than"),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_little_memory_and_time_are_enough_to_refuse(desk: Path, case: str) -> None:
    attack, words, match = ATTACKS[case]
    attack(desk)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))

    done = subprocess.run(
        [sys.executable, "-m", "taskbasis", *words.split()],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limited,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert match in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert not (desk / "out").exists()
    assert not [path for path in desk.iterdir() if path.name.startswith(".")]
