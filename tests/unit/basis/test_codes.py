import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis import Codes, quality, refit
from taskbasis.errors import UsageError

RANDOMLY = settings(deadline=None, max_examples=40, derandomize=True)
sizes = st.integers(1, 8)
seeds = st.integers(0, 10**6)


def drawn(tasks, atoms, seed, dim=30):
    generator = np.random.default_rng(seed)
    dense = generator.standard_normal((dim, tasks)) * generator.uniform(0.1, 3, tasks)
    encoder = generator.standard_normal((tasks, atoms))
    decoder = generator.standard_normal((atoms, tasks))
    return dense, Codes(encoder, decoder, generator.standard_normal(atoms))


@RANDOMLY
@given(sizes, sizes, seeds)
def test_quality_is_what_dense_vectors_say(tasks, atoms, seed):
    dense, codes = drawn(tasks, atoms, seed)
    found = quality(dense.T @ dense, codes)
    basis = dense @ codes.encoder
    recovered = basis @ codes.decoder
    missed = recovered - dense
    norm = np.linalg.norm
    np.testing.assert_allclose(found.loss, np.sum(missed**2) / tasks**2, rtol=1e-9)
    np.testing.assert_allclose(
        found.relative_error, norm(missed, axis=0) / norm(dense, axis=0), rtol=1e-9
    )
    np.testing.assert_allclose(found.kept_energy, 1 - np.sum(missed**2) / np.sum(dense**2))
    whole, added, again = dense.sum(axis=1), basis @ codes.addition, recovered.sum(axis=1)
    for cosine, direction in (
        (found.addition_cosine, added),
        (found.reconstruction_cosine, again),
    ):
        expected = direction @ whole / norm(direction) / norm(whole)
        np.testing.assert_allclose(cosine, expected, atol=1e-9)


@RANDOMLY
@given(sizes, sizes, seeds)
def test_loss_is_the_trace_formula_and_never_below_the_bound(tasks, atoms, seed):
    dense, codes = drawn(tasks, atoms, seed)
    gram = dense.T @ dense
    found = quality(gram, codes)
    error = codes.encoder @ codes.decoder - np.eye(tasks)
    np.testing.assert_allclose(found.loss, np.trace(error.T @ gram @ error) / tasks**2, rtol=1e-9)
    spectrum = np.linalg.svd(dense, compute_uv=False) ** 2
    np.testing.assert_allclose(found.bound, spectrum[atoms:].sum() / tasks**2, atol=1e-12)
    assert found.loss >= found.bound * (1 - 1e-9)


@RANDOMLY
@given(sizes, sizes, seeds)
def test_refit_is_the_least_squares_decoder(tasks, atoms, seed):
    dense, codes = drawn(tasks, atoms, seed)
    gram = dense.T @ dense
    best = refit(gram, codes.encoder, tasks)
    reference = np.linalg.lstsq(dense @ codes.encoder, dense, rcond=None)[0]
    basis = dense @ codes.encoder
    np.testing.assert_allclose(basis @ best, basis @ reference, atol=1e-8)


@RANDOMLY
@given(sizes, sizes, seeds, st.sampled_from([1.0, 1e-6, 1e6]))
def test_refit_is_never_worse(tasks, atoms, seed, scale):
    dense, codes = drawn(tasks, atoms, seed)
    gram = dense.T @ dense * scale
    best = Codes(codes.encoder, refit(gram, codes.encoder, tasks), codes.addition)
    nudged = Codes(codes.encoder, best.decoder + 1e-3 * codes.decoder, codes.addition)
    least = quality(gram, best).loss
    room = 1e-12 * np.trace(gram)
    assert least <= quality(gram, codes).loss + room
    assert least <= quality(gram, nudged).loss + room


def test_refit_inverts_an_encoder_that_is_nearly_singular():
    dense, _ = drawn(5, 5, 0)
    encoder = np.full((5, 5), 0.2) + 1e-6 * np.random.default_rng(1).standard_normal((5, 5))
    gram = dense.T @ dense
    found = quality(gram, Codes(encoder, refit(gram, encoder, 5), np.ones(5)))
    assert found.relative_error.max() < 1e-6


def test_refit_of_singular_grams_is_exact():
    dense, _ = drawn(5, 5, 0)
    dense[:, 1] = dense[:, 0]
    dense[:, 4] = 0.0
    gram = dense.T @ dense
    encoder = np.eye(5)[:, [0, 1, 2, 3]]
    decoder = refit(gram, encoder, 5)
    found = quality(gram, Codes(encoder, decoder, np.ones(4)))
    assert found.relative_error.max() < 1e-10
    np.testing.assert_allclose(decoder[:2, 0], [0.5, 0.5])
    assert not decoder[:, 4].any()


def test_atoms_of_length_zero_get_no_weight():
    assert not refit(np.diag([1.0, 0.0]), np.eye(2)[:, 1:], 2).any()


def test_a_zero_vector_recovered_as_something_is_an_infinite_error():
    gram = np.diag([1.0, 0.0])
    found = quality(gram, Codes(np.array([[1.0], [0.0]]), np.array([[1.0, 0.5]]), np.ones(1)))
    assert found.relative_error.tolist() == [0.0, np.inf]


def test_sums_that_cancel_have_cosine_zero():
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = quality(gram, Codes(np.eye(2), np.eye(2), np.ones(2)))
    assert found.addition_cosine == found.reconstruction_cosine == 0.0
    nothing = quality(np.zeros((2, 2)), Codes(np.eye(2), np.eye(2), np.ones(2)))
    assert (nothing.addition_cosine, nothing.kept_energy, nothing.loss) == (0.0, 1.0, 0.0)
    assert nothing.relative_error.tolist() == [0.0, 0.0]


def test_codes_that_contradict_each_other_are_refused():
    for decoder, addition in ((np.eye(3), np.ones(2)), (np.eye(2), np.ones(3))):
        with pytest.raises(UsageError, match="do not fit together"):
            Codes(np.ones((2, 2)), decoder, addition)
    with pytest.raises(UsageError, match=r"\(3, 3\) meets an encoder \(2, 2\)"):
        quality(np.eye(3), Codes(np.eye(2), np.eye(2), np.ones(2)))


def test_the_addition_theorem_on_quadratic_losses():
    """Convex weights of atoms are convex weights of tasks, so the addition bound is unchanged."""
    dense, _ = drawn(6, 3, 4)
    encoder = np.random.default_rng(0).dirichlet(np.ones(6), 3).T
    weights = encoder @ np.array([0.2, 0.5, 0.3])
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)
    squared = np.sum(dense**2, axis=0).max()
    unit = dense / np.linalg.norm(dense, axis=0)
    alike = np.abs(unit.T @ unit - np.eye(6)).max()
    merged = dense @ weights
    for task in range(6):
        rise = 0.5 * np.sum((merged - dense[:, task]) ** 2)
        assert rise <= (1 - weights[task]) ** 2 * squared * (1 + alike) + 1e-12
