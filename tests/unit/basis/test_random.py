import numpy as np
import pytest

from taskbasis.basis import Random, solve
from taskbasis.errors import UsageError


def joint(vectors, tasks, noise, dim=400):
    dense = vectors("common", tasks, dim=dim)
    drawn = np.random.default_rng(9).standard_normal((dim, noise))
    both = np.hstack([dense, drawn])
    return dense, both, both.T @ both


@pytest.mark.parametrize("normalize", ["mean", "cosine", "none"])
def test_atoms_are_orthonormal_noise_and_recovery_is_the_projection(vectors, normalize):
    dense, both, gram = joint(vectors, 6, 4)
    codes, found = solve(gram, Random(), 4, normalize, tasks=6)
    atoms = both @ codes.encoder
    assert codes.encoder.shape == (10, 4)
    assert not codes.encoder[:6].any()
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(4), atol=1e-10)
    frame = np.linalg.qr(both[:, 6:])[0]
    projected = frame @ (frame.T @ dense)
    np.testing.assert_allclose(atoms @ codes.decoder, projected, atol=1e-10)
    np.testing.assert_allclose(atoms @ codes.addition, projected.sum(axis=1), atol=1e-10)
    assert found.loss == pytest.approx(np.sum((dense - projected) ** 2) / 36)
    assert found.loss >= found.bound


def test_hardly_anything_is_recovered_in_many_dimensions(vectors):
    _, _, gram = joint(vectors, 6, 6, dim=4000)
    found = solve(gram, Random(), 6, tasks=6)[1]
    assert found.relative_error.min() > 0.99
    assert 0.0 < found.kept_energy < 0.01


def test_a_full_space_recovers_everything(vectors):
    _, _, gram = joint(vectors, 6, 6, dim=6)
    assert solve(gram, Random(), 6, tasks=6)[1].relative_error.max() < 1e-6


def test_surplus_noise_is_not_used(vectors):
    _, _, gram = joint(vectors, 6, 5)
    codes = Random().fit(gram, 3, tasks=6)
    assert codes.encoder.shape == (11, 3)
    assert not codes.encoder[9:].any()


def test_noise_that_is_not_independent_makes_no_infinity():
    gram = np.ones((3, 3))
    codes = Random().fit(gram, 2, tasks=2 - 1)
    assert np.isfinite(codes.encoder).all()


def test_the_seed_is_only_recorded(vectors):
    _, _, gram = joint(vectors, 6, 3)
    first, second = (Random(seed).fit(gram, 3, tasks=6) for seed in (0, 5))
    assert np.array_equal(first.encoder, second.encoder)
    assert Random(5).seed == 5


def test_too_little_noise_is_refused():
    with pytest.raises(UsageError, match="seed must be at least 0"):
        Random(-1)
    with pytest.raises(UsageError, match="needs 3 noise vectors behind the 4 tasks"):
        Random().fit(np.eye(6), 3, tasks=4)
    with pytest.raises(UsageError, match="random of 7 tasks does not fit"):
        Random().fit(np.eye(6), 3, tasks=7)
