"""Recipes for models of different vocabularies, and the models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_SPECIAL = ["<unk>", "</s>"]
_COMMON = [f"w{n}" for n in range(40)]
WORDS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "base": ([*_SPECIAL, *_COMMON, "only-base", "base-and-b"], []),
    # In another order, with one word of its own and two tokens that were added.
    "a": ([*_SPECIAL, *reversed(_COMMON), "only-a"], ["<a>", "<a-and-c>"]),
    "b": ([*_SPECIAL, *_COMMON[:30], "base-and-b"], []),
    "c": ([*_SPECIAL, *_COMMON[10:], *_COMMON[:10], "base-and-b"], ["<a-and-c>"]),
}
"""The words of each model, and what was added to its tokenizer."""
PADDED = {"c": 8}
"""How many rows a model has beyond its tokens."""
_TOKENS = re.compile(
    r"(embed_tokens|lm_head|wte|word_embeddings|predictions\.decoder)\.weight$|predictions\.bias$"
)
TEXTS = ("w1 w2 w39", "w3 base-and-b <a-and-c> w4", "only-a", "nothing known")

SAID = """
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.3}}}}
"""
LINEAR = "merge_method: linear\nbase_model: {base}\ndtype: float32\nmodels:" + SAID
LINEAR += "  - {{model: {base}, parameters: {{weight: 0.2}}}}\n"
TIES = (
    """
merge_method: ties
base_model: {base}
dtype: float32
out_dtype: bfloat16
parameters: {{density: 0.6, normalize: true}}
models:"""
    + SAID
)
TOKENS = """
tokenizer:
  source: base
  pad_to_multiple_of: 16
  tokens:
    w1: {{source: {a}, force: true}}
    w2: {{source: {{kind: model_token, model: {b}, token: w5}}, force: true}}
    w3: {{source: {{kind: model_token, model: {a}, token_id: 7}}, force: true}}
    w35: {{source: {a}}}
    only-base: {{source: {{kind: zero}}}}
"""
NEW = """
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    <new>: {{source: {{kind: model_token, model: {base}, token: w9}}}}
    <a>: {{source: {{kind: zero}}}}
"""
NO_BASE = """
merge_method: linear
dtype: float32
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: 0.3}}}}
  - {{model: {c}, parameters: {{weight: 0.2}}}}
tokenizer_source: union
"""
UNION, BASE, OWN = (f"tokenizer_source: {one}\n" for one in ("union", "base", "{a}"))
RECIPES: Mapping[str, str] = {
    "union of vocabularies": LINEAR + UNION,
    "vocabulary of the base, ties": TIES + BASE,
    "vocabulary of a model": LINEAR + OWN,
    "forced tokens and padding": LINEAR + TOKENS,
    "a new token": LINEAR + NEW,
    "union without a base": NO_BASE,
    "union with a padded model": LINEAR.replace("{a}", "{c}") + UNION,
}
"""For each family."""


def rows_of(name: str) -> int:
    """How many rows a model has for its tokens."""
    return len(WORDS[name][0]) + len(WORDS[name][1]) + PADDED.get(name, 0)


def make(kind: Callable[[int], Any], folder: Path) -> dict[str, str]:
    """A base and three models, the rows of whose common tokens are alike.

    Args:
        kind: makes a model of so many rows.
        folder: where they are written.
    """
    torch.manual_seed(0)
    start = kind(rows_of("base")).state_dict()
    found = {}
    for seed, name in enumerate(WORDS):
        torch.manual_seed(seed)
        model = kind(rows_of(name))
        own = model.state_dict()
        for key, values in own.items():
            if values.shape == start[key].shape:
                values.copy_(start[key])
            if name != "base" and values.is_floating_point():
                values.add_(0.01 * torch.randn_like(values))
        model.load_state_dict(own)
        found[name] = str(folder / name)
        model.save_pretrained(found[name])
        _with_pooler(Path(found[name]) / "model.safetensors", seed)
        _tokenizer(name).save_pretrained(found[name])
    return found


def _with_pooler(path: Path, seed: int) -> None:
    """mergekit refuses a BERT with a head unless it has a pooler, too."""
    held = load_file(path)
    if any(name.startswith("bert.") for name in held):
        width = held["bert.embeddings.LayerNorm.weight"].shape[0]
        torch.manual_seed(seed)
        more = {"weight": torch.randn(width, width), "bias": torch.randn(width)}
        held |= {f"bert.pooler.dense.{key}": value for key, value in more.items()}
        save_file(held, path, {"format": "pt"})


def _tokenizer(name: str) -> Any:
    words, added = WORDS[name]
    made = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(list(_SPECIAL))
    made.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def vocabulary(folder: Path) -> dict[str, int]:
    """The tokens of a model, as transformers reads them."""
    return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def by_token(
    held: Mapping[str, torch.Tensor], own: Mapping[str, int], other: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Tensors of a model whose tokens have other numbers, by those of another model.

    Rows of tokens that it lacks, which others' stand in for, have the size of its largest; rows
    without a token come last, as they are.
    """
    common = [(other[token], number) for token, number in own.items() if token in other]
    to, since = zip(*common, strict=True)
    found = {}
    for name, values in held.items():
        found[name] = values
        if _TOKENS.search(name):
            rows = values.abs().amax(0).expand(max(other.values()) + 1, *values.shape[1:]).clone()
            rows[list(to)] = values[list(since)]
            found[name] = torch.cat([rows, values[max(own.values()) + 1 :]])
    return found


def padded(
    held: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors with as many rows for tokens as others; the new ones have the size of the largest."""
    found = dict(held)
    for name, values in held.items():
        if _TOKENS.search(name) and name in like:
            more = max(like[name].shape[0] - values.shape[0], 0)
            rows = values.abs().amax(0).expand(more, *values.shape[1:])
            found[name] = torch.cat([values, rows])[: like[name].shape[0]]
    return found


def tokenizers_differ(ours: Path, theirs: Path, numbered: bool) -> list[str]:
    """What differs between the tokenizers of two models, opened by transformers."""
    mine, other = (AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs))
    found = []
    one, two = mine.get_vocab(), other.get_vocab()
    if one.keys() != two.keys():
        found.append(f"tokens differ: {sorted(one.keys() ^ two.keys())[:5]}")
    elif numbered and one != two:
        found.append(f"numbers differ: {[t for t in one if one[t] != two[t]][:5]}")
    for text in TEXTS if numbered else ():
        if mine.tokenize(text) != other.tokenize(text):
            found.append(f"{text!r} is {mine.tokenize(text)} and {other.tokenize(text)}")
    if mine.special_tokens_map != other.special_tokens_map:
        found.append("special tokens differ")
    return found
