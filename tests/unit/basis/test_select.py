import itertools
import random

import numpy as np
import pytest

from taskbasis.basis import Codes, Select, quality, refit, solve
from taskbasis.basis.select import greedy
from taskbasis.errors import UsageError


def kept(codes):
    return codes.encoder.argmax(axis=0).tolist()


def residual(dense, chosen):
    frame = np.linalg.qr(dense[:, chosen])[0]
    return np.sum((dense - frame @ (frame.T @ dense)) ** 2)


def test_greedy_lowers_the_residual_most_at_each_step(vectors, kind):
    dense = vectors(kind, 9, seed=1)
    order = greedy(dense.T @ dense, 5)
    for step, task in enumerate(order):
        before = order[:step]
        costs = {j: residual(dense, [*before, j]) for j in range(9) if j not in before}
        assert costs[task] <= min(costs.values()) * (1 + 1e-6)


def test_greedy_is_close_to_the_best_subset_and_above_the_bound(vectors, kind):
    dense = vectors(kind, 8, seed=1)
    codes, found = solve(dense.T @ dense, Select(), 3)
    best = min(residual(dense, list(each)) for each in itertools.combinations(range(8), 3))
    assert residual(dense, kept(codes)) <= 1.15 * best
    assert found.loss == pytest.approx(residual(dense, kept(codes)) / 64)
    assert found.bound <= best / 64 + 1e-12


def test_greedy_stops_when_everything_is_recovered(vectors):
    dense = vectors("orthogonal", 6)
    dense[:, 3:] = dense[:, :3] * [2.0, 0.5, 1.0]
    codes, found = solve(dense.T @ dense, Select(), 5)
    assert codes.atoms == 3
    assert found.relative_error.max() < 1e-9


def test_greedy_is_deterministic_on_ties():
    assert greedy(np.eye(5), 3) == [0, 1, 2]
    assert greedy(np.zeros((3, 3)), 2) == []
    assert Select().fit(np.zeros((3, 3)), 2).encoder.tolist() == [[1.0], [0.0], [0.0]]


def test_random_is_pythons_sample_sorted():
    codes = Select("random", seed=7).fit(np.eye(12), 5)
    assert kept(codes) == sorted(random.Random(7).sample(range(12), 5))
    again = Select("random", seed=7).fit(3 * np.eye(12), 5)
    assert kept(again) == kept(codes)
    assert kept(Select("random", seed=8).fit(np.eye(12), 5)) != kept(codes)


def test_without_recovery_the_others_come_back_as_zero(vectors):
    dense = vectors("common", 6)
    gram = dense.T @ dense
    bare = Select("random", recovery=False).fit(gram, 2)
    assert np.array_equal(bare.decoder, bare.encoder.T)
    errors = quality(gram, bare).relative_error
    np.testing.assert_allclose(np.sort(errors), [0, 0, 1, 1, 1, 1], atol=1e-12)
    helped = Select("random").fit(gram, 2)
    assert quality(gram, helped).loss < quality(gram, bare).loss
    np.testing.assert_allclose(helped.decoder, refit(gram, bare.encoder, 6))


def test_adding_the_basis_adds_the_kept_vectors(vectors):
    dense = vectors("common", 6)
    codes = Select().fit(dense.T @ dense, 3)
    np.testing.assert_allclose(
        dense @ codes.encoder @ codes.addition, dense[:, kept(codes)].sum(axis=1)
    )


@pytest.mark.parametrize("strategy", ["greedy", "random"])
def test_as_many_as_there_are_keeps_all(strategy):
    for k in (4, 5):
        codes = Select(strategy).fit(np.ones((4, 4)), k)
        assert isinstance(codes, Codes)
        assert np.array_equal(codes.encoder, np.eye(4))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(UsageError, match="no strategy 'gredy'; did you mean 'greedy'"):
        Select("gredy")
