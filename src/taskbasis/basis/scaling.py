"""Which lengths the task vectors have while a basis is sought: ``normalize``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import Matrix
from taskbasis.errors import UsageError, nearest

NORMALIZE = {
    "mean": "every vector divided by one common length: only makes the solver scale-free",
    "cosine": "every vector brought to one length: short task vectors count like long ones",
    "none": "as is",
}


@dataclass(frozen=True, eq=False)
class Scaling:
    """A Gram matrix in other lengths, and the way back.

    Args:
        gram: [N, N], in the lengths in which the basis is sought.
        total: [T], the coefficients of the sum of the original tasks over the scaled ones.
        lengths: [N], what each vector was divided by beyond one common factor.
    """

    gram: Matrix
    total: Matrix
    lengths: Matrix

    def fold(self, codes: Codes) -> Codes:
        """Codes for the original vectors: ``B ← D^-1/2 B`` and ``W ← W D^1/2``.

        The atoms themselves do not change, and each task returns at its own length.
        """
        return replace(
            codes,
            encoder=codes.encoder / self.lengths[: len(codes.encoder), None],
            decoder=codes.decoder * self.lengths[: codes.tasks],
        )


def scaled(gram: Matrix, normalize: str, tasks: int) -> Scaling:
    """The Gram matrix as a construction is to see it.

    - `mean`: ``G / mean(diag G)``. Recovery, atoms and their sum are those of `none`; only solvers
      that are not scale-free (the official Adam recipe) gain. The squared error is spent where the
      energy is: among nearly orthogonal vectors the short ones are dropped.
    - `cosine`: ``D^-1/2 G D^-1/2``, folded back afterwards. It minimises the sum of squared
      *relative* errors, so no task is dropped for being short. D holds the squared lengths over
      their mean, which leaves the atoms about as long as the tasks are. A zero vector keeps
      scale 1.
    - `none`: as is.

    The first two were derived for this project; the official code has `none`.

    Args:
        gram: [N, N].
        normalize: "mean", "cosine" or "none".
        tasks: T; the leading vectors are the tasks, from which the scale is taken.

    Raises:
        UsageError: for another name.

    >>> scaled(np.diag([4.0, 0.0, 16.0]), "cosine", 3).gram.diagonal()
    array([10.,  0., 10.])
    >>> scaled(np.diag([4.0, 0.0, 17.0]), "mean", 3).gram.diagonal().round(3)
    array([0.571, 0.   , 2.429])
    """
    if normalize not in NORMALIZE:
        hint = nearest(normalize, NORMALIZE)
        raise UsageError(f"there is no normalization {normalize!r}; {hint}")
    ones = np.ones(len(gram))
    energies = np.clip(np.diag(gram)[:tasks], 0.0, None)
    if normalize == "none" or not energies.any():
        return Scaling(gram, ones[:tasks], ones)
    if normalize == "mean":
        return Scaling(gram / energies.mean(), ones[:tasks], ones)
    own = np.clip(np.diag(gram), 0.0, None)
    lengths = np.where(own > 0.0, np.sqrt(own / energies[energies > 0.0].mean()), 1.0)
    return Scaling((gram / lengths) / lengths[:, None], lengths[:tasks], lengths)
