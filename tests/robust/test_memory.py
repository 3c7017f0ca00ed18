"""The memory cap, held against the peak of real processes, or refused before anything is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.engine import Engine, load_kernels, resident_bytes
from taskbasis.errors import MemoryCapError
from taskbasis.passes import writing
from taskbasis.vectors import Checkpoint, TaskVector

CODE = """
import sys
from taskbasis.cli import run
from taskbasis.engine import resident_bytes
import taskbasis.vectors, taskbasis.library, taskbasis.lora, taskbasis.merging
code = run(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak.split()[1]) * 1024)
sys.exit(code)
"""
TENSORS, SIDE = 6, 1024  # 25 MB a model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    base = [random.standard_normal((SIDE, SIDE)).astype(np.float32) for _ in range(TENSORS)]
    for number, name in enumerate(("base", "a", "b", "c", "d")):
        tensors: dict[str, Any] = {}
        for at, value in enumerate(base):
            noise = random.standard_normal((SIDE, 1)).astype(np.float32)
            tensors[f"layers.{at}.q.weight"] = value + np.float32(0.01 * number) * noise
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
        (root / name / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    return root


def process(models: Path, words: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *words.split(), "-o", str(out), "-j", "2"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=models, capture_output=True, text=True, env=alone)
    done.stderr = done.stderr.replace("compiling the kernels for this machine, once\n", "")
    return done


VERBS = (
    "add base a b c d",
    "merge base a b c d --method ties",
    "basis fit a b c d --base base -k 2",
    "lora extract base a --rank 4",
)


@pytest.mark.parametrize("words", VERBS)
@pytest.mark.promise("A cap on memory is obeyed, or refused before anything is read.")
def test_the_cap_is_obeyed(models: Path, tmp_path: Path, words: str) -> None:
    """Refused at 1 MB with what is needed; a cap that is larger by little is kept."""
    refused = process(models, f"{words} --memory 1MB", tmp_path / "no")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    found = re.search(r"a memory cap of 1.00 MB is too small: .* needs ([\d.]+) MB", refused.stderr)
    assert found, refused.stderr
    assert os.listdir(tmp_path) == []
    cap = int(float(found[1]) * 1e6 * 1.15)
    kept = process(models, f"{words} --memory {cap}", tmp_path / "out")
    assert kept.returncode == 0, kept.stderr
    peak = int(kept.stdout.rpartition("peak ")[2])
    assert peak <= cap
    assert peak < (TENSORS * SIDE * SIDE * 4) * 5 + 150e6, "the models are not held at once"


def test_copies_are_made_by_no_more_workers_than_fit(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    real = writing._copy

    def copy(copies: Any, sink: Any, engine: Engine) -> None:
        found.append(engine.workers)
        real(copies, sink, engine)

    monkeypatch.setattr(writing, "_copy", copy)
    load_kernels()
    vector = TaskVector(models / "base", models / "a")
    engine = Engine(64, resident_bytes() + (150 << 20))
    (Checkpoint(models / "base") + vector).save(tmp_path / "out", engine=engine)
    assert len(found) == 1
    assert 1 <= found[0] < 64


def test_few_workers_are_granted_at_any_rate_where_that_is_asked() -> None:
    engine = Engine(8, memory=1 << 20)
    assert engine.within(1 << 20, least=1).workers == 1
    with pytest.raises(MemoryCapError, match=r"a memory cap of 1\.05 MB is too small"):
        engine.within(1 << 20)
