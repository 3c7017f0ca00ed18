"""The device benchmark runs, compares, and stores what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def test_a_tiny_model(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scripts["report"], "fresh_memory_seconds", lambda: 0.25)
    monkeypatch.setattr(scripts["device"], "COPIED", 1 << 20)
    words = ["--work", str(tmp_path / "work"), "--size", "tiny", "--device", "cpu", "--runs", "1"]
    code = scripts["device"].main([*words, "--workers", "2", "--results", str(tmp_path / "found")])
    said = capsys.readouterr()
    assert code == 0, said
    (path,) = (tmp_path / "found").glob("device-*-tiny.json")
    assert said.out.endswith(f"wrote {path}\n")
    stored = json.loads(path.read_text())
    assert (stored["size"], stored["workers"]) == ("tiny", 2)
    found = stored["jobs"]
    assert list(found) == ["linear_2", "linear_8", "gram_8", "recover on cpu"]
    for name in ("linear_2", "linear_8", "gram_8"):
        assert found[name]["same"] is True
        assert set(found[name]["seconds"]) == {"none", "cpu"}
        assert all(one["low"] > 0 for one in found[name]["seconds"].values())
    to, back = (stored["bytes_per_second"][way] for way in ("to", "from"))
    whole = scripts["checkpoints"].SIZES["tiny"].bytes()
    assert found["linear_2"]["copying_seconds"] == pytest.approx(3 * whole / to + whole / back)
    assert found["gram_8"]["copying_seconds"] == pytest.approx(9 * whole / to)
    assert found["recover on cpu"]["kept_bytes"] == 5 * whole  # the base and four atoms
    assert not (tmp_path / "work" / "device-out").exists()


def test_what_is_not_the_same_is_told(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    device = scripts["device"]
    exact = np.array([[4.0, 1.0], [1.0, 9.0]])
    assert device.same(exact, exact * (1 + 1e-7))
    assert not device.same(exact, exact + 1e-5)
    assert device.same(["a"], ["a"])
    assert not device.same(["a"], ["b"])
    job = device.Job(lambda engine: np.eye(2) * engine, 1, 0)
    assert device.in_turn(job, {"none": 1.0, "cuda": 2.0}, tmp_path / "out", 1)["same"] is False
    assert device.in_turn(job, {"none": 1.0, "cuda": 1.0}, tmp_path / "out", 1)["same"] is True
