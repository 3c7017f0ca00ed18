"""Every registered method keeps the contract, and every clause catches who does not."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import testing
from taskbasis.granularity import Granularity
from taskbasis.methods import METHODS, Chunk, Method, Ties, method
from taskbasis.testing import BrokenContract, check_method, merged

ORDERED = {"magmax"}
"""Methods whose docstrings say that entries of equal magnitude go by the order."""

Array = NDArray[Any]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_the_contract(name: str) -> None:
    check_method(method(name), ordered=name in ORDERED)


@pytest.mark.parametrize("density", [0.003, 0.5, 1.0])
def test_ties_keeps_it_at_any_density(density: float) -> None:
    check_method(Ties(density=density))


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_an_order_that_matters_must_be_declared(name: str) -> None:
    with pytest.raises(BrokenContract, match=f"{name}: the order of the vectors"):
        check_method(method(name))


@dataclass(frozen=True)
class Sum(Method):
    """Right in every way; what follows spoils one thing each."""

    name: ClassVar[str] = "sum"

    def apply(self, chunk: Chunk, state: Any) -> Array:
        total = np.zeros(chunk.deltas.shape[1], chunk.deltas.dtype)
        for row in chunk.deltas:
            total += row
        return total


@dataclass(frozen=True)
class Overwriting(Sum):
    """Uses its input as scratch, which is allowed."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        deltas = chunk.deltas
        for row in deltas[1:]:
            deltas[0] += row
        deltas[1:] = np.nan
        return deltas[0]


@dataclass(frozen=True)
class Normed(Sum):
    """Divides by the norm of the longest vector, in a stage that sums floats."""

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",)

    def observe(self, stage: int, chunk: Chunk, state: Any) -> Array:
        return np.asarray(np.sum(chunk.deltas.astype(np.float32) ** 2, axis=1))

    def finish(self, stage: int, total: Array, state: Any) -> float:
        return float(np.sqrt(np.max(total)))

    def apply(self, chunk: Chunk, state: Any) -> Array:
        (norm,) = state
        scale = np.asarray(1 / norm if norm else 0.0, chunk.deltas.dtype)
        return np.asarray(super().apply(chunk, ()) * scale)


def test_what_is_allowed() -> None:
    check_method(Sum())
    check_method(Overwriting())
    check_method(Normed(), tolerance=1e-5)
    with pytest.raises(BrokenContract, match="cut into"):
        check_method(Normed())


@dataclass(frozen=True)
class Nameless(Sum):
    name: ClassVar[str] = ""


class Undecorated(Sum):
    strength: float = 0.5


@dataclass(frozen=True)
class Holding(Sum):
    table: Any = field(default_factory=lambda: np.zeros(2).tobytes())


@dataclass(frozen=True)
class Tupled(Sum):
    table: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Tall(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state)[None]


@dataclass(frozen=True)
class Narrowing(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state).astype(np.float32)


@dataclass(frozen=True)
class Unbiased(Sum):
    """T - 1 below the line."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(
                super().apply(chunk, state) / np.float32(len(chunk.deltas) - 1), chunk.deltas.dtype
            )


@dataclass(frozen=True)
class Shifting(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) + chunk.deltas.dtype.type(1e-6)


@dataclass(frozen=True)
class Rolling(Sum):
    """Random numbers of a stream that goes on."""

    random: ClassVar[np.random.Generator] = np.random.default_rng(0)

    def apply(self, chunk: Chunk, state: Any) -> Array:
        kept = self.random.random(chunk.deltas.shape) < 0.5
        return super().apply(replace(chunk, deltas=chunk.deltas * kept), state)


@dataclass(frozen=True)
class Counting(Sum):
    """Remembers that it was called."""

    calls: int = 0

    def apply(self, chunk: Chunk, state: Any) -> Array:
        object.__setattr__(self, "calls", self.calls + 1)
        return super().apply(chunk, state)


@dataclass(frozen=True)
class Centring(Sum):
    """Takes the mean of a stretch for that of a vector."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        total = super().apply(chunk, state)
        return np.asarray(total - (total.mean() if total.size else 0), chunk.deltas.dtype)


@dataclass(frozen=True)
class Pairwise(Sum):
    """NumPy sums a single column in another order than many."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return np.asarray(np.repeat(chunk.deltas, 50, axis=0).sum(axis=0))


@dataclass(frozen=True)
class Homebound(Sum):
    """Gives another result away from the main thread."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        away = threading.current_thread() is not threading.main_thread()
        return super().apply(replace(chunk, deltas=-chunk.deltas) if away else chunk, state)


@dataclass(frozen=True)
class Boasting(Sum):
    """Its weights are not what it does."""

    def weights(self, count: int) -> Array:
        return np.ones(count)

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) / chunk.deltas.dtype.type(len(chunk.deltas))


@dataclass(frozen=True)
class Halving(Sum):
    """A weighted sum, but one vector counts half."""

    def weights(self, count: int) -> Array:
        return np.full(count, 0.5)

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) * chunk.deltas.dtype.type(0.5)


@dataclass(frozen=True)
class Scanty(Sum):
    """One weight, however many vectors there are."""

    def weights(self, count: int) -> Array:
        return np.ones(1)


@dataclass(frozen=True)
class Favouring(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(replace(chunk, deltas=chunk.deltas[:1]), state)


BREACHES = [
    (Nameless, "check_record", "no name"),
    (Undecorated, "check_record", "not decorated"),
    (Holding, "check_record", "not numbers, words"),
    (Tupled, "check_record", "not numbers, words"),
    (Tall, "check_shape", "becomes float32 of shape"),
    (Narrowing, "check_shape", "float64 of shape .* becomes float32"),
    (Unbiased, "check_finite", "1 finite vectors of 1 entries is not finite"),
    (Shifting, "check_zeros", "do not give zero"),
    (Rolling, "check_pure", "a second call"),
    (Counting, "check_pure", "a call changes the method"),
    (Centring, "check_cuts", "cut into"),
    (Pairwise, "check_cuts", "cut into 331"),
    (Homebound, "check_workers", "2 workers give another result than one"),
    (Boasting, "check_linear", "sum that its weights promise"),
    (Halving, "check_linear", "does not subtract it"),
    (Scanty, "check_linear", "2 vectors need 2 weights"),
    (Favouring, "check_order", "the order of the vectors"),
]


@pytest.mark.parametrize(
    ("broken", "clause", "said"), BREACHES, ids=[kind.__name__ for kind, *_ in BREACHES]
)
def test_every_clause_catches_who_breaks_it(broken: type[Method], clause: str, said: str) -> None:
    with pytest.raises(BrokenContract, match=said):
        getattr(testing, clause)(broken())
    with pytest.raises(BrokenContract):
        check_method(broken())


def test_every_clause_is_tried() -> None:
    clauses = {name for name in vars(testing) if name.startswith("check_")} - {"check_method"}
    assert {clause for _, clause, _ in BREACHES} == clauses


def test_merged_is_what_the_engine_makes(tiny_checkpoints: Any) -> None:
    """The arrays of the contract and the files of the engine go through the same method."""
    from taskbasis import TaskVector, merge

    vectors = [
        TaskVector(tiny_checkpoints / "base", tiny_checkpoints / n) for n in ("math", "code")
    ]
    names = ("bias", "weight")
    dense = np.stack([np.concatenate([v.tensors()[n].ravel() for n in names]) for v in vectors])
    for name in METHODS:
        of = method(name, scope="model") if name == "sta" else method(name)
        found = merge(tiny_checkpoints / "base", vectors, of).tensors()
        flat = np.concatenate([found[n].ravel() for n in names])
        np.testing.assert_array_equal(flat, merged(of, dense))
