"""Text into tokens: classes, the next token, or masked tokens as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.errors import FileError, UsageError, ValueProblem
from taskbasis.learn.coding import Labels, Sample, text_of
from taskbasis.learn.losses import IGNORED
from taskbasis.learn.runtime import torch_for
from taskbasis.learn.skeleton import quiet

LENGTH = 128
"""Tokens per sample, unless said otherwise or the model takes fewer."""

MASKED = 0.15
"""The share of tokens that a masked language model is asked for."""

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, without asking the hub.

    Raises:
        FileError: there is none, or it is damaged.
    """
    if not any((folder / name).exists() for name in _FILES):
        raise FileError(
            f"{folder}: holds no tokenizer (such as tokenizer.json); name the folder that does "
            "with --tokenizer"
        )
    with quiet() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{folder}: its tokenizer cannot be read: {error}") from None


def token_limit(config: Any, module: Any) -> int | None:
    """How many tokens a model takes at most; None when it does not say.

    Some keep the first rows of their positions for padding (RoBERTa), which shortens it.
    """
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    for part in module.modules():
        padding = getattr(part, "padding_idx", None)
        if padding is not None and getattr(part, "num_embeddings", None) == most:
            return int(most) - int(padding) - 1
    return int(most)


def chosen_length(asked: int | None, limit: int | None) -> int:
    """How many tokens a sample has at most.

    Raises:
        UsageError: more than the model takes, or fewer than two.

    >>> chosen_length(None, 512), chosen_length(None, 64), chosen_length(256, None)
    (128, 64, 256)
    """
    if asked is None:
        return LENGTH if limit is None else min(LENGTH, limit)
    if asked < 2 or (limit is not None and asked > limit):
        most = "" if limit is None else f" to {limit}, which is what the model takes"
        raise UsageError(f"a length of {asked} tokens cannot be used; give 2{most}")
    return asked


@dataclass(frozen=True)
class TextCoder:
    """Encodes texts for one model.

    Attributes:
        tokenizer: of transformers.
        columns: one column with the text, or two for pairs of texts.
        length: tokens per sample; longer texts are cut.
        words: how many words the model knows; None for any.
        labels: the classes; None for language models, whose labels are tokens.
        segments: whether the model tells the first text of a pair from the second.
        masked: whether tokens are masked, and only they are labels.
        seed: of the masks; sample by sample, so that no other sample matters.
    """

    tokenizer: Any = field(repr=False)
    columns: tuple[str, ...]
    length: int
    words: int | None = None
    labels: Labels | None = None
    segments: bool = False
    masked: bool = False
    seed: int = 0

    def encode(self, number: int, row: Mapping[str, Any], where: str) -> Sample:
        """The tokens of a row, and its label.

        Raises:
            ValueProblem: the row has no text, no known label, a token that the model does not
                know, or too few of them to predict any.
        """
        texts = text_of(row, self.columns, where)
        with quiet():
            found = self.tokenizer(*texts, truncation=True, max_length=self.length)
        wanted = ("input_ids", "token_type_ids") if self.segments else ("input_ids",)
        sample = {name: list(found[name]) for name in wanted if name in found}
        tokens = sample["input_ids"]
        if self.words is not None and max(tokens, default=0) >= self.words:
            raise ValueProblem(
                f"{where}: the tokenizer gives the token {max(tokens)}, but the model knows "
                f"{self.words}; name the tokenizer that it was trained with by --tokenizer"
            )
        if self.labels is not None:
            return sample | {"labels": self.labels.number(row, where)}
        if self.masked:
            sample["input_ids"], sample["labels"] = self._mask(tokens, number, where)
            return sample
        if len(tokens) < 2:
            raise ValueProblem(f"{where}: has {len(tokens)} tokens; there is no next one to learn")
        return sample | {"labels": list(tokens)}

    def _mask(self, tokens: list[int], number: int, where: str) -> tuple[list[int], list[int]]:
        """15 % of the tokens, at least one, become the mask token and are the labels."""
        special = set(self.tokenizer.all_special_ids)
        free = [at for at, token in enumerate(tokens) if token not in special]
        if not free:
            raise ValueProblem(f"{where}: has no token that could be masked")
        rng = np.random.default_rng([self.seed, number])
        drawn = rng.permutation(len(free))[: max(1, round(MASKED * len(free)))]
        chosen = {free[at] for at in drawn}
        mask = self.tokenizer.mask_token_id
        return (
            [mask if at in chosen else token for at, token in enumerate(tokens)],
            [token if at in chosen else IGNORED for at, token in enumerate(tokens)],
        )

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Tensors [n, tokens], padded on the right; a mask only where there is padding."""
        torch = torch_for("a batch of text")
        longest = max(len(sample["input_ids"]) for sample in samples)
        padding = {"input_ids": pad_token(self.tokenizer), "labels": IGNORED}
        batch = {}
        for name, first in samples[0].items():
            if isinstance(first, list):
                filled = [
                    sample[name] + [padding.get(name, 0)] * (longest - len(sample[name]))
                    for sample in samples
                ]
                batch[name] = torch.tensor(filled)
            else:
                batch[name] = torch.tensor([sample[name] for sample in samples])
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        if int(lengths.min()) < longest:
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return batch


def pad_token(tokenizer: Any) -> int:
    """What fills short samples; where a tokenizer has none, its end token: the mask hides it."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0
