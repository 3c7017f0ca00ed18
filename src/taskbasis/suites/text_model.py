"""The encoder of the text suite: a given one, or a small BERT that learns from the texts.

Fine-tuning moves the encoder alone. A task's head is a logistic regression on the frozen base's
features (the mean over a sentence's tokens) and is never trained again, so all models share their
heads and can be added.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, require
from taskbasis.learn.skeleton import load_config, quiet

PURPOSE = "the text suite"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MASKED = 0.15


@dataclass(frozen=True)
class TextSettings:
    """How the suite's models are made; folders made with other settings are not reused.

    Attributes:
        max_length: tokens of a sentence, at most.
        steps, rate, batch: AdamW for every task.
        head_texts: training sentences that a head is fitted on, at most.
        head_strength: inverse regularisation (scikit-learn's C) of the heads.
        head_scale: what a head's logits are multiplied by, so that gradients flow.
        hidden, layers, attention_heads, words: the size of the small BERT.
        pretrain_steps, pretrain_rate: of its masked language modelling.
        validation, test: sentences of a task that are scored, at most.
    """

    max_length: int = 32
    steps: int = 150
    rate: float = 5e-5
    batch: int = 32
    head_texts: int = 2000
    head_strength: float = 0.01
    head_scale: float = 1.0
    hidden: int = 128
    layers: int = 2
    attention_heads: int = 4
    words: int = 6000
    pretrain_steps: int = 400
    pretrain_rate: float = 1e-3
    validation: int = 200
    test: int = 500


@dataclass(frozen=True)
class Reader:
    """Turns sentences into batches of tokens: a tokenizer and how long a sentence may be."""

    tokenizer: Any
    max_length: int

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of every sentence, special ones included."""
        found = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=False
        )
        return [list(tokens) for tokens in found["input_ids"]]

    def batch(self, tokens: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Token numbers and mask [n, longest], padded at the end."""
        torch = require("torch", "demo", PURPOSE)
        width = max(map(len, tokens))
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(tokens), width), padding, dtype=torch.long)
        mask = torch.zeros((len(tokens), width), dtype=torch.long)
        for row, found in enumerate(tokens):
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask


def features(encoder: Any, batch: tuple[Any, Any]) -> Any:
    """[n, hidden] the mean over each sentence's tokens after the last layer.

    Args:
        encoder: the module.
        batch: token numbers [n, longest], and a mask of that shape or None.
    """
    ids, mask = batch
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    if mask is None:
        return hidden.mean(1)
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def all_features(
    encoder: Any, reader: Reader, tokens: Sequence[Sequence[int]], size: int = 64
) -> NDArray[np.float32]:
    """Features of many sentences, those of like length together; without gradients."""
    torch = require("torch", "demo", PURPOSE)
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    found: list[Any] = [None] * len(tokens)
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            rows = features(encoder, reader.batch([tokens[place] for place in part])).numpy()
            for place, row in zip(part, rows, strict=True):
                found[place] = row
    return np.asarray(found, dtype=np.float32)


def load_encoder(folder: Path) -> tuple[Any, Any]:
    """Encoder (without a pooling layer, where its class lets us) and tokenizer of a folder.

    Raises:
        FileError: the folder holds no encoder or no tokenizer that transformers can open.
    """
    config = load_config(folder)
    with quiet() as transformers:
        try:
            encoder = transformers.AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, **_unpooled(config)
            )
            return encoder.float().eval(), load_tokenizer(folder)
        except (OSError, ValueError) as error:
            raise FileError(f"{folder} cannot be opened by transformers: {error}") from None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    with quiet() as transformers:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def loader_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The class in transformers of a saved encoder, and what it is to be opened with."""
    config = load_config(folder)
    with quiet() as transformers:
        return transformers.MODEL_MAPPING[type(config)].__name__, _unpooled(config)


def _unpooled(config: Any) -> dict[str, Any]:
    """What leaves the pooling layer out, for the classes that have one."""
    with quiet() as transformers:
        known = inspect.signature(transformers.MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def new_tokenizer(texts: Iterable[str], words: int, max_length: int) -> Any:
    """A WordPiece tokenizer of the commonest words and of all their letters.

    Equal texts give an equal vocabulary: words of equal count stand in alphabetical order.
    """
    tokenizers = require("tokenizers", "demo", PURPOSE)
    transformers = require("transformers", "demo", PURPOSE)
    normalise = tokenizers.normalizers.BertNormalizer(lowercase=True)
    split = tokenizers.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split.pre_tokenize_str(normalise.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    common = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    entries = dict.fromkeys([*_SPECIAL, *letters, *(f"##{x}" for x in letters), *common])
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalise, split
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=max_length,
    )  # fmt: skip


def new_encoder(
    reader: Reader, tokens: Sequence[Sequence[int]], seed: int, settings: TextSettings
) -> Any:
    """A small BERT, pre-trained on the sentences by guessing masked tokens."""
    torch = require("torch", "demo", PURPOSE)
    transformers = require("transformers", "demo", PURPOSE)
    config = transformers.BertConfig(
        vocab_size=len(reader.tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.attention_heads,
        intermediate_size=2 * settings.hidden,
        max_position_embeddings=settings.max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForMaskedLM(config)
    optimiser, schedule = _optimiser(torch, model, settings.pretrain_rate, settings.pretrain_steps)
    order = torch.Generator().manual_seed(1000 * seed)
    model.train()
    for _ in range(settings.pretrain_steps):
        chosen = torch.randperm(len(tokens), generator=order)[: 2 * settings.batch]
        ids, mask = reader.batch([tokens[place] for place in chosen.tolist()])
        hidden = (torch.rand(ids.shape, generator=order) < _MASKED) & (mask == 1)
        hidden[:, 0] = True  # so that no batch is without a masked token
        wanted = torch.where(hidden, ids, -100)
        shown = torch.where(hidden, reader.tokenizer.mask_token_id, ids)
        loss = model(input_ids=shown, attention_mask=mask, labels=wanted).loss
        _step(torch, model, optimiser, schedule, loss)
    model.eval()
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    encoder.load_state_dict(model.bert.state_dict())
    return encoder.eval()


def tune(
    encoder: Any,
    reader: Reader,
    head: tuple[Any, Any],
    data: tuple[Sequence[Sequence[int]], NDArray[np.int64]],
    seed: int,
    settings: TextSettings,
) -> None:
    """Fine-tune the encoder in place: cross-entropy through a frozen head, AdamW."""
    torch = require("torch", "demo", PURPOSE)
    tokens, classes = data[0], torch.tensor(data[1])
    weight, bias = (torch.tensor(array) for array in head)
    optimiser, schedule = _optimiser(torch, encoder, settings.rate, settings.steps)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout, where the encoder has any
    encoder.train()
    for _ in range(settings.steps):
        chosen = torch.randperm(len(tokens), generator=order)[: settings.batch]
        batch = reader.batch([tokens[place] for place in chosen.tolist()])
        logits = features(encoder, batch) @ weight + bias
        loss = torch.nn.functional.cross_entropy(logits, classes[chosen])
        _step(torch, encoder, optimiser, schedule, loss)
    encoder.eval()


def _optimiser(torch: Any, module: Any, rate: float, steps: int) -> tuple[Any, Any]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(steps, 2), pct_start=0.1
    )
    return optimiser, schedule


def _step(torch: Any, module: Any, optimiser: Any, schedule: Any, loss: Any) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    schedule.step()
