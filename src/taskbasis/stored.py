"""What taskbasis writes into a file's metadata, and how it is read back.

The header of every file carries one JSON string under ``taskbasis``: what the file is, its
version, the base it is bound to, and how it was made. Nothing else in a file is special, so any
safetensors reader opens it.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from taskbasis.digest import fingerprint, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import HeaderError
from taskbasis.io.tensors import TensorStore
from taskbasis.recipe import Binding, Leaf

KEY = "taskbasis"
VERSION = 1
VECTOR = "task_vector"
BASIS = "basis"
IMPORTANCE = "importance"
MASK = "mask"
MOMENTS = "moments"

NAMES = {
    VECTOR: "a task vector",
    BASIS: "a basis",
    IMPORTANCE: "importance scores",
    MASK: "a mask",
    MOMENTS: "activation moments",
}
"""The kinds of files, and what sentences call them."""


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
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{store.path}: its taskbasis record is damaged: {error}") from None
    if not isinstance(content, dict) or str(content.get("kind")) not in NAMES:
        raise HeaderError(f"{store.path}: its taskbasis record does not say what the file is")
    if content.get("version") != VERSION:
        raise HeaderError(
            f"{store.path}: was written as version {reprlib.repr(content.get('version'))}, this "
            f"taskbasis reads version {VERSION}; install the one that wrote it"
        )
    return content


def expect(store: TensorStore, kind: str, advice: str) -> dict[str, Any]:
    """What is recorded in a file that must be of one kind.

    Raises:
        HeaderError: the file is something else; the message says what, and gives the advice.
    """
    content = decode(store)
    if content is None or content["kind"] != kind:
        found = NAMES[content["kind"]] if content else "a checkpoint"
        raise HeaderError(f"{store.path}: is {found}, not {NAMES[kind]}; {advice}")
    return content


def bind(binding: Binding, engine: Engine) -> Binding:
    """The binding with its fingerprint and digests, read from the base where not recorded."""
    if binding.fingerprint is not None or binding.store is None:
        return binding
    digests = store_digests(binding.store, engine)
    return replace(binding, fingerprint=fingerprint(digests), digests=digests)


def encode_binding(binding: Binding) -> dict[str, Any]:
    """A base's name, fingerprint and digests."""
    return {
        "name": binding.name,
        "fingerprint": binding.fingerprint,
        "digests": dict(sorted(binding.digests.items())),
    }


def decode_binding(store: TensorStore, content: Mapping[str, Any], what: str = "base") -> Binding:
    """The base (or another model) a file is bound to.

    Raises:
        HeaderError: the record does not name it.
    """
    base = content.get(what)
    if not isinstance(base, dict) or not isinstance(base.get("fingerprint"), str):
        raise HeaderError(f"{store.path}: its taskbasis record does not name the {what}")
    digests = base.get("digests")
    return Binding(
        str(base.get("name", "unknown")).replace("\n", "\\n"),  # it is said in one line
        None,
        base["fingerprint"],
        digests if isinstance(digests, dict) else {},
    )


def vector_leaf(store: TensorStore) -> Leaf:
    """The leaf of a stored task vector.

    Raises:
        HeaderError: the file is not a task vector, or holds what no arithmetic is done on.
    """
    content = expect(store, VECTOR, "extract a task vector first")
    for info in store.values():
        if not info.dtype.mergeable:
            raise HeaderError(
                f"{info.where} holds {info.dtype.name}, but a delta is made of floats"
            )
    binding = decode_binding(store, content)
    files = (store.path, *store.files)
    tuned = decode_binding(store, content, "tuned") if content.get("tuned") else None
    excluded = content.get("excluded", [])
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise HeaderError(f"{store.path}: 'excluded' is no list of names; extract the vector again")
    rules = {"excluded": tuple(excluded)} if excluded else {}
    return Leaf(str(store.path), dict(store.infos), False, binding, files, rules, tuned=tuned)
