import itertools
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis import CONSTRUCTIONS, PCA, SVD, Select, construction, quality, solve
from taskbasis.errors import UsageError, ValueProblem

NAMES = sorted(CONSTRUCTIONS)
QUICK = {"autoencoder": {"starts": 2}}
EXACT = [name for name in NAMES if name != "random"]


def drawn(seed, tasks, dim=60):
    return np.random.default_rng(seed).standard_normal((dim, tasks))


def duplicates():
    dense = drawn(0, 6)
    dense[:, 3:] = dense[:, :3]
    return dense


def one_zero():
    dense = drawn(1, 6)
    dense[:, 2] = 0.0
    return dense


def uneven():
    return drawn(2, 6) * np.array([1e-6, 1e-3, 1.0, 1.0, 1e3, 1e-6])


def opposed():
    dense = drawn(3, 3)
    return np.hstack([dense, 0.1 * drawn(4, 3) - dense])


HARD = {
    "one task": drawn(5, 1),
    "two tasks": drawn(5, 2),
    "duplicates": duplicates(),
    "all equal": np.tile(drawn(6, 1), 6),
    "a zero vector": one_zero(),
    "all zero": np.zeros((60, 4)),
    "one zero task": np.zeros((60, 1)),
    "tiny": 1e-6 * drawn(7, 6),
    "very tiny": 1e-30 * drawn(7, 6),
    "huge": 1e30 * drawn(7, 6),
    "uneven": uneven(),
    "opposed": opposed(),
    "few dimensions": drawn(8, 6, dim=2),
}


def joint(dense, k):
    """The Gram matrix of the tasks and k noise vectors behind them."""
    both = np.hstack([dense, drawn(99, k, len(dense))])
    return both, both.T @ both


@pytest.mark.parametrize("normalize", ["mean", "cosine", "none"])
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", NAMES)
def test_hard_cases_give_finite_codes_that_are_judged_rightly(name, case, normalize):
    dense = HARD[case]
    tasks = dense.shape[1]
    for k in {1, max(1, tasks // 2), max(1, tasks - 1), tasks}:
        both, gram = joint(dense, k) if name == "random" else (dense, dense.T @ dense)
        codes, found = solve(gram, construction(name, **QUICK.get(name, {})), k, normalize, tasks)
        assert codes.tasks == tasks
        assert 1 <= codes.atoms <= k + codes.mean_atom
        assert all(np.isfinite(part).all() for part in (codes.encoder, codes.decoder))
        recovered = both @ codes.encoder @ codes.decoder
        missed = np.sum((recovered - dense) ** 2) / tasks**2
        scale = np.sum(dense**2) / tasks**2
        assert found.loss == pytest.approx(missed, rel=1e-6, abs=1e-9 * scale)
        assert found.loss >= found.bound - 1e-12 * scale
        assert found.kept_energy <= 1.0
        assert -1.0 - 1e-9 <= found.addition_cosine <= 1.0 + 1e-9


@pytest.mark.parametrize("beyond", [0, 1, 5])
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", EXACT)
def test_as_many_atoms_as_tasks_recover_everything(name, case, beyond):
    dense = HARD[case]
    tasks = dense.shape[1]
    codes, found = solve(dense.T @ dense, construction(name), tasks + beyond)
    assert codes.atoms <= tasks
    assert found.relative_error.max() < 1e-5
    assert found.reconstruction_cosine == pytest.approx(float(dense.any()), abs=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_short_tasks_survive_with_cosine(name):
    """Recovery in relative terms does not care for a factor of a million."""
    dense = drawn(0, 6)
    lengths = np.array([1e-6, 1.0, 1e3, 1e-3, 1.0, 1e-6])
    # the sum of uneven tasks is another sum, so the atoms are not held to it here
    build = construction(name, **({"addition": 0.0} if name == "autoencoder" else {}))
    plain = solve(dense.T @ dense, build, 3, "cosine")[1]
    uneven_gram = (dense * lengths).T @ (dense * lengths)
    found = solve(uneven_gram, build, 3, "cosine")[1]
    np.testing.assert_allclose(found.relative_error, plain.relative_error, atol=0.02)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 8), st.data())
def test_permuting_tasks_permutes_their_errors(seed, tasks, data):
    dense = drawn(seed, tasks, dim=20)
    order = np.array(data.draw(st.permutations(range(tasks))))
    k = data.draw(st.integers(1, tasks))
    gram = dense.T @ dense
    for build in (PCA(), SVD(), Select()):
        plain = solve(gram, build, k)[1].relative_error
        shuffled = solve(gram[np.ix_(order, order)], build, k)[1].relative_error
        np.testing.assert_allclose(shuffled, plain[order], atol=1e-8)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 7), st.floats(-12, 12))
def test_the_scale_of_the_tasks_changes_no_relative_error(seed, tasks, exponent):
    dense = drawn(seed, tasks, dim=20)
    for build in (PCA(), SVD(), Select()):
        for k in range(1, tasks + 1):
            plain = solve(dense.T @ dense, build, k)[1]
            scaled = dense * 10.0**exponent
            again = solve(scaled.T @ scaled, build, k)[1]
            np.testing.assert_allclose(again.relative_error, plain.relative_error, atol=1e-9)
            assert again.loss >= again.bound * (1 - 1e-9)


@pytest.mark.parametrize("name", [name for name in EXACT if CONSTRUCTIONS[name].monotone])
def test_monotone_constructions_never_get_worse_with_size(name, vectors, kind):
    dense = vectors(kind, 7)
    build = construction(name, **QUICK.get(name, {}))
    found = [solve(dense.T @ dense, build, k)[1].relative_error.max() for k in range(1, 8)]
    assert all(after <= before + 0.05 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("name", NAMES)
def test_a_construction_is_a_frozen_record_with_a_name(name):
    build = construction(name)
    assert build.name == name
    assert build == construction(name)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        build.seed = 3


def test_unknown_names_and_options_are_refused_with_a_hint():
    with pytest.raises(UsageError, match="no construction 'autoencodr'; did you mean 'autoencode"):
        construction("autoencodr")
    with pytest.raises(UsageError, match="has no option 'temprature'; did you mean 'temperature'"):
        construction("autoencoder", temprature=3)
    with pytest.raises(UsageError, match="pca has no option 'seed'; it has none"):
        construction("pca", seed=3)


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(UsageError, match="at least 1 atom; got k = 0"):
        solve(np.eye(3), SVD(), 0)
    with pytest.raises(UsageError, match="svd of 2 tasks does not fit a Gram matrix of 3"):
        solve(np.eye(3), SVD(), 1, tasks=2)
    with pytest.raises(ValueProblem, match="vector 1"):
        solve(np.diag([1.0, np.nan]), SVD(), 1)
    with pytest.raises(UsageError, match="no normalization 'l2'"):
        solve(np.eye(2), SVD(), 1, "l2")


def test_the_gram_matrix_is_not_written_to():
    gram = drawn(0, 5).T @ drawn(0, 5)
    before = gram.copy()
    for name in EXACT:
        codes, _ = solve(gram, construction(name, **QUICK.get(name, {})), 2)
        quality(gram, codes)
        assert np.array_equal(gram, before)


def test_importing_the_package_brings_nothing_heavy(loaded_by):
    assert loaded_by("import taskbasis.basis").isdisjoint({"scipy", "sklearn"})
