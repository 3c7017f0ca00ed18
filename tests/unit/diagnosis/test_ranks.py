"""Effective ranks: worked examples, bounds, and matrices read whole from vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.diagnosis.ranks import effective_rank, ranks
from taskbasis.engine import Engine
from taskbasis.plan import cutting, make_plan


def by_svd(matrix: Any) -> float:
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    shares = values[values > 0] / values.sum()
    return float(np.prod(shares**-shares))


def test_worked_examples() -> None:
    assert effective_rank(np.diag([5.0, 5, 5, 0])) == pytest.approx(3)
    assert effective_rank(np.outer([1.0, 2], [3.0, 4, 5])) == pytest.approx(1)
    assert effective_rank(np.diag([2.0, 1.0])) == pytest.approx(0.8**-0.8 * 0.2**-0.2)
    assert effective_rank(np.zeros((3, 4))) == 0.0
    assert effective_rank(np.array([[-3.0]])) == pytest.approx(1)


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 99), st.sampled_from([1e-200, 1, 1e200])
)
def test_it_is_what_singular_values_say(rows: int, columns: int, seed: int, size: float) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns))
    found = effective_rank(size * matrix)
    assert found == pytest.approx(by_svd(matrix), rel=1e-9)
    assert found == pytest.approx(effective_rank(-size * matrix.T), rel=1e-9)
    assert 1 - 1e-9 <= found <= min(rows, columns) + 1e-9


def plan_of(world: Any) -> Any:
    combinations = [vector.combination for vector in world.vectors.values()]
    return make_plan(combinations, world.base.store, world.base.store)


def test_the_largest_matrices_of_every_vector(world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cutting, "_CUT", 2048)  # and yet matrices come whole
    w = world()
    found = ranks(plan_of(w), None, Engine(workers=2))
    shapes = {"embed.weight": (60, 50), "layers.0.w": (20, 12), "layers.1.w": (12, 20)}
    assert {rank.tensor: rank.shape for rank in found} == shapes
    assert [rank.tensor for rank in found] == list(shapes)
    for rank in found:
        wanted = [by_svd(d[rank.tensor].reshape(rank.shape)) for d in w.deltas.values()]
        assert rank.effective == pytest.approx(wanted, rel=1e-4)
        assert rank.full == min(rank.shape)
        assert max(rank.effective) < rank.full
    assert ranks(plan_of(w), 1, Engine(workers=1)) == found[:1]
    assert ranks(plan_of(w), 0, Engine(workers=1)) == ()
