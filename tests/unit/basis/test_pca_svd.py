import numpy as np
import pytest

from taskbasis.basis import PCA, SVD, quality, solve


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_svd_is_the_best_approximation(vectors, kind, k):
    dense = vectors(kind, 8, seed=1)
    codes, found = solve(dense.T @ dense, SVD(), k)
    left, sizes, right = np.linalg.svd(dense, full_matrices=False)
    best = (left[:, :k] * sizes[:k]) @ right[:k]
    np.testing.assert_allclose(dense @ codes.encoder @ codes.decoder, best, atol=1e-7)
    assert found.loss == pytest.approx(found.bound, rel=1e-9, abs=1e-14)


def test_svd_addition_is_the_projected_sum(vectors, kind):
    dense = vectors(kind, 8, seed=1)
    codes, found = solve(dense.T @ dense, SVD(), 3)
    atoms = dense @ codes.encoder
    frame = np.linalg.qr(atoms)[0]
    whole = dense.sum(axis=1)
    np.testing.assert_allclose(atoms @ codes.addition, frame @ (frame.T @ whole), atol=1e-9)
    limit = np.linalg.norm(frame.T @ whole) / np.linalg.norm(whole)
    assert found.addition_cosine == pytest.approx(limit)
    assert found.addition_cosine == pytest.approx(found.reconstruction_cosine)


def test_svd_atoms_are_orthogonal_and_signs_are_fixed(vectors):
    dense = vectors("common", 6)
    codes = SVD().fit(dense.T @ dense, 6)
    inner = codes.encoder.T @ dense.T @ dense @ codes.encoder
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-10)
    assert (np.diff(np.diag(inner)) <= 0).all()
    peaks = np.abs(codes.encoder).argmax(axis=0)
    assert (codes.encoder[peaks, range(6)] > 0).all()


def test_svd_drops_directions_without_extent(vectors):
    dense = vectors("orthogonal", 6)
    dense[:, 3:] = dense[:, :3]
    codes, found = solve(dense.T @ dense, SVD(), 5)
    assert codes.atoms == 3
    assert found.relative_error.max() < 1e-9


@pytest.mark.parametrize("k", [1, 3, 7, 8])
def test_pca_is_explicit_centring(vectors, kind, k):
    dense = vectors(kind, 8, seed=1)
    codes, found = solve(dense.T @ dense, PCA(), k)
    mean = dense.mean(axis=1, keepdims=True)
    left, sizes, right = np.linalg.svd(dense - mean, full_matrices=False)
    count = min(k, 7)
    best = mean + (left[:, :count] * sizes[:count]) @ right[:count]
    np.testing.assert_allclose(dense @ codes.encoder @ codes.decoder, best, atol=1e-7)
    lengths = np.linalg.norm(dense @ codes.encoder[:, :-1], axis=0)
    np.testing.assert_allclose(lengths, sizes[:count], rtol=1e-6)
    assert found.loss >= found.bound - 1e-12


@pytest.mark.parametrize("k", [1, 3, 8])
def test_pca_sums_to_the_sum_for_every_size(vectors, kind, k):
    dense = vectors(kind, 8, seed=2)
    codes, found = solve(dense.T @ dense, PCA(), k)
    recovered = dense @ codes.encoder @ codes.decoder
    np.testing.assert_allclose(recovered.sum(axis=1), dense.sum(axis=1), atol=1e-9)
    assert found.reconstruction_cosine == pytest.approx(1.0)


def test_the_mean_is_an_atom_that_is_stored_but_not_added(vectors):
    dense = vectors("common", 5)
    codes = PCA().fit(dense.T @ dense, 2)
    assert codes.mean_atom
    assert codes.atoms == 3
    np.testing.assert_allclose(dense @ codes.encoder[:, -1], dense.mean(axis=1))
    np.testing.assert_allclose(codes.encoder[:, :-1].sum(axis=0), 0.0, atol=1e-15)
    assert codes.addition.tolist() == [1.0, 1.0, 0.0]
    assert codes.decoder[-1].tolist() == [1.0] * 5


def test_pca_makes_no_null_atoms(vectors):
    dense = vectors("common", 5)
    for k in (4, 5, 9):
        codes = PCA().fit(dense.T @ dense, k)
        assert codes.atoms == 5
        assert quality(dense.T @ dense, codes).relative_error.max() < 1e-9
    same = np.ones((4, 4))
    assert PCA().fit(same, 3).atoms == 1
    assert PCA().fit(np.eye(1), 1).atoms == 1
    assert PCA().fit(np.zeros((3, 3)), 2).atoms == 1
