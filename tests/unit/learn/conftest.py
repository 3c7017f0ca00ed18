"""Tiny models, tokenizers and tables, made on the spot by the packages that people use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from taskbasis.learn import Problem
from taskbasis.learn.skeleton import quiet

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "not"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
ROWS = [
    ("0", "bad film"),
    ("1", "very good film"),
    ("1", "good film"),
    ("0", "not good"),
    ("0", "very very bad film"),
    ("1", "not bad film"),
    ("1", "good good"),
    ("0", "bad"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Torch on one thread, as quick as two at this size, and fair to neighbours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bert(labels=2, **more):
    config = transformers.BertConfig(
        **SIZES, max_position_embeddings=12, num_labels=labels, pad_token_id=0, **more
    )
    return transformers.BertForSequenceClassification(config)


def masked():
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**SIZES, max_position_embeddings=12, pad_token_id=0)
    )


def roberta():
    return transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, max_position_embeddings=12, pad_token_id=1)
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(WORDS), n_positions=12, n_embd=16, n_layer=2, n_head=2,
            bos_token_id=2, eos_token_id=3,
        )
    )  # fmt: skip


def llama(tied=True):
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied
    )
    return transformers.LlamaForCausalLM(config)


def vit():
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    )


MAKERS = {
    "bert": bert,
    "masked": masked,
    "roberta": roberta,
    "gpt2": gpt2,
    "llama-tied": llama,
    "llama-untied": lambda: llama(False),
    "vit": vit,
}


def write_model(folder: Path, make, seed=0, scale=0.0, tokenizer=True, base=None):
    """Save a model of random weights, or a copy of ``base`` moved by noise; its folder."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model = make()
        if base is not None:
            model = type(model).from_pretrained(base)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape) * (scale if base is not None else 0.1)
                parameter.add_(noise.to(parameter.dtype))
        model.save_pretrained(folder)
        if tokenizer:
            save_tokenizer(folder)
    return folder


def save_tokenizer(folder):
    """A BERT tokenizer of ten words, as any release of transformers reads it."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.BertWordPieceTokenizer(vocabulary)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def write_table(path: Path, rows=ROWS, header=None):
    lines = ([header] if header else []) + ["\t".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_images(path: Path, count=12, channels=1):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    np.savez(path, x=images, y=np.arange(count) % 3)
    return path


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """``library(name)``: a base and a tuned model of one family, and data for it."""
    root = tmp_path_factory.mktemp("learn")
    made = {}

    def get(name):
        if name not in made:
            base = write_model(root / name / "base", MAKERS[name])
            tuned = write_model(root / name / "tuned", MAKERS[name], 1, 0.02, base=base)
            table = write_table(root / name / "data.tsv")
            data = write_images(root / name / "data.npz") if name == "vit" else table
            made[name] = (base, tuned, data)
        return made[name]

    return get


class Net(torch.nn.Module):
    """Two linear layers, and one that nothing reaches."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 5)
        self.second = torch.nn.Linear(5, 2, bias=False)
        self.idle = torch.nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x * self.scale)))


def net_loss(module, batch):
    inputs, classes = batch
    return torch.nn.functional.cross_entropy(module(inputs), classes, reduction="none")


def collate(samples):
    inputs, classes = zip(*samples, strict=True)
    return torch.stack(inputs), torch.tensor(classes)


@pytest.fixture
def net(tmp_path):
    """``(problem, base, tuned)`` of a small network, both as safetensors files."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = Net()
        save_file(module.state_dict(), tmp_path / "base.safetensors")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        save_file(module.state_dict(), tmp_path / "tuned.safetensors")
        samples = [(torch.randn(3), number % 2) for number in range(10)]
    problem = Problem(module, samples, collate, net_loss)
    return problem, tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
