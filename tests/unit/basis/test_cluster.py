import sys

import numpy as np
import pytest

from taskbasis.basis import Cluster, assign, eigengap, refit, solve
from taskbasis.errors import MissingExtraError, UsageError

pytest.importorskip("sklearn")


def groups(sizes, inside=0.8, across=0.0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    gram = np.where(labels[:, None] == labels, inside, across)
    np.fill_diagonal(gram, 1.0)
    return gram, labels


def test_clusters_are_found_and_numbered_by_first_appearance():
    gram, labels = groups([3, 2, 4])
    assert assign(gram, 3).tolist() == labels.tolist()
    order = np.random.default_rng(0).permutation(9)
    found = assign(gram[np.ix_(order, order)], 3)
    firsts = [found.tolist().index(each) for each in range(3)]
    assert firsts == sorted(firsts)
    same = found[:, None] == found
    assert np.array_equal(same, labels[order][:, None] == labels[order])


def test_lengths_do_not_matter_and_neither_does_the_seed():
    gram, labels = groups([3, 2, 4])
    lengths = np.geomspace(1e-6, 1e3, 9)
    for seed in range(3):
        assert assign(gram * np.outer(lengths, lengths), 3, seed=seed).tolist() == labels.tolist()


@pytest.mark.parametrize("sizes", [[2, 2], [3, 2, 4], [2, 2, 2, 2]])
def test_the_eigengap_counts_the_groups(sizes):
    gram, labels = groups(sizes, across=0.05)
    assert eigengap(gram) == len(sizes)
    assert assign(gram).tolist() == labels.tolist()


def test_the_eigengap_is_kept_off_the_ends():
    assert eigengap(np.eye(1)) == eigengap(np.eye(2)) == 1
    assert eigengap(np.eye(6)) == 2
    assert eigengap(np.ones((6, 6))) == 2
    assert 2 <= eigengap(np.eye(3)) <= 2


def test_negative_cosines_count_as_none():
    gram, labels = groups([3, 3], across=-0.15)
    assert assign(gram, 2).tolist() == labels.tolist()
    apart, _ = groups([3, 3], across=0.0)
    assert eigengap(gram) == eigengap(apart)


@pytest.mark.parametrize("k", range(1, 8))
def test_every_size_works_on_unrelated_and_on_equal_vectors(k):
    apart = assign(np.eye(7), k)
    assert apart.max() + 1 == k
    same = assign(np.ones((7, 7)), k)
    assert same.min() == 0
    assert same.max() < k


def test_the_ends_need_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert assign(np.eye(3), 3).tolist() == [0, 1, 2]
    assert assign(np.eye(3), 9).tolist() == [0, 1, 2]
    assert assign(np.eye(3), 1).tolist() == [0, 0, 0]
    assert assign(np.eye(1)).tolist() == [0]
    assert Cluster().fit(np.eye(2), 2).atoms == 2
    with pytest.raises(MissingExtraError, match=r"taskbasis\[cluster\]"):
        assign(np.eye(3), 2)


def test_the_inner_merge_is_the_mean_or_the_sum(vectors):
    dense = vectors("clustered", 8, seed=2)
    gram = dense.T @ dense
    labels = assign(gram, 3)
    for inner in ("mean", "sum"):
        codes, found = solve(gram, Cluster(inner), 3)
        for atom in range(codes.atoms):
            members = dense[:, labels == atom]
            merged = members.mean(axis=1) if inner == "mean" else members.sum(axis=1)
            np.testing.assert_allclose(dense @ codes.encoder[:, atom], merged)
        np.testing.assert_allclose(codes.decoder, refit(gram, codes.encoder, 8), atol=1e-9)
        assert found.loss >= found.bound
        assert codes.addition.tolist() == [1.0] * codes.atoms
    assert found.addition_cosine == pytest.approx(1.0)


def test_a_zero_vector_stands_alone_or_anywhere_without_harm():
    gram, _ = groups([3, 3])
    gram = np.pad(gram, (0, 1))
    labels = assign(gram, 3)
    assert len(labels) == 7
    assert solve(gram, Cluster(), 3)[1].relative_error[6] == 0.0


def test_options_are_checked():
    with pytest.raises(UsageError, match="no inner merge 'means'; did you mean 'mean'"):
        Cluster("means")
    with pytest.raises(UsageError, match="seed must be at least 0"):
        Cluster(seed=-1)
    with pytest.raises(UsageError, match="k must be at least 1"):
        assign(np.eye(3), 0)
