"""LoRA adapters as task vectors: the update ``scaling * B @ A`` is the delta, bound to a base."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from taskbasis.difference import excluded
from taskbasis.errors import MismatchError
from taskbasis.io.adapted import adapted
from taskbasis.io.adapter import Adapter
from taskbasis.io.adapter_config import MERGE_IT
from taskbasis.io.dtypes import DType, to_array
from taskbasis.io.lowrank import LowRank
from taskbasis.io.regular import read_json
from taskbasis.io.tensors import TensorInfo, TensorStore, Unmade
from taskbasis.recipe import Binding, Leaf, find_naming
from taskbasis.ties import EMBEDDING, HEAD, is_tied

_PIECE = 1 << 20


@dataclass(frozen=True)
class _Fitted:
    """What an adapter changes of a base, by the base's names."""

    updates: Mapping[str, TensorInfo]
    wholes: Mapping[str, TensorInfo]
    rules: Mapping[str, tuple[str, ...]]


def _fitted(adapter: Adapter, base: TensorStore, exclude: Sequence[str] = ()) -> _Fitted:
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
        _check_copy(name, info, base)
    trained = {n: i for n, i in copies.items() if not _same_values(i, base[n])}
    wholes = {name: info for name, info in trained.items() if info.dtype.mergeable}
    integers = trained.keys() - wholes.keys()
    rules = {
        "renamed": tuple(sorted(name for name, info in infos.items() if info.name != name)),
        "excluded": tuple(sorted(left_out)),
        "integer": tuple(sorted(integers)),
        "unchanged": tuple(sorted(copies.keys() - infos.keys() - trained.keys())),
    }
    return _Fitted(infos, wholes, {rule: names for rule, names in rules.items() if names})


def adapter_leaves(
    adapter: Adapter, base: TensorStore, exclude: Sequence[str] = ()
) -> tuple[Leaf, ...]:
    """The delta of a LoRA adapter: its updates, formed while they are read, and whole tensors.

    An adapter names its base but does not record what it held, so it is bound to the base that
    is given: every tensor it changes must be there in the same shape. The delta of adapted
    embeddings is added to what the base stores; where a model ties its head to them, the head
    changes as well, as it does when PEFT merges. Whole tensors beside the factors (modules_to_save,
    biases, embeddings) replace the base's, so the base's are subtracted from them: they are a
    leaf of their own, which is there only where one of them differs from the base's.

    Args:
        adapter: the adapter.
        base: the weights it was trained on; the result has their names.
        exclude: patterns (``*`` and ``?``) of tensors to leave out.

    Raises:
        MismatchError: the base lacks a tensor, or holds another shape or no floats there; or it
            ties its head to embeddings that the adapter holds whole, which PEFT does not.
        UsageError: a pattern names no tensor of either side.
    """
    fitted = _fitted(adapter, base, exclude)
    _check_ties(adapter, base, fitted)
    files = (adapter.path, *adapter.files, base.path, *base.files)
    binding, label = Binding(str(base.path), base), str(adapter.path)
    updates = Leaf(label, fitted.updates, False, binding, files, fitted.rules)
    if not fitted.wholes:
        return (updates,)
    return updates, Leaf(f"{label} (whole tensors)", fitted.wholes, True, binding, files)


def adapted_store(adapter: Adapter, base: TensorStore, dtype: DType | None = None) -> TensorStore:
    """The model that merging a LoRA adapter into its base gives, formed while it is read.

    Args:
        adapter: the adapter.
        base: the model that it is put on.
        dtype: what sums of weights and updates are read as; None: float32 (float64 where the
            weights are).

    Raises:
        MismatchError: as for :func:`adapter_leaves`.
    """
    fitted = _fitted(adapter, base)
    infos = {**base.infos, **{n: replace(i, name=n) for n, i in fitted.wholes.items()}}
    for name, update in fitted.updates.items():
        infos[name] = adapted(infos[name], update, dtype)
    files = (*base.files, adapter.path, *adapter.files)
    return TensorStore(base.path, infos, base.metadata, files)


def whole_tensors(adapter: Adapter, base: TensorStore) -> tuple[TensorInfo, ...]:
    """The whole tensors beside an adapter's factors that differ from the base's.

    Raises:
        MismatchError: as for :func:`adapter_leaves`.
    """
    return tuple(_fitted(adapter, base).wholes.values())


def tied_apart(adapter: Adapter, base: TensorStore, name: str) -> str:
    """What to say of whole embeddings of a model that ties its head to them."""
    return (
        f"{adapter.path}: holds {name!r} whole, apart from the head, which {base.path} ties to it; "
        f"PEFT leaves the head as it was. {MERGE_IT[0].upper()}{MERGE_IT[1:]}, "
        f"{_or_leave_out(name)}"
    )


def _or_leave_out(name: str) -> str:
    """The other way out; recipes have no --exclude."""
    return f"or, outside of recipes, leave it out with --exclude '{name}'"


def _check_ties(adapter: Adapter, base: TensorStore, fitted: _Fitted) -> None:
    """What is added to a base with a tied head cannot change its embeddings alone."""
    tables = [name for name, info in fitted.wholes.items() if EMBEDDING.search(info.name)]
    if not tables or any(HEAD.search(name) for name in base):
        return
    config = base.path / "config.json"
    if config.is_file() and is_tied(read_json(config)):
        raise MismatchError(tied_apart(adapter, base, tables[0]))


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


def _check_copy(name: str, info: TensorInfo, base: TensorStore) -> None:
    advice = f"{MERGE_IT}, {_or_leave_out(name)}"
    if name not in base:
        raise MismatchError(
            f"{info.where} is a whole tensor, but the base {base.path} has no {name!r}"
            f"{_nearest(name, base)}; {advice}"
        )
    other = base[name]
    table = len(info.shape) == len(other.shape) == 2 and info.shape[1] == other.shape[1]
    if table and info.shape != other.shape:
        raise MismatchError(
            f"{info.where} has {info.shape[0]} rows, but the base {base.path} has "
            f"{other.shape[0]} rows of {name!r}: it was resized for other tokens; {advice}"
        )
    if info.shape != other.shape:
        raise MismatchError(
            f"{info.where} has shape {list(info.shape)}, but the base {base.path} has "
            f"{list(other.shape)} there; {advice}"
        )
    if info.dtype.mergeable != other.dtype.mergeable:
        raise MismatchError(
            f"{info.where} holds {info.dtype.name}, but the base {base.path} holds "
            f"{other.dtype.name} there; {advice}"
        )


def _same_values(copy: TensorInfo, base: TensorInfo) -> bool:
    """Whether a tensor holds the base's values, rounded to its own dtype where that is smaller.

    Nothing is known of a base that is yet to be made: it counts as another.
    """
    if isinstance(base.blob, Unmade):
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
