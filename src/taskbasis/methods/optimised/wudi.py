"""WUDI merging: the linear layers that disturb every task least, told from task vectors alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import UsageError, nearest
from taskbasis.methods.base import Chunk, Method, State, Unit, summed
from taskbasis.methods.matrices import workspace

Solver = Literal["closed", "adam"]
Matrix = NDArray[Any]

_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
"""Adam's decay rates and the number beside its root: torch's defaults, as the released code has."""

_UNBOUNDED = 1e30
"""A gain that says nothing."""


@dataclass(frozen=True)
class Wudi(Method):
    """Whoever started the interference should end it: a linear weight [out, in] minimises
    ``sum_t ||(merged - tau_t) @ tau_t.T||^2 / ||tau_t||^2``, beginning at ``sum_t tau_t``.

    The rows of tau_t are combinations of what entered the layer on task t, so they stand in for
    inputs that nobody has. The paper uses no scale; use 1.

    - ``solver="closed"`` solves the least squares at once, held to the sum by
      ``ridge * T * ||merged - sum_t tau_t||^2``. The part of a direction that the vectors say
      much about is optimal, and where they say little it is the sum's, as in a descent from the
      sum that ends early. Twice as long vectors give twice the result.
    - ``solver="adam"`` is the released code: ``iterations`` steps of Adam at ``rate``, in the
      deltas' own precision. It takes several times as long.

    Pitfalls:

    - Without the ridge the minimum (a pseudo-inverse gives it) exists, and is bad: two tasks that
      disagree along nearly the same inputs are both pleased by huge weights across them. The
      default was chosen on the eight digit tasks, on validation.
    - Adam's rate is in units of the weights: 300 steps of 1e-5 go 3e-3 at most. With entries of
      that size they hardly leave the sum, and with entries below 1e-5 they overshoot. The
      released code takes 2e-5 for RoBERTa.
    - Rows are taken for outputs. GPT-2's Conv1D layers are stored [in, out].
    - Vectors count alike, however long they are. A zero vector has no say; the released code
      divides by its norm.
    - Tensors of three axes or more are matrices [first axis, rest], as a convolution is a linear
      layer of its patches. Other tensors (biases, scales) get the plain mean, as in FusionBench's
      code; the authors' code for images leaves all but attention and MLP weights as the base's
      (``--exclude`` does that).

    Solved in float64 with a matrix as wide as the inputs, or T times the outputs where that is
    less.

    Source: Cheng et al., Whoever Started the Interference Should End It, ICML 2025,
    arXiv 2503.08099; the steps are those of the released code. That the objective is a least
    squares with a closed form follows from it; the ridge is ours.

    Raises:
        UsageError: the solver is unknown, or a number is out of range.

    >>> deltas = np.array([[2, 0, 0, 0], [0, 2, 0, 0]], np.float32)  # tasks of different inputs
    >>> Wudi().apply(Chunk(deltas, shape=(1, 4)), ())
    array([2., 2., 0., 0.], dtype=float32)
    >>> deltas = np.array([[2, 0], [1, 0]], np.float32)  # tasks that disagree on one input
    >>> Wudi(ridge=1e-9).apply(Chunk(deltas, shape=(1, 2)), ())
    array([1.5, 0. ], dtype=float32)
    """

    name: ClassVar[str] = "wudi"
    formula: ClassVar[str] = "argmin_m sum_t |(m - tau_t) tau_t'|^2 / |tau_t|^2, from sum_t tau_t"
    source: ClassVar[str] = (
        "Cheng et al., Whoever Started the Interference Should End It (WUDI), ICML 2025, "
        "arXiv 2503.08099; the closed form is inferred, its ridge ours"
    )
    when: ClassVar[str] = "Many tasks, no data, and no scale to choose: linear layers interfere."
    unit: ClassVar[Unit] = "matrix"
    solver: Solver = "closed"
    ridge: float = 1e-3
    iterations: int = 300
    rate: float = 1e-5

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            hint = nearest(self.solver, get_args(Solver))
            raise UsageError(f"solver {self.solver!r} is unknown; {hint}")
        if not 1e-12 <= self.ridge <= 1:
            raise UsageError(f"a ridge of {self.ridge} has no meaning; use [1e-12, 1]")
        if self.iterations < 0:
            raise UsageError(f"{self.iterations} iterations cannot be made; use 0 or more")
        if not 0 < self.rate <= 1:
            raise UsageError(f"a rate of {self.rate} leads nowhere; use (0, 1]")

    def gain(self) -> float:
        """``1 + 1 / sqrt(ridge)``; Adam's steps have no bound relative to the vectors.

        What is minimised is at most ``T (sum_t ||tau_t||)^2`` at the sum, and the ridge alone is
        no more than that at the minimum.
        """
        return 1 + self.ridge**-0.5 if self.solver == "closed" else _UNBOUNDED

    def workspace(self, shape: tuple[int, ...], count: int) -> int:
        return workspace(shape, count)

    def apply(self, chunk: Chunk, state: State) -> NDArray[Any]:
        deltas = chunk.deltas
        if len(chunk.shape) < 2 or not deltas.size:
            return np.asarray(summed(deltas) / len(deltas), deltas.dtype)
        matrices = deltas.reshape(len(deltas), chunk.shape[0], -1)
        total = summed(matrices.astype(np.float64))
        problem = _problem(matrices, total)
        if problem is not None:
            if self.solver == "closed":
                total += _least_squares(problem, self.ridge)
            else:
                total += _adam(problem, self.iterations, self.rate, deltas.dtype)
        return total.reshape(-1).astype(deltas.dtype)


@dataclass(frozen=True)
class _Problem:
    """What is minimised, as a quadratic function of ``D = merged - sum_t tau_t`` [out, in].

    With ``A = sum_t tau_t' tau_t / ||tau_t||^2`` [in, in] its gradient is ``2 (D A + R)``, where
    R is what it is at 0. Where the vectors have fewer rows than inputs, ``A = S' S`` and
    ``R = M S`` with S the rows of all ``tau_t / ||tau_t||``, and A is never formed.

    Attributes:
        curvature: A, or ``S S'``.
        pull: R, or M.
        rows: S, where that is shorter.
        tasks: how many vectors are not zero.
    """

    curvature: NDArray[np.float64]
    pull: NDArray[np.float64]
    rows: NDArray[np.float64] | None
    tasks: int


def _problem(matrices: Matrix, total: NDArray[np.float64]) -> _Problem | None:
    """Of [T, out, in] deltas and their sum; None where all are zero."""
    _, outputs, inputs = matrices.shape
    lengths = [float(np.sqrt(np.sum(np.square(m, dtype=np.float64)))) for m in matrices]
    known = [(m, length) for m, length in zip(matrices, lengths, strict=True) if length > 0]
    if not known:
        return None
    thin = inputs > len(known) * outputs
    curvature = np.zeros((0 if thin else inputs,) * 2)
    pull = np.zeros((outputs, 0 if thin else inputs))
    rows, pulls = [], []
    for matrix, length in known:
        exact = matrix.astype(np.float64)
        others = total - exact  # exactly 0 for a vector alone, which is then left as it is
        unit = exact / length
        if thin:
            rows.append(unit)
            pulls.append(others @ unit.T)
        else:
            own = unit.T @ unit
            curvature += own
            pull += others @ own
    if not thin:
        return _Problem(curvature, pull, None, len(known))
    stacked = np.concatenate(rows)
    return _Problem(stacked @ stacked.T, np.concatenate(pulls, axis=1), stacked, len(known))


def _least_squares(problem: _Problem, ridge: float) -> NDArray[np.float64]:
    """``D = -R (A + ridge T I)^-1``; by the rows of S it is ``-M (S S' + ridge T I)^-1 S``."""
    held = problem.curvature.copy()
    held[np.diag_indices_from(held)] += ridge * problem.tasks
    found = -np.linalg.solve(held, problem.pull.T).T
    return np.asarray(found if problem.rows is None else found @ problem.rows)


def _adam(problem: _Problem, iterations: int, rate: float, dtype: Any) -> Matrix:
    """D after some steps of Adam from 0 (Kingma and Ba, 2015), computed in ``dtype``."""
    curvature, pull = problem.curvature.astype(dtype), problem.pull.astype(dtype)
    rows = None if problem.rows is None else problem.rows.astype(dtype)
    moved = np.zeros((len(pull), (curvature if rows is None else rows).shape[1]), dtype)
    first, second = np.zeros_like(moved), np.zeros_like(moved)
    for step in range(1, iterations + 1):
        if rows is None:
            gradient = moved @ curvature
            gradient += pull
        else:
            gradient = (moved @ rows.T + pull) @ rows
        gradient *= 2
        first += (1 - _FIRST) * (gradient - first)
        gradient *= gradient
        second += (1 - _SECOND) * (gradient - second)
        np.divide(second, 1 - _SECOND**step, out=gradient)
        np.sqrt(gradient, out=gradient)
        gradient += _TINY
        np.divide(first, gradient, out=gradient)
        gradient *= rate / (1 - _FIRST**step)
        moved -= gradient
    return moved
