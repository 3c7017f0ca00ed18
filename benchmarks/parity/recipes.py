"""Follows recipes with mergekit-yaml and with taskbasis, and compares what they write.

    python benchmarks/parity/recipes.py        one line per case; fails where a difference is new

Tiny models of several architectures are made on the spot. Tensors may differ by one unit of the
dtype they are stored in, at the size of the largest of an entry and its inputs, since sums cancel.
Where float32 is stored, which both compute in, two units are allowed: both round several times
on the way, in another order. config.json and the tokenizer's files may not differ at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import tokens
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    logging,
)

MERGEKIT = Path(os.environ.get("MERGEKIT_VENV", ".venv-mergekit")) / "bin" / "mergekit-yaml"
OURS = (sys.executable, "-m", "taskbasis.cli")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LAYERS, WORDS = 4, 64
_HOW_OPENED = ("is_local", "local_files_only")
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
_UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}

LLAMA = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {
    "vocab_size": WORDS,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
BERT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
FAMILIES: Mapping[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_bias=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "half": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)).bfloat16(),
}
"""By name: what makes a model."""
WORDED: Mapping[str, Any] = {
    "worded llama": lambda n: LlamaForCausalLM(LlamaConfig(**LLAMA | ENDS | {"vocab_size": n})),
    "worded tied": lambda n: LlamaForCausalLM(
        LlamaConfig(**LLAMA | ENDS | {"vocab_size": n}, tie_word_embeddings=True)
    ),
    "worded gpt2": lambda n: GPT2LMHeadModel(GPT2Config(**GPT2 | {"vocab_size": n})),
    "worded bert": lambda n: BertForMaskedLM(BertConfig(**BERT | {"vocab_size": n})),
}
"""The same for models of different vocabularies."""


@dataclass(frozen=True)
class Case:
    """A recipe, the models it is for, and what is known of mergekit's answer.

    Attributes:
        family: of the models; ``{base}``, ``{a}`` and so on in the recipe are their folders.
        refused: what mergekit says where it makes nothing.
        dropped: a part of the names of the tensors that it leaves out.
        wrong: what is wrong with its numbers, which therefore differ.
        units: how many the numbers may be apart.
        worded: whether the tokenizers are opened and compared, and rows by their tokens.
        whole: whether a unit is that of a tensor's largest entry: where the products of factors are
            summed in another order, their errors are as large as the terms.
        flags: what is typed behind both commands.
        numbered: whether mergekit gives tokens their numbers, and takes its config, by a rule.
    """

    family: str
    recipe: str
    refused: str = ""
    dropped: str = ""
    wrong: str = ""
    units: float = 1.0
    worded: bool = False
    whole: bool = False
    flags: tuple[str, ...] = ()
    numbered: bool = True


TIES = """
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters: {{density: 0.5, weight: [0.2, 0.8]}}
  - model: {b}
    parameters:
      density: 0.6
      weight: [{{filter: mlp, value: 0.3}}, {{value: 0.7}}]
parameters: {{normalize: true, int8_mask: true}}
dtype: float32
"""
HALF = TIES + "out_dtype: bfloat16\n"
SLERP = """
slices:
  - sources:
      - {{model: {a}, layer_range: [0, 4]}}
      - {{model: {b}, layer_range: [0, 4]}}
merge_method: slerp
base_model: {a}
parameters:
  t:
    - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
    - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
    - value: 0.5
dtype: float32
"""
FRANKEN = """
slices:
  - sources: [{{model: {a}, layer_range: [0, 3]}}]
  - sources: [{{model: {b}, layer_range: [1, 4]}}]
merge_method: passthrough
dtype: bfloat16
"""
LINEAR = """
merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: 0.5}}}}
  - {{model: {b}, parameters: {{weight: [0.2, 1.0]}}}}
  - {{model: {c}, parameters: {{weight: 0.25}}}}
dtype: float32
out_dtype: bfloat16
"""
ARITHMETIC = """
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: {a}, parameters: {{weight: 0.7}}}}
  - {{model: {b}, parameters: {{weight: -0.5}}}}
parameters: {{lambda: 0.8}}
dtype: float32
"""
BREADCRUMBS = """
merge_method: breadcrumbs
base_model: {base}
models:
  - {{model: {a}, parameters: {{weight: 0.7, density: 0.9, gamma: 0.05}}}}
  - {{model: {b}, parameters: {{weight: 0.5, density: 0.8, gamma: 0.05}}}}
dtype: float32
"""
STOCK = """
merge_method: model_stock
base_model: {base}
models:
  - model: {a}
  - model: {b}
dtype: float32
"""
SCALED = """
slices:
  - sources: [{{model: {a}, layer_range: [0, 2]}}]
  - sources:
      - model: {b}
        layer_range: [2, 4]
        parameters: {{scale: [{{filter: o_proj, value: 0.0}}, {{value: 1.0}}]}}
merge_method: passthrough
dtype: float32
"""

_UNLISTED = "its list of the architecture's tensors has none of them"
CASES: Mapping[str, Case] = {
    "ties, gradient and filter": Case("llama", TIES, units=2),
    "slerp in one slice, as in its README": Case("llama", SLERP, units=2),
    "frankenmerge of six layers": Case("llama", FRANKEN),
    "layers switched off": Case("llama", SCALED),
    "linear into bfloat16": Case("llama", LINEAR),
    "task_arithmetic, a negative weight": Case("llama", ARITHMETIC, units=2),
    "breadcrumbs": Case("llama", BREADCRUMBS),
    "model_stock": Case(
        "llama",
        STOCK,
        wrong="steps away from models whose updates point apart",
    ),
    "ties into bfloat16, tied head": Case("tied", HALF),
    "frankenmerge, tied head": Case("tied", FRANKEN),
    "linear, GPT-2": Case("gpt2", LINEAR),
    "frankenmerge, GPT-2": Case("gpt2", FRANKEN),
    "ties into bfloat16, biases of attention": Case("biased", HALF, dropped="_proj.bias"),
    "frankenmerge, biases of attention": Case("biased", FRANKEN, dropped="_proj.bias"),
    "task_arithmetic, BERT with its head": Case(
        "bert", ARITHMETIC, refused="Tensor bert.pooler.dense.bias required but not present"
    ),
}
ADAPTED = ("llama", "biased", "gpt2", "half")
"""Families that have adapters, too."""
CASES = {
    **CASES,
    **{
        name: Case("llama", recipe, units=8, whole=True)
        for name, recipe in adapters.RECIPES.items()
    },
    "an adapter written into its model, GPT-2": Case("gpt2", adapters.ALONE, units=8, whole=True),
    "an adapter written into its model, bfloat16": Case("half", adapters.ALONE),
    "adapters merged in bfloat16": Case(
        "half",
        adapters.ADAPTED + "out_dtype: bfloat16\n",
        units=2,
        flags=("--lora-merge-dtype", "bfloat16"),
    ),
    "an adapter with trained biases": Case(
        "biased",
        adapters.ALONE.replace("plain", "biased"),
        dropped="_proj.bias",
        units=8,
        whole=True,
    ),
    **{
        f"{name}, {family}": Case(
            family,
            recipe,
            dropped="cls.predictions.transform" if "bert" in family else "",
            units=4,
            worded=True,
            numbered="base_model" in recipe,
        )
        for family in WORDED
        for name, recipe in tokens.RECIPES.items()
    },
}


def make_models(family: str, folder: Path) -> dict[str, str]:
    """A base and three models that were trained from it, as far as their numbers go."""
    if family in WORDED:
        return tokens.make(WORDED[family], folder / family)
    torch.manual_seed(0)
    base = FAMILIES[family]()
    found = {"base": folder / family / "base"}
    _save(base, found["base"])
    for seed, name in enumerate("abc", start=1):
        torch.manual_seed(seed)
        model = FAMILIES[family]()
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        found[name] = folder / family / name
        _save(model, found[name])
    return {name: str(path) for name, path in found.items()}


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"w{n}": n for n in range(2, WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)


def run(words: tuple[str, ...]) -> tuple[int, str]:
    """Runs a program; its exit code and what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def units(
    ours: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor], whole: bool = False
) -> float:
    """How far two tensors are apart, in units of their dtype at the size of what they hold: of
    every entry, or of the largest."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if not ours.numel():
        return 0.0
    left, right = ours.double(), theirs.double()
    alike = [one.double().abs() for one in inputs if one.shape == ours.shape]
    largest = torch.stack([left.abs(), right.abs(), *alike]).amax(0).clamp(min=1e-30)
    if whole:
        largest = torch.full_like(left, float(largest.max()))
    _, exponent = torch.frexp(largest)
    unit = torch.ldexp(torch.ones_like(left), exponent - 1) * _UNIT[ours.dtype]
    return float(((left - right).abs() / unit).max())


def farthest(case: Case, ours: Path, theirs: Path, models: Mapping[str, str]) -> float:
    """How far apart two models are, in units; of tensors that both have."""
    mine, other = tensors(ours), tensors(theirs)
    inputs = [tensors(Path(model)) for model in models.values()]
    if case.worded:
        order = tokens.vocabulary(theirs)
        mine = tokens.by_token(mine, tokens.vocabulary(ours), order)
        rows = zip(inputs, map(Path, models.values()), strict=True)
        inputs = [tokens.by_token(one, tokens.vocabulary(path), order) for one, path in rows]
        inputs = [tokens.padded(one, mine) for one in inputs]
    return max(
        units(mine[name], other[name], [one[name] for one in inputs if name in one], case.whole)
        for name in mine.keys() & other.keys()
    )


def differences(case: Case, ours: Path, theirs: Path) -> Iterator[str]:
    """What was not expected, but for numbers."""
    mine, other = tensors(ours), tensors(theirs)
    for name in sorted(other.keys() - mine.keys()):
        yield f"we lack {name}"
    for name in sorted(mine.keys() - other.keys()):
        if not (case.dropped and case.dropped in name):
            yield f"mergekit lacks {name}"
    if case.dropped and not any(case.dropped in name for name in mine.keys() - other.keys()):
        yield f"mergekit has {case.dropped} after all"
    first, second = (json.loads((side / "config.json").read_text()) for side in (ours, theirs))
    for key in sorted(first.keys() | second.keys()) if case.numbered else ():
        if first.get(key) != second.get(key):
            yield f"config {key}: ours {first.get(key)}, mergekit's {second.get(key)}"
    if case.worded:
        yield from tokens.tokenizers_differ(ours, theirs, case.numbered)
    for file in () if case.worded else TOKENIZER:
        if _content(ours / file) != _content(theirs / file):
            yield f"{file} differs"


def _content(path: Path) -> Any:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # transformers notes how it opened the tokenizer, where mergekit saves it again.
    return {key: value for key, value in found.items() if key not in _HOW_OPENED}


def follow(name: str, case: Case, models: Mapping[str, str], folder: Path) -> tuple[bool, str]:
    """Follows one recipe twice; whether it went as expected, and a line on it."""
    recipe = folder / f"{name}.yml".replace(" ", "-").replace(",", "")
    recipe.write_text(case.recipe.format(**models), encoding="utf-8")
    ours, theirs = recipe.with_suffix(".ours"), recipe.with_suffix(".theirs")
    flags = (*case.flags, "--no-write-model-card", "--lora-merge-cache", str(folder / "loras"))
    code, said = run((*OURS, "merge", str(recipe), str(ours), "-q", *flags))
    if code:
        return False, f"taskbasis: {_last(said)}"
    code, said = run((str(MERGEKIT), str(recipe), str(theirs), *flags))
    if case.refused:
        if code == 0 or case.refused not in said:
            return False, f"mergekit was expected to refuse {case.refused}: {_last(said)}"
        return (
            True,
            f"mergekit refuses it ({case.refused}); {len(tensors(ours))} tensors are made here",
        )
    if code:
        return False, f"mergekit: {_last(said)}"
    found = list(differences(case, ours, theirs))
    away = farthest(case, ours, theirs, models)
    if (away > case.units) != bool(case.wrong):
        found.append(f"{away:.1f} units apart")
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return False, "; ".join(found[:3]) + more
    mine, other = tensors(ours), tensors(theirs)
    exact = sum(torch.equal(mine[key], other[key]) for key in other)
    line = f"{len(other)} tensors, {exact} with the same bytes"
    if case.wrong:
        return True, f"{line}; mergekit {case.wrong}"
    if exact < len(other):
        line += f", others within {away:.2f} units"
    if case.dropped:
        line += f"; mergekit drops {len(mine.keys() - other.keys())} tensors ({_UNLISTED})"
    return True, line


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["nothing was said"])[-1]


def main(only: str = "") -> int:
    """Follows every recipe whose name has a part of the words."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = {name: make_models(name, folder) for name in (*FAMILIES, *WORDED)}
        for family in ADAPTED:
            python, base = MERGEKIT.parent / "python", models[family]["base"]
            models[family] |= adapters.make(python, base, folder / family / "adapters")
        wrong = 0
        for name, case in CASES.items():
            if only not in name:
                continue
            good, line = follow(name, case, models[case.family], folder)
            wrong += not good
            print(f"{'ok  ' if good else 'FAIL'} {name}: {line}", flush=True)
    print(f"{len(CASES)} cases, {wrong} unexpected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
