"""Masks: which entries of a task vector are kept, one bit each, in a file for all tasks together.

A file of masks is made by :func:`taskbasis.selection.select`. Masks that were made together with
exclusive scores have disjoint supports, and the file says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis import spaces, stored
from taskbasis.errors import HeaderError, MismatchError, UsageError, nearest
from taskbasis.io.dtypes import BY_NAME
from taskbasis.io.remote import open_anywhere
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.recipe import Binding, Combination, Leaf

BITS = BY_NAME["uint8"]
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
"""How many bits every byte has."""


def mask_key(index: int, tensor: str) -> str:
    """What a tensor of the ``index``-th mask is called in the file."""
    return f"mask.{index}:{tensor}"


def packed_size(shape: tuple[int, ...]) -> int:
    """Bytes that the bits of a tensor take.

    >>> packed_size((3, 3))
    2
    """
    return -(-math.prod(shape) // 8)


@dataclass(frozen=True, eq=False)
class Mask:
    """The entries of one task that are kept; multiplies that task's vector.

    Attributes:
        name: the task.
        label: what to call it in messages: FILE:NAME.
        infos: packed bits, the first entry in the lowest bit; by tensor name.
        shapes: of the tensors that are masked.
        base: the base that the vectors were taken from.
        files: what it is read from.
        exclusive: whether no other mask of its file keeps an entry of it.
    """

    name: str
    label: str
    infos: Mapping[str, TensorInfo] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    base: Binding = field(repr=False)
    files: tuple[Path, ...] = ()
    exclusive: bool = False

    space: ClassVar[spaces.Space] = "mask"

    def entries(self, tensor: str) -> NDArray[np.bool_]:
        """Which entries of a tensor are kept, as booleans of its shape.

        Raises:
            MismatchError: it has no such tensor.
        """
        if tensor not in self.infos:
            raise MismatchError(f"{self.label} has no {tensor!r}; {nearest(tensor, self.infos)}")
        shape = self.shapes[tensor]
        bits = np.unpackbits(self.infos[tensor].load(), bitorder="little")
        return bits[: math.prod(shape)].astype(np.bool_).reshape(shape)

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of several tasks, made together.

    Attributes:
        path: the file.
        names: the tasks, in the order in which their vectors were given.
        shapes: of the tensors that are masked.
        base: the base that the vectors were taken from.
        options: how they were made: method, its options, what the scores were.
    """

    path: Path
    store: TensorStore = field(repr=False)
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    base: Binding = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Masks:
        """The masks at ``path``; nothing but the header is read.

        Raises:
            HeaderError: it is something else, or what it records is not what it holds.
        """
        store = open_anywhere(path)
        content = stored.expect(store, stored.MASK, "make masks with: taskbasis select")
        names, shapes, options = (content.get(key) for key in ("names", "shapes", "options"))
        if not (
            isinstance(names, list)
            and isinstance(shapes, dict)
            and isinstance(options, dict)
            and all(_is_shape(shape) for shape in shapes.values())
        ):
            raise HeaderError(f"{store.path}: its taskbasis record does not say what is masked")
        sizes = {tensor: tuple(shape) for tensor, shape in shapes.items()}
        wanted = {
            mask_key(index, tensor): packed_size(shape)
            for index in range(len(names))
            for tensor, shape in sizes.items()
        }
        for name, size in wanted.items():
            if name not in store or (store[name].dtype, store[name].shape) != (BITS, (size,)):
                raise HeaderError(f"{store.path}: {name!r} is not the {size} bytes it should be")
        if len(store) != len(wanted):
            raise HeaderError(f"{store.path}: holds tensors that its record does not know")
        return cls(
            Path(path),
            store,
            tuple(map(str, names)),
            sizes,
            stored.decode_binding(store, content),
            options,
        )

    @property
    def exclusive(self) -> bool:
        """Whether no entry is kept for two tasks, by the way the masks were made."""
        return self.options.get("exclusive") is True

    def __getitem__(self, name: str) -> Mask:
        if name not in self.names:
            raise UsageError(f"{self.path} has no mask {name!r}; {nearest(name, self.names)}")
        index = self.names.index(name)
        infos = {tensor: self.store[mask_key(index, tensor)] for tensor in self.shapes}
        return Mask(
            name,
            f"{self.path}:{name}",
            infos,
            self.shapes,
            self.base,
            (self.path, *self.store.files),
            self.exclusive,
        )

    def shares(self, name: str) -> tuple[float, float]:
        """The share of all entries that a mask keeps, and the share of those that others keep, too.

        Raises:
            UsageError: there is no such mask.
        """
        own = self[name].infos
        others = [self[other].infos for other in self.names if other != name]
        size = kept = common = 0
        for tensor, shape in self.shapes.items():
            bits = own[tensor].load()
            shared = np.zeros_like(bits)
            for infos in others:
                shared |= bits & infos[tensor].load()
            size += math.prod(shape)
            kept += int(_ONES[bits].sum(dtype=np.int64))
            common += int(_ONES[shared].sum(dtype=np.int64))
        return kept / max(size, 1), common / max(kept, 1)

    def __str__(self) -> str:
        return str(self.path)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)


def masked(combination: Combination, mask: Mask) -> Combination:
    """A vector's entries that a mask keeps; the others become zero while they are read.

    Raises:
        MismatchError: the vector has a tensor that the mask does not know, or of another shape.
    """
    terms = [replace(term, leaf=_masked(term.leaf, mask)) for term in combination.terms]
    return Combination(tuple(terms))


def _masked(leaf: Leaf, mask: Mask) -> Leaf:
    for name, info in leaf.infos.items():
        if name not in mask.shapes:
            raise MismatchError(
                f"{mask.label} says nothing of tensor {name!r}, which {leaf.label} may change; "
                "make the masks again from all vectors, or leave it out with --exclude"
            )
        if tuple(mask.shapes[name]) != info.shape:
            raise MismatchError(
                f"{info.where} has shape {list(info.shape)}, but {mask.label} is for "
                f"{list(mask.shapes[name])} there"
            )
    masks = {name: (*leaf.masks.get(name, ()), mask.infos[name]) for name in leaf.infos}
    return replace(
        leaf,
        label=f"{mask.label} * {leaf.label}",
        masks=masks,
        also=(*leaf.also, mask.base),
        files=(*leaf.files, *mask.files),
    )
