"""The loss and its bound, of the whole basis, against the dense vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Design, fit


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
