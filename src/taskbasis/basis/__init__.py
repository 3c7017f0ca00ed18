"""Bases of task vectors as pure T x T mathematics: no files, no tensors, no engine.

A Gram matrix goes in, :class:`Codes` come out: how to make M atoms from T task vectors and how to
recover the tasks from the atoms. One file per construction; :func:`solve` runs any of them.

>>> import numpy as np
>>> codes, found = solve(np.diag([4.0, 2.0, 1.0]), construction("autoencoder"), k=2)
>>> codes.encoder.shape, codes.decoder.shape, found.loss >= found.bound
((3, 2), (2, 3), True)
"""

from taskbasis.basis.autoencoder import Autoencoder
from taskbasis.basis.cluster import Cluster, assign, eigengap
from taskbasis.basis.codes import Codes, Quality, quality, refit
from taskbasis.basis.pca import PCA
from taskbasis.basis.problem import Construction
from taskbasis.basis.random import Random
from taskbasis.basis.registry import CONSTRUCTIONS, construction, solve
from taskbasis.basis.scaling import NORMALIZE, scaled
from taskbasis.basis.select import Select
from taskbasis.basis.size import allocate, resolve_size
from taskbasis.basis.svd import SVD

__all__ = [
    "CONSTRUCTIONS",
    "NORMALIZE",
    "PCA",
    "SVD",
    "Autoencoder",
    "Cluster",
    "Codes",
    "Construction",
    "Quality",
    "Random",
    "Select",
    "allocate",
    "assign",
    "construction",
    "eigengap",
    "quality",
    "refit",
    "resolve_size",
    "scaled",
    "solve",
]
