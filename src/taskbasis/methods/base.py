"""What every method is: a frozen record of hyperparameters with one pure function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis import counting
from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity

State = Sequence[Any]
"""What the stages of a method have found, one entry per stage, for the chunk's own group."""

Need = Literal["ignored", "optional", "required"]

Unit = Literal["element", "matrix", "tensor"]
"""What is never cut: nothing, tensors of two axes or more, or any tensor."""

PerVector = float | tuple[float, ...]
"""One number for all vectors, or one for each."""


@dataclass(frozen=True)
class Moment:
    """The second moment of what enters one tensor, for one task.

    Attributes:
        values: [in, in], or its diagonal alone: [words] of an embedding, [d] of a scale.
        transposed: whether the tensor is [in, out] instead of [out, in].
    """

    values: NDArray[np.float32]
    transposed: bool = False


@dataclass(frozen=True)
class Factors:
    """A delta of low rank, as the product of two thin matrices: ``up @ down``.

    Attributes:
        up: [out, r] float64, multiplied by the vector's weight.
        down: [r, in] float64; in is everything behind the tensor's first axis.
    """

    up: NDArray[np.float64]
    down: NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """What a method sees at once: a stretch of one tensor, of all T vectors.

    Attributes:
        deltas: [T, n] float32 (float64 for float64 tensors and for methods that are ``double``);
            may be overwritten. Each has been multiplied by its vector's weight.
        scores: [T, n] float32 importance of every entry; None where the vectors have none.
        moments: one per vector, for methods that take whole tensors and ask for moments; None
            where a task has none of this tensor.
        tensor: the tensor's name.
        shape: of the whole tensor.
        start: where the stretch begins in the flattened tensor.
        base: [n] the base's entries in the type of the deltas, for methods that ask for it.
        weights: what every delta has been multiplied by, 0 never among them; empty means 1.
        names: what the vectors are called; empty means by their numbers from 0.
        factors: one per vector, for methods that ask for factors of whole matrices, where all
            vectors have them; the deltas are then [T, 0].
    """

    deltas: NDArray[Any]
    scores: NDArray[np.float32] | None = None
    moments: Sequence[Moment | None] = ()
    tensor: str = ""
    shape: tuple[int, ...] = ()
    start: int = 0
    base: NDArray[Any] | None = None
    weights: Sequence[float] = ()
    names: Sequence[str] = ()
    factors: Sequence[Factors] = ()

    def vector_weights(self) -> NDArray[np.float64]:
        """[T] what every delta has been multiplied by."""
        return np.asarray(self.weights or np.ones(len(self.deltas)), np.float64)

    def vector_names(self) -> Sequence[str]:
        """What the T vectors are called."""
        return self.names or [str(number) for number in range(len(self.deltas))]


def summed(rows: NDArray[Any]) -> NDArray[Any]:
    """The sum of the rows, one after the other.

    ``rows.sum(axis=0)`` takes another order when there is one column only, so the last bits
    would depend on where a tensor is cut.
    """
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total += row
    return total


def per_vector(value: PerVector, count: int, what: str) -> NDArray[np.float64]:
    """[T]: an option that is one number for all vectors or one for each.

    Raises:
        UsageError: there are not as many numbers as vectors.

    >>> per_vector(0.5, 2, "density").tolist(), per_vector((0.5, 0.3), 2, "density").tolist()
    ([0.5, 0.5], [0.5, 0.3])
    """
    if isinstance(value, tuple) and len(value) != count:
        raise UsageError(f"{what} has {len(value)} numbers for {count} vectors; give one for each")
    return np.broadcast_to(np.asarray(value, np.float64), (count,))


@dataclass(frozen=True)
class Method(ABC):
    """Combines the deltas of T task vectors, stretch by stretch.

    A method that needs to know something of whole vectors first (a threshold, say) asks for
    stages. In each, ``observe`` maps every stretch to an array, the arrays of a group (the whole
    model, a layer or a tensor) are summed in a fixed order, and ``finish`` turns the sum into
    what later stages and ``apply`` are given. Only sums cross stretches, so streaming and
    threads are one mechanism.

    What a class says of itself, so that recipes, checks and the table of methods know it:
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    """What it computes, in one line."""
    source: ClassVar[str]
    """Where it is from: authors, title, place, year."""
    when: ClassVar[str]
    """When to choose it, in one sentence."""
    unit: ClassVar[Unit] = "element"
    """What is never cut, for methods that look at rows or factorise matrices."""
    takes: ClassVar[tuple[int, int | None]] = (1, None)
    """The least and the most vectors; None: any number."""
    base: ClassVar[Need] = "ignored"
    """Whether it looks at the base's weights, not at deltas alone."""
    scores: ClassVar[Need] = "ignored"
    """Whether it takes importance scores."""
    moments: ClassVar[Need] = "ignored"
    """Whether it takes activation moments."""
    factors: ClassVar[Literal["ignored", "optional"]] = "ignored"
    """Whether it takes deltas of low rank as factors, where all vectors have them."""
    identity: ClassVar[bool] = False
    """Whether it can make one model per task, which needs to know the task at inference."""
    double: ClassVar[bool] = False
    """Whether it is computed in float64, as what mixes weights and deltas should be."""
    signed: ClassVar[bool] = True
    """Whether -1 times a vector subtracts what the vector adds; not so for interpolations."""
    keeps_base: ClassVar[bool] = True
    """Whether vectors of zero give the base; not so where models are summed unnormalised."""
    ordered: ClassVar[bool] = False
    """Whether the order of the vectors may matter."""
    float_sums: ClassVar[bool] = False
    """Whether stages sum floats, so that the last bits depend on where tensors are cut."""

    def count_text(self) -> str:
        """How many vectors it takes, in words."""
        least, most = self.takes
        if most is None:
            return f"{least} vector{'s' * (least > 1)} or more"
        vectors = f"{most} vector{'s' * (most > 1)}"
        return vectors if least == most else f"{least} to {vectors}"

    def stages(self) -> tuple[Granularity, ...]:
        """What the sums of each stage cover; no stages by default."""
        return ()

    def stages_see_deltas(self) -> bool:
        """Whether stages look at deltas although there are scores; reading them takes time."""
        return True

    def coefficients(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """For a linear method the coefficients [T] of the weighted deltas, so that fused kernels
        do the work; None for the others.

        Args:
            weights: [T] what the deltas have been multiplied by.
        """
        del weights
        return None

    def gain(self) -> float:
        """How many times ``sum_t |w_t tau_t|`` the result may be, entry by entry (or in norm,
        for methods whose unit is not the element)."""
        return 1.0

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        """Bytes that a stretch of this shape takes on the way, of ``count`` vectors, at most."""
        return 32 * count * math.prod(shape)

    def observe(self, stage: int, chunk: Chunk, state: State) -> NDArray[Any]:
        """What a stage needs of one stretch, as an array that is summed over its group.

        ``state`` holds what earlier stages found for the chunk's own groups.
        """
        raise NotImplementedError(f"{self.name} has no stage {stage}")

    def finish(self, stage: int, total: NDArray[Any], state: State) -> Any:
        """What a stage finds for a group, from the sum of what it observed there.

        ``state`` holds what earlier stages of the same granularity found for the group, and None
        for stages of another.
        """
        raise NotImplementedError(f"{self.name} has no stage {stage}")

    @abstractmethod
    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        """The merged delta [n] of a stretch; ``chunk.deltas`` may be overwritten."""


@dataclass(frozen=True)
class Selecting(Method):
    """A method that chooses entries for every vector, by masks that can be stored."""

    @abstractmethod
    def select(self, chunk: Chunk, state: State) -> NDArray[np.bool_]:
        """[T, n]: every vector's mask."""

    def masked(self, chunk: Chunk, kept: NDArray[np.bool_]) -> NDArray[Any]:
        """The merged delta [n] by the masks [T, n]: the sum of what each vector keeps."""
        return counting.sum_kept(chunk.deltas, kept)

    def disjoint(self) -> bool:
        """Whether no entry is kept of two vectors, by the way entries are chosen."""
        return False

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return self.masked(chunk, self.select(chunk, state))
