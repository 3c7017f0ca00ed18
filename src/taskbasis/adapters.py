"""LoRA adapters as task vectors: the update ``scaling * B @ A`` is the delta, bound to a base."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

from taskbasis.difference import excluded
from taskbasis.errors import MismatchError
from taskbasis.io.adapter import Adapter
from taskbasis.io.adapter_config import MERGE_IT
from taskbasis.io.dtypes import to_array
from taskbasis.io.lowrank import LowRank
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.recipe import Binding, Leaf, find_naming

_PIECE = 1 << 20


def adapter_leaf(adapter: Adapter, base: TensorStore, exclude: Sequence[str] = ()) -> Leaf:
    """The delta of a LoRA adapter, formed while it is read.

    An adapter names its base but does not record what it held, so it is bound to the base that
    is given: every tensor it changes must be there in the same shape. The delta of adapted
    embeddings is added to what the base stores; where a model ties its head to them, the head
    changes as well, as it does when PEFT merges.

    Args:
        adapter: the adapter.
        base: the weights it was trained on; the result has their names.
        exclude: patterns (``*`` and ``?``) of tensors to leave out.

    Raises:
        MismatchError: the base lacks a tensor, or holds another shape or no floats there; or a
            whole tensor beside the factors differs from the base's.
        UsageError: a pattern names no tensor of either side.
    """
    own = {*adapter.infos, *adapter.copies}
    naming = find_naming(base, own)
    left_out = {naming.to_base(n) if n in own else n for n in excluded(exclude, {*base, *own})}
    infos, copies = (
        {naming.to_base(n): i for n, i in part.items() if naming.to_base(n) not in left_out}
        for part in (adapter.infos, adapter.copies)
    )
    for name, info in infos.items():
        _check_update(name, info, adapter, base)
    for name, info in copies.items():
        _check_copy(name, info, adapter, base)
    rules = {
        "renamed": tuple(sorted(name for name, info in infos.items() if info.name != name)),
        "excluded": tuple(sorted(left_out)),
        "unchanged": tuple(sorted(copies.keys() - infos.keys())),
    }
    return Leaf(
        str(adapter.path),
        infos,
        False,
        Binding(str(base.path), base),
        (adapter.path, *adapter.files, base.path, *base.files),
        {rule: names for rule, names in rules.items() if names},
    )


def _check_update(name: str, info: TensorInfo, adapter: Adapter, base: TensorStore) -> None:
    if name not in base:
        raise MismatchError(
            f"{adapter.path}: adapts {info.name!r}, but the base {base.path} has no {name!r}"
            f"{_nearest(name, base)}. Where the head is tied to the embeddings, or the model "
            f"has other names in memory than in its files, {MERGE_IT}"
        )
    other = base[name]
    if other.shape != info.shape:
        raise MismatchError(
            f"{info.where} has shape {list(info.shape)}, but {other.blob.label} has "
            f"{list(other.shape)} there; {_advice(info, other, adapter)}"
        )
    if not other.dtype.mergeable:
        raise MismatchError(
            f"{other.where} holds {other.dtype.name}, which nothing is added to, but "
            f"{adapter.path} adapts it; give the base in floats"
        )


def _advice(info: TensorInfo, other: TensorInfo, adapter: Adapter) -> str:
    blob = info.blob
    if isinstance(blob, LowRank) and info.shape[::-1] == other.shape:
        return (
            "it lies the other way round: if that is so of all its linear layers, set "
            f"fan_in_fan_out to {'false' if blob.transposed else 'true'} in its config; if not, "
            f"{MERGE_IT}"
        )
    named = f", which it calls {adapter.base_name!r}" if adapter.base_name else ""
    return f"give the base that it was trained on{named}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_copy(name: str, info: TensorInfo, adapter: Adapter, base: TensorStore) -> None:
    if name not in base or not _same_values(info, base[name]):
        raise MismatchError(
            f"{info.where} is a whole tensor, and not the {name!r} of the base {base.path}: it "
            f"was resized or trained beside the factors; {MERGE_IT}, or "
            f"leave it out with --exclude '{name}'"
        )


def _same_values(copy: TensorInfo, base: TensorInfo) -> bool:
    """Whether a tensor holds the base's values, rounded to its own dtype where that is smaller."""
    floats = copy.dtype.mergeable and base.dtype.mergeable
    if copy.shape != base.shape or not (floats or copy.dtype == base.dtype):
        return False
    for start in range(0, copy.size, _PIECE):
        stop = min(start + _PIECE, copy.size)
        pieces = []
        for info in (copy, base):
            bits = np.empty(stop - start, info.dtype.bits)
            info.read(start, stop, bits)
            pieces.append(to_array(bits, info.dtype))
        ours, theirs = pieces
        with np.errstate(over="ignore"):
            theirs = theirs.astype(ours.dtype)
        if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            return False
    return True
