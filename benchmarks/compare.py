"""Whether two checkpoints agree, and how far one lies from the exact result.

Differences are counted in *bf16 units*: two numbers are one unit apart when no bf16 number lies
between them. Files are read block by block, so memory stays small at any size.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15  # elements compared at once by one thread: they stay in cache
BF16 = 2  # bytes

Stored = NDArray[Any]  # bfloat16, which NumPy's types cannot name


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's bytes stand."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    def block(self, first: int, count: int) -> Stored:
        """``count`` of its numbers from the ``first`` on."""
        start = self.start + BF16 * first
        return np.fromfile(self.path, ml_dtypes.bfloat16, count=count, offset=start)


@dataclass(frozen=True)
class Agreement:
    """How two checkpoints agree.

    Attributes:
        unmatched: tensors that only one side has, or whose shapes or dtypes differ.
        entries: numbers compared.
        differing: how many of them differ.
        worst_units: the largest difference in bf16 units. Near zero these are minute, so a
            result that should cancel out can be thousands of them away.
        worst_tensor: where that is; empty when nothing differs.
        worst_value: the largest difference as a number, wherever that is.
    """

    unmatched: tuple[str, ...]
    entries: int
    differing: int
    worst_units: int
    worst_tensor: str
    worst_value: float

    @property
    def share(self) -> float:
        """The share of numbers that differ."""
        return self.differing / max(self.entries, 1)

    @property
    def good(self) -> bool:
        """The same tensors, and no number further off than one rounding."""
        return not self.unmatched and self.worst_units <= 1

    @classmethod
    def together(cls, parts: Sequence[Agreement], unmatched: Sequence[str] = ()) -> Agreement:
        """The agreement of tensors that were compared one by one."""
        worst = max(parts, key=lambda part: part.worst_units, default=None)
        return cls(
            unmatched=(*unmatched, *(name for part in parts for name in part.unmatched)),
            entries=sum(part.entries for part in parts),
            differing=sum(part.differing for part in parts),
            worst_units=worst.worst_units if worst else 0,
            worst_tensor=worst.worst_tensor if worst else "",
            worst_value=max((part.worst_value for part in parts), default=0.0),
        )

    def sentence(self) -> str:
        """What was found, for a reader.

        >>> Agreement((), 10, 0, 0, "", 0.0).sentence()
        'all 10 entries are equal'
        """
        if self.unmatched:
            return f"the tensors do not match: {', '.join(self.unmatched[:3])}"
        if not self.differing:
            return f"all {self.entries:,} entries are equal"
        return (
            f"{self.differing:,} of {self.entries:,} entries differ ({100 * self.share:.2g} %), "
            f"by {self.worst_units} bf16 unit{'s' if self.worst_units > 1 else ''} "
            f"and by {self.worst_value:.2g} in value at most"
        )


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of all of them in a folder, by name."""
    found: dict[str, Tensor] = {}
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        for name, field in header.items():
            if name != "__metadata__":
                start = 8 + length + field["data_offsets"][0]
                found[name] = Tensor(path, start, field["dtype"], tuple(field["shape"]))
    return found


def compare(left: Path, right: Path) -> Agreement:
    """Compares two checkpoints of bf16 tensors."""
    ours, theirs = tensors(left), tensors(right)

    def blocks(name: str, first: int, count: int) -> tuple[Stored, Stored]:
        return ours[name].block(first, count), theirs[name].block(first, count)

    return _agreement(ours, theirs, blocks)


def compare_with_exact_sum(
    result: Path, base: Path, tuned: Sequence[Path], scale: float
) -> Agreement:
    """Compares a checkpoint with base + scale x sum of (tuned - base), rounded to bf16 once.

    The sum is taken in float64, where it has no error worth the name for bf16 inputs.
    """
    ours, bases = tensors(result), tensors(base)
    others = [tensors(folder) for folder in tuned]
    scratch = _Scratch()

    def blocks(name: str, first: int, count: int) -> tuple[Stored, Stored]:
        exact = exact_sum(
            bases[name].block(first, count),
            [other[name].block(first, count) for other in others],
            scale,
            scratch,
        )
        return ours[name].block(first, count), exact

    return _agreement(ours, bases, blocks)


def compare_arrays(
    name: str, result: Stored | None, exact: NDArray[np.float64], slack: NDArray[np.float64]
) -> Agreement:
    """Compares one tensor with its exact numbers; what is closer than ``slack`` is equal."""
    if result is None or result.shape != exact.shape:
        return Agreement((name,), 0, 0, 0, "", 0.0)
    # The second rounding, through float32, can cost a unit, which is allowed.
    rounded = exact.astype(np.float32).astype(ml_dtypes.bfloat16)
    units = units_apart(result, rounded)
    values = np.abs(result.astype(np.float64) - exact)
    units[(units > 1) & (values <= slack)] = 1
    worst = int(units.max(initial=0))
    return Agreement(
        unmatched=(),
        entries=result.size,
        differing=int(np.count_nonzero(units)),
        worst_units=worst,
        worst_tensor=name if worst else "",
        worst_value=float(values[units > 0].max(initial=0.0)),
    )


class _Scratch(threading.local):
    """Each thread's own buffers: fresh memory costs more than the sums."""

    def __init__(self) -> None:
        self.double = np.empty((3, BLOCK), np.float64)
        self.single = np.empty(BLOCK, np.float32)


def exact_sum(base: Stored, tuned: Sequence[Stored], scale: float, scratch: _Scratch) -> Stored:
    """base + scale x sum of (tuned - base) in float64, rounded to bf16 once."""
    origin, total, part = scratch.double[:, : len(base)]
    np.copyto(origin, base, casting="unsafe")
    total[:] = 0
    for one in tuned:
        np.copyto(part, one, casting="unsafe")
        part -= origin
        total += part
    total *= scale
    total += origin
    return _rounded(total, scratch)


def _rounded(numbers: NDArray[np.float64], scratch: _Scratch) -> Stored:
    """Rounds float64 to the nearest bf16, ties to even; uses the other two double buffers.

    A cast would round twice, through float32. Rounding to *odd* in float32 first (keep the value
    toward zero, set its last bit when anything was cut off) makes the second rounding right.
    """
    magnitude, _, widened = scratch.double[:, : len(numbers)]
    nearest = scratch.single[: len(numbers)]
    np.copyto(nearest, numbers, casting="unsafe")
    np.copyto(widened, nearest)
    inexact = widened != numbers
    np.abs(numbers, out=magnitude)
    np.abs(widened, out=widened)
    bits = nearest.view(np.int32)
    bits -= widened > magnitude
    bits |= inexact
    return nearest.astype(ml_dtypes.bfloat16)


def units_apart(left: Stored, right: Stored) -> NDArray[np.int32]:
    """How many bf16 steps lie between two arrays, element by element; -0 equals 0.

    >>> a = np.array([1.0, 0.0, -1.0], ml_dtypes.bfloat16)
    >>> b = np.array([1.0078125, -0.0, -1.0], ml_dtypes.bfloat16)
    >>> units_apart(a, b).tolist()
    [1, 0, 0]
    """
    steps = _ordered(left)
    steps -= _ordered(right)
    return np.abs(steps, out=steps)


def _ordered(stored: Stored) -> NDArray[np.int32]:
    """Integers in the order of the numbers, neighbours one apart."""
    bits = stored.view(np.int16).astype(np.int32)
    sign = bits >> 15  # 0 or -1
    bits &= 0x7FFF
    bits ^= sign
    bits -= sign
    return bits


def _agreement(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    blocks: Callable[[str, int, int], tuple[Stored, Stored]],
) -> Agreement:
    unmatched = sorted(name for name in {*ours, *theirs} if not _alike(ours, theirs, name))
    names = [name for name in ours if name not in unmatched]

    def judge(place: tuple[str, int, int]) -> tuple[int, int, float]:
        return _apart(*blocks(*place))

    places = list(_places(ours, names))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        found = list(threads.map(judge, places))
    worst = max(range(len(found)), key=lambda i: found[i][1], default=None)
    units = 0 if worst is None else found[worst][1]
    return Agreement(
        unmatched=tuple(unmatched),
        entries=sum(count for _, _, count in places),
        differing=sum(count for count, _, _ in found),
        worst_units=units,
        worst_tensor=places[worst][0] if worst is not None and units else "",
        worst_value=max((value for _, _, value in found), default=0.0),
    )


def _apart(left: Stored, right: Stored) -> tuple[int, int, float]:
    """Of two blocks: how many entries differ, by how many units and by what value at most."""
    units = units_apart(left, right)
    where = np.flatnonzero(units)
    if not len(where):
        return 0, 0, 0.0
    values = left[where].astype(np.float64) - right[where].astype(np.float64)
    return len(where), int(units.max()), float(np.abs(values).max())


def _alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str) -> bool:
    if name not in ours or name not in theirs:
        return False
    one, other = ours[name], theirs[name]
    return one.shape == other.shape and one.dtype == other.dtype == "BF16"


def _places(ours: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    for name in names:
        for first in range(0, ours[name].count, BLOCK):
            yield name, first, min(BLOCK, ours[name].count - first)
