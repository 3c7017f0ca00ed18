"""The default solver of the autoencoder: the decoder eliminated, the encoder on its simplex."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskbasis.basis.adam import softmax
from taskbasis.basis.descent import minimise
from taskbasis.basis.gram import Matrix
from taskbasis.basis.problem import Problem
from taskbasis.basis.select import greedy

RIDGE = 1e-10
FLOOR = 1e-6
"""The loss is measured against the spectral bound, and never against less than this energy."""

CLOSE, TIE = 1e-3, 1e-5
ITERATIONS, SCREENING, PROMISING = 500, 60, 4
TEMPERATURE = 5.0
SOFT = 0.1


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised over non-negative C [T, M], whose columns are scaled to sum to 1.

    ``f(C) = min_W ‖R B W - R‖² / bound + weight · (1 - cos²(R B 1, R total))``, ``B = C / Σ_t C``,
    where the decoder W is eliminated in closed form with a ridge of 1e-10 and the bound is the
    spectral one.

    Args:
        root: R [N, T] with mean squared column length 1.
        target: [N], the direction that the sum of atoms should take, unit length or zero.
        scale: what the loss is divided by.
        weight: of the second term.
    """

    root: Matrix
    target: Matrix
    scale: float
    weight: float

    def __call__(self, flat: Matrix) -> tuple[float, Matrix]:
        """f and its gradient at a flattened C."""
        raw = flat.reshape(self.root.shape[1], -1)
        sums = raw.sum(axis=0) + 1e-12
        encoder = raw / sums
        atoms = self.root @ encoder
        loss, slope = self._loss(atoms)
        turn, turning = self._turn(atoms.sum(axis=1))
        pulled = self.root.T @ (slope + turning[:, None])
        gradient = (pulled - np.sum(encoder * pulled, axis=0)) / sums
        return loss + turn, gradient.ravel()

    def _loss(self, atoms: Matrix) -> tuple[float, Matrix]:
        inner = atoms.T @ atoms + RIDGE * np.eye(atoms.shape[1])
        decoder = np.linalg.solve(inner, atoms.T @ self.root)
        error = atoms @ decoder - self.root
        loss = float(np.vdot(error, error)) + RIDGE * float(np.vdot(decoder, decoder))
        return loss / self.scale, (2 / self.scale) * (error @ decoder.T)

    def _turn(self, whole: Matrix) -> tuple[float, Matrix]:
        energy = float(whole @ whole)
        if self.weight == 0.0 or energy <= RIDGE**2:
            return self.weight, np.zeros_like(whole)
        along = float(whole @ self.target)
        squared = along**2 / energy
        slope = (2 * along / energy) * self.target - (2 * squared / energy) * whole
        return self.weight * (1.0 - squared), -self.weight * slope


def solve_exact(problem: Problem, weight: float, seed: int, starts: int) -> Matrix:
    """The encoder B [T, M], non-negative with columns summing to 1, for at most rank(G) atoms.

    Derived for this project; the objective is that of TVB v4/v5 plus the addition term (see
    :class:`.autoencoder.Autoencoder`). L-BFGS runs from two starting points made from the Gram
    matrix and, unless these come within a thousandth of what nothing can beat, from the four most
    promising of those drawn. The lowest value wins, but not one lower by less than a part in
    100 000: drawn points decide nothing where they find nothing.

    Args:
        problem: what is to be solved; its scale does not matter.
        weight: of the addition term.
        seed: of the drawn starting points.
        starts: how many are drawn.

    >>> flat = Problem(np.diag([9.0, 4.0, 0.01]), 2, 3, np.ones(3))
    >>> solve_exact(flat, 0.0, 0, 1).round(1).max(axis=0)
    array([1., 1.])
    """
    atoms = max(1, min(problem.k, problem.rank))
    if problem.rank == 0:
        return np.full((problem.tasks, 1), 1.0 / problem.tasks)
    objective = _objective(problem, atoms, weight)
    unbeatable = 1.0 - FLOOR * problem.tasks / objective.scale
    best, lowest = _lowest(objective, _made(problem, objective.root, atoms), np.empty(0), np.inf)
    if lowest > unbeatable + CLOSE:
        best, _ = _lowest(objective, _drawn(objective, atoms, seed, starts), best, lowest)
    return best


def _lowest(
    objective: Objective, starts: list[Matrix], best: Matrix, lowest: float
) -> tuple[Matrix, float]:
    for start in starts:
        found, value = _descend(objective, start, ITERATIONS)
        if value < lowest * (1.0 - TIE):
            best, lowest = found, value
    return best, lowest


def _objective(problem: Problem, atoms: int, weight: float) -> Objective:
    energy = float(np.sum(problem.root**2))
    stand_in = problem.root * np.sqrt(problem.tasks / energy)
    tail = np.linalg.svd(stand_in, compute_uv=False)[atoms:]
    whole = stand_in @ problem.total
    length = float(np.linalg.norm(whole))
    seen = length > RIDGE
    return Objective(
        root=stand_in,
        target=whole / length if seen else whole,
        scale=float(np.sum(tail**2)) + FLOOR * problem.tasks,
        weight=weight if seen else 0.0,
    )


def _descend(objective: Objective, start: Matrix, iterations: int) -> tuple[Matrix, float]:
    """From one encoder to a better one, over the roots of C, which keep it from being negative."""

    def squared(roots: Matrix) -> tuple[float, Matrix]:
        value, gradient = objective(roots * roots)
        return value, 2.0 * roots * gradient

    roots, value = minimise(squared, np.sqrt(start * len(start)).ravel(), iterations)
    raw = (roots * roots).reshape(start.shape)
    return raw / raw.sum(axis=0), value


def _made(problem: Problem, stand_in: Matrix, atoms: int) -> list[Matrix]:
    selected = [_around_selection(problem, atoms)]
    return selected + ([_around_sum(stand_in, problem.total, atoms)] if atoms > 1 else [])


def _drawn(objective: Objective, atoms: int, seed: int, starts: int) -> list[Matrix]:
    """Points drawn as in the official recipe; the few that are lowest after a short descent."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((starts, objective.root.shape[1], atoms))
    tried = [_descend(objective, softmax(each / TEMPERATURE), SCREENING) for each in logits]
    return [point for point, _ in sorted(tried, key=lambda found: found[1])[:PROMISING]]


def _around_selection(problem: Problem, atoms: int) -> Matrix:
    """One task per atom, the greedy choice, softened by a little of all others."""
    kept = greedy(problem.gram, atoms)
    kept += [task for task in range(problem.tasks) if task not in kept][: atoms - len(kept)]
    return (np.eye(problem.tasks)[:, kept] + SOFT / problem.tasks) / (1.0 + SOFT)


def _around_sum(stand_in: Matrix, total: Matrix, atoms: int) -> Matrix:
    """Atoms in the optimal span whose sum is the projected sum, as far as they are not negative.

    In the span's coordinates: the sum's share for each atom, plus the corners of a simplex that is
    orthogonal to it and cancels. When nothing is clipped both terms are at their best at once.
    """
    span = np.linalg.svd(stand_in)[2][:atoms]
    share = span @ total
    frame = np.linalg.qr(np.column_stack([share, np.eye(atoms)]))[0][:, 1:atoms]
    corners = np.linalg.svd(np.eye(atoms) - 1.0 / atoms)[0][:, : atoms - 1]
    away = span.T @ (frame @ corners.T)
    along = span.T @ share / atoms
    reach = np.median(np.abs(along)) / np.abs(away).max()
    raw = np.clip(along[:, None] + reach * away, 0.0, None) + 1e-3 * np.abs(along).max() + 1e-12
    found: Matrix = raw / raw.sum(axis=0)
    return found
