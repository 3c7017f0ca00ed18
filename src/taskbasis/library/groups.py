"""Groups of tensors that share one set of codes: the whole model, a layer, or a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import root

NOTHING = 1e-20
"""A squared norm below this part of the largest task's is rounding."""

_NO_MEAN = 1e-6


def group_grams(
    grams: Mapping[str, NDArray[np.float64]], groups: Mapping[str, Sequence[str]]
) -> list[NDArray[np.float64]]:
    """One Gram matrix per group: the sum of its tensors', in order."""
    return [
        np.asarray(np.sum([grams[tensor] for tensor in tensors], axis=0))
        for tensors in groups.values()
    ]


@dataclass(frozen=True, eq=False)
class Group:
    """A group with its codes.

    Attributes:
        name, tensors: of the group.
        codes: encoder, decoder and addition weights; M may differ from group to group.
        gram: [N, N] inner products within the group: of the T tasks, then of seeded noise.
        error: [T] squared norm of what each task loses in the group.
    """

    name: str
    tensors: tuple[str, ...]
    codes: Codes = field(repr=False)
    gram: NDArray[np.float64] = field(repr=False)
    error: NDArray[np.float64] = field(repr=False)

    @property
    def atoms(self) -> int:
        """M, the number of atoms."""
        return int(self.codes.decoder.shape[0])


def relative_errors(groups: Sequence[Group]) -> NDArray[np.float64]:
    """Per task, the norm of what is lost over the norm of its vector.

    For a zero vector 0 when it is recovered as zero, and infinity when it is not.
    """
    squares = np.sum([np.diag(group.gram)[: len(group.error)] for group in groups], axis=0)
    lost = np.sum([group.error for group in groups], axis=0)
    of_zero = np.where(lost > NOTHING * squares.max(initial=0.0), np.inf, 0.0)
    return np.asarray(np.sqrt(np.divide(lost, squares, out=of_zero, where=squares > 0)))


def loss_and_bound(groups: Sequence[Group]) -> tuple[float, float]:
    """What all tasks lose together, and the least that any atoms of these sizes could lose.

    ``||V_hat - V||^2 / T^2``, and per group the eigenvalues of its Gram matrix beyond its atoms
    (Eckart and Young), summed and divided alike. The loss is that of TVB v4/v5.
    """
    tasks = groups[0].codes.tasks
    least = 0.0
    for group in groups:
        energies = np.linalg.svd(root(group.gram[:tasks, :tasks]), compute_uv=False) ** 2
        least += float(np.sum(energies[group.atoms :]))
    lost = float(np.sum([group.error for group in groups]))
    return lost / tasks**2, least / tasks**2


def sum_cosines(groups: Sequence[Group]) -> tuple[float, float]:
    """Cosines to the sum of all vectors: of the sum of atoms, and of the sum recovered.

    Both follow from the Gram matrices: an atom sum is ``V a`` with ``a = B addition`` and a
    recovered sum ``V b`` with ``b = B W 1``.
    """
    found = []
    for of_atoms in (True, False):
        inner = size = full = 0.0
        for group in groups:
            codes, tasks = group.codes, group.codes.tasks
            weights = codes.addition if of_atoms else codes.decoder @ np.ones(tasks)
            made = codes.encoder @ weights
            whole = np.concatenate([np.ones(tasks), np.zeros(len(made) - tasks)])
            inner += float(made @ group.gram @ whole)
            size += float(made @ group.gram @ made)
            full += float(whole @ group.gram @ whole)
        found.append(inner / np.sqrt(size * full) if size > 0 and full > 0 else 0.0)
    return float(found[0]), float(found[1])


def atom_scale(groups: Sequence[Group]) -> float:
    """What makes the average coefficient of a task 1 in the sum of atoms, so that scales compare.

    1 where that coefficient is 0, or below: atoms of centred vectors sum to something else.
    """
    weights = [
        float((group.codes.encoder @ group.codes.addition)[: group.codes.tasks].mean())
        for group in groups
    ]
    mean = float(np.mean(weights))
    return 1.0 / mean if mean > _NO_MEAN else 1.0


def squared_losses(gram: NDArray[np.float64], codes: Codes) -> NDArray[np.float64]:
    """[T] squared norms of ``V (B W - [I; 0])``, column by column.

    Measured on R with ``R'R = G``, which keeps the digits of short vectors beside long ones.
    """
    error = codes.encoder @ codes.decoder - np.eye(len(gram), codes.tasks)
    return np.asarray(np.sum((root(gram) @ error) ** 2, axis=0))
