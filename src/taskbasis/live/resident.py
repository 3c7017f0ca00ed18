"""Task vectors kept beside a live module, on its device: any of them is put into it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError, ValueProblem, finite, nearest, require
from taskbasis.io.tensors import TensorInfo
from taskbasis.live.applying import bound_edit, refuse_unwritable
from taskbasis.live.states import groups, store_of
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.plan import Merge
from taskbasis.recipe import Combination, Leaf, Term
from taskbasis.saving import vector_in_memory
from taskbasis.vectors import TaskVector


@dataclass(frozen=True, eq=False)
class _Place:
    """One tensor of the module.

    Attributes:
        name: what the base calls it.
        value: the module's own tensor.
        before: its base, a copy.
        rows: what the vectors are combined of, R tensors, in the dtype they are stored in.
        mixing: [T, R]: vector t is the sum of mixing[t, r] * row r.
        compute: the type that is computed in.
    """

    name: str
    value: Any
    before: Any
    rows: tuple[Any, ...]
    mixing: NDArray[np.float64]
    compute: Any


class Resident:
    """A live module whose task can be changed in the time its weights take to be written.

    The base, and what the vectors are made of, stay on the module's device: for the tasks of a
    basis its M atoms in their stored dtype, shared by all of them, and a few codes. ``put`` forms
    ``base + scale * sum_m code_m atom_m`` there, in float32, in the order of the atoms and rounded
    once: the bytes that saving has (on a GPU, too: no step fuses a product and a sum).

    In a ``with`` block the base is put back at the end.

    Args:
        vectors: task vectors of one base by name; of ``Basis`` all tasks, or some.
        module: a ``torch.nn.Module`` that holds the base.
        check: whether it must hold the base, as for :func:`~taskbasis.live.apply`.
        engine: how the vectors are read.

    Raises:
        BaseError, MismatchError, UsageError: as for :func:`~taskbasis.live.apply`.
        ValueProblem: a vector holds a value that is not finite.

    >>> import torch
    >>> from taskbasis import TaskVector
    >>> folder = getfixture("tiny_checkpoints")
    >>> vectors = {name: TaskVector(folder / "base", folder / name) for name in ("math", "code")}
    >>> module = torch.nn.Linear(2, 2)
    >>> with Resident(vectors, module, check=False) as tasks:
    ...     before = module.bias.tolist()
    ...     tasks.put("math", scale=0.5)
    ...     tasks.put("code")
    >>> module.bias.tolist() == before
    True
    """

    def __init__(
        self,
        vectors: Mapping[str, TaskVector],
        module: Any,
        *,
        check: bool = True,
        engine: Engine | None = None,
    ) -> None:
        torch = require("torch", "torch", "a live module")
        if not vectors:
            raise UsageError("there is no task vector to keep")
        engine = engine or Engine()
        self.names = tuple(vectors)
        combinations = _plain([vector.combination for vector in vectors.values()], engine)
        tensors, edit = bound_edit(combinations, TaskArithmetic(), module, check, engine)
        merges = {merge.name: merge for merge in edit.plan().merges}
        places = []
        for group in groups(tensors, tensors):
            held = [name for name in group if name in merges]
            if held:
                _refuse_untying(group, merges)
                refuse_unwritable(tensors[held[0]], f"tensor {held[0]!r} of the module")
                places.append(_place(merges[held[0]], tensors[held[0]], torch))
        self._places = tuple(places)
        self._torch = torch

    def put(self, name: str | None, scale: float = 1.0) -> None:
        """Give the module the weights ``base + scale * vector``; None is the base itself.

        Raises:
            UsageError: there is no vector of that name.
            ValueProblem: a value is too large for the module's dtype; the base was put back.
        """
        finite("the scale", scale)
        if name is None:
            self._put_back()
            return
        if name not in self.names:
            raise UsageError(f"there is no task {name!r}; {nearest(name, self.names)}")
        number, sound = self.names.index(name), []
        with self._torch.no_grad():
            for place in self._places:
                total = self._torch.zeros_like(place.before, dtype=place.compute)
                for factor, row in zip(scale * place.mixing[number], place.rows, strict=True):
                    if factor:
                        total += row.to(place.compute) * _factor(factor, place, self._torch)
                total += place.before
                place.value.copy_(total)
                sound.append(self._torch.isfinite(place.value).all())
        if not all(bool(one) for one in sound):  # asked once at the end: asking waits for a GPU
            at = next(place for place, one in zip(self._places, sound, strict=True) if not one)
            self._put_back()
            kind = str(at.value.dtype).removeprefix("torch.")
            raise ValueProblem(
                f"tensor {at.name!r}: a value of {name!r} times {scale:g} is too large for {kind}; "
                "take a smaller scale"
            )

    def _put_back(self) -> None:
        with self._torch.no_grad():
            for place in self._places:
                place.value.copy_(place.before)

    @property
    def nbytes(self) -> int:
        """What is kept on the device beside the module."""
        kept = (one for place in self._places for one in (place.before, *place.rows))
        return sum(one.numel() * one.element_size() for one in kept)

    def __enter__(self) -> Resident:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()


def _factor(factor: float, place: _Place, torch: Any) -> Any:
    """A number rounded to the type that is computed in, as the kernels round it."""
    return float(np.float32(factor)) if place.compute == torch.float32 else float(factor)


def _plain(combinations: Sequence[Combination], engine: Engine) -> tuple[Combination, ...]:
    """The combinations, with leaves that must be computed first (differences, masks) computed."""
    made: dict[int, Leaf] = {}
    for combination in combinations:
        for leaf in combination.leaves:
            if id(leaf) not in made:
                made[id(leaf)] = _as_rows(leaf, engine)
    return tuple(
        Combination(tuple(replace(term, leaf=made[id(term.leaf)]) for term in one.terms))
        for one in combinations
    )


def _as_rows(leaf: Leaf, engine: Engine) -> Leaf:
    if not leaf.difference and not leaf.masks:
        return leaf
    delta = vector_in_memory(Combination((Term(leaf),)), engine)
    return replace(leaf, infos=store_of(delta, leaf.label).infos, difference=False, masks={})


def _place(merge: Merge, value: Any, torch: Any) -> _Place:
    compute = torch.float64 if merge.double else torch.float32
    rows = tuple(_on_device(info, value, torch) for info in merge.rows)
    return _Place(merge.name, value, value.detach().clone(), rows, merge.mixing, compute)


def _on_device(info: TensorInfo, value: Any, torch: Any) -> Any:
    bits = np.empty(info.size, info.dtype.bits)
    info.read(0, info.size, bits)
    flat = torch.from_numpy(bits.view(np.uint8)).view(getattr(torch, info.dtype.name))
    if not bool(torch.isfinite(flat).all()):
        raise ValueProblem(f"{info.where}: a value is NaN or infinite; repair the vector")
    return flat.reshape(value.shape).to(value.device)


def _refuse_untying(group: list[str], merges: Mapping[str, Merge]) -> None:
    """One memory can hold one result: its names must be changed alike."""
    first = merges.get(group[0])
    for name in group[1:]:
        other = merges.get(name)
        if first is None or other is None or not _alike(first, other):
            raise MismatchError(
                f"the module ties {group[0]!r} and {name!r}, but a vector changes them unlike each "
                "other; untie them first"
            )


def _alike(first: Merge, second: Merge) -> bool:
    if first.mixing.shape != second.mixing.shape or np.any(first.mixing != second.mixing):
        return False
    pairs = zip(first.rows, second.rows, strict=True)
    return all(np.array_equal(one.load(), other.load()) for one, other in pairs)
