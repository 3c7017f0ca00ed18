"""A desk to work at: a base, fine-tunes and a stranger in the current folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.cli import run

SHAPES = {"embed.weight": (8, 5), "layers.0.w": (5, 5), "layers.1.w": (5, 5), "norm": (5,)}


@dataclass(frozen=True)
class Answer:
    """What a call of the command line said and returned."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an error, without its prefix."""
        assert self.out == ""
        assert self.err.startswith("Error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err.removeprefix("Error: ").rstrip("\n")


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line; words are split at spaces, unless they come one by one."""

    def called(*words: object) -> Answer:
        parts = str(words[0]).split() if len(words) == 1 else list(map(str, words))
        code = run(parts)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return called


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``base``, the fine-tunes ``a`` to ``d``, and ``stranger``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    random = np.random.default_rng(0)
    base = {name: _draw(random, shape) for name, shape in SHAPES.items()}
    _write(tmp_path / "base", base)
    for number, name in enumerate("abcd", start=1):
        moved = {
            key: value + number * 0.02 * _draw(random, value.shape) for key, value in base.items()
        }
        _write(tmp_path / name, moved)
    _write(tmp_path / "stranger", {name: _draw(random, shape) for name, shape in SHAPES.items()})
    return tmp_path


def _draw(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(random.standard_normal(shape), np.float32)


def _write(folder: Path, tensors: dict[str, Any]) -> None:
    folder.mkdir()
    exact = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    save_file(exact, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "desk", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
