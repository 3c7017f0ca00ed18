"""Recipes: inert data saying which task vectors to combine and what to add them to.

A :class:`Leaf` is something whose tensors can be read: a stored task vector, an atom of a basis,
or a fine-tuned checkpoint whose base is subtracted while it is read. A :class:`Combination` is a
weighted sum of leaves; the weights may differ from tensor to tensor, as the codes of a basis
with one group per tensor do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from taskbasis.errors import BaseError, MismatchError
from taskbasis.io.tensors import TensorInfo, TensorStore


@dataclass(frozen=True)
class Binding:
    """The base that a delta was taken from: a store, a fingerprint, or both.

    Attributes:
        name: what to call it in messages.
        store: its tensors, where they are at hand.
        fingerprint: its fingerprint, where it is recorded.
        digests: its tensors' digests, where they are recorded, to name what differs.
    """

    name: str
    store: TensorStore | None = None
    fingerprint: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def same_as(self, other: Binding) -> bool | None:
        """Whether both are one base; None when only reading the data could tell."""
        if self.store is not None and other.store is not None and self.store.same_as(other.store):
            return True
        if self.fingerprint is not None and other.fingerprint is not None:
            return self.fingerprint == other.fingerprint
        return None


@dataclass(frozen=True)
class Naming:
    """How a fine-tuned model's tensor names differ from its base's.

    Attributes:
        tuned: the prefix that only the tuned model's names have.
        base: the prefix that only the base's names have.
    """

    tuned: str = ""
    base: str = ""

    def to_base(self, name: str) -> str:
        """What the base calls a tensor of the tuned model; other names stay.

        >>> Naming(tuned="bert.").to_base("bert.encoder.w")
        'encoder.w'
        """
        if self.tuned:
            return name.removeprefix(self.tuned)
        return self.base + name


def find_naming(base: Iterable[str], tuned: Iterable[str]) -> Naming:
    """How a fine-tuned model's names differ from its base's: by one prefix, or not at all.

    A classifier on top of ``encoder.layer.0...`` is saved as ``bert.encoder.layer.0...``; a prefix
    is only looked for where the two sides share no name.

    >>> find_naming(["encoder.w", "encoder.b"], ["bert.encoder.w", "bert.encoder.b", "head.w"])
    Naming(tuned='bert.', base='')
    >>> find_naming(["encoder.w"], ["encoder.w", "head.w"])
    Naming(tuned='', base='')
    """
    old, new = set(base), set(tuned)
    if old & new or not old or not new:
        return Naming()
    best, shared = Naming(), 0
    for long, short, turned in ((new, old, False), (old, new, True)):
        for prefix in sorted({name.partition(".")[0] + "." for name in long if "." in name}):
            count = sum(prefix + name in long for name in short)
            if count > shared:
                best, shared = Naming(base=prefix) if turned else Naming(tuned=prefix), count
    return best


@dataclass(frozen=True, eq=False)
class Leaf:
    """Named tensors that are, or become, one delta.

    Attributes:
        label: what to call it, usually its file.
        infos: the tensors, by the base's names.
        difference: whether they are weights whose base is subtracted while reading.
        base: the base it is bound to.
        files: the files and folders it reads, which no output may touch.
        rules: names of tensors that are not part of it, by the rule that left them out.
        masks: per tensor the packed bits of masks that it is multiplied by.
        also: other bindings that must be to the same base: those of the masks.
        tuned: the fine-tuned model it was taken from, where that is known.
    """

    label: str
    infos: Mapping[str, TensorInfo] = field(repr=False)
    difference: bool
    base: Binding
    files: tuple[Path, ...] = ()
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    masks: Mapping[str, tuple[TensorInfo, ...]] = field(default_factory=dict, repr=False)
    also: tuple[Binding, ...] = ()
    tuned: Binding | None = field(default=None, repr=False)

    @property
    def base_names(self) -> set[str]:
        """The names of the base's tensors, as far as they are known."""
        known = self.base.store if self.base.store is not None else self.base.digests
        return {*self.infos, *known}


def excluded_names(leaves: Iterable[Leaf]) -> set[str]:
    """Names of tensors that were left out of a delta on purpose."""
    return {name for leaf in leaves for name in leaf.rules.get("excluded", ())}


@dataclass(frozen=True, eq=False)
class Learnt:
    """What was learnt of a task from data, and goes with its vector: scores or moments.

    Attributes:
        label: what to call it, usually its file.
        infos: one tensor per parameter, by the base's names.
        numbers: what a tensor's stored scores are multiplied by; of how many inputs a moment is.
        files: the files it is read from.
        transposed: names of matrices that are [in, out] instead of [out, in].
        model: what it was learnt of.
    """

    label: str
    infos: Mapping[str, TensorInfo] = field(repr=False)
    numbers: Mapping[str, float] = field(repr=False)
    files: tuple[Path, ...] = ()
    transposed: frozenset[str] = frozenset()
    model: Binding | None = None

    def of(self, combination: Combination) -> Learnt:
        """By the names that the vector's base uses, where they differ from its model's."""
        names = {name for leaf in combination.leaves for name in leaf.base_names}
        naming = find_naming(names, self.infos)
        if naming == Naming():
            return self
        return replace(
            self,
            infos={naming.to_base(name): info for name, info in self.infos.items()},
            numbers={naming.to_base(name): number for name, number in self.numbers.items()},
            transposed=frozenset(naming.to_base(name) for name in self.transposed),
        )


@dataclass(frozen=True, eq=False)
class Term:
    """A leaf times a number, or times one number per tensor (absent tensors: zero)."""

    leaf: Leaf
    coefficient: float = 1.0
    per_tensor: Mapping[str, float] | None = field(default=None, repr=False)

    def value(self, tensor: str) -> float:
        """The coefficient for one tensor."""
        if self.per_tensor is None:
            return self.coefficient
        return self.coefficient * self.per_tensor.get(tensor, 0.0)


@dataclass(frozen=True, eq=False)
class Combination:
    """A weighted sum of leaves; building and combining it reads nothing."""

    terms: tuple[Term, ...]

    def __add__(self, other: Combination) -> Combination:
        """The sum, refused when the bases are known to differ.

        Raises:
            BaseError: naming both sides and their bases.
        """
        for left in self.leaves:
            for right in other.leaves:
                if left.base.same_as(right.base) is False:
                    raise BaseError(
                        f"{left.label} was taken from the base {left.base.name} and {right.label} "
                        f"from {right.base.name}, another one; deltas of two bases do not mix"
                    )
        return Combination(_merged((*self.terms, *other.terms)))

    def scaled(self, factor: float) -> Combination:
        """The combination times a number."""
        return Combination(
            tuple(replace(term, coefficient=term.coefficient * factor) for term in self.terms)
        )

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves, each once, in order of appearance."""
        return tuple({id(term.leaf): term.leaf for term in self.terms}.values())

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return " + ".join(leaf.label for leaf in self.leaves) or "an empty sum"

    def coefficients(self, tensor: str) -> dict[int, float]:
        """The coefficient of every leaf (by identity) for one tensor."""
        found: dict[int, float] = {}
        for term in self.terms:
            found[id(term.leaf)] = found.get(id(term.leaf), 0.0) + term.value(tensor)
        return found


def _merged(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Terms of one leaf with plain coefficients become one term."""
    plain: dict[int, Term] = {}
    others: list[Term] = []
    for term in terms:
        if term.per_tensor is not None:
            others.append(term)
        elif id(term.leaf) in plain:
            known = plain[id(term.leaf)]
            plain[id(term.leaf)] = replace(known, coefficient=known.coefficient + term.coefficient)
        else:
            plain[id(term.leaf)] = term
    return (*plain.values(), *others)


def shape_check(info: TensorInfo, other: TensorInfo) -> None:
    """Refuse two tensors of one name whose shapes differ, even where they would broadcast.

    Raises:
        MismatchError: naming both tensors, their files and shapes.
    """
    if info.shape != other.shape:
        raise MismatchError(
            f"{info.where} has shape {list(info.shape)}, but {other.blob.label} has "
            f"{list(other.shape)} there"
        )
