"""What every method is: a frozen record of hyperparameters with one pure function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from taskbasis.granularity import Granularity

State = Sequence[Any]
"""What the stages of a method have found, one entry per stage, for the chunk's own group."""

Need = Literal["ignored", "optional", "required"]


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
class Chunk:
    """What a method sees at once: a stretch of one tensor, of all T vectors.

    Attributes:
        deltas: [T, n] float32 (float64 for float64 tensors); may be overwritten.
        scores: [T, n] float32 importance of every entry; None where the vectors have none.
        moments: one per vector, for methods that take whole tensors and ask for moments; None
            where a task has none of this tensor.
        tensor: the tensor's name.
        shape: of the whole tensor.
        start: where the stretch begins in the flattened tensor.
    """

    deltas: NDArray[Any]
    scores: NDArray[np.float32] | None = None
    moments: Sequence[Moment | None] = ()
    tensor: str = ""
    shape: tuple[int, ...] = ()
    start: int = 0


def summed(rows: NDArray[Any]) -> NDArray[Any]:
    """The sum of the rows, one after the other.

    ``rows.sum(axis=0)`` takes another order when there is one column only, so the last bits
    would depend on where a tensor is cut.
    """
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total += row
    return total


@dataclass(frozen=True)
class Method(ABC):
    """Combines the deltas of T task vectors, stretch by stretch.

    A method that needs to know something of whole vectors first (a threshold, say) asks for
    stages. In each, ``observe`` maps every stretch to an array, the arrays of a group (the whole
    model, a layer or a tensor) are summed in a fixed order, and ``finish`` turns the sum into
    what later stages and ``apply`` are given. Only sums cross stretches, so streaming and
    threads are one mechanism.
    """

    name: ClassVar[str]
    whole: ClassVar[bool] = False
    """Whether tensors are handed over whole, for methods that factorise matrices."""
    scores: ClassVar[Need] = "ignored"
    """Whether it takes importance scores."""
    moments: ClassVar[Need] = "ignored"
    """Whether it takes activation moments."""

    def stages(self) -> tuple[Granularity, ...]:
        """What the sums of each stage cover; no stages by default."""
        return ()

    def stages_see_deltas(self) -> bool:
        """Whether stages look at deltas although there are scores; reading them takes time."""
        return True

    def weights(self, count: int) -> NDArray[Any] | None:
        """For a linear method the coefficients [T] of the vectors, so that fused kernels do the
        work; None for the others."""
        del count
        return None

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
    """A method that keeps some entries of every vector as they are, and sums what is kept."""

    @abstractmethod
    def select(self, chunk: Chunk, state: State) -> NDArray[np.bool_]:
        """[T, n]: which entries of which vector are kept."""

    def disjoint(self) -> bool:
        """Whether no entry is kept of two vectors, by the way entries are chosen."""
        return False

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        return summed(np.where(self.select(chunk, state), chunk.deltas, 0))
