"""The models of a recipe: opened, with their adapters on them, and all under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from taskbasis.adapters import adapted_store, tied_apart, whole_tensors
from taskbasis.difference import same_bytes
from taskbasis.errors import MismatchError
from taskbasis.io.adapter import Adapter, open_adapter
from taskbasis.io.dtypes import floating
from taskbasis.io.remote import located, open_anywhere
from taskbasis.io.tensors import TensorInfo, TensorStore, Unmade
from taskbasis.preparing.prepared import Made, donor_of, merged_models
from taskbasis.recipes import Document, ModelRef
from taskbasis.recipes.configs import Config
from taskbasis.recipes.schema import Location
from taskbasis.sidefiles import read_config
from taskbasis.ties import EMBEDDING, HEAD, find_ties, is_tied, is_twin


def open_model(
    ref: ModelRef, made: Mapping[str, Made], lora_dtype: str | None
) -> tuple[TensorStore, Config | None, str | None]:
    """A model with its adapter on it, its config, and what to say of its head."""
    one = made.get(ref.model.path)
    store = one.store if one else _open_location(ref.model)
    config = one.config if one else read_config(store.path)
    if ref.lora is None:
        return store, config, None
    adapter = open_adapter(located(str(ref.lora)))
    head = _head_apart(adapter, store) if is_tied(config) else {}
    plain = replace(store, infos={**store.infos, **head})
    found = adapted_store(adapter, plain, floating(lora_dtype) if lora_dtype else None)
    if not head or config is None:
        return found, config, None
    (name,) = head
    if _repeats(name, found):
        kept = {key: info for key, info in found.items() if key != name}
        return replace(found, infos=kept), config, None
    note = (
        f"{ref.lora} trains the embeddings or {name} apart from the other, which {ref.model} ties; "
        f"{ref} stores both"
    )
    return found, {**config, "tie_word_embeddings": False}, note


def _head_apart(adapter: Adapter, store: TensorStore) -> dict[str, TensorInfo]:
    """The head of a model that ties it, where PEFT trains it or the embeddings apart.

    PEFT does not tie whole copies (``modules_to_save``): one of the embeddings leaves the head as
    the model has it. Factors of the embeddings change both, as they do when PEFT merges them.
    """
    for name, info in (*adapter.infos.items(), *adapter.copies.items()):
        if HEAD.search(name):
            return {
                key: replace(table, name=key)
                for key, table in find_ties(store, {name: info}).items()
            }
    tables = [info for name, info in store.items() if EMBEDDING.search(name)]
    copies = [name for name, info in adapter.copies.items() if EMBEDDING.search(info.name)]
    if len(tables) != 1 or not copies or any(HEAD.search(name) for name in store):
        return {}
    if not any(EMBEDDING.search(info.name) for info in whole_tensors(adapter, store)):
        return {}
    if not tables[0].name.endswith(("embed_tokens.weight", "wte.weight")):
        raise MismatchError(tied_apart(adapter, store, copies[0]))
    return {"lm_head.weight": replace(tables[0], name="lm_head.weight")}


def _open_location(location: Location) -> TensorStore:
    if Path(str(location)).exists():  # a folder whose name has an @
        return open_anywhere(str(location))
    return open_anywhere(location.path, location.revision)


@dataclass(frozen=True)
class Named:
    """The models, all with the same heads and embeddings.

    Attributes:
        stores: their tensors.
        notes: what was done to some, a sentence each.
        untied: whether the output has a head of its own where the donor's is its embeddings.
    """

    stores: Mapping[ModelRef, TensorStore]
    notes: tuple[str, ...] = ()
    untied: bool = False


def with_ties(
    document: Document,
    stores: Mapping[ModelRef, TensorStore],
    configs: Mapping[ModelRef, Config | None],
) -> Named:
    """Models that tie their heads beside models that store them, all with the same names.

    A head that the donor stores is merged with the embeddings of the models that tie theirs. A
    head that the donor ties is stored in the output, if another model's differs from its own
    embeddings; if all are copies of them, none is, and the output stays tied.
    """
    merged, donor = merged_models(document, stores), donor_of(document)
    held: dict[str, TensorInfo] = {}
    for ref in reversed(merged):
        held |= {name: info for name, info in stores[ref].items() if is_twin(name)}
    found, notes, untied = dict(stores), list[str](), False
    own = find_ties(stores[donor], held) if donor in stores and is_tied(configs[donor]) else {}
    for name in own:
        holders = [ref for ref in merged if name in stores[ref]]
        if all(_repeats(name, stores[ref]) for ref in holders):
            del held[name]
            for ref in holders:
                left = {key: info for key, info in stores[ref].items() if key != name}
                found[ref] = replace(stores[ref], infos=left)
            copies = " and ".join(map(str, holders))
            notes.append(f"{name} of {copies} is the embeddings once more; the output ties it")
    for ref in merged:
        ties = find_ties(found[ref], held) if is_tied(configs[ref]) else {}
        found[ref] = replace(
            found[ref],
            infos={**found[ref].infos, **{n: replace(i, name=n) for n, i in ties.items()}},
        )
        notes += [
            f"{ref} stores no {name}: it is tied to {info.name}, which is read for it"
            for name, info in ties.items()
        ]
        untied |= ref == donor and bool(ties)
    if untied:
        notes.append("the output stores its head, and its config says that it is not tied")
    return Named(found, tuple(notes), untied)


def _repeats(name: str, store: TensorStore) -> bool:
    """Whether a tensor is the embeddings byte for byte; nothing is known of what is yet made."""
    info = store[name]
    twins = find_ties({n: i for n, i in store.items() if n != name}, {name: info})
    if isinstance(info.blob, Unmade):
        return False
    return any(twin.dtype == info.dtype and same_bytes(info, twin) for twin in twins.values())
