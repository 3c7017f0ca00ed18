"""A method is one file: the page that says so, followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import taskbasis

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-method.md"
CODE, CHECK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def run(where: Path, *words: str) -> str:
    """What Python says with another folder's packages before all others."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(where)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(write_folder: Callable[..., Path]) -> list[Path]:
    deltas = [np.array([1, -1, 1, 9]), np.array([2, 2, 2, -2])]
    base = np.arange(4, dtype=np.float32)
    found = [write_folder("base", {"w": base})]
    return found + [
        write_folder(f"t{t}", {"w": (base + delta).astype(np.float32)})
        for t, delta in enumerate(deltas)
    ]


def check_merge(where: Path, models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*map(str, models), "-o", str(out), "--method", "clipped_sum", "--set", "limit=1.0"]
    run(where, "-m", "taskbasis", "merge", *words)
    size = np.sqrt((1 + 1 + 1 + 81) / 4)
    wanted = np.array([0 + 1 + 2, 1 - 1 + 2, 2 + 1 + 2, 3 + size - 2])
    np.testing.assert_allclose(load_file(out / "model.safetensors")["w"], wanted, rtol=1e-6)


def test_a_file_in_the_folder_is_all_it_takes(models: list[Path], tmp_path: Path) -> None:
    where = tmp_path / "src"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(taskbasis.__file__).parent, where / "taskbasis", ignore=ignored)
    target = CODE.splitlines()[0].removeprefix("# ")
    (where / target).write_text(CODE, encoding="utf-8")
    run(where, "-c", CHECK)
    assert "clipped_sum" in run(where, "-m", "taskbasis", "methods")
    assert "`sum_t clip(tau_t, limit rms_t)`" in run(
        where, "-m", "taskbasis", "methods", "--markdown"
    )
    assert "--set limit=3.0" in run(where, "-m", "taskbasis", "methods", "clipped_sum")
    check_merge(where, models, tmp_path)


def test_so_does_an_entry_point_of_another_package(models: list[Path], tmp_path: Path) -> None:
    where = tmp_path / "site"
    package, info = where / "my_package", where / "my_package-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "clipped_sum.py").write_text(CODE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (entry,) = re.findall(r"^clipped_sum = \"(.*)\"$", PAGE.read_text(encoding="utf-8"), re.M)
    (info / "entry_points.txt").write_text(
        f"[taskbasis.methods]\nclipped_sum = {entry}\nbroken = my_package.nothing:Method\n"
        "stranger = my_package.clipped_sum:UsageError\n"
    )
    run(where, "-c", CHECK)
    check_merge(where, models, tmp_path)
    said = run(where, "-m", "taskbasis", "methods")
    assert "Of other packages" in said
    assert entry in said
    tried = "from taskbasis import TaskbasisError, method\ntry: method({!r})\n"
    tried += "except TaskbasisError as error: print(error)"
    assert "my_package.nothing:Method does not load" in run(where, "-c", tried.format("broken"))
    assert "UsageError is no taskbasis Method" in run(where, "-c", tried.format("stranger"))
    assert "did you mean 'clipped_sum'?" in run(where, "-c", tried.format("clipped_sums"))
