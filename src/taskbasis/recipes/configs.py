"""What a config.json says of layers, changed as the layers are; and what it says that weights do
not show."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskbasis.errors import UsageError
from taskbasis.recipes.layers import Tower

Config = Mapping[str, Any]

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configs call the number of layers."""

_KINDS = {
    "vision": ("vision", "visual", "image"),
    "audio": ("audio", "speech"),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
"""Kinds of towers, by parts of their names; the first that fits holds."""

_OWN_COUNTS = {
    "vision": ("depth", "layers"),
    "audio": ("encoder_layers",),
    "encoder": ("encoder_layers", "num_encoder_layers", "n_encoder_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "n_decoder_layers"),
}
"""What a tower of a kind calls the number of its layers, beside COUNTS."""

_ALL_COUNTS = {*COUNTS, *(key for keys in _OWN_COUNTS.values() for key in keys)} - {"layers"}
_NUMBERED = re.compile(r"layer|_idxs?$|_ind(ices|exes)$")
_BY_LAYER = re.compile(
    r"layer(?!_?norm|_?scale|_?drop)|first_k_dense|_pattern$|_attention_interval$"
)
_NOT_BY_LAYER = re.compile(r"^architectures$|_token_ids?$")


@dataclass(frozen=True)
class Origin:
    """Where a layer of the output comes from.

    Attributes:
        model: what to call the model.
        config: what its config.json says; None: it has none.
        tower: the block of it that the layer is taken from.
        layer: which one, from 0.
    """

    model: str
    config: Config | None
    tower: Tower
    layer: int


def relayered(
    config: Config, tower: Tower, layers: Sequence[Origin], where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config whose tower has other layers, and what had to be left as it was, in sentences.

    - The number of layers is changed where the config says that of this tower: in its section
      (``vision_config``), by its own key (``decoder_layers``) or by the usual ones.
    - A list with an entry for each layer (``layer_types``) gets the entry that each layer has in
      the config of the model it comes from.
    - A list of the numbers of some layers (``mlp_only_layers``) gets their new numbers.
    - A number that counts layers otherwise (``max_window_layers``) stays, and is told.

    Args:
        config: of the model that the others' layers are put into.
        tower: its block, with its present number of layers.
        layers: where each layer of the output comes from.
        where: what to call the config in messages.

    Raises:
        UsageError: the number of layers is said nowhere, or a model says nothing of a layer.

    >>> tower = Tower("model.layers", 3)
    >>> config = {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "full"]}
    >>> origins = [Origin("a", config, tower, layer) for layer in (0, 1, 1, 2)]
    >>> relayered(config, tower, origins, "config.json")[0]["layer_types"]
    ['full', 'sliding', 'sliding', 'full']
    """
    found = copy.deepcopy(dict(config))
    places = _counted(found, tower)
    if not places:
        names = ", ".join(dict.fromkeys((*COUNTS, *_OWN_COUNTS.get(_kind(tower.prefix), ()))))
        raise UsageError(
            f"{where}: says the {tower.layers} layers {tower.prefix}* under none of {names}, so it "
            f"cannot be told that there are {len(layers)} now; take the config out of a copy of "
            "the model"
        )
    left: list[str] = []
    for section, keys in _by_section(places).items():
        inside = _section(found, section)
        for key in keys:
            inside[key] = len(layers)
        for key, value in list(inside.items()):
            name = ".".join((*section, key))
            if isinstance(value, list) and _is_numbers_of_layers(key, value, tower.layers):
                inside[key] = _renumbered(key, layers)
            elif isinstance(value, list) and _is_by_layer(key, value, tower.layers):
                inside[key] = [_entry(key, origin, where) for origin in layers]
            elif _counts_layers(key, value):
                left.append(f"{name}: {value}")
    told = f"{where}: {', '.join(left)} may speak of layers and stay as they are" if left else ""
    return found, (told,) if told else ()


def _kind(name: str) -> str:
    low = name.lower()
    return next((kind for kind, parts in _KINDS.items() if any(p in low for p in parts)), "")


Path = tuple[str, ...]


def _sections(config: Config, path: Path = ()) -> Iterator[tuple[Path, Config]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and len(path) < 3:
            yield from _sections(value, (*path, key))


def _section(config: Any, path: Path) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _by_section(places: Iterable[tuple[Path, str]]) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for path, key in places:
        found.setdefault(path, []).append(key)
    return found


def _counted(config: Config, tower: Tower) -> list[tuple[Path, str]]:
    """Where a config says how many layers a tower has: sections and keys."""
    kind = _kind(tower.prefix)
    own = _OWN_COUNTS.get(kind, ())

    def said(section: Config, keys: Sequence[str]) -> list[str]:
        return [
            key for key in keys if type(section.get(key)) is int and section[key] == tower.layers
        ]

    sections = list(_sections(config))
    of_kind = [(path, part) for path, part in sections if path and _kind(".".join(path)) == kind]
    plain = [(path, part) for path, part in sections if not _kind(".".join(path))]
    found: list[tuple[Path, str]] = []
    if kind:
        found = [(path, k) for path, part in of_kind for k in said(part, (*own, *COUNTS))]
        if not found:
            found = [(path, k) for path, part in plain for k in said(part, own)]
        if found and kind != "encoder":  # an encoder's number is often said twice
            return found
    if kind in ("vision", "audio") and any(said(part, COUNTS) for path, part in plain if path):
        return found  # it is another tower's
    return found + [(path, k) for path, part in plain for k in said(part, COUNTS)]


def _is_by_layer(key: str, value: list[Any], layers: int) -> bool:
    return bool(value) and len(value) == layers and not _NOT_BY_LAYER.search(key)


def _is_numbers_of_layers(key: str, value: list[Any], layers: int) -> bool:
    whole = bool(value) and all(type(one) is int and 0 <= one < layers for one in value)
    few = len(set(value)) == len(value) < layers if whole else False
    return few and bool(_NUMBERED.search(key)) and not _NOT_BY_LAYER.search(key)


def _counts_layers(key: str, value: object) -> bool:
    number = type(value) is int and key not in _ALL_COUNTS
    return number and bool(_BY_LAYER.search(key))


def _said_of(origin: Origin, key: str) -> Any:
    """What the model of a layer says under a key, beside its own number of layers."""
    places = _counted(origin.config, origin.tower) if origin.config is not None else []
    for path in _by_section(places):
        inside = _section(origin.config, path)
        if key in inside:
            return inside[key]
    return None


def _entry(key: str, origin: Origin, where: str) -> Any:
    said = _said_of(origin, key)
    if not isinstance(said, list) or len(said) != origin.tower.layers:
        raise UsageError(
            f"{where}: {key!r} has an entry for each layer, but the config of {origin.model} has "
            f"none for its {origin.tower.layers} layers; remove it from a copy of the first, and "
            "say it again in the output"
        )
    return said[origin.layer]


def _renumbered(key: str, layers: Sequence[Origin]) -> list[int]:
    said = [_said_of(origin, key) for origin in layers]
    return [
        number
        for number, (origin, numbers) in enumerate(zip(layers, said, strict=True))
        if isinstance(numbers, list) and origin.layer in numbers
    ]


_MATTER = (
    *("model_type", "hidden_act", "hidden_activation", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    *("num_attention_heads", "num_key_value_heads", "n_head", "head_dim", "partial_rotary_factor"),
    *("sliding_window", "max_position_embeddings", "n_positions", "attention_multiplier"),
    *("embedding_multiplier", "residual_multiplier", "logits_scaling", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "vocab_size", "rope_theta"),
    *("rope_scaling", "num_experts_per_tok", "norm_topk_prob"),
)
"""What decides on what a model computes, and no shape of a tensor shows (or only some do)."""


def differences(configs: Mapping[str, Config | None], donor: str) -> tuple[str, ...]:
    """What the models' configs disagree on that weights do not show, a sentence each.

    A key that a config does not have is not compared, since its default is not known here; but
    for the scaling of RoPE, which is off where it is not said.

    Args:
        configs: by the models' names.
        donor: whose config the output has.

    >>> one, two = {"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6}}
    >>> differences({"a": one, "b": two}, "a")
    ("the configs differ in rope_theta: 10000.0 (a), 1000000.0 (b); the output has a's",)
    """
    known = {name: _facts(config) for name, config in configs.items() if config is not None}
    keys = dict.fromkeys(key for facts in known.values() for key in facts)
    found = []
    for key in keys:
        said = {name: facts[key] for name, facts in known.items() if key in facts}
        if len({json.dumps(value, sort_keys=True) for value in said.values()}) > 1:
            shown = ", ".join(f"{_short(value)} ({name})" for name, value in said.items())
            found.append(f"the configs differ in {key}: {shown}; the output has {donor}'s")
    return tuple(found)


def _facts(config: Config) -> dict[str, Any]:
    """What matters, by its key and section; RoPE in one form for all versions of transformers."""
    found: dict[str, Any] = {}
    for path, section in _sections(config):
        if path and path[-1] in ("rope_parameters", "rope_scaling"):
            continue
        here = {**section, **_rope(section)} if _has_rope(section) else section
        found |= {".".join((*path, key)): here[key] for key in _MATTER if key in here}
    return found


def _has_rope(section: Config) -> bool:
    return any(key in section for key in ("rope_theta", "rope_parameters", "rope_scaling"))


def _rope(section: Config) -> dict[str, Any]:
    said = section.get("rope_parameters") or section.get("rope_scaling") or {}
    said = dict(said) if isinstance(said, Mapping) else {"rope": said}
    theta = said.pop("rope_theta", section.get("rope_theta"))
    kind = said.pop("rope_type", said.pop("type", "default"))
    scaling = None if kind == "default" and not said else {"rope_type": kind, **said}
    return {"rope_scaling": scaling, **({} if theta is None else {"rope_theta": float(theta)})}


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."
