"""What a basis is in numbers: codes, how good they are, and the best decoder for an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskbasis.basis.gram import PINV_CUT, Matrix, cosine, root
from taskbasis.errors import UsageError


@dataclass(frozen=True, eq=False)
class Codes:
    """How M atoms are made from N vectors, and T tasks recovered from the atoms.

    With V [d, N] the vectors, the atoms are ``S = V B`` and the recovered tasks ``S W``. There may
    be fewer atoms than were asked for: a direction in which no task extends is never stored.

    Args:
        encoder: B [N, M]; atom m is ``Σ_n encoder[n, m] · vector n``. N is T, or more for
            `random`, whose noise vectors stand behind the tasks.
        decoder: W [M, T]; task t is recovered as ``Σ_m decoder[m, t] · atom m``.
        addition: [M]; the weights with which the atoms are summed to "add the basis".
        mean_atom: True when the last atom is the mean of the tasks (PCA), stored like any other.

    Raises:
        UsageError: when the three shapes contradict each other.

    >>> codes = Codes(np.eye(3)[:, :2], np.eye(3)[:2], np.ones(2))
    >>> codes.atoms, codes.tasks
    (2, 3)
    """

    encoder: Matrix
    decoder: Matrix
    addition: Matrix
    mean_atom: bool = False

    def __post_init__(self) -> None:
        atoms, tasks = self.encoder.shape[1], self.decoder.shape[1]
        fits = self.decoder.shape[0] == atoms and self.addition.shape == (atoms,)
        if not fits or tasks > self.encoder.shape[0]:
            raise UsageError(
                f"codes do not fit together: encoder {self.encoder.shape}, "
                f"decoder {self.decoder.shape}, addition {self.addition.shape}; "
                "they are [N, M], [M, T] with T <= N, and [M]"
            )

    @property
    def atoms(self) -> int:
        """M, the mean included: this many vectors are stored."""
        return int(self.encoder.shape[1])

    @property
    def tasks(self) -> int:
        """T, the number of tasks that can be recovered."""
        return int(self.decoder.shape[1])


@dataclass(frozen=True, eq=False)
class Quality:
    """How well codes stand in for the tasks, computed from the Gram matrix and nothing else.

    With ``E = B W - [I; 0]`` the error of the codes and ``τ̂_t`` the recovered task t:

    Args:
        loss: ``tr(EᵀGE) / T²``, which is ``‖V̂ - V‖² / T²``.
        bound: the least loss of any M atoms, ``Σ_{i>M} λ_i(G) / T²`` (Eckart and Young). It is
            not centred, and a mean atom counts as one of the M.
        relative_error: [T]; ``‖τ̂_t - τ_t‖ / ‖τ_t‖``. Near 1: the basis has dropped the task. For
            a zero vector 0 when it is recovered as zero and infinity when it is not.
        addition_cosine: of the sum of the atoms, weighted by `addition`, with the sum of the tasks.
        reconstruction_cosine: of the sum of the recovered tasks with the sum of the tasks. Both
            cosines are 0.0 when one of the sums is zero.
        kept_energy: ``1 - ‖V̂ - V‖² / ‖V‖²``; 1.0 when all tasks are zero and recovered as zero.
    """

    loss: float
    bound: float
    relative_error: Matrix
    addition_cosine: float
    reconstruction_cosine: float
    kept_energy: float


def quality(gram: Matrix, codes: Codes) -> Quality:
    """How well the codes stand in for the tasks (see :class:`Quality` for the formulas).

    Args:
        gram: [N, N] float64, the inner products of the vectors that `codes.encoder` speaks of.
        codes: N vectors, M atoms, T tasks.

    Raises:
        UsageError: when the Gram matrix has another size than the encoder.

    >>> keep_first = Codes(np.eye(2)[:, :1], np.eye(2)[:1], np.ones(1))
    >>> found = quality(np.diag([3.0, 1.0]), keep_first)
    >>> found.loss == found.bound == 0.25, found.relative_error, round(found.kept_energy, 9)
    (True, array([0., 1.]), 0.75)
    """
    if gram.shape != (codes.encoder.shape[0],) * 2:
        raise UsageError(f"a Gram matrix {gram.shape} meets an encoder {codes.encoder.shape}")
    stand_in = root(gram)
    tasks, atoms = stand_in[:, : codes.tasks], stand_in @ codes.encoder
    recovered = atoms @ codes.decoder
    missed = float(np.sum((recovered - tasks) ** 2))
    total = float(np.sum(tasks**2))
    tail = np.linalg.svd(tasks, compute_uv=False)[codes.atoms :]
    whole = _summed(tasks)
    return Quality(
        loss=missed / codes.tasks**2,
        bound=float(np.sum(tail**2)) / codes.tasks**2,
        relative_error=_relative_error(tasks, recovered),
        addition_cosine=cosine(_summed(atoms * codes.addition), whole),
        reconstruction_cosine=cosine(_summed(recovered), whole),
        kept_energy=1.0 - missed / total if total > 0.0 else float(missed == 0.0),
    )


def _relative_error(tasks: Matrix, recovered: Matrix) -> Matrix:
    lengths = np.linalg.norm(tasks, axis=0)
    missed = np.linalg.norm(recovered - tasks, axis=0)
    of_zero = np.where(missed <= PINV_CUT * np.linalg.norm(tasks), 0.0, np.inf)
    safe = np.where(lengths > 0.0, lengths, 1.0)
    found: Matrix = np.where(lengths > 0.0, missed / safe, of_zero)
    return found


def _summed(parts: Matrix) -> Matrix:
    """The sum of the columns; what cancels to rounding is zero."""
    summed: Matrix = parts.sum(axis=1)
    cancels = np.linalg.norm(summed) <= PINV_CUT * np.linalg.norm(parts)
    return np.zeros_like(summed) if cancels else summed


def refit(gram: Matrix, encoder: Matrix, tasks: int) -> Matrix:
    """The decoder that recovers the tasks best from given atoms, in closed form.

    ``W = (BᵀGB)⁺ BᵀG[:, :T]`` minimises ``‖V B W - V[:, :T]‖``: no other decoder is better. It is
    computed as ``pinv(R B) R`` with ``RᵀR = G`` and atoms scaled to unit length, where singular
    values below 1e-12 of the largest are cut: duplicate and zero vectors do no harm. Derived for
    this project (the paper, TVB v4/v5, trains W by gradient descent).

    Args:
        gram: [N, N] float64.
        encoder: B [N, M].
        tasks: T, the leading vectors that are to be recovered.

    Returns:
        W [M, T].

    >>> refit(np.ones((2, 2)), np.array([[1.0], [0.0]]), 2).round(12)
    array([[1., 1.]])
    """
    stand_in = root(gram)
    atoms = stand_in @ encoder
    lengths = np.linalg.norm(atoms, axis=0)
    safe = np.where(lengths > 0.0, lengths, 1.0)
    inverse = np.linalg.pinv(atoms / safe, rcond=PINV_CUT)
    decoder: Matrix = (inverse @ stand_in[:, :tasks]) / safe[:, None]
    return decoder
