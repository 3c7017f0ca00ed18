"""What stands beside a model's weights: config, tokenizer and other files of its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskbasis.card import CARD
from taskbasis.errors import FileError
from taskbasis.io.digests import FILE as DIGESTS_FILE
from taskbasis.io.dtypes import DType
from taskbasis.io.regular import check_inside, parse_json, read_json, read_regular
from taskbasis.io.remote import Url, side_files
from taskbasis.io.suffixes import INDEX_SUFFIX, SAFETENSORS, WEIGHT_SUFFIXES
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import Staged

RECIPE_FILE = "taskbasis_recipe.json"
_OUR_OWN = (RECIPE_FILE, DIGESTS_FILE)
_NOT_COPIED = (CARD, *_OUR_OWN)


def copy_side_files(
    base: TensorStore,
    staged: Staged,
    dtype: DType | None,
    config: Mapping[str, Any] | None = None,
    skip: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Copy config, tokenizer and other files of the base's folder; returns what was left.

    Args:
        base: the model whose folder it is.
        staged: where they are written.
        dtype: what the config is to say of the weights; None leaves it.
        config: what the config is to say, but for the dtype; None leaves it.
        skip: names that are not copied.

    Weights elsewhere in the folder may be another copy of the model that was edited, so they are
    left, except in the module folders that a sentence-transformers model lists.
    """
    folder, left = base.path, []
    not_copied = (*_NOT_COPIED, *skip)

    def change(raw: bytes) -> bytes:
        return _changed(raw, dtype, config, folder)

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
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        if not path.is_file():  # a link that leads nowhere, a pipe
            left.append(name)
            continue
        weights = name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))
        if name in not_copied or (
            weights and not modules & {p.as_posix() for p in relative.parents}
        ):
            merged = path in base.files or name.endswith(INDEX_SUFFIX)
            left += [] if merged or name in _OUR_OWN else [name]
            continue
        check_inside(path, folder)
        staged.copy_file(name, path, change if name == "config.json" else None)
    return tuple(left)


def _module_folders(folder: Path) -> set[str]:
    """Subfolders that a sentence-transformers model lists as its own modules."""
    try:
        modules = read_json(folder / "modules.json")
        return {str(module["path"]) for module in modules if module["path"]}
    except (FileError, KeyError, TypeError):
        return set()  # no such file, or not one of theirs: nothing is listed


def read_config(folder: Path) -> dict[str, Any] | None:
    """What a model's config.json says; None where there is none.

    Raises:
        FileError: it is no JSON object.
    """
    if isinstance(folder, Url):
        raw = dict(side_files(folder)).get("config.json") if folder.suffix != SAFETENSORS else None
    else:
        path = folder / "config.json"
        raw = read_regular(path) if path.is_file() else None
    return None if raw is None else _parsed(raw, folder)


def with_dtype(config: Mapping[str, Any], dtype: DType | None) -> dict[str, Any]:
    """A config that says what the weights are stored in, under whichever keys it has."""
    said = {} if dtype is None else {"dtype": dtype.name, "torch_dtype": dtype.name}
    return {**config, **{key: name for key, name in said.items() if key in config}}


def _changed(
    raw: bytes, dtype: DType | None, wanted: Mapping[str, Any] | None, base: Path
) -> bytes:
    """The config with the output's dtype."""
    if dtype is None and wanted is None:
        return raw
    config = with_dtype(_parsed(raw, base) if wanted is None else wanted, dtype)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _parsed(raw: bytes, base: Path) -> dict[str, Any]:
    path = base / "config.json"
    config = parse_json(raw, f"{path}:")
    if not isinstance(config, dict):
        raise FileError(f"{path}: is not a JSON object")
    return config
