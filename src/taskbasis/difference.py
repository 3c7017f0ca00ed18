"""Which tensors of a fine-tuned checkpoint are compared with which of its base, and by what rule.

Every tensor of both sides falls under one rule, and the rule is reported:

    compared   float tensors of one name and shape on both sides
    tied       absent on one side, where its bytes equal another tensor's of the other side
    renamed    compared, where one side puts one word before all names (``bert.encoder...``)
    integer    integers, booleans and other types without arithmetic: the base's are kept;
               matrices of them, such as quantised weights, must be equal
    excluded   named by a pattern of the caller
    unchanged  compared, and found equal byte for byte (when the vector is stored)

Anything else (a missing tensor, an extra one, another shape) is an error naming it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from taskbasis.digest import store_digests, tensor_digests
from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError, nearest
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.recipe import Binding, Leaf, find_naming, shape_check

_PIECE = 1 << 20
_BEGIN = 1024


def difference_leaf(base: TensorStore, tuned: TensorStore, exclude: Sequence[str] = ()) -> Leaf:
    """The delta ``tuned - base``, taken while it is read.

    Args:
        base, tuned: the two sides; the result has the base's names.
        exclude: patterns (``*`` and ``?``) of tensors to leave out on both sides.

    Raises:
        MismatchError: a float tensor is on one side only and not tied, shapes differ, or matrices
            differ that no arithmetic is done on.
        UsageError: a pattern names no tensor of either side.
    """
    naming = find_naming(base, tuned)
    left_out = excluded(exclude, {*base, *tuned})
    left_out |= {naming.to_base(name) for name in left_out & tuned.infos.keys()}
    old = {name: info for name, info in base.items() if name not in left_out}
    new = {naming.to_base(name): info for name, info in tuned.items() if name not in left_out}
    new = {name: info for name, info in new.items() if name not in left_out}
    tied = _ties(old, new)
    _refuse_strangers(base, tuned, old, new, tied)
    infos: dict[str, TensorInfo] = {}
    integers: list[str] = []
    for name, info in old.items():
        other = new.get(tied.get(name, name))
        if other is None:
            integers.append(name)
            continue
        shape_check(other, info)
        if info.dtype.mergeable and other.dtype.mergeable:
            infos[name] = other
        elif info.dtype.mergeable or other.dtype.mergeable:
            raise MismatchError(
                f"{other.where} holds {other.dtype.name}, but the base {info.blob.label} holds "
                f"{info.dtype.name} there; leave it out with --exclude '{name}'"
            )
        else:
            _refuse_quantised(name, other, info)
            integers.append(name)
    integers += [name for name, info in new.items() if name not in old and _plain(info)]
    rules = {
        "renamed": tuple(sorted(n for n, i in infos.items() if n not in tied and i.name != n)),
        "tied": tuple(sorted(tied)),
        "integer": tuple(sorted(integers)),
        "excluded": tuple(sorted(left_out)),
    }
    return Leaf(
        str(tuned.path),
        infos,
        True,
        Binding(str(base.path), base),
        (tuned.path, base.path, *tuned.files, *base.files),
        {rule: names for rule, names in rules.items() if names},
        tuned=Binding(str(tuned.path), tuned),
    )


def _refuse_quantised(name: str, tuned: TensorInfo, base: TensorInfo) -> None:
    """Counters may differ, and the base's are kept; of weights that would lose what was learnt."""
    if unlike_matrices(tuned, base):
        raise MismatchError(
            f"{tuned.where} holds {tuned.dtype.name} that differ from those of the base "
            f"{base.blob.label}, but no arithmetic is done on them; convert quantised models to "
            f"floats first, or keep the base's with --exclude '{name}'"
        )


def _plain(info: TensorInfo) -> bool:
    return not info.dtype.mergeable


def excluded(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that any of the patterns (``*`` and ``?``) matches; a text alone is one pattern.

    Raises:
        UsageError: a pattern matches none of them.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        hits = [name for name in known if fnmatchcase(name, pattern)]
        if not hits:
            raise UsageError(f"--exclude {pattern!r} matches no tensor; {nearest(pattern, known)}")
        found.update(hits)
    return found


def _ties(old: Mapping[str, TensorInfo], new: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Names on one side only whose bytes equal another tensor's there.

    A name the tuned side lacks maps to the name that stands for it; one that only the tuned side
    has maps to the shared name it repeats.
    """
    ties: dict[str, str] = {}
    for holder, other in ((old, new), (new, old)):
        for name in holder.keys() - other.keys():
            if _plain(holder[name]):
                continue
            twins = [n for n in sorted(holder.keys() & other.keys()) if _alike(holder, name, n)]
            if twins:
                ties[name] = twins[0]
    return ties


def _alike(holder: Mapping[str, TensorInfo], name: str, twin: str) -> bool:
    one, two = holder[name], holder[twin]
    return (one.dtype, one.shape) == (two.dtype, two.shape) and same_bytes(one, two)


def unlike_matrices(one: TensorInfo, two: TensorInfo) -> bool:
    """Whether two tensors without floats are matrices that differ, as quantised weights do."""
    plain = _plain(one) and len(one.shape) > 1
    return plain and not (one.dtype == two.dtype and same_bytes(one, two))


def same_bytes(one: TensorInfo, two: TensorInfo) -> bool:
    """Whether two tensors of equal size hold the same bytes; stops at the first difference."""
    if one.nbytes != two.nbytes:
        return False
    left, right = np.empty(_PIECE, np.uint8), np.empty(_PIECE, np.uint8)
    for start in range(0, one.nbytes, _PIECE):
        size = min(_PIECE, one.nbytes - start)
        one.blob.read_into(one.offset + start, left[:size].data)
        two.blob.read_into(two.offset + start, right[:size].data)
        if not np.array_equal(left[:size], right[:size]):
            return False
    return True


def twins(store: TensorStore) -> dict[str, str]:
    """Tensors that hold another's bytes, such as a tied head that is stored twice, by its name.

    The beginnings of all float tensors are read, and the whole of those that begin alike.
    """
    firsts: dict[tuple[object, ...], list[str]] = {}
    found = {}
    for name, info in sorted(store.items()):
        if not info.dtype.mergeable or not info.size:
            continue
        begin = np.empty(min(info.size, _BEGIN), info.dtype.bits)
        info.read(0, begin.size, begin)
        alike = firsts.setdefault((info.dtype, info.shape, begin.tobytes()), [])
        twin = next((one for one in alike if same_bytes(store[one], info)), None)
        if twin is None:
            alike.append(name)
        else:
            found[name] = twin
    return found


def _refuse_strangers(
    base: TensorStore,
    tuned: TensorStore,
    old: Mapping[str, TensorInfo],
    new: Mapping[str, TensorInfo],
    tied: Mapping[str, str],
) -> None:
    missing = _floats(old, old.keys() - new.keys() - tied.keys())
    extra = _floats(new, new.keys() - old.keys() - tied.keys())
    complaints = []
    if missing:
        complaints.append(f"{tuned.path} lacks {_some(missing)} of the base {base.path}")
    if extra:
        complaints.append(f"{tuned.path} has {_some(extra)} that the base {base.path} lacks")
    if complaints:
        advice = "leave them out with --exclude (e.g. " + repr((missing or extra)[0]) + ")"
        raise MismatchError("; ".join(complaints) + f"; if that is meant, {advice}")


def _floats(infos: Mapping[str, TensorInfo], names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not _plain(infos[name]))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"


def changed_only(leaf: Leaf, engine: Engine) -> tuple[Leaf, dict[str, str]]:
    """The leaf without the tensors that equal the base's, and the base's digests.

    Both sides are read once; equality is that of digests, for tensors stored in one dtype.
    Leaves that are not differences come back as they are.
    """
    store = leaf.base.store
    if not leaf.difference or store is None:
        return leaf, dict(leaf.base.digests)
    digests = store_digests(store, engine)
    tuned = _digests_by_base_name(leaf, engine)
    changed = {name: info for name, info in leaf.infos.items() if tuned[name] != digests[name]}
    same = tuple(sorted(leaf.infos.keys() - changed.keys()))
    rules = {**leaf.rules, "unchanged": same} if same else dict(leaf.rules)
    return replace(leaf, infos=changed, rules=rules), digests


def _digests_by_base_name(leaf: Leaf, engine: Engine) -> dict[str, str]:
    """The digests of the tuned tensors, as if they were called what the base calls them."""
    whole = leaf.tuned.store if leaf.tuned is not None else None
    own = store_digests(whole, engine) if whole is not None else {}
    others = [
        TensorInfo(name, info.dtype, info.shape, info.blob, info.offset)
        for name, info in leaf.infos.items()
        if name not in own or info.name != name
    ]
    return {**own, **tensor_digests(others, engine)}
