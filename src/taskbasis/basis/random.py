"""A random orthonormal basis, regenerated from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import Matrix, root
from taskbasis.basis.problem import Construction, Problem, at_least
from taskbasis.errors import UsageError


@final
@dataclass(frozen=True)
class Random(Construction):
    """k noise vectors made orthonormal; the tasks keep only their coefficients.

    With Z [d, k] the noise: ``Q = Z (ZᵀZ)^-1/2``, ``W = QᵀV``, recovered as ``Q QᵀV`` (the
    RandomBasis baseline of TVB v4/v5, which orthonormalises by QR; the span, hence the recovery,
    is the same). The atoms need not be stored, since Z returns from its seed. In d dimensions
    about k/d of a task survives, so nothing is recovered of a real model; not even k = T is
    exact. It is here to be compared with.

    The Gram matrix is the joint one of the T tasks, first, and at least k noise vectors behind
    them. `addition` holds ``W 1``: the sum of the atoms is the projection of the sum of all tasks,
    since directions drawn at random have no other meaning. `normalize` changes nothing.

    Args:
        seed: of the noise. It is recorded here for whoever draws the noise and sums its inner
            products; the codes follow from these.

    >>> joint = np.array([[2.0, 1.0], [1.0, 4.0]])          # one task, one noise vector
    >>> Random().fit(joint, 1, tasks=1).encoder
    array([[0. ],
           [0.5]])
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    monotone: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)

    def _codes(self, problem: Problem) -> Codes:
        noise = slice(problem.tasks, problem.tasks + problem.k)
        if len(problem.gram) < noise.stop:
            raise UsageError(
                f"random needs {problem.k} noise vectors behind the {problem.tasks} tasks in the "
                f"Gram matrix; it has {len(problem.gram) - problem.tasks}"
            )
        encoder = np.zeros((len(problem.gram), problem.k))
        encoder[noise] = _inverse_root(problem.gram[noise, noise])
        decoder = encoder.T @ problem.gram[:, : problem.tasks]
        return Codes(encoder, decoder, decoder @ problem.total)


def _inverse_root(gram: Matrix) -> Matrix:
    """``G^-1/2``, symmetric; directions without extent are left out."""
    _, sizes, right = np.linalg.svd(root(gram))
    extent = sizes > 1e-6 * sizes.max(initial=0.0)
    inverse = np.where(extent, 1.0 / np.where(extent, sizes, 1.0), 0.0)
    found: Matrix = (right.T * inverse) @ right
    return found
