"""Clusters of similar task vectors, each merged into one atom."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis.codes import Codes, refit
from taskbasis.basis.gram import Matrix, checked
from taskbasis.basis.problem import Construction, Problem, at_least, everything, one_of
from taskbasis.errors import require

INNER = ("mean", "sum")
FLOOR = 1e-6
"""Added to every affinity, so that a graph in several pieces still has one spectrum."""


@final
@dataclass(frozen=True)
class Cluster(Construction):
    """Spectral clusters of the cosine matrix, one atom each (the method of TVB v1).

    Inside a cluster the vectors are merged to their mean (or sum); the inner merges that are not
    linear (TIES and the like) take :func:`assign` and do their own. `addition` is ones: the outer
    merge sums the atoms. Recovery by least squares was added for this project; the paper has none.

    Args:
        inner: "mean" or "sum".
        seed: of the clustering.

    There may be fewer than k atoms: vectors that cannot be told apart share one.

    >>> Cluster().fit(np.array([[1, .9, 0], [.9, 1, 0], [0, 0, 1]]), 2).encoder
    array([[0.5, 0. ],
           [0.5, 0. ],
           [0. , 1. ]])
    """

    inner: str = "mean"
    seed: int = 0

    name: ClassVar[str] = "cluster"
    monotone: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("inner merge", self.inner, INNER)
        at_least("seed", self.seed, 0)

    def _codes(self, problem: Problem) -> Codes:
        if problem.k >= problem.tasks:
            return everything(problem.tasks)
        labels = assign(problem.gram, problem.k, seed=self.seed)
        members = (labels[:, None] == np.arange(labels.max() + 1)).astype(np.float64)
        encoder = members / members.sum(axis=0) if self.inner == "mean" else members
        decoder = refit(problem.gram, encoder, problem.tasks)
        return Codes(encoder, decoder, np.ones(encoder.shape[1]))


def assign(gram: Matrix, k: int | None = None, *, seed: int = 0) -> NDArray[np.int64]:
    """The cluster of each task, numbered from 0 in the order of first appearance.

    Args:
        gram: [T, T]. Only the cosines matter; negative ones count as 0 (vectors that oppose each
            other are as unlike as unrelated ones), and a zero vector is like nothing.
        k: the number of clusters; by default :func:`eigengap` chooses it.
        seed: of the k-means step.

    Returns:
        labels [T]; fewer than k are used when vectors cannot be told apart.

    Raises:
        MissingExtraError: when scikit-learn is not installed and clustering is really needed.

    >>> assign(np.array([[1, .1, .9], [.1, 1, .1], [.9, .1, 1]]), 2)
    array([0, 1, 0])
    """
    affinity = _affinity(checked(gram))
    tasks = len(affinity)
    count = eigengap(gram) if k is None else k
    at_least("k", count, 1)
    if count == 1:
        return np.zeros(tasks, dtype=np.int64)
    if count >= tasks:
        return np.arange(tasks, dtype=np.int64)
    return _by_first(_spectral(affinity, count, seed))


def eigengap(gram: Matrix) -> int:
    """How many clusters the cosines suggest (TVB v1).

    With K the clipped cosines and ``L = diag(K1) - K``, eigenvalues ascending: the place of the
    largest gap between neighbours. Noise puts that gap at 1 or T - 1, so for more than two tasks
    the answer is kept within 2 … T - 1 (added for this project); for one or two tasks it is 1.

    >>> eigengap(np.kron(np.eye(3), np.full((2, 2), 0.9) + 0.1 * np.eye(2)))
    3
    """
    affinity = _affinity(checked(gram))
    tasks = len(affinity)
    if tasks <= 2:
        return 1
    laplacian = np.diag(affinity.sum(axis=1)) - affinity
    gaps = np.diff(np.linalg.eigvalsh(laplacian))
    found = int(np.argmax(gaps >= gaps.max() - 1e-9 * tasks)) + 1
    return min(max(found, 2), tasks - 1)


def _affinity(gram: Matrix) -> Matrix:
    """Cosines clipped at 0, ones on the diagonal."""
    lengths = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    safe = np.where(lengths > 0.0, lengths, 1.0)
    cosines = np.clip((gram / safe) / safe[:, None], 0.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return cosines


def _spectral(affinity: Matrix, count: int, seed: int) -> NDArray[np.int64]:
    """scikit-learn's labels. What it warns of (duplicates, weak links) is expected here."""
    sklearn = require("sklearn.cluster", "cluster", "clustering task vectors")
    model = sklearn.SpectralClustering(count, affinity="precomputed", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = model.fit_predict(affinity + FLOOR)
    return np.asarray(labels, dtype=np.int64)


def _by_first(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[inverse.reshape(-1)], dtype=np.int64)
