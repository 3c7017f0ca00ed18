"""The optimal span: uncentred singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import oriented
from taskbasis.basis.problem import Construction, Problem


@final
@dataclass(frozen=True)
class SVD(Construction):
    """The M leading singular directions of the tasks, which no M atoms can beat (Eckart, Young).

    With r_m the eigenvectors of G, largest eigenvalue first: ``B = [r_1 … r_M]``, ``W = Bᵀ``. The
    atoms ``V r_m`` are orthogonal. Directions without extent are dropped, so there are at most
    rank(G) atoms.

    The sign of an eigenvector means nothing (here its largest entry is made positive), so a sum of
    atoms with unit weights would mean nothing either: `addition` holds ``r_mᵀ 1``, which gives the
    projection of the sum of all tasks onto the span, the most that any weights can keep of it. The
    TVB papers print this loss as a bound but do not use the atoms; derived for this project.

    >>> SVD().fit(np.diag([1.0, 9.0]), 1).encoder
    array([[0.],
           [1.]])
    """

    name: ClassVar[str] = "svd"
    monotone: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def _codes(self, problem: Problem) -> Codes:
        count = max(1, min(problem.k, problem.rank))
        directions = oriented(np.linalg.svd(problem.root)[2][:count])
        return Codes(directions.T, directions, directions @ problem.total)
