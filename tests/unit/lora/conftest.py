"""Adapters on disk, and what they add up to, computed densely."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.io.adapter import open_adapter


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``write_adapter(name, {module: (B, A)}, **config)``: a folder as PEFT saves it.

    A module whose name starts with ``emb`` is an embedding.
    """

    def make(
        name: str,
        pairs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
        more: Mapping[str, NDArray[Any]] = {},
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rank = next(iter(pairs.values()))[1].shape[0]
        content = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config}
        (folder / "adapter_config.json").write_text(json.dumps(content))
        tensors = dict(more)
        for module, (up, down) in pairs.items():
            table = module.rpartition(".")[2].startswith("emb")
            a, b = ("embedding_A", "embedding_B") if table else ("A.weight", "B.weight")
            tensors[f"base_model.model.{module}.lora_{a}"] = np.ascontiguousarray(down)
            tensors[f"base_model.model.{module}.lora_{b}"] = np.ascontiguousarray(up)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


@pytest.fixture
def products() -> Callable[[Path], dict[str, NDArray[np.float64]]]:
    """The delta of every tensor of an adapter, as the reader of adapters forms it, in float64."""

    def form(folder: Path) -> dict[str, NDArray[np.float64]]:
        found = {}
        for name, info in open_adapter(folder).infos.items():
            up, down = info.blob.factors()  # type: ignore[attr-defined]
            found[name] = (up @ down).reshape(info.shape)
        return found

    return form


@pytest.fixture
def config() -> Callable[[Path], dict[str, Any]]:
    """What an adapter's config says."""

    def read(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        return found

    return read
