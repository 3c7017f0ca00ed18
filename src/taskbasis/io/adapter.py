"""LoRA adapters as PEFT saves them: pairs of factors, opened as the tensors they change.

    adapter_config.json         r, lora_alpha and what else the size of the update depends on
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight  [r, in]
                                base_model.model.<module>.lora_B.weight  [out, r]

The update of ``<module>.weight`` is ``scaling * B @ A`` with ``scaling = alpha / r``, or
``alpha / sqrt(r)`` for rsLoRA. Embeddings have ``lora_embedding_A`` and ``lora_embedding_B``, whose
product is transposed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskbasis.errors import FileError, HeaderError
from taskbasis.io.adapter_config import CONFIG, MERGE_IT, LoraConfig, read_config
from taskbasis.io.lowrank import low_rank
from taskbasis.io.safetensors import read_safetensors
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.io.torchbin import read_torch

_READERS = {"adapter_model.safetensors": read_safetensors, "adapter_model.bin": read_torch}
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?P<end>.*)")
_DORA = "lora_magnitude_vector"
_COPY = ".base_layer."


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: the update of every tensor it changes, formed while it is read.

    Attributes:
        path: its folder.
        infos: the updates by the names ``<module>.weight``, float32; their ``blob`` is a
            :class:`~taskbasis.io.lowrank.LowRank` and hands out the factors.
        base_name: the base that its config names; empty where it names none. It is a name only:
            an adapter does not record what its base held.
        files: the config and the file of factors.
        copies: whole tensors that stand beside the factors, by the base's names: modules_to_save,
            biases, embeddings. One that equals the base's says nothing new; any other replaces it.
    """

    path: Path
    infos: Mapping[str, TensorInfo] = field(repr=False)
    base_name: str
    files: tuple[Path, ...] = ()
    copies: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter, of any kind.

    >>> is_adapter(getfixture("tiny_checkpoints") / "base")
    False
    """
    return os.path.isfile(Path(path) / CONFIG)


def open_adapter(path: str | Path) -> Adapter:
    """Open the folder of a LoRA adapter; only its config and its file's header are read.

    An adapter that PEFT saved under a name stands in a folder of that name: give that folder.
    Read are LoRA and rsLoRA of linear layers, embeddings, and convolutions without groups, each
    module with its own rank and alpha. Which way round a square matrix lies is
    what ``fan_in_fan_out`` says; PEFT itself goes by the module's class, which no file records.

    Raises:
        FileError: no adapter is there, or it is more than factors and whole tensors: DoRA, trained
            rows of tokens, and so on; the message says which.
        HeaderError: config and tensors contradict each other, in a sentence naming the tensor.
    """
    path = Path(path)
    config = read_config(_config_of(path))
    weights = next((path / name for name in _READERS if (path / name).is_file()), None)
    if weights is None:
        raise FileError(f"{path}: holds {CONFIG}, but none of {', '.join(_READERS)}")
    pairs, copies = _sorted_out(_READERS[weights.name](weights))
    infos = {f"{module}.weight": _update(module, pairs[module], config) for module in sorted(pairs)}
    if not infos:
        raise HeaderError(f"{weights}: holds no lora_A and lora_B")
    return Adapter(path, infos, config.base_name, (config.path, weights), copies)


def _config_of(folder: Path) -> Path:
    if is_adapter(folder):
        return folder / CONFIG
    inside = sorted(p.name for p in folder.iterdir() if is_adapter(p)) if folder.is_dir() else []
    hint = f"; name one of its folders that do: {', '.join(inside[:6])}" if inside else ""
    raise FileError(f"{folder}: holds no {CONFIG}{hint}")


@dataclass
class _Pair:
    embedding: bool
    factors: dict[str, TensorInfo] = field(default_factory=dict)


def _sorted_out(store: TensorStore) -> tuple[dict[str, _Pair], dict[str, TensorInfo]]:
    """The factors by module, and the whole tensors by the base's names."""
    pairs: dict[str, _Pair] = {}
    copies: dict[str, TensorInfo] = {}
    for name, info in store.items():
        if not name.startswith(_PREFIX):
            raise HeaderError(f"{info.where} is not called {_PREFIX}..., as PEFT calls its tensors")
        own = name.removeprefix(_PREFIX)
        found = _FACTOR.fullmatch(own)
        if found is not None:
            end = "" if found["embedding"] else ".weight"
            if found["end"] != end:
                raise _stranger(info)
            pair = pairs.setdefault(found["module"], _Pair(bool(found["embedding"])))
            if pair.embedding is not bool(found["embedding"]):
                raise HeaderError(f"{info.where}: the module is adapted as an embedding and not")
            pair.factors[found["which"]] = info
        elif _DORA in own:
            raise FileError(f"{info.where} is a magnitude of DoRA, not a factor; {MERGE_IT}")
        elif ".lora_" in own or not own:
            raise _stranger(info)
        elif copies.setdefault(_plain_name(own), info) is not info:
            raise HeaderError(f"{info.where} and {copies[_plain_name(own)].name!r} are one tensor")
    return pairs, copies


def _plain_name(name: str) -> str:
    head, found, tail = name.rpartition(_COPY)
    return f"{head}.{tail}" if found else name


def _stranger(info: TensorInfo) -> FileError:
    return FileError(f"{info.where} is not one of the two factors of a LoRA update; {MERGE_IT}")


def _update(module: str, pair: _Pair, config: LoraConfig) -> TensorInfo:
    if pair.factors.keys() != {"A", "B"}:
        (alone,) = pair.factors.values()
        other = "B" if "A" in pair.factors else "A"
        raise HeaderError(
            f"{alone.where} of shape {list(alone.shape)} has no lora_{other} beside it"
        )
    down, up = pair.factors["A"], pair.factors["B"]
    kernel = len(down.shape) > 2
    transposed = pair.embedding or (config.fan_in_fan_out and not kernel)
    info = low_rank(f"{module}.weight", down, up, config.scaling_of(module), transposed)
    if down.shape[0] != config.rank_of(module):
        raise HeaderError(
            f"{down.where} has shape {list(down.shape)}, rank {down.shape[0]}, but {config.path} "
            f"says rank {config.rank_of(module)} of that module"
        )
    return info
