import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis import (
    PCA,
    SVD,
    Autoencoder,
    Cluster,
    Random,
    Select,
    allocate,
    resolve_size,
    solve,
)
from taskbasis.errors import UsageError, ValueProblem


@pytest.mark.parametrize(
    ("asked", "tasks", "meant"),
    [
        (1, 8, 1),
        (8, 8, 8),
        ("3", 8, 3),
        (0.5, 9, 4),
        (0.25, 20, 5),
        ("0.29", 100, 29),
        (0.01, 8, 1),
        (None, 9, 4),
        (None, 1, 1),
    ],
)
def test_counts_and_fractions(asked, tasks, meant):
    assert resolve_size(asked, tasks) == meant


@pytest.mark.parametrize("asked", [0, -1, 9, 1.0, 0.0, -0.5, 2.5, "9", "1.5", True, float("nan")])
def test_what_is_out_of_range_is_refused_with_the_range(asked):
    with pytest.raises(UsageError, match="count from 1 to 8"):
        resolve_size(asked, 8)


@pytest.mark.parametrize("asked", ["half", "", "error=", "error=x", "err=0.1"])
def test_what_means_nothing_is_refused(asked):
    with pytest.raises(UsageError, match="means nothing; give a count, a fraction"):
        resolve_size(asked, 8, np.eye(8), SVD())


def test_an_error_needs_something_to_run():
    with pytest.raises(UsageError, match="needs the Gram matrix and the construction"):
        resolve_size("error=0.1", 8)
    with pytest.raises(UsageError, match=r"at least 0\.0; got -1"):
        resolve_size("error=-1", 8, np.eye(8), SVD())


@pytest.mark.parametrize("normalize", ["mean", "cosine"])
@pytest.mark.parametrize("build", [SVD(), PCA(), Select(), Select("random"), Cluster()], ids=repr)
def test_an_error_gives_the_smallest_size_that_meets_it(vectors, build, normalize):
    dense = vectors("decaying", 7, seed=1)
    gram = dense.T @ dense
    worst = [solve(gram, build, k, normalize)[1].relative_error.max() for k in range(1, 8)]
    for error in (0.0, 0.05, 0.3, 0.6, 0.9, 1.5):
        expected = next((k for k, each in enumerate(worst, 1) if each <= error + 1e-12), None)
        if expected is not None:
            assert resolve_size(f"error={error}", 7, gram, build, normalize) == expected


def test_an_error_with_the_autoencoder(vectors):
    dense = vectors("clustered", 8, seed=1)
    gram = dense.T @ dense
    build = Autoencoder(starts=2)
    k = resolve_size("error=0.7", 8, gram, build)
    assert solve(gram, build, k)[1].relative_error.max() <= 0.7
    assert solve(gram, build, k - 1)[1].relative_error.max() > 0.7


def test_an_error_with_noise_can_be_out_of_reach(vectors):
    noise = np.random.default_rng(99).standard_normal((400, 6))
    both = np.hstack([vectors("common", 6), noise])
    gram = both.T @ both
    assert resolve_size("error=1", 6, gram, Random()) == 1
    with pytest.raises(ValueProblem, match="no size up to 6 recovers every task"):
        resolve_size("error=0.5", 6, gram, Random())
    with pytest.raises(ValueProblem, match="no size up to 12"):
        resolve_size("error=0.5", 12, gram, Random())


def test_no_size_at_all_asks_the_eigengap_of_clusters():
    gram = np.kron(np.eye(3), np.full((2, 2), 0.9) + 0.1 * np.eye(2))
    assert resolve_size(None, 6, gram, Cluster()) == 3
    assert resolve_size(None, 6, gram, SVD()) == 3
    assert resolve_size(None, 7, None, Cluster()) == 3


def test_allocation_follows_the_spectra():
    flat, steep = np.diag([1.0, 0.9, 0.8]), np.diag([10.0, 0.1, 0.01])
    assert allocate([flat, steep], 4) == [3, 1]
    assert allocate([flat, steep], 5) == [3, 2]
    assert allocate([flat, flat], 5) == [3, 2]
    assert allocate([], 0) == []


def test_allocation_counts_parameters():
    gram = np.diag([4.0, 2.0, 1.0])
    assert allocate([gram, gram], 1000, [100, 1]) == [3, 3]
    assert allocate([gram, gram], 103, [100, 1]) == [1, 3]
    assert allocate([gram, gram], 202, [100, 1]) == [1, 3]
    assert allocate([gram, gram], 203, [100, 1]) == [2, 3]


def test_allocation_gives_nothing_to_nothing_and_no_more_than_the_rank():
    assert allocate([np.zeros((3, 3)), np.ones((3, 3)), np.eye(3)], 100) == [0, 1, 3]
    tiny = 1e-18 * np.eye(3)
    assert allocate([tiny, np.eye(3)], 4) == [1, 3]


def test_allocation_refuses_what_cannot_be():
    with pytest.raises(UsageError, match=r"budget of 1 is too small.*takes 2"):
        allocate([np.eye(2), np.eye(2)], 1)
    with pytest.raises(UsageError, match="2 groups need as many sizes"):
        allocate([np.eye(2), np.eye(2)], 9, [1])
    with pytest.raises(UsageError, match="at least 1"):
        allocate([np.eye(2)], 9, [0])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 10**6))
def test_allocation_spends_no_more_than_the_budget_and_the_best_for_equal_sizes(params, seed):
    generator = np.random.default_rng(seed)
    spectra = [np.sort(generator.uniform(0.1, 9, 4))[::-1] for _ in params]
    grams = [np.diag(each) for each in spectra]
    budget = int(generator.integers(sum(params), 4 * sum(params) + 1))
    sizes = allocate(grams, budget, params)
    spent = sum(size * cost for size, cost in zip(sizes, params, strict=True))
    assert spent <= budget
    assert all(1 <= size <= 4 for size in sizes)
    left = [cost for size, cost in zip(sizes, params, strict=True) if size < 4]
    assert all(cost > budget - spent for cost in left)
    equal = allocate(grams, len(params) + 3)
    kept = sum(each[:size].sum() for each, size in zip(spectra, equal, strict=True))
    later = np.sort(np.concatenate([each[1:] for each in spectra]))[::-1]
    assert kept == pytest.approx(sum(each[0] for each in spectra) + later[:3].sum())
