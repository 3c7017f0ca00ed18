"""What rounding the atoms costs is part of what a basis says it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Basis, Design, fit, update


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_errors_count_the_rounding_of_the_atoms(
    tasks: Any, tmp_path: Path, dtype: str, granularity: Any
) -> None:
    """As many atoms as tasks: rounding is all that is lost, and it is told to within a tenth."""
    design = Design(5, "svd", granularity=granularity)
    basis = fit(tasks.vectors, tmp_path / "b", design, dtype=dtype)
    recovered = np.stack([tasks.flat(basis[name]) for name in basis.names], axis=1)
    lost = np.linalg.norm(recovered - tasks.dense(), axis=0) / np.linalg.norm(tasks.dense(), axis=0)
    np.testing.assert_allclose(list(basis.errors.values()), lost, rtol=0.25)
    assert basis.loss_and_bound[0] > 0


def test_an_update_counts_it_too(tasks: Any, tmp_path: Path) -> None:
    first = dict(list(tasks.vectors.items())[:4])
    name, last = list(tasks.vectors.items())[4]
    basis = fit(first, tmp_path / "b", Design(4, "svd"), dtype="bfloat16")
    grown: Basis = update(basis, name, last, tmp_path / "c", 5)
    for task, error in grown.errors.items():
        recovered, dense = tasks.flat(grown[task]), tasks.flat(tasks.vectors[task])
        assert np.linalg.norm(recovered - dense) / np.linalg.norm(dense) <= error * 1.1
        assert 0 < error < 0.02
