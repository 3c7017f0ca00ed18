import numpy as np
import pytest

from taskbasis.basis import NORMALIZE, SVD, Autoencoder, Select, quality, scaled, solve
from taskbasis.errors import UsageError


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_folding_back_recovers_the_original_vectors(vectors, normalize):
    dense = vectors("common", 6)
    gram = dense.T @ dense
    scaling = scaled(gram, normalize, 6)
    codes = SVD().fit(scaling.gram, 6, total=scaling.total)
    folded = scaling.fold(codes)
    np.testing.assert_allclose(dense @ folded.encoder @ folded.decoder, dense, atol=1e-12)
    np.testing.assert_allclose(dense @ folded.encoder @ folded.addition, dense.sum(axis=1))
    short = dense / scaling.lengths
    np.testing.assert_allclose(dense @ folded.encoder, short @ codes.encoder, atol=1e-12)


def test_cosine_makes_lengths_equal_and_keeps_the_common_one(vectors):
    dense = vectors("orthogonal", 6) * 1e-4
    dense[:, 2] = 0.0
    gram = dense.T @ dense
    scaling = scaled(gram, "cosine", 6)
    kept = [0, 1, 3, 4, 5]
    expected = np.trace(gram) / 5
    np.testing.assert_allclose(np.diag(scaling.gram)[kept], expected)
    assert scaling.gram[2, 2] == 0.0
    assert scaling.lengths[2] == 1.0
    lengths = np.linalg.norm(dense, axis=0)[kept]
    np.testing.assert_allclose(lengths / scaling.lengths[kept], np.sqrt(expected))


def test_mean_changes_only_the_scale(vectors):
    gram = vectors("common", 5).T @ vectors("common", 5)
    scaling = scaled(gram, "mean", 5)
    assert np.diag(scaling.gram).mean() == pytest.approx(1.0)
    assert (scaling.lengths == 1.0).all()
    for normalize in ("mean", "none"):
        codes, found = solve(gram, Select(), 2, normalize)
        assert found.loss == pytest.approx(solve(gram, Select(), 2)[1].loss, rel=1e-12)
        assert codes.encoder.sum() == 2.0


def test_long_vectors_win_with_mean_and_share_with_cosine():
    lengths = np.array([3.0, 2.8, 2.6, 2.5, 1.3, 1.2, 1.1, 1.0])
    dense = np.linalg.qr(np.random.default_rng(0).standard_normal((400, 8)))[0]
    dense = (dense + 0.03 * np.random.default_rng(1).standard_normal((400, 8))) * lengths
    gram = dense.T @ dense
    by_energy = solve(gram, Autoencoder(addition=0.0, starts=2), 4, "mean")[1].relative_error
    assert by_energy[:4].max() < 0.35
    assert by_energy[4:].min() > 0.85
    shared = solve(gram, SVD(), 4, "cosine")[1].relative_error
    assert shared.max() < by_energy.max()
    assert np.ptp(shared) < np.ptp(by_energy)


def test_all_zero_tasks_are_left_alone():
    for normalize in NORMALIZE:
        scaling = scaled(np.zeros((3, 3)), normalize, 3)
        assert not scaling.gram.any()
        assert (scaling.lengths == 1.0).all()


def test_the_sum_aimed_at_is_the_sum_of_the_original_tasks(vectors):
    """Under cosine the addition term must not mistake unit vectors for the tasks."""
    dense = vectors("common", 8, seed=3)
    gram = dense.T @ dense
    codes, found = solve(gram, Autoencoder(), 4, "cosine")
    atoms = np.linalg.qr(dense @ codes.encoder)[0]
    whole = dense.sum(axis=1)
    limit = np.linalg.norm(atoms.T @ whole) / np.linalg.norm(whole)
    assert found.addition_cosine == pytest.approx(limit, abs=1e-3)
    assert quality(gram, codes).loss == found.loss


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="no normalization 'cosin'; did you mean 'cosine'"):
        scaled(np.eye(2), "cosin", 2)
