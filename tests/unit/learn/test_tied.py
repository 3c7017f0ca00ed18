"""A weight under two names in one file is refused; under one name it is scored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from taskbasis.errors import UsageError
from taskbasis.learn.skeleton import load

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GPT-2 whose head is its embedding, as transformers stores it: once."""
    config = transformers.GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, head: Any) -> None:
    state = load_file(folder / "model.safetensors")
    assert HEAD not in state
    save_file({**state, HEAD: head(state[EMBEDDING])}, folder / "model.safetensors")


def test_one_name_is_scored_once(model: Path) -> None:
    made = load(model, "GPT2LMHeadModel")
    assert list(made.names.values()).count(EMBEDDING) == 1
    assert HEAD not in made.names.values()
    assert made.module.lm_head.weight is made.module.transformer.wte.weight


def test_two_names_of_one_weight_are_refused(model: Path) -> None:
    change(model, torch.clone)
    with pytest.raises(UsageError, match=rf"twice, as '{EMBEDDING}' and '{HEAD}'; save it again"):
        load(model, "GPT2LMHeadModel")


def test_a_head_of_its_own_is_no_second_name(model: Path) -> None:
    change(model, lambda embedding: embedding + 1)
    made = load(model, "GPT2LMHeadModel")
    assert {EMBEDDING, HEAD} <= set(made.names.values())
