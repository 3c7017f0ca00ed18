import time

import numpy as np
import pytest

from taskbasis.basis import SVD, Autoencoder, quality, solve
from taskbasis.basis.exact import Objective
from taskbasis.basis.gram import root
from taskbasis.errors import UsageError

PLAIN = Autoencoder(addition=0.0, starts=4)
QUICK = Autoencoder(starts=4)


def addition_limit(dense, encoder):
    """The most that any weights of these atoms keep of the direction of the full sum."""
    left, sizes, _ = np.linalg.svd(dense @ encoder, full_matrices=False)
    frame = left[:, sizes > 1e-9 * sizes[0]]
    whole = dense.sum(axis=1)
    return np.linalg.norm(frame.T @ whole) / np.linalg.norm(whole)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_gradient_is_the_slope(vectors, weight):
    dense = vectors("opposed", 6)
    gram = dense.T @ dense
    small = root(gram / np.diag(gram).mean())
    target = small.sum(axis=1) / np.linalg.norm(small.sum(axis=1))
    objective = Objective(small, target, 0.7, weight)
    point = np.random.default_rng(0).uniform(0.1, 2, 18)
    gradient = objective(point)[1]
    for index in range(18):
        step = np.zeros(18)
        step[index] = 1e-6
        slope = (objective(point + step)[0] - objective(point - step)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_the_objective_is_the_loss_against_the_bound_plus_the_turn(vectors):
    dense = vectors("common", 6)
    gram = dense.T @ dense
    small = root(gram)
    whole = small.sum(axis=1)
    raw = np.random.default_rng(0).uniform(0.1, 2, (6, 3))
    encoder = raw / raw.sum(axis=0)
    value = Objective(small, whole / np.linalg.norm(whole), 2.0, 0.1)(raw.ravel())[0]
    basis = dense @ encoder
    missed = np.linalg.lstsq(basis, dense, rcond=None)[1].sum()
    added, full = basis.sum(axis=1), dense.sum(axis=1)
    cosine = added @ full / np.linalg.norm(added) / np.linalg.norm(full)
    assert value == pytest.approx(missed / 2.0 + 0.1 * (1 - cosine**2), rel=1e-7)


def test_the_objective_does_not_know_the_order_of_the_tasks(vectors):
    """Permuting tasks permutes rows of B, given matching starts: the gradient goes along."""
    small = root(vectors("common", 6).T @ vectors("common", 6))
    target = small.sum(axis=1) / np.linalg.norm(small.sum(axis=1))
    order = np.random.default_rng(0).permutation(6)
    point = np.random.default_rng(1).uniform(0.1, 2, (6, 3))
    value, gradient = Objective(small, target, 2.0, 0.1)(point.ravel())
    again, moved = Objective(small[:, order], target, 2.0, 0.1)(point[order].ravel())
    assert again == pytest.approx(value)
    np.testing.assert_allclose(moved.reshape(6, 3), gradient.reshape(6, 3)[order], atol=1e-9)


def test_atoms_that_cancel_have_no_direction_to_turn():
    objective = Objective(np.array([[1.0, -1.0]]), np.ones(1), 1.0, 0.5)
    value, gradient = objective(np.ones(2))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["orthogonal", "common", "clustered"])
@pytest.mark.parametrize("k", [2, 4])
def test_the_bound_is_reached_where_a_softmax_can(vectors, kind, k):
    dense = vectors(kind, 8, seed=1)
    codes, found = solve(dense.T @ dense, PLAIN, k)
    assert found.bound <= found.loss <= 1.005 * found.bound
    assert (codes.encoder >= 0).all()
    np.testing.assert_allclose(codes.encoder.sum(axis=0), 1.0, rtol=1e-14)
    if kind in ("common", "clustered"):
        assert found.loss <= 1.001 * found.bound


def test_it_is_no_worse_than_the_official_recipe(vectors, kind):
    dense = vectors(kind, 8, seed=2)
    official = solve(dense.T @ dense, Autoencoder(solver="adam", steps=2000, refit=True), 3)[1]
    assert solve(dense.T @ dense, PLAIN, 3)[1].loss <= official.loss * (1 + 1e-3)


@pytest.mark.parametrize("k", [2, 4])
def test_the_addition_term_costs_little(vectors, kind, k):
    dense = vectors(kind, 8, seed=1)
    gram = dense.T @ dense
    free, bound_to_sum = solve(gram, PLAIN, k)[1], solve(gram, QUICK, k)[1]
    assert bound_to_sum.loss <= free.loss * (1 + Autoencoder().addition)
    assert bound_to_sum.loss <= free.loss * 1.012 or kind == "opposed"
    assert bound_to_sum.addition_cosine >= free.addition_cosine - 1e-3


@pytest.mark.parametrize("kind", ["orthogonal", "common", "clustered"])
@pytest.mark.parametrize(("tasks", "k"), [(8, 4), (8, 2), (16, 4)])
def test_the_sum_of_atoms_does_not_depend_on_the_seed(vectors, kind, tasks, k):
    dense = vectors(kind, tasks, seed=1)
    gram = dense.T @ dense
    directions = []
    for seed in range(3):
        codes, found = solve(gram, Autoencoder(seed=seed), k)
        added = dense @ codes.encoder @ codes.addition
        directions.append(added / np.linalg.norm(added))
        assert found.addition_cosine >= addition_limit(dense, codes.encoder) - 5e-3
    directions = np.array(directions)
    assert (directions @ directions.T).min() > 0.999


def test_without_the_term_the_sum_is_not_fixed(vectors):
    """Equal losses and different sums: what the term is there for."""
    dense = vectors("orthogonal", 8, seed=1)
    gram = dense.T @ dense
    free, fixed = solve(gram, PLAIN, 4)[1], solve(gram, QUICK, 4)[1]
    assert free.loss == pytest.approx(fixed.loss, rel=0.01)
    assert fixed.addition_cosine > free.addition_cosine + 0.05


@pytest.mark.parametrize("factor", [2.0**-30, 0.25, 2.0**20])
@pytest.mark.parametrize("normalize", ["mean", "none"])
def test_the_scale_of_the_tasks_changes_nothing(vectors, factor, normalize):
    dense = vectors("common", 6)
    gram = dense.T @ dense
    plain = solve(gram, Autoencoder(), 3, normalize)[0]
    scaled = solve(gram * factor**2, Autoencoder(), 3, normalize)[0]
    np.testing.assert_allclose(scaled.encoder, plain.encoder, atol=1e-12)
    np.testing.assert_allclose(scaled.decoder, plain.decoder, atol=1e-12)


def test_the_order_of_the_tasks_changes_little(vectors):
    dense = vectors("common", 7)
    order = np.random.default_rng(0).permutation(7)
    gram = dense.T @ dense
    plain = solve(gram, Autoencoder(), 3)[1]
    shuffled = solve(gram[np.ix_(order, order)], Autoencoder(), 3)[1]
    assert shuffled.loss == pytest.approx(plain.loss, rel=1e-4)
    np.testing.assert_allclose(shuffled.relative_error, plain.relative_error[order], atol=5e-3)
    assert shuffled.addition_cosine == pytest.approx(plain.addition_cosine, abs=1e-3)


def test_same_input_same_output(vectors):
    dense = vectors("orthogonal", 8)
    runs = [solve(dense.T @ dense, QUICK, 3)[0] for _ in range(2)]
    assert np.array_equal(runs[0].encoder, runs[1].encoder)
    assert np.array_equal(runs[0].decoder, runs[1].decoder)


def test_a_task_enters_the_sum_with_k_over_t_on_average(vectors):
    codes = Autoencoder().fit(vectors("common", 8).T @ vectors("common", 8), 4)
    weights = codes.encoder @ codes.addition
    assert weights.min() >= 0
    assert weights.mean() == pytest.approx(4 / 8)


def test_rank_deficient_tasks_are_recovered_with_as_many_atoms_as_there_is_rank(vectors):
    dense = vectors("orthogonal", 3) @ np.abs(np.random.default_rng(0).normal(size=(3, 7)))
    for k in (3, 5):
        codes, found = solve(dense.T @ dense, Autoencoder(), k)
        assert codes.atoms == 3
        assert found.relative_error.max() < 1e-3
        assert found.addition_cosine > 0.999


def test_tasks_whose_sum_is_zero_have_no_direction_to_keep(vectors):
    dense = vectors("orthogonal", 4)
    dense = np.hstack([dense, -dense])
    _, found = solve(dense.T @ dense, Autoencoder(), 4)
    assert found.relative_error.max() < 1e-6
    assert found.addition_cosine == 0.0


def test_a_hundred_tasks_take_seconds_not_minutes(vectors):
    dense = vectors("common", 100, dim=1000)
    begun = time.process_time()
    found = solve(dense.T @ dense, Autoencoder(), 25)[1]
    assert time.process_time() - begun < 60
    assert found.loss <= 1.001 * found.bound
    assert found.addition_cosine > 0.99


def test_the_span_is_the_optimal_one(vectors):
    dense = vectors("common", 8)
    gram = dense.T @ dense
    atoms = np.linalg.qr(dense @ PLAIN.fit(gram, 3).encoder)[0]
    best = np.linalg.qr(dense @ SVD().fit(gram, 3).encoder)[0]
    assert np.linalg.svd(atoms.T @ best, compute_uv=False).min() > 0.999


def test_zero_tasks_give_one_atom_of_nothing():
    codes = Autoencoder().fit(np.zeros((4, 4)), 2)
    assert codes.atoms == 1
    assert codes.encoder.sum() == 1.0
    assert not codes.decoder.any()
    assert quality(np.zeros((4, 4)), codes).loss == 0.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"solver": "exat"}, "no solver 'exat'; did you mean 'exact'"),
        ({"temperature": 0}, "temperature must be at least 0.001; got 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0.001; got nan"),
        ({"addition": -0.1}, "addition must be at least 0; got -0.1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"starts": -1}, "starts must be at least 0"),
    ],
)
def test_options_are_checked(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Autoencoder(**options)


def test_no_drawn_starting_points_are_fine_too(vectors):
    dense = vectors("common", 6)
    found = solve(dense.T @ dense, Autoencoder(starts=0), 3)[1]
    assert found.loss <= 1.01 * found.bound
