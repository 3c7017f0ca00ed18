"""Fixtures for tests and docstrings alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def tiny_checkpoints(tmp_path: Path) -> Path:
    """A base and two fine-tunes of three tensors each, as Hugging Face folders."""
    values = {"base": (0.0, 0.0), "math": (1.0, 1.0), "code": (1.0, 2.0)}
    for name, bias in values.items():
        folder = tmp_path / name
        folder.mkdir()
        tensors = {
            "weight": np.full((2, 2), sum(bias), np.float32),
            "bias": np.array(bias, np.float32),
            "steps": np.array(7, np.int64),
        }
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "tiny", "dtype": "float32"}\n')
    return tmp_path
