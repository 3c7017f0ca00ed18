"""The folder that PEFT reads: names, patterns, targets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from taskbasis.engine import Engine
from taskbasis.errors import FileError, ValueProblem
from taskbasis.io.adapter import open_adapter
from taskbasis.io.dtypes import BF16, F16, F32
from taskbasis.lora.folder import Head, Module, find_targets, stored, write_adapter
from taskbasis.lora.made import Row

ONE = Engine(workers=1)


def write(out: Path, modules: list[Module], head: Head | None = None) -> tuple[int, Any]:
    def make(module: Module) -> Any:
        up = np.full((module.up[0], module.rank), 2, np.float32)
        down = np.full((module.rank, int(np.prod(module.down))), 3, np.float32)
        return (up, down), Row(module.name, module.rank, 1.0, 0.0)

    return write_adapter(
        out,
        modules,
        make,
        head or Head("base", ("q",)),
        lambda rows: f"{len(rows)} rows",
        F32,
        replace=False,
        inputs=[],
        engine=ONE,
    )


def test_tensors_have_the_names_and_shapes_of_peft(tmp_path: Path) -> None:
    modules = [
        Module("h.q", 2, (5,), (3,)),
        Module("wte", 1, (4,), (9,), True),
        Module("conv", 3, (6, 1, 1), (2, 3, 3)),
    ]
    nbytes, rows = write(tmp_path / "out", modules)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        values = {name: set(file.get_tensor(name).ravel().tolist()) for name in shapes}
        assert set(file.metadata()) == {"format", "taskbasis_digests"}
    assert shapes == {
        "base_model.model.h.q.lora_A.weight": (2, 3),
        "base_model.model.h.q.lora_B.weight": (5, 2),
        "base_model.model.wte.lora_embedding_A": (1, 9),
        "base_model.model.wte.lora_embedding_B": (4, 1),
        "base_model.model.conv.lora_A.weight": (3, 2, 3, 3),
        "base_model.model.conv.lora_B.weight": (6, 3, 1, 1),
    }
    assert all(found == ({3.0} if "_A" in name else {2.0}) for name, found in values.items())
    assert nbytes == 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    assert [row.module for row in rows] == ["h.q", "wte", "conv"]
    assert (tmp_path / "out" / "README.md").read_text() == (
        '---\nlibrary_name: peft\nbase_model: "base"\ntags:\n- lora\n---\n\n3 rows\n'
    )


def test_patterns_name_one_module_each(tmp_path: Path, config: Callable[..., Any]) -> None:
    """Names that end alike, and dots that a regular expression takes for anything."""
    ranks = {"a.q": 1, "x.a.q": 4, "a_q": 4, "b+c.q": 2, "q": 3}
    write(tmp_path / "out", [Module(name, rank, (5,), (6,)) for name, rank in ranks.items()])
    said = config(tmp_path / "out")
    assert said["r"] == 4
    for name, rank in ranks.items():
        hits = {
            value
            for pattern, value in said["rank_pattern"].items()
            if re.match(rf"(.*\.)?({pattern})$", name)  # as PEFT asks
        }
        assert hits == ({rank} if rank != 4 else set()), name
    found = open_adapter(tmp_path / "out").infos
    assert {name: info.blob.rank for name, info in found.items()} == {  # type: ignore[attr-defined]
        f"{name}.weight": rank for name, rank in ranks.items()
    }
    assert {info.blob.scaling for info in found.values()} == {1.0}  # type: ignore[attr-defined]


def test_nothing_is_half_written(tmp_path: Path, leftovers: Callable[[Path], list[str]]) -> None:
    def fail(module: Module) -> Any:
        raise ValueProblem("no")

    with pytest.raises(ValueProblem, match="no"):
        write_adapter(
            tmp_path / "out",
            [Module("q", 1, (2,), (2,))],
            fail,
            Head("", ("q",)),
            lambda rows: "",
            F32,
            replace=False,
            inputs=[],
            engine=ONE,
        )
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []
    with pytest.raises(ValueProblem, match="no module is left to adapt"):
        write(tmp_path / "out", [])


def test_targets_are_short_where_that_is_exact() -> None:
    assert find_targets(["h.0.q", "h.1.q"], ["h.0.k", "norm"]) == ("q",)
    assert find_targets(["h.0.q", "h.1.q"], ["h.2.q"]) == ("h.0.q", "h.1.q")
    assert find_targets(["h.0.q", "head"], []) == ("head", "q")
    assert find_targets(["h.0.q", "h.1.q"]) == ("h.0.q", "h.1.q")  # the others are not known
    # A block that is called as a layer elsewhere: PEFT would try to adapt the block.
    assert find_targets(["h.0.mlp.output"], ["h.0.output", "h.0"]) == ("h.0.mlp.output",)


def test_a_target_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(FileError) as caught:
        find_targets(["a.q"], ["x.a.q"])
    assert str(caught.value) == (
        "module 'a.q' cannot be told from another whose name ends in it; leave both out of the "
        "adapter"
    )
    with pytest.raises(FileError):
        find_targets(["q"], ["a.q"])


def test_factors_are_rounded_to_nearest_even() -> None:
    exact = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8]])
    assert stored(exact, BF16, "q").astype(np.float64).tolist() == [[1.0, 1 + 2.0**-6]]
    assert stored(exact.T, F32, "q").flags.c_contiguous
    with pytest.raises(ValueProblem, match="q: a value of its factors is too large for float16"):
        stored(np.array([[70000.0]]), F16, "q")
