"""Principal components around the mean task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import PINV_CUT, Matrix, oriented
from taskbasis.basis.problem import Construction, Problem


@final
@dataclass(frozen=True)
class PCA(Construction):
    """The mean task and k principal components around it (the baseline of TVB v4/v5).

    With ``H = I - 11ᵀ/T`` and r_m the eigenvectors of HGH, largest first: the components are
    ``V H r_m = U_m S_m``, recovered as ``τ̂_t = μ + Σ_m r_m[t] s_m``. The mean is the last atom
    (encoder 1/T, decoder a row of ones), so recovery needs no special case and storage is
    k + 1 vectors. Components without extent are dropped: at most T - 1 remain.

    The sum of the recovered tasks equals the sum of the tasks for every k (derived for this
    project; with `normalize="cosine"` this holds for the vectors of equal length). Adding the
    atoms, as in the released script, sums the components with unit weights and leaves the mean
    out, so `addition` is 1 for them and 0 for the mean; since signs are arbitrary (here: largest
    entry positive) that direction says nothing about the sum of the tasks.

    >>> codes = PCA().fit(np.diag([2.0, 2.0]), 2)
    >>> codes.encoder.round(3), codes.addition
    (array([[ 0.707,  0.5  ],
            [-0.707,  0.5  ]]), array([1., 0.]))
    """

    name: ClassVar[str] = "pca"
    monotone: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def _codes(self, problem: Problem) -> Codes:
        tasks = problem.tasks
        components = _components(problem.root, problem.k)
        encoder = np.hstack([components.T, np.full((tasks, 1), 1 / tasks)])
        decoder = np.vstack([components, np.ones((1, tasks))])
        addition = np.append(np.ones(len(components)), 0.0)
        return Codes(encoder, decoder, addition, mean_atom=True)


def _components(stand_in: Matrix, k: int) -> Matrix:
    """At most k rows r_m, each of sum zero, that have any extent."""
    centred = stand_in - stand_in.mean(axis=1, keepdims=True)
    _, sizes, rows = np.linalg.svd(centred)
    extent = int(np.count_nonzero(sizes > PINV_CUT * np.linalg.norm(stand_in)))
    kept = rows[: min(k, extent, len(rows) - 1)]
    return oriented(kept - kept.mean(axis=1, keepdims=True)) if len(kept) else kept
