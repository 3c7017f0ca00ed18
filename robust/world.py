"""Small models, vectors, a basis, adapters and recipes to run every writing verb on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Run = Callable[[list[str]], int]

SHAPES = {
    "embed.weight": (40, 64),
    "layers.0.q.weight": (530, 512),
    "layers.0.norm.weight": (512,),
    "layers.1.q.weight": (530, 512),
}
"""Two tensors are longer than a cut."""

TABLE = "0\tbad film\n1\tvery good film\n1\tgood\n0\tnot good\n0\tvery bad\n1\tnot bad film\n"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "not"]

RECIPE = """
name: first
merge_method: task_arithmetic
base_model: base
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0.5}}]
dtype: float32
---
merge_method: ties
base_model: base
models: [{model: first, parameters: {weight: 1}}, {model: c, parameters: {weight: 1}}]
parameters: {density: 0.5}
dtype: float32
"""


@dataclass(frozen=True)
class Verb:
    """A command that writes.

    Attributes:
        name: what it is called in the table.
        words: the command; OUT stands for where it writes.
        out: the name of what it writes.
        resumes: whether it has --resume.
        replaces: whether something else stands there, which is replaced.
    """

    name: str
    words: str
    out: str = "out"
    resumes: bool = False
    replaces: bool = False

    @property
    def command(self) -> list[str]:
        """Its words."""
        return [self.out if word == "OUT" else word for word in self.words.split()]


FILE = "out.safetensors"
VERBS = (
    Verb("extract", "extract base a -o OUT", FILE, resumes=True),
    Verb("extract, shards", "extract base a -o OUT --out-shard-size 1MB", resumes=True),
    Verb("add", "add base a b -o OUT --scale 0.4", resumes=True),
    Verb("add, 2 workers", "add base a b -o OUT -j 2 --out-shard-size 1MB", resumes=True),
    Verb("add, replace", "add base a b -o OUT --replace", resumes=True, replaces=True),
    Verb("negate", "negate base a -o OUT", resumes=True),
    Verb("analogy", "analogy base --plus c --plus b --minus a -o OUT", resumes=True),
    Verb("merge", "merge base a b c --method ties -o OUT", resumes=True),
    Verb("merge, selecting", "merge base a b --method sta -o OUT", resumes=True),
    Verb("merge, recipe", "merge recipe.yml OUT", resumes=True),
    Verb("lora extract", "lora extract base a -o OUT --rank 4"),
    Verb("lora add", "lora add lora-a lora-b -o OUT"),
    Verb("select", "select a.safetensors b.safetensors --base base -o OUT", FILE),
    Verb("forget", "forget base a -o OUT"),
    Verb("disentangle", "disentangle base a b -o OUT"),
    Verb("disentangle, replace", "disentangle base a b -o OUT --replace", replaces=True),
    Verb("basis fit", "basis fit a.safetensors b.safetensors -k 1 -o OUT", resumes=True),
    Verb(
        "basis fit, replace",
        "basis fit a.safetensors b.safetensors -k 2 --method pca -o OUT --replace",
        FILE,
        resumes=True,
        replaces=True,
    ),
    Verb("basis update", "basis update lib c.safetensors -o OUT", resumes=True),
    Verb("basis add", "basis add lib --base base -o OUT", resumes=True),
    Verb("basis recover", "basis recover lib a -o OUT", FILE, resumes=True),
    Verb("diagnose", "diagnose a b --base base --json OUT", "out.json"),
)

LEARNT = (
    Verb("importance", "importance tuned --base bert --task data.tsv -o OUT", FILE),
    Verb("moments", "moments tuned --task data.tsv -o OUT", FILE),
)
"""Verbs that need torch."""


def make(root: Path, run: Run, learnt: bool = False) -> None:
    """Write everything the verbs read; ``run`` runs a command there."""
    random = np.random.default_rng(0)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    _write(root / "base", base)
    for name in "abc":
        _write(
            root / name, {n: v + 0.02 * random.standard_normal(v.shape) for n, v in base.items()}
        )
    (root / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    commands = [f"extract base {name} -o {name}.safetensors" for name in "abc"]
    commands += [f"lora extract base {name} -o lora-{name} --rank 2" for name in "ab"]
    commands += ["basis fit a.safetensors b.safetensors -k 2 --method svd -o lib"]
    for command in commands:
        if run(command.split()):
            raise RuntimeError(f"taskbasis {command} failed")
    if learnt:
        _berts(root)


def _write(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    folder.mkdir()
    stored: dict[str, NDArray[Any]] = {n: np.asarray(v, np.float32) for n, v in tensors.items()}
    stored["steps"] = np.array(7, np.int64)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "tiny", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _berts(root: Path) -> None:
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=12,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    for name in ("bert", "tuned"):
        model.save_pretrained(root / name)
        vocabulary = {word: at for at, word in enumerate(WORDS)}
        transformers.BertTokenizer(vocab=vocabulary).save_pretrained(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    (root / "data.tsv").write_text(TABLE, encoding="utf-8")
