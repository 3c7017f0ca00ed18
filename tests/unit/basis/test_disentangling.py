"""The descent on the Gram matrix is the descent in full dimensions, and leaves nothing worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.basis.disentangling import disentangle, mean_cosine
from taskbasis.errors import UsageError, ValueProblem


def pairs_of(count):
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def loss(dense, delta, alpha):
    """``mean |cos| + alpha ||delta||`` of the columns of dense [d, T], pair by pair."""
    found = []
    for i, j in pairs_of(dense.shape[1]):
        left, right = dense[:, i] - delta, dense[:, j] - delta
        found.append(abs(left @ right) / (np.linalg.norm(left) * np.linalg.norm(right)))
    return (np.mean(found) if found else 0.0) + alpha * np.linalg.norm(delta)


def gradient(dense, delta, alpha):
    """Of :func:`loss` in delta, by the quotient rule, pair by pair."""
    total = np.zeros(len(dense))
    pairs = pairs_of(dense.shape[1])
    for i, j in pairs:
        left, right = dense[:, i] - delta, dense[:, j] - delta
        inner, a, b = left @ right, np.linalg.norm(left), np.linalg.norm(right)
        of_inner = -(left + right)
        of_lengths = -left * b / a - right * a / b
        total += np.sign(inner) * (of_inner * a * b - inner * of_lengths) / (a * b) ** 2
    total /= max(len(pairs), 1)
    length = np.linalg.norm(delta)
    return total + (alpha * delta / length if length > 0 else 0)


def descend(dense, alpha, rate, iterations):
    """Algorithm 1 as it stands, on vectors; the best point on the way, and the last."""
    delta = np.zeros(len(dense))
    points = [delta]
    for _ in range(iterations):
        delta = delta - rate * gradient(dense, delta, alpha)
        points.append(delta)
    return min(points, key=lambda point: loss(dense, point, alpha)), delta


def cosines(dense):
    lengths = np.linalg.norm(dense, axis=0)
    inner = dense.T @ dense / np.outer(lengths, lengths)
    return inner[~np.eye(len(inner), dtype=bool)]


@pytest.mark.parametrize(("alpha", "rate", "iterations"), [(0.1, 0.01, 300), (0.0, 0.05, 40)])
def test_it_is_the_descent_in_full_dimensions(vectors, kind, alpha, rate, iterations):
    dense = vectors(kind, 5, dim=60)
    found = disentangle(dense.T @ dense, alpha, rate, iterations)
    best, _ = descend(dense, alpha, rate, iterations)
    delta = dense @ found.coefficients
    # Where a cosine passes 0 the slope jumps, and rounding decides on which side a point is.
    assert loss(dense, delta, alpha) == pytest.approx(loss(dense, best, alpha), rel=1e-3)
    np.testing.assert_allclose(delta, best, atol=0.02 * np.linalg.norm(dense, axis=0).mean())
    assert found.before == pytest.approx(np.abs(cosines(dense)).mean(), rel=1e-9)
    left = dense - delta[:, None]
    assert found.after == pytest.approx(np.abs(cosines(left)).mean(), rel=1e-6, abs=1e-9)
    sizes = np.linalg.norm(dense, axis=0)
    assert found.share == pytest.approx(np.linalg.norm(delta) / sizes.mean(), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_step_by_step_before_any_cosine_is_zero(vectors, steps):
    """No kink yet: the same points, to rounding, and each better than the one before."""
    dense = vectors("common", 6, dim=50)
    found = disentangle(dense.T @ dense, 0.1, 0.01, steps)
    best, last = descend(dense, 0.1, 0.01, steps)
    np.testing.assert_array_equal(best, last)
    np.testing.assert_allclose(dense @ found.coefficients, last, rtol=1e-9, atol=1e-13)
    assert np.linalg.norm(last) > 1e-4


def test_the_gradient_of_the_reference_is_that_of_autograd(vectors):
    torch = pytest.importorskip("torch")
    dense = vectors("opposed", 4, dim=30)
    at = 0.1 * np.random.default_rng(2).standard_normal(30)
    delta = torch.tensor(at, requires_grad=True)
    left = torch.tensor(dense) - delta[:, None]
    unit = left / left.norm(dim=0)
    pairs = (unit.T @ unit)[~torch.eye(4, dtype=torch.bool)]
    (pairs.abs().mean() + 0.3 * delta.norm()).backward()
    np.testing.assert_allclose(gradient(dense, at, 0.3), delta.grad.numpy(), rtol=1e-9, atol=1e-12)


def share_of_the_mean(dense):
    """The s for which inner products of ``tau_i - s * mean`` vanish on average."""
    count, mean = dense.shape[1], dense.mean(axis=1)
    spread = np.mean(np.sum((dense - mean[:, None]) ** 2, axis=0))
    return 1 - np.sqrt(spread / ((count - 1) * (mean @ mean)))


def test_the_oracle_of_a_multiple_of_the_mean(vectors):
    dense = vectors("common", 7)
    share = share_of_the_mean(dense)
    left = dense - share * dense.mean(axis=1, keepdims=True)
    inner = left.T @ left
    assert abs(inner.sum() - np.trace(inner)) < 1e-9 * np.trace(inner)
    whole = dense.T @ dense
    assert whole.sum() - np.trace(whole) > 0.1 * np.trace(whole)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_equal_angles_end_at_the_oracle(count):
    """By symmetry delta is a multiple of the mean, and all cosines vanish at once."""
    gram = np.full((count, count), 2.0) + 4.0 * np.eye(count)
    dense = np.linalg.cholesky(gram).T
    found = disentangle(gram, alpha=0.0, rate=0.01, iterations=2000)
    np.testing.assert_allclose(found.coefficients, share_of_the_mean(dense) / count, atol=2e-3)
    assert found.before == pytest.approx(1 / 3)
    assert found.after < 2e-3


def test_orthogonal_vectors_are_left_alone():
    for alpha in (0.0, 0.1):
        found = disentangle(np.diag([4.0, 9.0, 1.0]), alpha)
        assert not found.coefficients.any()
        assert (found.before, found.after, found.share) == (0.0, 0.0, 0.0)


def test_alpha_keeps_what_is_taken_small(vectors):
    gram = vectors("common", 6).T @ vectors("common", 6)
    shares = [disentangle(gram, alpha).share for alpha in (0.0, 0.2, 0.4, 10.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] < shares[0]
    assert shares[-1] == 0.0


def test_nearly_parallel_vectors_are_a_local_minimum_unless_alpha_is_small():
    gram = [[18.0, 27.0], [27.0, 41.0]]
    assert disentangle(gram, 0.1, 1.0).share == 0.0
    assert disentangle(gram, 1e-3, 1.0).after < 0.01


def test_a_vector_alone_shares_nothing():
    found = disentangle([[3.0]])
    assert found.coefficients.tolist() == [0.0]
    assert (found.before, found.after, found.share) == (0.0, 0.0, 0.0)


def test_zero_vectors_have_no_direction():
    gram = np.zeros((3, 3))
    gram[:2, :2] = [[2, 1], [1, 2]]
    found = disentangle(gram)
    assert found.before == pytest.approx(0.5)
    assert found.coefficients[2] == 0
    two = disentangle(gram[:2, :2])
    np.testing.assert_allclose(found.coefficients[:2], two.coefficients, rtol=1e-9)
    assert (found.after, found.share) == pytest.approx((two.after, two.share))
    nothing = disentangle(np.zeros((2, 2)))
    assert not nothing.coefficients.any()
    assert (nothing.before, nothing.after, nothing.share) == (0.0, 0.0, 0.0)


def test_no_iterations_take_nothing():
    found = disentangle([[2, 1], [1, 2]], iterations=0)
    assert not found.coefficients.any()
    assert found.before == found.after == pytest.approx(0.5)


def test_a_rate_that_overshoots_leaves_the_vectors_as_they_are():
    """Steps of fixed length do on vectors of norm 1e-3 what 1e6 times the rate does on 1."""
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert disentangle(gram).after < 0.4
    found = disentangle(1e-6 * gram)
    assert not found.coefficients.any()
    assert found.after == found.before


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.floats(-6, 6),
    st.sampled_from([0.0, 0.1, 10.0]),
    st.sampled_from([1e-4, 0.01, 100.0]),
)
def test_never_worse_whatever_the_rate(count, dim, seed, size, alpha, rate):
    dense = 10.0**size * np.random.default_rng(seed).standard_normal((dim, count))
    found = disentangle(dense.T @ dense, alpha, rate, 30)
    assert np.all(np.isfinite(found.coefficients))
    assert 0 <= found.after <= found.before * (1 + 1e-9) <= 1 + 1e-6
    assert alpha * found.share * np.linalg.norm(dense, axis=0).mean() <= found.before * (1 + 1e-9)


def test_the_order_of_the_vectors_does_not_matter(vectors):
    dense, order = vectors("clustered", 5), [3, 0, 4, 2, 1]
    turned = dense[:, order]
    one, other = (disentangle(v.T @ v, iterations=20).coefficients for v in (dense, turned))
    np.testing.assert_allclose(other, one[order], atol=1e-9)


def test_mean_cosine_of_sums(vectors):
    dense, sums = vectors("decaying", 4), np.random.default_rng(1).standard_normal((4, 4))
    found = mean_cosine(dense.T @ dense, sums)
    assert found == pytest.approx(np.abs(cosines(dense @ sums)).mean(), rel=1e-6)


def test_residues_are_the_vectors_less_delta_but_for_zeros(vectors):
    dense = vectors("common", 5)
    dense[:, 3] = 0
    found = disentangle(dense.T @ dense)
    left = dense @ found.residues
    delta = dense @ found.coefficients
    assert np.linalg.norm(delta) > 0.05
    assert not left[:, 3].any()
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(left[:, kept], dense[:, kept] - delta[:, None], atol=1e-12)
    assert found.before == pytest.approx(np.abs(cosines(dense[:, kept])).mean())
    assert found.after == pytest.approx(np.abs(cosines(left[:, kept])).mean(), abs=1e-9)
    assert found.after < 0.5 * found.before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -1.0}, "an alpha of -1.0 has no meaning; use 0 or more"),
        ({"alpha": float("nan")}, "an alpha of nan"),
        ({"rate": 0.0}, "a rate of 0.0 leads nowhere; use a number above 0"),
        ({"rate": float("inf")}, "a rate of inf"),
        ({"iterations": -1}, "-1 iterations cannot be made; use 0 or more"),
    ],
)
def test_refused(options, said):
    with pytest.raises(UsageError, match=said):
        disentangle(np.eye(2), **options)


def test_what_is_no_gram_matrix():
    with pytest.raises(UsageError, match="square"):
        disentangle(np.ones((2, 3)))
    with pytest.raises(ValueProblem, match="no Gram matrix"):
        disentangle([[1.0, 2.0], [2.0, 1.0]])
