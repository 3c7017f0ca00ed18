"""What taskbasis writes into a file's metadata, and how it is read back.

The header of every file carries one JSON string under ``taskbasis``: what the file is, its
version, the base it is bound to, and how it was made. Nothing else in a file is special, so any
safetensors reader opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskbasis.errors import HeaderError
from taskbasis.io.tensors import TensorStore
from taskbasis.recipe import Binding, Leaf

KEY = "taskbasis"
VERSION = 1
VECTOR = "task_vector"
BASIS = "basis"


def encode(kind: str, fields: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file of the given kind."""
    content = {"kind": kind, "version": VERSION, **fields}
    # Escaped to ASCII: a path that is not UTF-8 could not be written otherwise.
    return {"format": "pt", KEY: json.dumps(content, separators=(",", ":"))}


def decode(store: TensorStore) -> dict[str, Any] | None:
    """What taskbasis recorded in the file; None when it is not one of ours.

    Raises:
        HeaderError: the record is damaged or of a later version.
    """
    if KEY not in store.metadata:
        return None
    try:
        content = json.loads(store.metadata[KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise HeaderError(f"{store.path}: its taskbasis record is damaged: {error}") from None
    if not isinstance(content, dict) or content.get("kind") not in (VECTOR, BASIS):
        raise HeaderError(f"{store.path}: its taskbasis record does not say what the file is")
    if content.get("version") != VERSION:
        raise HeaderError(
            f"{store.path}: was written as version {content.get('version')}, this taskbasis reads "
            f"version {VERSION}; install the one that wrote it"
        )
    return content


def encode_binding(binding: Binding) -> dict[str, Any]:
    """A base's name, fingerprint and digests."""
    return {
        "name": binding.name,
        "fingerprint": binding.fingerprint,
        "digests": dict(sorted(binding.digests.items())),
    }


def decode_binding(store: TensorStore, content: Mapping[str, Any]) -> Binding:
    """The base a file is bound to.

    Raises:
        HeaderError: the record does not name it.
    """
    base = content.get("base")
    if not isinstance(base, dict) or not isinstance(base.get("fingerprint"), str):
        raise HeaderError(f"{store.path}: its taskbasis record does not name the base")
    digests = base.get("digests")
    return Binding(
        str(base.get("name", "unknown")),
        None,
        base["fingerprint"],
        digests if isinstance(digests, dict) else {},
    )


def vector_leaf(store: TensorStore) -> Leaf:
    """The leaf of a stored task vector.

    Raises:
        HeaderError: the file is not a task vector, or holds what no arithmetic is done on.
    """
    content = decode(store)
    if content is None or content["kind"] != VECTOR:
        what = "a basis" if content else "not a task vector"
        raise HeaderError(f"{store.path}: is {what}; extract a task vector from it first")
    for info in store.values():
        if not info.dtype.mergeable:
            raise HeaderError(
                f"{info.where} holds {info.dtype.name}, but a delta is made of floats"
            )
    binding = decode_binding(store, content)
    files = (store.path, *store.files)
    return Leaf(str(store.path), dict(store.infos), False, binding, files)
