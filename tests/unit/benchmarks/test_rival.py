"""mergekit's configuration and command."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import yaml


def test_a_recipe_is_yaml_and_may_hold_any_path(rival: ModuleType) -> None:
    base, tuned = Path("/models/the base: 'a'"), [Path("/models/one"), Path("/models/two")]
    text = rival.recipe("ties", tuned, base, {"weight": 0.5, "density": 0.2}, {"normalize": True})
    each = {"weight": 0.5, "density": 0.2}
    assert yaml.safe_load(text) == {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(one), "parameters": each} for one in tuned],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_a_recipe_holds_nothing_that_was_not_given(rival: ModuleType) -> None:
    found = yaml.safe_load(rival.recipe("linear", [Path("/one")]))
    assert found["models"] == [{"model": "/one"}]
    assert "base_model" not in found
    assert "parameters" not in found


def test_the_commands(rival: ModuleType) -> None:
    words = rival.merging(Path("r.yml"), Path("out"))
    assert words[:2] == ["r.yml", "out"]
    assert {"--no-copy-tokenizer", "--no-write-model-card"} <= set(words)
    words = rival.extracting(Path("base"), Path("tuned"), Path("out"), 16, "proj")
    assert {"--model=tuned", "--base-model=base", "--max-rank=16"} <= set(words)


def test_whether_it_is_installed(rival: ModuleType, tmp_path: Path) -> None:
    assert not rival.Mergekit(tmp_path).installed
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mergekit-yaml").touch()
    assert rival.Mergekit(tmp_path).installed


def test_its_versions_come_from_its_own_python(rival: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho a warning\necho \'{"mergekit": "0.1.5"}\'\n')
    python.chmod(0o755)
    assert rival.Mergekit(tmp_path).versions() == {"mergekit": "0.1.5"}
