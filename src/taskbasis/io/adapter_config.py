"""What an adapter_config.json says of the update's size, and what it says that cannot be read."""

from __future__ import annotations

import math
import re
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from taskbasis.errors import FileError, HeaderError
from taskbasis.io.regular import read_json

CONFIG = "adapter_config.json"

MERGE_IT = "merge it into its base in PEFT with merge_and_unload and give the merged model instead"
"""What helps with nearly every adapter that is not read."""

_UNMERGED = {
    "alora_invocation_tokens": "aLoRA acts on some tokens of a text only, so no weights equal it",
    "arrow_config": "Arrow chooses between adapters at run time, so no weights equal it",
    "layer_replication": "its model has more layers than its base, so no delta of that equals it",
}
_NOT_LINEAR = {
    "use_dora": "DoRA divides by the norms of the merged weights",
    "use_qalora": "QALoRA pools the inputs first",
    "use_bdlora": "BD-LoRA stores blocks of its factors",
    "kasa_config": "KaSA also takes parts out of the base",
    "monteclora_config": "MonteCLoRA adds random samples",
    "velora_config": "VeLoRA stores more than two factors",
    "megatron_config": "it may hold one part of a sharded layer",
    "target_parameters": "it adapts parameters of experts, not modules",
    "trainable_token_indices": "rows of the embeddings were trained in full",
    "lora_bias": "biases were trained as well",
}
"""Settings that change what the factors mean or add tensors to them, and why that is refused."""

_IRRELEVANT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "bias"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying", "modules_to_save"),
}
"""Settings that are read here, or that say nothing of the weights once those are trained."""

_BASE_KEPT = {"gaussian", "eva", "orthogonal", "mica"}
"""Ways to initialise the factors that leave the base as it was."""

_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT, _CHOICE = re.compile(r"[*+{]"), re.compile(r"[?(]")
_LARGEST_RANK = 2**31
_MOST_REPEATS, _MOST_CHOICES, _LONGEST_MODULE = 3, 8, 256
"""Bounds on patterns and on what they are matched with: matching may not take for ever."""


@dataclass(frozen=True)
class LoraConfig:
    """How large the update of each module is, and which way round it lies.

    Attributes:
        path: the file.
        rank, alpha: r and lora_alpha of modules that no pattern names.
        rslora: whether the scaling is ``alpha / sqrt(r)`` instead of ``alpha / r``.
        fan_in_fan_out: whether the base's matrices are [in, out] (Conv1D).
        ranks, alphas: by pattern, which matches a module's name as a whole or after a dot.
        base_name: the base that it names; empty where it names none.

    Source: PEFT 0.21.2, as the released code reads its own file; rsLoRA: Kalajdzievski,
    arXiv:2312.03732, 2023.
    """

    path: Path
    rank: int
    alpha: float
    rslora: bool = False
    fan_in_fan_out: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    base_name: str = ""

    def rank_of(self, module: str) -> int:
        """r of a module.

        >>> config = LoraConfig(Path("x"), 8, 16, ranks={"q_proj": 4, "layers.0.q_proj": 2})
        >>> config.rank_of("model.layers.0.q_proj"), config.rank_of("model.layers.0.xq_proj")
        (4, 8)
        """
        return next((self.ranks[p] for p in self._matching(self.ranks, module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by.

        PEFT takes the first pattern, but sorts them as it saves: which one it trained with is then
        unknown where several match. A rank shows in the factors' shapes, an alpha does not.

        Raises:
            HeaderError: two patterns give the module different alphas.

        >>> plain, stable = (LoraConfig(Path("x"), 4, 16, rslora) for rslora in (False, True))
        >>> plain.scaling_of("q_proj"), stable.scaling_of("q_proj")
        (4.0, 8.0)
        """
        rank = self.rank_of(module)
        found = {self.alphas[p]: p for p in self._matching(self.alphas, module)}
        if len(found) > 1:
            first, second = list(found.values())[:2]
            raise HeaderError(
                f"{self.path}: alpha_pattern gives {_short(module)} several alphas, by "
                f"{_short(first)} and {_short(second)}; leave the one that it was trained with"
            )
        (alpha,) = found or (self.alpha,)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _matching(self, patterns: Iterable[str], module: str) -> Iterator[str]:
        for pattern in patterns:
            if len(module) > _LONGEST_MODULE:
                raise HeaderError(f"{self.path}: has patterns, but {_short(module)} is too long")
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                yield pattern


def read_config(path: Path) -> LoraConfig:
    """Read an adapter_config.json.

    Raises:
        FileError: it cannot be read, or the adapter is more than factors and whole tensors.
        HeaderError: it is damaged, or leaves open how large the update is.
    """
    content = _parse(path)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise FileError(f"{path}: is of type {_short(kind)}; only LORA is read; {MERGE_IT}")
    _refuse(path, content)
    base = content.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise HeaderError(f"{path}: base_model_name_or_path is {_short(base)}, not a name")
    return LoraConfig(
        path,
        _rank(path, "r", content.get("r")),
        _number(path, "lora_alpha", content.get("lora_alpha")),
        _flag(path, content, "use_rslora"),
        _flag(path, content, "fan_in_fan_out"),
        {key: _rank(path, key, value) for key, value in _patterns(path, content, "rank_pattern")},
        {
            key: _number(path, key, value)
            for key, value in _patterns(path, content, "alpha_pattern")
        },
        base,
    )


def _parse(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise HeaderError(f"{path}: is not a JSON object")
    return content


def _refuse(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what changes the meaning of the factors, known to do so or not known at all."""
    for key, value in content.items():
        # What is empty or off cannot matter; 0 can: it may be a token or a layer.
        off = value is None or value is False or value == {} or value == []
        if key in _IRRELEVANT or off:
            continue
        if key in _UNMERGED:
            raise FileError(f"{path}: sets {key}: {_UNMERGED[key]}")
        if key in _NOT_LINEAR:
            raise FileError(f"{path}: sets {key}: {_NOT_LINEAR[key]}; {MERGE_IT}")
        raise FileError(
            f"{path}: sets {_short(key)} to {_short(value)}, which is not known here and may "
            f"change what the factors mean; {MERGE_IT}"
        )
    start = content.get("init_lora_weights")
    if not isinstance(start, bool | None) and str(start).lower() not in _BASE_KEPT:
        raise FileError(
            f"{path}: init_lora_weights is {_short(start)}, which changes the base before "
            "training, so the update is not to the base; save the adapter again in PEFT with "
            "path_initial_model_for_weight_conversion, which makes it a plain one"
        )


def _flag(path: Path, content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise HeaderError(f"{path}: {key} is {_short(value)}, not true or false")
    return value


def _rank(path: Path, key: str, value: object) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= cast(int, value) < _LARGEST_RANK:
        raise HeaderError(
            f"{path}: the rank {_short(key)} is {_short(value)}, not a whole number >= 1"
        )
    return cast(int, value)


def _number(path: Path, key: str, value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # What is larger is no alpha, and whole numbers can be too large to be floats at all.
    if not number or not -1e30 < cast(float, value) < 1e30:
        raise HeaderError(f"{path}: the alpha {_short(key)} is {_short(value)}, not a number")
    return float(cast(float, value))


def _patterns(path: Path, content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Patterns and their values in the file's order, each of them safe to match."""
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise HeaderError(f"{path}: {key} is {_short(found)}, not a map from patterns to numbers")
    for pattern in found:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what a later Python reads differently
                re.compile(rf"(.*\.)?({pattern})")
        except (re.error, RecursionError, OverflowError, Warning) as error:
            raise HeaderError(f"{path}: {key} {_short(pattern)} is no pattern: {error}") from None
        choices, repeats = (len(kind.findall(pattern)) for kind in (_CHOICE, _REPEAT))
        many = choices > _MOST_CHOICES or repeats > _MOST_REPEATS
        if many or _REPEATED_GROUP.search(pattern):
            raise HeaderError(f"{path}: {key} {_short(pattern)} is too intricate; name the modules")
    return list(found.items())


def _short(value: object) -> str:
    """What a hostile file may fill with megabytes, in a few words."""
    return reprlib.repr(value)
