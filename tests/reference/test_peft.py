"""Adapters have the tensors that PEFT expects, for real models of three kinds.

``peft_names.json`` was recorded once with PEFT: the names and shapes of the tensors that it saves
for rank 2 of the same models, adapted wherever they can be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.io.folder import open_tensors
from taskbasis.lora import add_adapters, extract_lora
from taskbasis.vectors import TaskVector

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RECORD = json.loads((Path(__file__).parent / "peft_names.json").read_text())["adapters"]
SIZES = {
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=24,
            n_embd=8,
            n_layer=1,
            n_head=2,
            n_positions=10,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
    "bert": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(**SIZES, max_position_embeddings=10)
    ),
}


@pytest.fixture(params=sorted(MODELS))
def family(
    request: pytest.FixtureRequest, tmp_path: Path, quiet_transformers: Any
) -> tuple[str, Path, Path]:
    """The kind, and the folders of a model and of one tuned from it."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned")
    return request.param, tmp_path / "base", tmp_path / "tuned"


def tensors(folder: Path) -> dict[str, list[int]]:
    store = open_tensors(folder / "adapter_model.safetensors")
    return {name: list(info.shape) for name, info in store.items()}


def test_tensors_are_called_and_shaped_as_peft_does(
    family: tuple[str, Path, Path], tmp_path: Path
) -> None:
    kind, base, tuned = family
    vector = TaskVector(base, tuned)
    extract_lora(base, vector, tmp_path / "out", 2, embeddings=True, head=True)
    assert tensors(tmp_path / "out") == RECORD[kind]
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["fan_in_fan_out"] is (kind == "gpt2")
    assert said["task_type"] == (None if kind == "bert" else "CAUSAL_LM")


def test_without_a_request_embeddings_and_head_stay(
    family: tuple[str, Path, Path], tmp_path: Path
) -> None:
    kind, base, tuned = family
    made = extract_lora(base, TaskVector(base, tuned), tmp_path / "out", 2)
    assert tensors(tmp_path / "out") == {
        name: shape
        for name, shape in RECORD[kind].items()
        if "embedding" not in name and "lm_head" not in name
    }
    assert made.norms["embedding"] > 0
    assert made.norms["one axis"] > 0


def test_at_full_rank_the_tuned_weights_come_back(
    family: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Also twice as an exact sum, halved: what goes out comes in."""
    _, base, tuned = family
    made = extract_lora(base, TaskVector(base, tuned), tmp_path / "out", 8, embeddings=True)
    assert made.error < 1e-6
    halves = {"a": tmp_path / "out", "b": tmp_path / "out"}
    add_adapters(halves, [0.75, 0.25], tmp_path / "sum", base=base)
    wanted = TaskVector(base, tuned).tensors()
    for folder in ("out", "sum"):
        found = TaskVector(base, tmp_path / folder).tensors()
        assert len(found) == len(made.rows)
        for name, value in found.items():
            np.testing.assert_allclose(value, wanted[name], atol=1e-6)
