"""Heads and embeddings that are one tensor, which a model may store once or twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskbasis.io.tensors import TensorInfo

HEAD = re.compile(r"(^|\.)(lm_head|embed_out|cls\.predictions\.decoder)\.weight$")
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$"
)
_LANGUAGE = re.compile(r"LM|Generation")


def is_tied(config: Mapping[str, Any] | None) -> bool:
    """Whether a config says that the head is the embeddings.

    What says nothing of it is a language model as transformers saves it: tied, unless the model's
    class has no head at all.

    >>> is_tied({"tie_word_embeddings": False}), is_tied({"architectures": ["GPT2LMHeadModel"]})
    (False, True)
    """
    if config is None:
        return False
    said = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    words = [part["tie_word_embeddings"] for part in said if "tie_word_embeddings" in part]
    if words:
        return words[0] is True
    classes = config.get("architectures") or ()
    return bool(classes) and all(_LANGUAGE.search(str(one)) for one in classes)


def is_twin(name: str) -> bool:
    """Whether a tensor is by its name a head or the embeddings of tokens.

    >>> is_twin("lm_head.weight"), is_twin("model.norm.weight")
    (True, False)
    """
    return bool(HEAD.search(name) or EMBEDDING.search(name))


def find_ties(
    infos: Mapping[str, TensorInfo], others: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Heads and embeddings that only others store, and the embeddings that stand for them.

    Args:
        infos: the tensors of a model whose head is tied.
        others: the tensors of all models that it is merged with.
    """
    stored = {n: i for n, i in infos.items() if EMBEDDING.search(n)}
    found = {}
    for name, info in others.items():
        if name in infos or not is_twin(name):
            continue
        alike = [one for one in stored.values() if one.shape[1:] == info.shape[1:]]
        if len(alike) == 1:
            found[name] = alike[0]
    return found
