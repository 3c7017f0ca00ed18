"""A desk of honest files that attacks are made from, and what every refusal has to keep to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.cli import run

SHAPES = {
    "model.embed.weight": (8, 6),
    "model.layers.0.w.weight": (6, 6),
    "model.norm.weight": (6,),
}
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NO_ERRORS = ("warning: ", "compiling the kernels")
RECIPE = """\
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.5}}
dtype: float32
"""


@dataclass(frozen=True)
class Refusal:
    """What the command line said of a refused attack."""

    code: int
    text: str


Refuse = Callable[..., Refusal]


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tunes, a vector, a basis, an adapter and a recipe; all of them open."""
    folder = tmp_path_factory.mktemp("honest")
    random = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        (folder / name).mkdir()
        tensors = {n: random.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text('{"model_type": "desk"}')
    save_adapter(folder / "adapter")
    save_adapter(folder / "fine")
    (folder / "recipe.yml").write_text(RECIPE)
    with inside(folder):
        for words in (
            "extract base a -o v.safetensors -q",
            "basis fit a b --base base -k 1 --method svd -o lib.safetensors -q",
        ):
            assert run(words.split()) == 0
    return folder


def save_adapter(folder: Path, **config: Any) -> None:
    """A LoRA adapter of one matrix."""
    folder.mkdir(exist_ok=True)
    known = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    name = "base_model.model.model.layers.0.w"
    factors = {"lora_A": np.ones((1, 6), np.float32), "lora_B": np.ones((6, 1), np.float32)}
    tensors = {f"{name}.{key}.weight": value for key, value in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With ``folder`` as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def desk(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the honest files, as the current folder."""
    found = tmp_path / "desk"
    shutil.copytree(honest, found)
    monkeypatch.chdir(found)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return found


@pytest.fixture
def refuse(desk: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """``refuse(words, match)``: one sentence is said, the code is 1 or 2, nothing is left.

    Nothing on either stream steers a terminal, and the refusal comes within ten seconds.
    """

    def listing() -> list[str]:
        return sorted(os.fsdecode(p) for p in desk.rglob("*"))

    def called(words: str, match: str = "", lines: int = 1) -> Refusal:
        before = listing()
        capfd.readouterr()
        with within(10):
            code = run(words.split())
        said = capfd.readouterr()
        assert code in (1, 2), (words, code, said)
        errors = [line for line in said.err.splitlines() if not line.startswith(_NO_ERRORS)]
        text = "\n".join(errors)
        assert text.startswith("Error: "), (words, said)
        assert len(errors) <= lines or lines == 0, said.err[:2000]
        assert "Traceback" not in said.err
        assert not STEERING.search(said.out + said.err), repr(said)
        assert len(said.out + said.err) < 4000, (words, len(said.err))
        assert re.search(match, text), (words, match, text)
        assert listing() == before, words
        return Refusal(code, text)

    return called


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails what takes longer, waiting for a pipe included."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
