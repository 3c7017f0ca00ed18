import numpy as np
import pytest

from taskbasis.basis import Autoencoder, quality, refit, solve
from taskbasis.basis.adam import loss_and_gradients, softmax, solve_adam


def test_the_loss_is_the_dense_error_and_its_gradients_are_its_slopes(vectors):
    dense = vectors("common", 5)
    gram = dense.T @ dense
    generator = np.random.default_rng(0)
    logits, decoder = generator.standard_normal((5, 2)), generator.standard_normal((2, 5))
    loss, *gradients = loss_and_gradients(gram, logits, decoder, 5.0)
    error = dense @ softmax(logits / 5.0) @ decoder - dense
    assert loss == pytest.approx(np.sum(error**2) / 25)
    for place, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            step = np.zeros_like(gradient)
            step[index] = 1e-6
            up, down = [logits, decoder], [logits, decoder]
            up[place], down[place] = up[place] + step, down[place] - step
            slope = loss_and_gradients(gram, *up, 5.0)[0] - loss_and_gradients(gram, *down, 5.0)[0]
            assert gradient[index] == pytest.approx(slope / 2e-6, rel=1e-5, abs=1e-7)


def test_the_first_step_leaves_the_logits_to_the_weight_decay_alone():
    """With W = 0 the gradient in A is zero; Adam then moves each logit by the full rate."""
    gram = np.diag([3.0, 2.0, 1.0])
    start = np.random.default_rng(0).standard_normal((3, 2))
    assert not loss_and_gradients(gram, start, np.zeros((2, 3)), 5.0)[1].any()
    encoder, decoder = solve_adam(gram, 2, 5.0, 1, 0)
    moved = start - 1e-2 * np.sign(start)
    np.testing.assert_allclose(encoder, softmax(moved / 5.0), atol=1e-4)
    np.testing.assert_allclose(np.abs(decoder), 1e-2, rtol=1e-4)


def test_adam_is_the_textbook_update():
    gram = np.array([[2.0, 0.5], [0.5, 1.0]])
    logits = np.random.default_rng(3).standard_normal((2, 1))
    values = [logits.copy(), np.zeros((1, 2))]
    first, second = [0.0, 0.0], [0.0, 0.0]
    for step in range(1, 21):
        _, *gradients = loss_and_gradients(gram, *values, 2.0)
        for place in (0, 1):
            slope = gradients[place] + 1e-6 * values[place]
            first[place] = 0.9 * first[place] + 0.1 * slope
            second[place] = 0.999 * second[place] + 0.001 * slope**2
            corrected = np.sqrt(second[place] / (1 - 0.999**step)) + 1e-8
            values[place] = values[place] - 1e-2 * first[place] / (1 - 0.9**step) / corrected
    encoder, decoder = solve_adam(gram, 1, 2.0, 20, 3)
    np.testing.assert_allclose(encoder, softmax(values[0] / 2.0), rtol=1e-9)
    np.testing.assert_allclose(decoder, values[1], rtol=1e-9)


@pytest.fixture(scope="module")
def official(vectors):
    """The official recipe on eight nearly orthogonal vectors at a half and a quarter."""
    dense = vectors("orthogonal", 8, dim=4000)
    gram = dense.T @ dense
    return gram, {k: solve(gram, Autoencoder(solver="adam"), k) for k in (4, 2)}


def test_the_official_recipe_comes_close_to_the_bound(official):
    _, found = official
    for codes, judged in found.values():
        assert judged.bound <= judged.loss <= 1.02 * judged.bound
        assert (codes.encoder > 0).all()
        np.testing.assert_allclose(codes.encoder.sum(axis=0), 1.0)
    assert 0.75 < found[4][1].addition_cosine < 0.99
    assert 0.5 < found[2][1].addition_cosine < 0.95


def test_the_official_recipe_keeps_the_longest_and_drops_the_rest(official):
    gram, found = official
    errors = found[4][1].relative_error[np.argsort(-np.diag(gram))]
    assert errors[:3].max() < 0.4
    assert errors[5:].min() > 0.9


def test_the_official_recipe_collapses_on_tiny_vectors_unless_normalised(official):
    gram, found = official
    recipe = Autoencoder(solver="adam")
    codes, collapsed = solve(gram * 1e-8, recipe, 4, "none")
    np.testing.assert_allclose(codes.encoder, 1 / 8, atol=0.02)
    assert collapsed.kept_energy < 0.5 * found[4][1].kept_energy
    saved = solve(gram * 1e-8, recipe, 4, "mean")[1]
    assert saved.kept_energy == pytest.approx(found[4][1].kept_energy, rel=1e-6)


def test_refitting_the_decoder_is_never_worse(official):
    gram, found = official
    recipe = Autoencoder(solver="adam", steps=300)
    rough_codes, rough = solve(gram, recipe, 4)
    fitted_codes, fitted = solve(gram, Autoencoder(solver="adam", steps=300, refit=True), 4)
    assert np.array_equal(rough_codes.encoder, fitted_codes.encoder)
    assert fitted.loss <= rough.loss
    np.testing.assert_allclose(
        fitted_codes.decoder, refit(gram, rough_codes.encoder, 8), rtol=1e-6, atol=1e-9
    )
    assert found[4][1].loss < rough.loss


def test_adam_depends_on_its_seed_and_on_nothing_else(official):
    gram, _ = official
    runs = [Autoencoder(solver="adam", steps=50, seed=seed).fit(gram, 3) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].encoder, runs[1].encoder)
    assert not np.allclose(runs[0].encoder, runs[2].encoder)


def test_all_tasks_are_simply_kept():
    codes = Autoencoder(solver="adam").fit(np.eye(3), 3)
    assert quality(np.eye(3), codes).loss == 0.0
