"""The softmax autoencoder on the Gram matrix: Task Vector Bases proper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.adam import solve_adam
from taskbasis.basis.codes import Codes, refit
from taskbasis.basis.exact import solve_exact
from taskbasis.basis.gram import Matrix
from taskbasis.basis.problem import Construction, Problem, at_least, everything, one_of

SOLVERS = ("exact", "adam")


@final
@dataclass(frozen=True)
class Autoencoder(Construction):
    """Atoms that are convex combinations of tasks, chosen to recover all tasks best (TVB v4/v5).

    ``min_{B, W} ‖V B W - V‖² / T²`` where the columns of B [T, M] are non-negative and sum to 1
    (a softmax over tasks) and W [M, T] is free. Only ``G = VᵀV`` enters. M >= T keeps every task.

    *Solvers.* `adam` is the official recipe, for comparison. `exact`, the default, was derived for
    this project: it eliminates W in closed form, seeks B in float64 over the simplex itself (a
    zero in B is a logit gone to minus infinity), does not depend on the scale of the tasks, and
    makes at most rank(G) atoms.

    *Adding the atoms.* The loss fixes only the span of the atoms, so the sum of the atoms would
    depend on the seed. The exact solver therefore adds ``addition · (1 - cos²(V B 1, V 1))``, with
    the loss measured in units of its spectral bound (derived for this project). At the optimum
    the loss grows by at most the factor ``1 + addition`` over what it would be without the term.
    Where a span holds one best sum, seeds agree on it; where tasks oppose each other or their
    spectrum falls steeply, several optima are about as good, and seeds may still differ a little.
    0 turns the term off.

    *Scale.* The sum of the atoms is ``Σ_t w_t τ_t`` with ``w = B 1 >= 0`` and ``Σ_t w_t = M``, so
    a task enters with M/T on average: a grid of scales meant for the full sum must be stretched
    by T/M.

    Args:
        solver: "exact" or "adam".
        temperature: of the softmax; adam only.
        addition: the weight of the addition term; exact only.
        seed: of the drawn starting points.
        steps: how many; adam only.
        starts: how many starting points are drawn, beside two made from G; exact only.
        refit: replace Adam's decoder by the least-squares one, never worse; exact always has it.

    >>> tasks = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]])       # 3 tasks in 2 dimensions
    >>> codes = Autoencoder().fit(tasks.T @ tasks, 2)
    >>> bool(np.allclose(tasks @ codes.encoder @ codes.decoder, tasks))
    True
    """

    solver: str = "exact"
    temperature: float = 5.0
    addition: float = 0.03
    seed: int = 0
    steps: int = 6000
    starts: int = 16
    refit: bool = False

    name: ClassVar[str] = "autoencoder"
    monotone: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("solver", self.solver, SOLVERS)
        at_least("temperature", self.temperature, 1e-3)
        for what, least in (("addition", 0), ("seed", 0), ("steps", 1), ("starts", 0)):
            at_least(what, getattr(self, what), least)

    def _codes(self, problem: Problem) -> Codes:
        if problem.k >= problem.tasks:
            return everything(problem.tasks)
        encoder, decoder = self._adam(problem) if self.solver == "adam" else self._exact(problem)
        return Codes(encoder, decoder, np.ones(encoder.shape[1]))

    def _adam(self, problem: Problem) -> tuple[Matrix, Matrix]:
        encoder, decoder = solve_adam(
            problem.gram, problem.k, self.temperature, self.steps, self.seed
        )
        if self.refit:
            decoder = refit(problem.gram, encoder, problem.tasks)
        return encoder, decoder

    def _exact(self, problem: Problem) -> tuple[Matrix, Matrix]:
        encoder = solve_exact(problem, self.addition, self.seed, self.starts)
        return encoder, refit(problem.gram, encoder, problem.tasks)
