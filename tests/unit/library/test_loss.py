"""The loss and its bound, of the whole basis, against the dense vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Design, fit
from taskbasis.basis import Codes
from taskbasis.library.groups import Group, atom_scale


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
@pytest.mark.parametrize("method", ["autoencoder", "pca", "svd", "random"])
def test_loss_and_bound(tasks: Any, tmp_path: Path, method: str, granularity: Any) -> None:
    basis = fit(tasks.vectors, tmp_path / "b", Design(2, method, granularity=granularity))
    recovered = np.stack([tasks.flat(basis[name]) for name in basis.names], axis=1)
    loss, bound = basis.loss_and_bound
    assert loss == pytest.approx(np.sum((recovered - tasks.dense()) ** 2) / 25, rel=1e-4)
    least = sum(
        np.sum(np.linalg.svd(tasks.dense(group.tensors), compute_uv=False)[group.atoms :] ** 2)
        for group in basis.contents.groups
    )
    assert bound == pytest.approx(least / 25, rel=1e-4, abs=1e-12)
    assert loss >= bound * (1 - 1e-6)
    if method == "svd":
        assert loss == pytest.approx(bound, rel=1e-6, abs=1e-12)


def group(*columns: list[float]) -> Group:
    """Three tasks, atoms with the given coefficients, summed with weights of 1."""
    encoder = np.array(columns).T
    codes = Codes(encoder, np.zeros((len(columns), 3)), np.ones(len(columns)))
    return Group("g", ("w",), codes, np.eye(3), np.zeros(3))


def test_atoms_are_scaled_so_that_a_task_has_the_coefficient_1_on_average() -> None:
    halves = group([0.5, 0.5, 0.0], [0.0, 0.0, 0.5])
    assert atom_scale([halves]) == pytest.approx(2)
    assert atom_scale([halves, group([1.0, 1.0, 1.0])]) == pytest.approx(1 / 0.75)


@pytest.mark.parametrize("column", [[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
def test_atoms_without_such_a_coefficient_stay(column: list[float]) -> None:
    assert atom_scale([group(column)]) == 1.0
