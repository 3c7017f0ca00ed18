"""A Hugging Face folder and some data, as a problem: nothing else has to be said.

    *ForSequenceClassification   text and labels     cross-entropy of the label
    *ForImageClassification      images and labels   cross-entropy of the label
    *ForCausalLM, *LMHeadModel   text                the next token, mean over the text
    *ForMaskedLM                 text                15 % masked tokens, mean over them

The head of a classifier belongs to its own task and is not scored; language models are scored
whole. Nothing is downloaded, and no code from the folder is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskbasis.errors import UsageError
from taskbasis.learn.coding import Coder, Encoded, Labels
from taskbasis.learn.data import IMAGE, LABEL, TEXT, Rows, as_rows, column, pick_split
from taskbasis.learn.images import ImageCoder, load_processor
from taskbasis.learn.losses import causal_loss, classification_loss, masked_loss
from taskbasis.learn.problem import Problem
from taskbasis.learn.skeleton import Skeleton, load, load_config
from taskbasis.learn.text import TextCoder, chosen_length, load_tokenizer, pad_token, token_limit

_EAGER_UP_TO = 512
"""Longer texts use the attention that needs less memory, which torch.func does not vectorise."""

TEXT_CLASSES, IMAGE_CLASSES, CAUSAL, MASKED = "text", "image", "causal", "masked"

ENDINGS = {
    "ForSequenceClassification": TEXT_CLASSES,
    "ForImageClassification": IMAGE_CLASSES,
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
    "ForMaskedLM": MASKED,
}
"""What the classes of transformers are asked, by the end of their name."""

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    TEXT_CLASSES: classification_loss,
    IMAGE_CLASSES: classification_loss,
    CAUSAL: causal_loss,
    MASKED: masked_loss,
}

ABOUT = {
    TEXT_CLASSES: "cross-entropy of the label",
    IMAGE_CLASSES: "cross-entropy of the label",
    CAUSAL: "cross-entropy of the next token, mean over a sample's tokens",
    MASKED: "cross-entropy of 15 % masked tokens, mean over a sample's",
}


@dataclass(frozen=True)
class Reading:
    """How data is read for a model; every field has a default.

    Attributes:
        text_columns: one column of text, or two for pairs; ``text`` or ``sentence`` by default.
        label_column, image_column: likewise.
        max_length: tokens per sample; 128, or what the model takes, by default.
        tokenizer: the folder of the tokenizer, where the model's own has none.
        split: of the data; ``train`` where there is one.
        dtype: what the model computes in; as stored (float16 as float32) by default.
        seed: of masks.
    """

    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    image_column: str | None = None
    max_length: int | None = None
    tokenizer: Path | None = None
    split: str | None = None
    dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.text_columns) > 2:
            raise UsageError(
                f"{len(self.text_columns)} text columns were named; a model reads one or two"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that were named."""
        named = (*self.text_columns, self.label_column, self.image_column)
        return tuple(name for name in named if name)


@dataclass(frozen=True, eq=False)
class Asked:
    """A model that knows what it is asked.

    Attributes:
        skeleton: the module and its names.
        kind: one of the values of :data:`ENDINGS`.
        heads: parameters of the module that make up its head.
    """

    skeleton: Skeleton = field(repr=False)
    kind: str
    heads: frozenset[str] = frozenset()

    @property
    def names(self) -> dict[str, str]:
        """The parameters that are scored, and their names in the file."""
        return {n: s for n, s in self.skeleton.names.items() if n not in self.heads}

    @property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """Tensors of the file that are not, by rule."""
        heads = tuple(sorted(self.skeleton.names[name] for name in self.heads))
        return {"head": heads, "buffer": self.skeleton.buffers}


def open_model(folder: str | Path, reading: Reading | None = None) -> Asked:
    """The model of a folder, by the class that its config.json names.

    Raises:
        UsageError: that class answers no question that has a loss.
        FileError, MismatchError: the folder does not hold such a model.
    """
    reading, folder = reading or Reading(), Path(folder)
    config = load_config(folder)
    loader = next(iter(config.architectures or ()), "")
    kind = next((kind for end, kind in ENDINGS.items() if loader.endswith(end)), None)
    if kind is None:
        raise UsageError(
            f"{folder}: its config.json names the class {loader or 'none'}, which has no loss; "
            f"name a model whose class ends in one of {', '.join(ENDINGS)}"
        )
    limit = getattr(config, "max_position_embeddings", None)
    short = kind == IMAGE_CLASSES or chosen_length(reading.max_length, limit) <= _EAGER_UP_TO
    attention = {"attn_implementation": "eager"} if short else {}
    skeleton = load(folder, loader, reading.dtype, **attention)
    heads: frozenset[str] = frozenset()
    if kind in (TEXT_CLASSES, IMAGE_CLASSES):
        body = {id(p) for p in skeleton.module.base_model.parameters()}
        heads = frozenset(n for n, p in skeleton.module.named_parameters() if id(p) not in body)
    return Asked(skeleton, kind, heads)


def read(asked: Asked, data: Any, reading: Reading) -> dict[str, Encoded]:
    """The splits of some data, encoded for a model.

    Raises:
        UsageError: the data lacks a column. FileError: it, or the tokenizer, cannot be read.
    """
    splits = as_rows(data, reading.columns)
    return {name: Encoded(rows, _coder(asked, rows, reading)) for name, rows in splits.items()}


def hf_problem(folder: str | Path, data: Any, reading: Reading | None = None) -> Problem:
    """The model of a folder and some data as a problem.

    Args:
        folder: a Hugging Face folder.
        data: a path (see :mod:`~taskbasis.learn.data`), or a sequence of dicts such as a Dataset.
        reading: how the data is read.

    Raises:
        UsageError, FileError, MismatchError: what was named does not hold such a thing.
    """
    reading = reading or Reading()
    asked = open_model(folder, reading)
    splits = as_rows(data, reading.columns)
    rows = pick_split(splits, reading.split)
    return as_problem(asked, Encoded(rows, _coder(asked, rows, reading)))


def as_problem(asked: Asked, samples: Encoded) -> Problem:
    """A model and encoded samples as a problem."""
    return Problem(
        asked.skeleton.module,
        samples,
        samples.coder.collate,
        LOSSES[asked.kind],
        asked.names,
        asked.rules,
        {"loss": ABOUT[asked.kind], "data": samples.rows.source},
        lambda batch: batch.get("attention_mask"),
    )


def _coder(asked: Asked, rows: Rows, reading: Reading) -> Coder:
    config, module = asked.skeleton.config, asked.skeleton.module
    if asked.kind == IMAGE_CLASSES:
        return ImageCoder(
            column(rows, reading.image_column, IMAGE, "image"),
            Labels.of(config, column(rows, reading.label_column, LABEL, "label")),
            _pair(config.image_size),
            getattr(config, "num_channels", 3),
            load_processor(asked.skeleton.folder),
            rows.folder,
        )
    texts = reading.text_columns or (column(rows, None, TEXT, "text"),)
    for name in texts:
        column(rows, name, TEXT, "text")
    labels = None
    if asked.kind == TEXT_CLASSES:
        labels = Labels.of(config, column(rows, reading.label_column, LABEL, "label"))
    tokenizer = load_tokenizer(Path(reading.tokenizer or asked.skeleton.folder))
    if labels is not None and config.pad_token_id is None:  # to find a text's last token by
        config.pad_token_id = pad_token(tokenizer)
    if asked.kind == MASKED and tokenizer.mask_token_id is None:
        raise UsageError(f"{asked.skeleton.folder}: its tokenizer has no mask token")
    length = chosen_length(reading.max_length, token_limit(config, module))
    segments = getattr(config, "type_vocab_size", 0) > 1
    masked = asked.kind == MASKED
    words = getattr(config, "vocab_size", None)
    return TextCoder(tokenizer, texts, length, words, labels, segments, masked, reading.seed)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
