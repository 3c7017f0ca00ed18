"""What stands beside a model's weights: config, tokenizer and other files of its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskbasis.card import CARD
from taskbasis.errors import FileError, UsageError
from taskbasis.io.dtypes import DType
from taskbasis.io.folder import INDEX_SUFFIX, SAFETENSORS, WEIGHT_SUFFIXES
from taskbasis.io.remote import Url, side_files
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import Staged

RECIPE_FILE = "taskbasis_recipe.json"
_NOT_COPIED = (CARD, RECIPE_FILE)

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    *("chat_template.jinja", "chat_template.json"),
)
"""What a tokenizer is made of."""

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configs call the number of layers."""


def copy_side_files(
    base: TensorStore,
    staged: Staged,
    dtype: DType | None,
    layers: int | None = None,
    skip: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Copy config, tokenizer and other files of the base's folder; returns what was left.

    Args:
        base: the model whose folder it is.
        staged: where they are written.
        dtype: what the config is to say of the weights; None leaves it.
        layers: how many layers the config is to say there are; None leaves it.
        skip: names that are not copied.

    Weights elsewhere in the folder may be another copy of the model that was edited, so they are
    left, except in the module folders that a sentence-transformers model lists.
    """
    folder, left = base.path, []
    not_copied = (*_NOT_COPIED, *skip)

    def change(raw: bytes) -> bytes:
        return _changed(raw, dtype, layers, folder)

    if isinstance(folder, Url) and folder.suffix != SAFETENSORS:
        for name, raw in side_files(folder):
            if name not in not_copied:
                staged.add_file(name, change(raw) if name == "config.json" else raw)
    if not folder.is_dir():
        return ()
    modules = _module_folders(folder)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        weights = name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))
        if name in not_copied or (
            weights and not modules & {p.as_posix() for p in relative.parents}
        ):
            merged = path in base.files or name.endswith(INDEX_SUFFIX)
            left += [] if merged or name == RECIPE_FILE else [name]
            continue
        staged.copy_file(name, path, change if name == "config.json" else None)
    return tuple(left)


def copy_tokenizer(source: TensorStore, staged: Staged) -> None:
    """Copy a model's tokenizer alone."""
    if isinstance(source.path, Url):
        for name, raw in side_files(source.path):
            if name in TOKENIZER:
                staged.add_file(name, raw)
        return
    for name in TOKENIZER:
        if (source.path / name).is_file():
            staged.copy_file(name, source.path / name, None)


def _module_folders(folder: Path) -> set[str]:
    """Subfolders that a sentence-transformers model lists as its own modules."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in modules if module["path"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()  # no such file, or not one of theirs: nothing is listed


def check_layers(folder: Path, layers: int | None) -> None:
    """Refuse a config that says something of every single layer, where their number changes.

    Raises:
        UsageError: naming the key; or the number of layers is nowhere to be changed.
    """
    path = folder / "config.json"
    if layers is None:
        return
    if isinstance(folder, Url):
        raw = dict(side_files(folder)).get("config.json") if folder.suffix != SAFETENSORS else None
    else:
        raw = path.read_bytes() if path.is_file() else None
    if raw is None:
        return
    config = _parsed(raw, folder)
    old = next((config[key] for key in _LAYERS if isinstance(config.get(key), int)), None)
    if old is None:
        raise UsageError(
            f"{path}: says the number of layers under none of {', '.join(_LAYERS)}, so it cannot "
            f"be told that there are {layers} now; take the config out of a copy of the model"
        )
    for key, value in config.items():
        if key == "architectures" or key.endswith("_token_id"):
            continue  # as many by chance
        if isinstance(value, list) and old and len(value) == old != layers:
            raise UsageError(
                f"{path}: {key!r} has an entry for each of {old} layers, but the merge has "
                f"{layers}; remove it from a copy of the model, and say it again in the output"
            )


def _changed(raw: bytes, dtype: DType | None, layers: int | None, base: Path) -> bytes:
    """The config with the output's dtype and layers under whichever keys the base used."""
    if dtype is None and layers is None:
        return raw
    config = _parsed(raw, base)
    for key in ("dtype", "torch_dtype"):
        if key in config and dtype is not None:
            config[key] = dtype.name
    for key in _LAYERS:
        if isinstance(config.get(key), int) and layers is not None:
            config[key] = layers
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _parsed(raw: bytes, base: Path) -> dict[str, Any]:
    try:
        config = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FileError(f"{base / 'config.json'}: is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise FileError(f"{base / 'config.json'}: is not a JSON object")
    return config
