"""RegMean: the linear layers whose outputs come closest to those of every task's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, UsageError, ValueProblem
from taskbasis.methods.base import Chunk, Method, Moment, Need, State, Unit, summed
from taskbasis.methods.learnt.fisher import weighted_mean

_BLOCK = 1 << 18
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RegMean(Method):
    """Regression mean: of a linear weight [out, in]
    ``merged = (sum_t tau_t @ H_t) @ inv(sum_t H_t)``.

    ``G_t = E[x x^T]`` is the second moment of what enters the layer on task t, and H_t is G_t with
    its off-diagonal entries times ``off_diagonal``. With 1 the merged layer's outputs are, in the
    least squares, the closest to every task's own on its inputs; a little less keeps inputs that
    go together from being played off against each other (0.9 to 0.95 in the paper), and the
    inverse well-conditioned.

    - Directions that no task's inputs have are not determined: there the plain mean is taken. So
      one vector gives itself, and equal moments give the plain mean.
    - Where only the diagonal is stored (words of an embedding, entries of a scale) the same
      formula is a weighted mean of each entry; the paper takes the plain mean there.
    - Other tensors (biases), and those that any task has no moment of, get the plain mean.
    - Moments are means over inputs, so that every task counts alike, whatever its number of inputs.

    Solved in float64, in time that grows with the cube of a layer's inputs and memory with their
    square.

    Source: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023.

    Raises:
        UsageError: ``off_diagonal`` is not in [0, 1].
        MismatchError: a moment does not go with its tensor. ValueProblem: it is no second moment.

    >>> both, first = np.eye(2, dtype=np.float32), np.diag([1, 0]).astype(np.float32)
    >>> deltas = np.array([[1, 1], [3, 3]], np.float32)
    >>> RegMean().apply(Chunk(deltas, None, [Moment(both), Moment(first)], shape=(1, 2)), ())
    array([2., 1.], dtype=float32)
    """

    name: ClassVar[str] = "regmean"
    formula: ClassVar[str] = "(sum_t tau_t H_t) inv(sum_t H_t), H_t = E[x x^T] shrunk"
    source: ClassVar[str] = "Jin et al., Dataless Knowledge Fusion (RegMean), ICLR 2023"
    when: ClassVar[str] = "You have some unlabelled inputs of every task, and linear layers."
    unit: ClassVar[Unit] = "matrix"
    moments: ClassVar[Need] = "required"
    off_diagonal: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.off_diagonal <= 1:
            raise UsageError(f"off_diagonal {self.off_diagonal} has no meaning; use [0, 1]")

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        moments = moments_of_all(chunk)
        if not moments:
            return mean(chunk.deltas)
        if moments[0].values.ndim == 1:
            return mean_by_entry(chunk, moments)
        grams = [moment.values for moment in moments]
        diagonals = [np.diagonal(gram).astype(np.float64) for gram in grams]
        scales, inverse = self._inverse(grams, sum(diagonals))

        def merged(blocks: Sequence[NDArray[Any]]) -> NDArray[Any]:
            centre = summed(np.stack(blocks)) / len(blocks)
            drift = np.zeros_like(centre)
            for block, gram, diagonal in zip(blocks, grams, diagonals, strict=True):
                off = block - centre
                drift += self.off_diagonal * (off @ gram.astype(np.float64))
                drift += (1 - self.off_diagonal) * (off * diagonal)
            return np.asarray(centre + ((drift * scales) @ inverse) * scales)

        return by_rows(chunk, moments[0].transposed, merged)

    def _inverse(
        self, grams: Sequence[NDArray[Any]], diagonal: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The inverse of the summed H as ``scales * inverse * scales``, on inputs that occur."""
        occurs = diagonal > _TINY
        scales = np.where(occurs, 1 / np.sqrt(np.where(occurs, diagonal, 1)), 0)
        total = summed_moments(grams)
        total *= scales
        total *= self.off_diagonal * scales[:, None]
        np.fill_diagonal(total, 1)
        # No eigenvalue is less than 1 - off_diagonal, unless by the rounding of the moments.
        if 1 - self.off_diagonal > rounding(len(total)):
            return scales, np.asarray(np.linalg.inv(total), np.float64)
        return scales, pseudo_inverse(total)


def moments_of_all(chunk: Chunk) -> list[Moment]:
    """The moments of a tensor, one per vector; none where a task lacks it.

    Raises:
        MismatchError: a moment does not go with the tensor or with another task's.
        ValueProblem: a diagonal entry, which is a mean of squares, is negative.
    """
    moments = [moment for moment in chunk.moments if moment is not None]
    if len(moments) < len(chunk.deltas):
        return []
    first, where = moments[0], f"tensor {chunk.tensor!r} of shape {list(chunk.shape)}"
    for moment in moments:
        shape = moment.values.shape
        fitting = (_inputs(chunk.shape, moment.transposed),) * 2
        if not shape or shape not in (fitting, chunk.shape[:1]):
            raise MismatchError(
                f"{where} does not go with a moment of shape {list(shape)}; make the moments "
                "again, of the model that the vector was taken from"
            )
        if (shape, moment.transposed) != (first.values.shape, first.transposed):
            raise MismatchError(
                f"{where}: the moments of two tasks are of shapes {list(first.values.shape)} and "
                f"{list(shape)}, or of layouts, that differ; make both in the same way"
            )
        diagonal = moment.values if moment.values.ndim == 1 else np.diagonal(moment.values)
        if np.any(diagonal < 0):
            raise ValueProblem(f"{where}: a mean of squares is negative; make the moments again")
    return moments


def _inputs(shape: tuple[int, ...], transposed: bool) -> int:
    """How many inputs a weight has; -1 for what is no matrix."""
    if len(shape) < 2:
        return -1
    return int(np.prod(shape[:-1] if transposed else shape[1:]))


def pseudo_inverse(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a sum of moments; eigenvalues that rounding may have made count as 0."""
    inverse = np.linalg.pinv(total, rcond=rounding(len(total)), hermitian=True)
    return np.asarray(inverse, np.float64)


def rounding(size: int) -> float:
    """What eigenvalues of a moment are uncertain by, relative to the largest: it is float32."""
    return size * 2.0**-23


def mean(rows: NDArray[Any]) -> NDArray[Any]:
    """The plain mean of the rows."""
    return np.asarray(summed(rows) / len(rows), rows.dtype)


def mean_by_entry(chunk: Chunk, moments: Sequence[Moment]) -> NDArray[Any]:
    """The mean of a stretch of tensors [d, ...], weighted by [T, d]; plain where all are 0."""
    size = chunk.deltas.shape[1]
    weights = np.stack([moment.values for moment in moments])
    width = max(int(np.prod(chunk.shape[1:])), 1)
    out = np.empty(size, chunk.deltas.dtype)
    for low in range(0, size, _BLOCK):
        place = slice(low, min(low + _BLOCK, size))
        rows = (chunk.start + np.arange(place.start, place.stop)) // width
        out[place] = weighted_mean(chunk.deltas[:, place], weights[:, rows])
    return out


def summed_moments(grams: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The sum of the moments, in float64, one after the other."""
    total = np.zeros(grams[0].shape)
    for gram in grams:
        total += gram
    return total


def by_rows(chunk: Chunk, transposed: bool, merged: Any) -> NDArray[Any]:
    """Merge whole matrices some rows (outputs) at a time, in float64.

    Args:
        chunk: whole tensors, [T, out * in] or, transposed, [T, in * out].
        merged: from T blocks [rows, in] to one.
    """
    inputs = _inputs(chunk.shape, transposed)
    result = np.empty(chunk.deltas.shape[1:], chunk.deltas.dtype)

    def matrix(flat: NDArray[Any]) -> NDArray[Any]:
        outputs = flat.size // max(inputs, 1)
        return flat.reshape(inputs, outputs).T if transposed else flat.reshape(outputs, inputs)

    out, matrices = matrix(result), [matrix(delta) for delta in chunk.deltas]
    step = max(_BLOCK // max(inputs, 1), 256)
    for low in range(0, len(out), step):
        blocks = [rows[low : low + step].astype(np.float64) for rows in matrices]
        out[low : low + step] = merged(blocks)
    return result
