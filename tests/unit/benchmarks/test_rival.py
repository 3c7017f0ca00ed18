"""mergekit's configuration and command."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import yaml


def test_the_recipe(rival: ModuleType) -> None:
    base, tuned = Path("/models/the base: 'a'"), [Path("/models/one"), Path("/models/two")]
    recipe = yaml.safe_load(rival.task_arithmetic(base, tuned, 0.5, "float32"))
    assert recipe == {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(one), "parameters": {"weight": 0.5}} for one in tuned],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_the_command_copies_no_tokenizer_and_writes_no_card(
    rival: ModuleType, tmp_path: Path
) -> None:
    words = rival.Mergekit(tmp_path).command(Path("r.yml"), Path("out"), "5B")
    assert words[:3] == [str(tmp_path / "bin" / "mergekit-yaml"), "r.yml", "out"]
    assert {"--no-copy-tokenizer", "--no-write-model-card"} <= set(words)
    assert words[-2:] == ["--out-shard-size", "5B"]


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
