"""Which tensors are heads and embeddings, and which models tie them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taskbasis.io.dtypes import F32
from taskbasis.io.tensors import ArrayBlob, TensorInfo
from taskbasis.ties import find_ties, is_tied


def infos(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    blob = ArrayBlob(np.zeros(0, np.uint8))
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorInfo(name, F32, shape, blob) for name, shape in named.items()}


@pytest.mark.parametrize(("config", "tied"), [
    (None, False),
    ({}, False),
    ({"tie_word_embeddings": True}, True),
    ({"tie_word_embeddings": False, "architectures": ["GPT2LMHeadModel"]}, False),
    ({"tie_word_embeddings": 1}, False),
    ({"text_config": {"tie_word_embeddings": True}}, True),
    ({"architectures": ["GPT2LMHeadModel"]}, True),
    ({"architectures": ["T5ForConditionalGeneration"]}, True),
    ({"architectures": ["LlamaForSequenceClassification"]}, False),
    ({"architectures": ["BertModel"]}, False),
    ({"architectures": []}, False),
])  # fmt: skip
def test_what_a_config_says(config: Any, tied: bool) -> None:
    assert is_tied(config) is tied


def test_embeddings_stand_for_the_head() -> None:
    mine = infos(model__embed_tokens__weight=(8, 4), model__norm__weight=(4,))
    theirs = infos(lm_head__weight=(8, 4), model__extra__weight=(8, 4), lm_head__bias=(8,))
    found = find_ties(mine, {**mine, **theirs})
    assert {name: info.name for name, info in found.items()} == {
        "lm_head.weight": "model.embed_tokens.weight"
    }


def test_rows_may_differ_but_columns_may_not() -> None:
    head = infos(lm_head__weight=(9, 4))
    assert find_ties(infos(wte__weight=(8, 4)), head)
    assert not find_ties(infos(wte__weight=(8, 5)), head)


def test_embeddings_under_several_names() -> None:
    """T5 stores one table, or the same one three times."""
    more = infos(encoder__embed_tokens__weight=(8, 4), decoder__embed_tokens__weight=(8, 4))
    found = find_ties(infos(shared__weight=(8, 4)), more)
    assert {info.name for info in found.values()} == {"shared.weight"}
    assert found.keys() == more.keys()


def test_nothing_is_guessed_of_two_tables() -> None:
    two = infos(shared__weight=(8, 4), wte__weight=(8, 4))
    assert find_ties(two, infos(lm_head__weight=(8, 4))) == {}
    assert find_ties(infos(norm__weight=(4,)), infos(lm_head__weight=(8, 4))) == {}
