"""Bases through files, against dense matrices: every construction at every granularity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from taskbasis import Basis, Design, Engine, TaskVector, fit
from taskbasis.basis import CONSTRUCTIONS, quality
from taskbasis.errors import BaseError, FileError, UsageError, ValueProblem

METHODS = sorted(CONSTRUCTIONS)
STORED = [name for name in METHODS if name != "random"]
GRANULARITIES = ("model", "layer", "tensor")
GROUPS = {"model": 1, "layer": 4, "tensor": 6}


@pytest.fixture(scope="module")
def fitted(tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Basis]:
    """Every construction at every granularity, k = 2 of five tasks."""
    folder = tmp_path_factory.mktemp("fitted")
    return {
        (method, granularity): fit(
            tasks.vectors,
            folder / f"{method}-{granularity}.safetensors",
            Design(2, method, granularity=granularity),  # type: ignore[arg-type]
        )
        for method in METHODS
        for granularity in GRANULARITIES
    }


@pytest.fixture(params=[(m, g) for m in METHODS for g in GRANULARITIES], ids="-".join)
def case(
    request: pytest.FixtureRequest, fitted: dict[tuple[str, str], Basis]
) -> tuple[str, str, Basis]:
    return (*request.param, fitted[request.param])


def atoms_of(basis: Basis, group: Any, tasks: Any) -> np.ndarray:
    """[d_g, M] the group's atoms: as stored in the file, or as the basis regenerates them."""
    if basis.contents.dtype is None:
        columns = [tasks.flat(basis.atom(m), group.tensors) for m in range(group.atoms)]
    else:
        file = load_file(basis.path)
        columns = [
            np.concatenate([file[f"atom.{m}:{name}"].reshape(-1) for name in group.tensors])
            for m in range(group.atoms)
        ]
    return np.stack(columns, axis=1).astype(np.float64)


def close(found: Any, wanted: Any, tolerance: float = 2e-6) -> None:
    """Equal up to float32 rounding of numbers about 0.1 in size."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance)


# The dense reference.


def test_groups_cover_every_tensor_once(case: tuple[str, str, Basis], tasks: Any) -> None:
    _, granularity, basis = case
    groups = basis.contents.groups
    assert len(groups) == GROUPS[granularity]
    assert sorted(name for group in groups for name in group.tensors) == sorted(tasks.shapes)
    assert all(1 <= group.atoms <= 2 + group.codes.mean_atom for group in groups)


def test_the_gram_matrix_is_that_of_the_dense_vectors(
    case: tuple[str, str, Basis], tasks: Any
) -> None:
    _, _, basis = case
    for group in basis.contents.groups:
        dense = tasks.dense(group.tensors)
        wanted = dense.T @ dense
        np.testing.assert_allclose(group.gram[:5, :5], wanted, rtol=1e-5, atol=1e-7)


def test_atoms_are_what_the_encoder_makes_of_the_tasks(
    case: tuple[str, str, Basis], tasks: Any
) -> None:
    """Random atoms are made of noise instead: orthonormal, where a group has room for all."""
    method, _, basis = case
    for group in basis.contents.groups:
        atoms = atoms_of(basis, group, tasks)
        if method == "random":
            projection = atoms @ atoms.T
            close(projection @ projection, projection)
            assert np.trace(projection) > 0.999
            assert not group.codes.encoder[:5].any()
        else:
            close(atoms, tasks.dense(group.tensors) @ group.codes.encoder)


def test_recovery_and_errors_are_those_of_the_stored_atoms(
    case: tuple[str, str, Basis], tasks: Any
) -> None:
    _, _, basis = case
    lost = np.zeros(5)
    for group in basis.contents.groups:
        dense = tasks.dense(group.tensors)
        recovered = atoms_of(basis, group, tasks) @ group.codes.decoder
        for number, name in enumerate(tasks.names):
            close(tasks.flat(basis[name], group.tensors), recovered[:, number])
        squares = np.sum((recovered - dense) ** 2, axis=0)
        np.testing.assert_allclose(group.error, squares, rtol=1e-4, atol=1e-8)
        lost += squares
    errors = np.sqrt(lost) / np.linalg.norm(tasks.dense(), axis=0)
    np.testing.assert_allclose(list(basis.errors.values()), errors, rtol=1e-4, atol=1e-4)
    assert tuple(basis.errors) == basis.names == tasks.names


def test_both_additions(case: tuple[str, str, Basis], tasks: Any) -> None:
    _, _, basis = case
    weights = {"b": 0.5, "d": -2.0}
    row = np.array([0, 0.5, 0, -2.0, 0])
    for group in basis.contents.groups:
        atoms, decoder = atoms_of(basis, group, tasks), group.codes.decoder
        names = group.tensors
        close(tasks.flat(basis.add_atoms(), names), atoms @ group.codes.addition)
        close(tasks.flat(basis.add(), names), atoms @ decoder @ np.ones(5))
        close(tasks.flat(basis.add(weights), names), atoms @ decoder @ row)
        close(tasks.flat(basis.negate("c"), names), -(atoms @ decoder[:, 2]))
    assert basis.add({}).combination.terms == () or not np.any(tasks.flat(basis.add({})))


def test_the_cosines_to_the_full_sum(case: tuple[str, str, Basis], tasks: Any) -> None:
    _, _, basis = case
    full = tasks.dense().sum(axis=1)
    for found, vector in zip(basis.sum_cosines, (basis.add_atoms(), basis.add()), strict=True):
        made = tasks.flat(vector)
        wanted = made @ full / np.linalg.norm(made) / np.linalg.norm(full)
        assert found == pytest.approx(wanted, abs=1e-5)


def test_norms_and_cosines_are_those_of_the_originals(
    case: tuple[str, str, Basis], tasks: Any
) -> None:
    _, _, basis = case
    norms = np.linalg.norm(tasks.dense(), axis=0)
    np.testing.assert_allclose(list(basis.norms.values()), norms, rtol=1e-5)
    unit = tasks.dense() / norms
    np.testing.assert_allclose(basis.cosines, unit.T @ unit, atol=1e-5)


# The identities of the specification, from stored atoms.


def test_the_loss_is_at_least_the_spectral_bound_and_at_most_that_of_nothing(
    case: tuple[str, str, Basis], tasks: Any
) -> None:
    _, _, basis = case
    for group in basis.contents.groups:
        dense = tasks.dense(group.tensors)
        recovered = atoms_of(basis, group, tasks) @ group.codes.decoder
        loss = np.sum((recovered - dense) ** 2) / 25
        found = quality(group.gram, group.codes)
        assert found.loss == pytest.approx(loss, rel=1e-4, abs=1e-9)
        tail = np.linalg.svd(dense, compute_uv=False)[group.atoms :]
        assert loss >= np.sum(tail**2) / 25 * (1 - 1e-5) - 1e-9
        assert loss <= np.sum(dense**2) / 25 * (1 + 1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_svd_meets_the_bound(
    fitted: dict[tuple[str, str], Basis], tasks: Any, granularity: str
) -> None:
    for group in fitted["svd", granularity].contents.groups:
        tail = np.linalg.svd(tasks.dense(group.tensors), compute_uv=False)[group.atoms :]
        assert np.sum(group.error) == pytest.approx(np.sum(tail**2), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_encoder_of_the_autoencoder_averages(
    fitted: dict[tuple[str, str], Basis], granularity: str
) -> None:
    for group in fitted["autoencoder", granularity].contents.groups:
        assert np.all(group.codes.encoder >= 0)
        np.testing.assert_allclose(group.codes.encoder.sum(axis=0), 1.0)
        np.testing.assert_array_equal(group.codes.addition, 1.0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pca_recovers_the_full_sum_for_any_size(
    tasks: Any, tmp_path: Path, granularity: Any, k: int
) -> None:
    made = fit(tasks.vectors, tmp_path / "pca", Design(k, "pca", granularity=granularity))
    close(tasks.flat(made.add()), tasks.dense().sum(axis=1), 1e-6)
    assert made.sum_cosines[1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("method", STORED)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_as_many_atoms_as_tasks_recover_everything(
    tasks: Any, tmp_path: Path, method: str, granularity: Any
) -> None:
    made = fit(tasks.vectors, tmp_path / "all", Design(5, method, granularity=granularity))
    close(tasks.recovered(made), tasks.dense(), 1e-6)
    # A Gram matrix summed in float32 blocks knows an error of zero to about 1e-4 only.
    assert max(made.errors.values()) < 1e-3


@pytest.mark.parametrize("method", STORED)
def test_codes_do_not_depend_on_the_scale_of_the_tasks(
    toolbox: Any, tmp_path: Path, method: str
) -> None:
    """Vectors of norm about 1e-6, exact multiples of ordinary ones."""
    matrix = np.asarray(toolbox.draw(3, 5), np.float32)
    large = toolbox.make(tmp_path / "large", matrix)
    small = toolbox.make(tmp_path / "small", matrix * np.float32(2.0**-17))
    assert 1e-7 < np.linalg.norm(small.matrix[:, 0]) < 1e-5
    found = []
    for which, name in ((large, "l"), (small, "s")):
        found.append(fit(which.vectors, tmp_path / f"{name}.safetensors", Design(3, method)))
    for one, other in zip(*(b.contents.groups for b in found), strict=True):
        np.testing.assert_allclose(one.codes.encoder, other.codes.encoder, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.codes.decoder, other.codes.decoder, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        list(found[0].errors.values()), list(found[1].errors.values()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("method", ["pca", "svd", "select", "cluster"])
def test_permuting_the_tasks_permutes_the_errors(tasks: Any, tmp_path: Path, method: str) -> None:
    order = ["d", "a", "e", "c", "b"]
    turned = {name: tasks.vectors[name] for name in order}
    first = fit(tasks.vectors, tmp_path / "1", Design(2, method))
    second = fit(turned, tmp_path / "2", Design(2, method))
    assert second.names == tuple(order)
    for name in order:
        assert second.errors[name] == pytest.approx(first.errors[name], abs=1e-5)
        close(tasks.flat(second[name]), tasks.flat(first[name]))


# Difficult collections.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_duplicates_zero_and_opposite_vectors(
    toolbox: Any, tmp_path: Path, method: str, granularity: Any
) -> None:
    matrix = toolbox.draw(5, 6)
    matrix[:, 1] = matrix[:, 0]  # a duplicate
    matrix[:, 2] = 0.0  # a zero vector
    matrix[:, 3] = -matrix[:, 4]  # cosine -1
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    made = fit(tasks.vectors, tmp_path / "basis", Design(3, method, granularity=granularity))
    recovered, dense = tasks.recovered(made), tasks.dense()
    assert np.all(np.isfinite(recovered))
    close(recovered[:, 1], recovered[:, 0])
    close(recovered[:, 3], -recovered[:, 4])
    close(recovered[:, 2], 0.0, 1e-7)
    assert made.errors["task2"] == 0.0
    assert not made.dropped("task2")
    assert made.cosines[3, 4] == pytest.approx(-1.0, abs=1e-5)
    assert not made.cosines[2].any()
    missed = np.linalg.norm(recovered - dense, axis=0)
    norms = np.linalg.norm(dense, axis=0)
    for number, name in enumerate(made.names):
        assert made.errors[name] * norms[number] == pytest.approx(missed[number], abs=1e-5)


@pytest.mark.parametrize("method", STORED)
def test_duplicates_leave_the_span_as_it_is(toolbox: Any, tmp_path: Path, method: str) -> None:
    """Three vectors in two directions need two atoms."""
    matrix = toolbox.draw(6, 3)
    matrix[:, 1] = matrix[:, 0]
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    made = fit(tasks.vectors, tmp_path / "basis", Design(2, method))
    close(tasks.recovered(made), tasks.dense(), 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_one_task(toolbox: Any, tmp_path: Path, method: str, granularity: Any) -> None:
    tasks = toolbox.make(tmp_path / "tasks", toolbox.draw(7, 1), ["only"])
    made = fit(tasks.vectors, tmp_path / "basis", Design(1, method, granularity=granularity))
    assert made.names == ("only",)
    if method == "random":
        assert made.errors["only"] <= 1.0 + 1e-6
        return
    close(tasks.recovered(made), tasks.dense(), 1e-7)
    assert made.errors["only"] < 1e-3
    assert made.sum_cosines[1] == pytest.approx(1.0)


@pytest.mark.parametrize("method", STORED)
def test_a_tiny_vector_among_large_ones(toolbox: Any, tmp_path: Path, method: str) -> None:
    matrix = toolbox.draw(8, 4, common=0.0)
    matrix[:, 2] *= 1e-6 / np.linalg.norm(matrix[:, 2])
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    made = fit(tasks.vectors, tmp_path / "all", Design(4, method))
    missed = np.linalg.norm(tasks.flat(made["task2"]) - tasks.dense()[:, 2])
    assert missed < 1e-2 * 1e-6
    fewer = fit(tasks.vectors, tmp_path / "fewer", Design(2, method, normalize="mean"))
    assert fewer.errors["task2"] > 0.5, "what is short is what is lost"


def test_a_short_vector_is_dropped_by_mean_and_kept_by_cosine(toolbox: Any, tmp_path: Path) -> None:
    """Orthogonal vectors: one of length 1e-3 beside two of length 1 that are nearly one."""
    columns = np.linalg.qr(np.random.default_rng(9).standard_normal((toolbox.size, 3)))[0]
    columns[:, 1] = columns[:, 0] + 0.1 * columns[:, 1]
    columns[:, 2] *= 1e-3
    tasks = toolbox.make(tmp_path / "tasks", columns)
    for method in ("autoencoder", "svd", "select"):
        by_mean = fit(
            tasks.vectors, tmp_path / f"{method}-m", Design(2, method, granularity="model")
        )
        design = Design(2, method, normalize="cosine", granularity="model")
        by_cosine = fit(tasks.vectors, tmp_path / f"{method}-c", design)
        assert by_mean.dropped("task2"), method
        assert by_mean.errors["task2"] > 0.99
        assert not by_cosine.dropped("task2"), method
        assert by_cosine.errors["task2"] < 0.1


def test_a_task_nobody_knows(tasks: Any, tmp_path: Path) -> None:
    made = fit({**tasks.vectors, "math": tasks.vectors["a"]}, tmp_path / "b", Design(2, "svd"))
    for use in (
        lambda: made["maht"],
        lambda: made.dropped("maht"),
        lambda: made.negate("maht"),
        lambda: made.add({"maht": 1.0}),
    ):
        with pytest.raises(UsageError, match=r"has no task 'maht'; did you mean 'math'\?"):
            use()
    for index in (-1, 2):
        with pytest.raises(UsageError, match=f"atoms 0 to 1, not {index}"):
            made.atom(index)
    with pytest.raises(UsageError, match="finite"):
        made.add({"a": float("nan")})


# The same bytes, whoever does the work.


@pytest.fixture(scope="module")
def large(toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three tasks whose largest tensor takes two cuts."""
    shapes = {"wide": (551, 500), "layers.0.w": (40, 3)}
    matrix = np.random.default_rng(10).standard_normal((551 * 500 + 120, 3)) * 0.01
    return toolbox.make(tmp_path_factory.mktemp("large"), matrix, list("xyz"), shapes)


@pytest.mark.parametrize(
    "design",
    [
        Design(2, "autoencoder", granularity="tensor"),
        Design(2, "pca"),
        Design(2, "random", seed=3),
        Design(2, "cluster", options={"inner": "ties", "density": 0.3}),
    ],
    ids=lambda design: design.method,
)
def test_the_same_bytes_for_any_number_of_workers(
    large: Any, tmp_path: Path, design: Design
) -> None:
    written = set()
    for workers in (1, 2, 5):
        out = tmp_path / f"{workers}.safetensors"
        fit(large.vectors, out, design, engine=Engine(workers))
        written.add(out.read_bytes())
    assert len(written) == 1


def test_what_comes_out_of_a_basis_has_the_same_bytes_too(large: Any, tmp_path: Path) -> None:
    made = fit(large.vectors, tmp_path / "basis", Design(2, "random"))
    written = set()
    for workers in (1, 2, 5):
        out = tmp_path / f"{workers}.safetensors"
        made["y"].save(out, engine=Engine(workers))
        written.add(out.read_bytes())
    assert len(written) == 1


# Random bases: nothing is stored but a seed.


def test_a_random_basis_stores_no_atoms_and_gives_them_again(tasks: Any, tmp_path: Path) -> None:
    out = tmp_path / "random.safetensors"
    made = fit(tasks.vectors, out, Design(3, "random", seed=5, granularity="layer"))
    assert all(name.startswith("basis.") for name in load_file(out))
    again = Basis.open(out)
    for vector, twin in (
        (made["b"], again["b"]),
        (made.add_atoms(), again.add_atoms()),
        (made.atom(2), again.atom(2)),
    ):
        first, second = vector.tensors(), twin.tensors()
        assert first.keys() == second.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(second[name], value)
    other = fit(tasks.vectors, tmp_path / "other", Design(3, "random", seed=6))
    assert np.abs(tasks.recovered(other) - tasks.recovered(made)).max() > 1e-3


def test_random_atoms_are_orthonormal_and_recovery_is_a_projection(
    tasks: Any, tmp_path: Path
) -> None:
    made = fit(tasks.vectors, tmp_path / "random", Design(4, "random", granularity="model"))
    atoms = np.stack([tasks.flat(made.atom(m)) for m in range(4)], axis=1)
    close(atoms.T @ atoms, np.eye(4))
    close(tasks.recovered(made), atoms @ (atoms.T @ tasks.dense()))


# Clusters with an inner merge.


@pytest.fixture(scope="module")
def clustered(toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two clusters: tasks 0, 2, 4 and tasks 1, 3."""
    random = np.random.default_rng(11)
    centres = random.standard_normal((toolbox.size, 2))
    matrix = 0.02 * (centres[:, [0, 1, 0, 1, 0]] + 0.4 * random.standard_normal((toolbox.size, 5)))
    return toolbox.make(tmp_path_factory.mktemp("clustered"), matrix)


def ties(vectors: np.ndarray, density: float) -> np.ndarray:
    """TIES by sorting: trim over the whole model, elect, average who agrees."""
    kept = max(1, int(density * len(vectors)))
    least = np.sort(np.abs(vectors), axis=0)[-kept]
    trimmed = np.where(np.abs(vectors) >= least, vectors, 0.0)
    sign = np.sign(trimmed.sum(axis=1, keepdims=True))
    agree = (np.sign(trimmed) == sign) & (sign != 0)
    total = np.where(agree, trimmed, 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(agree.sum(axis=1), 1))


def magmax(vectors: np.ndarray) -> np.ndarray:
    return vectors[np.arange(len(vectors)), np.argmax(np.abs(vectors), axis=1)]


INNER = {
    "ties": ({"density": 0.3}, lambda v: ties(v, 0.3)),
    "magmax": ({}, magmax),
    "average": ({}, lambda v: v.mean(axis=1)),
    "task_arithmetic": ({}, lambda v: v.sum(axis=1)),
    "mean": ({}, lambda v: v.mean(axis=1)),
    "sum": ({}, lambda v: v.sum(axis=1)),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("shard_size", [None, 900])
def test_the_inner_merge_of_clusters(
    clustered: Any, tmp_path: Path, inner: str, shard_size: int | None
) -> None:
    options, reference = INNER[inner]
    design = Design(2, "cluster", granularity="model", options={"inner": inner, **options})
    made = fit(clustered.vectors, tmp_path / "basis", design, shard_size=shard_size)
    assert (len(list((tmp_path / "basis").glob("*.safetensors"))) > 1) == (shard_size is not None)
    dense = clustered.dense()
    atoms = np.stack([reference(dense[:, [0, 2, 4]]), reference(dense[:, [1, 3]])], axis=1)
    close(np.stack([clustered.flat(made.atom(m)) for m in range(2)], axis=1), atoms, 1e-7)
    decoder = np.linalg.lstsq(atoms, dense, rcond=None)[0]
    close(clustered.recovered(made), atoms @ decoder)
    missed = np.linalg.norm(atoms @ decoder - dense, axis=0) / np.linalg.norm(dense, axis=0)
    np.testing.assert_allclose(list(made.errors.values()), missed, rtol=1e-4, atol=1e-4)
    close(clustered.flat(made.add_atoms()), atoms.sum(axis=1))
    full = dense.sum(axis=1)
    cosine = atoms.sum(axis=1) @ full / np.linalg.norm(atoms.sum(axis=1)) / np.linalg.norm(full)
    assert made.sum_cosines[0] == pytest.approx(cosine, abs=1e-5)


def test_an_inner_merge_that_is_not_linear_needs_one_group(clustered: Any, tmp_path: Path) -> None:
    design = Design(2, "cluster", granularity="layer", options={"inner": "ties"})
    with pytest.raises(UsageError, match="needs --granularity model"):
        fit(clustered.vectors, tmp_path / "basis", design)
    assert not (tmp_path / "basis").exists()


def test_the_eigengap_chooses_the_number_of_clusters(clustered: Any, tmp_path: Path) -> None:
    made = fit(clustered.vectors, tmp_path / "basis", Design(None, "cluster"))
    assert made.contents.atoms == 2


# The size.


@pytest.mark.parametrize(
    ("k", "atoms"), [(3, 3), ("3", 3), (0.5, 2), ("0.5", 2), (0.01, 1), (None, 2), (5, 5)]
)
def test_k_as_count_fraction_or_default(tasks: Any, tmp_path: Path, k: Any, atoms: int) -> None:
    assert fit(tasks.vectors, tmp_path / "b", Design(k, "svd")).contents.atoms == atoms


@pytest.mark.parametrize("method", ["svd", "pca", "select", "autoencoder"])
def test_k_as_the_smallest_that_meets_an_error(tasks: Any, tmp_path: Path, method: str) -> None:
    made = fit(tasks.vectors, tmp_path / "b", Design("error=0.6", method))
    assert max(made.errors.values()) <= 0.6
    mean = int(made.contents.groups[0].codes.mean_atom)
    fewer = fit(tasks.vectors, tmp_path / "f", Design(made.contents.atoms - mean - 1, method))
    assert max(fewer.errors.values()) > 0.6
    exact = fit(tasks.vectors, tmp_path / "exact", Design("error=0.001", method))
    assert max(exact.errors.values()) <= 0.001


@pytest.mark.parametrize("k", [0, 6, -1, 1.5, "many", "error=x", "error=-1", True, "nan"])
def test_a_size_that_means_nothing(tasks: Any, tmp_path: Path, k: Any) -> None:
    with pytest.raises(UsageError):
        fit(tasks.vectors, tmp_path / "b", Design(k, "svd"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("granularity", ["layer", "tensor"])
@pytest.mark.parametrize("method", ["svd", "autoencoder"])
def test_a_budget_spread_by_spectra_is_kept(
    toolbox: Any, tmp_path: Path, granularity: Any, method: str
) -> None:
    matrix = toolbox.draw(12, 5)
    matrix[: 9 * 6] = matrix[: 9 * 6, :1]  # the embedding moves in one direction only
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    even = fit(tasks.vectors, tmp_path / "e", Design(2, method, granularity=granularity))
    uneven = fit(
        tasks.vectors,
        tmp_path / "u",
        Design(2, method, granularity=granularity, budget="spectrum"),
    )
    sizes = {group.name: group.atoms for group in uneven.contents.groups}
    assert min(sizes.values()) >= 1
    assert sizes["embed.weight" if granularity == "tensor" else "embed"] == 1
    assert max(sizes.values()) > 2
    stored = sum(
        group.atoms * sum(int(np.prod(tasks.shapes[name])) for name in group.tensors)
        for group in uneven.contents.groups
    )
    assert stored <= 2 * toolbox.size
    lost = [sum(float(g.error.sum()) for g in b.contents.groups) for b in (uneven, even)]
    assert lost[0] < lost[1]


# Storing.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_file_is_an_ordinary_one(tasks: Any, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "basis.safetensors"
    made = fit(tasks.vectors, out, Design(2, "svd", granularity="layer"), dtype=dtype)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    file = load_file(out)
    atoms = {name for name in file if name.startswith("atom.")}
    assert atoms == {f"atom.{m}:{name}" for m in range(2) for name in tasks.shapes}
    assert all(file[name].dtype == kind for name in atoms)
    assert file["basis.encoder"].shape == (4, 5, 2)
    assert file["basis.decoder"].shape == (4, 2, 5)
    assert file["basis.gram"].shape == (4, 5, 5)
    assert file["basis.error"].shape == (4, 5)
    assert file["basis.addition"].shape == (4, 2)
    with safe_open(out, framework="np") as opened:
        assert opened.metadata()["format"] == "pt"
    assert made.nbytes == sum(value.nbytes for value in file.values())
    assert made.full_nbytes == tasks.dense().size * kind.itemsize
    for group in made.contents.groups:
        wanted = tasks.dense(group.tensors) @ group.codes.encoder
        found = np.concatenate(
            [
                np.stack([file[f"atom.{m}:{name}"].reshape(-1) for m in range(2)], axis=1)
                for name in group.tensors
            ]
        ).astype(np.float64)
        eps = float(ml_dtypes.finfo(kind).eps)
        np.testing.assert_allclose(found, wanted, rtol=0.51 * eps + 1e-5, atol=2e-7)


def test_a_basis_in_shards_is_the_same_basis(tasks: Any, tmp_path: Path) -> None:
    one = fit(tasks.vectors, tmp_path / "one.safetensors", Design(2, "pca"))
    many = fit(tasks.vectors, tmp_path / "many", Design(2, "pca"), shard_size=700)
    assert len(list((tmp_path / "many").glob("basis-*.safetensors"))) > 2
    for name in tasks.names:
        for tensor, value in one[name].tensors().items():
            np.testing.assert_array_equal(many[name].tensors()[tensor], value)


def test_bases_of_sums_and_of_tasks_of_bases(tasks: Any, tmp_path: Path) -> None:
    """What is fitted may be any expression: a multiple, a sum, a task of another basis."""
    first = fit(tasks.vectors, tmp_path / "first", Design(5, "svd", granularity="tensor"))
    vectors = tasks.vectors
    mixed = {
        "twice": 2 * vectors["a"],
        "both": vectors["b"] + vectors["c"],
        "recovered": first["d"],
    }
    made = fit(mixed, tmp_path / "second", Design(3, "select"))
    dense = tasks.dense()
    wanted = np.stack([2 * dense[:, 0], dense[:, 1] + dense[:, 2], dense[:, 3]], axis=1)
    close(tasks.recovered(made), wanted)


def test_what_fit_refuses(tasks: Any, toolbox: Any, tmp_path: Path) -> None:
    vectors = tasks.vectors
    out = tmp_path / "basis"
    nothing = TaskVector(tasks.base, tasks.folder / "base")
    for wrong, error, said in (
        (lambda: fit({}, out), ValueProblem, "at least one task vector"),
        (lambda: fit({"a": nothing}, out), ValueProblem, "all task vectors are zero"),
        (lambda: fit(vectors, out, Design(method="sdv")), UsageError, "did you mean 'svd'"),
        (lambda: fit(vectors, out, Design(normalize="cos")), UsageError, "no normalization 'cos'"),
        (
            lambda: fit(vectors, out, Design(granularity="layers")),  # type: ignore[arg-type]
            UsageError,
            "did you mean 'layer'",
        ),
        (
            lambda: fit(vectors, out, Design(budget="evn")),  # type: ignore[arg-type]
            UsageError,
            "budget 'evn' is unknown",
        ),
        (
            lambda: fit(vectors, out, Design(options={"solvr": "adam"})),
            UsageError,
            "did you mean 'solver'",
        ),
        (
            lambda: fit(vectors, out, Design(options={"steps": "many"})),
            UsageError,
            "takes a whole number, such as 6000; got 'many'",
        ),
        (
            lambda: fit(vectors, out, Design(method="cluster", options={"inner": "tis"})),
            UsageError,
            "did you mean 'ties'",
        ),
        (lambda: fit(vectors, out, dtype="float23"), UsageError, "'float23' is not a float type"),
        (lambda: fit(vectors, tasks.folder / "a", Design(2)), FileError, "touch the input"),
    ):
        with pytest.raises(error, match=said):
            wrong()
        assert not out.exists()


def test_vectors_of_two_bases_make_no_basis(tasks: Any, toolbox: Any, tmp_path: Path) -> None:
    other = toolbox.make(tmp_path / "other", toolbox.draw(13, 1), ["z"])
    (other.folder / "base" / "model.safetensors").unlink()
    (other.folder / "z" / "model.safetensors").rename(other.folder / "base" / "model.safetensors")
    stranger = TaskVector(other.folder / "base", tasks.folder / "a")
    with pytest.raises(BaseError, match="not from"):
        fit({**tasks.vectors, "z": stranger}, tmp_path / "basis", Design(2, "svd"))
    assert not (tmp_path / "basis").exists()


def test_a_value_that_is_not_finite_makes_no_basis(toolbox: Any, tmp_path: Path) -> None:
    matrix = toolbox.draw(14, 3)
    matrix[60, 1] = np.nan
    tasks = toolbox.make(tmp_path / "tasks", matrix)
    with pytest.raises(ValueProblem, match=r"layers\.0\.attn\.weight"):
        fit(tasks.vectors, tmp_path / "basis", Design(2, "svd"))
    assert not (tmp_path / "basis").exists()


# Neighbours.


def test_nearest_finds_the_task_and_what_lies_outside(tasks: Any, tmp_path: Path) -> None:
    made = fit(tasks.vectors, tmp_path / "b", Design(5, "select"))
    close_to_c = tasks.vectors["c"] + 0.1 * tasks.vectors["d"]
    atoms, names, residual = made.nearest(close_to_c)
    assert names[0].name == "c"
    assert atoms[0].name == "atom 2"
    dense = tasks.dense()
    vector = dense[:, 2] + 0.1 * dense[:, 3]
    wanted = vector @ dense / np.linalg.norm(vector) / np.linalg.norm(dense, axis=0)
    assert {n.name: n.cosine for n in names} == pytest.approx(
        dict(zip("abcde", wanted, strict=True)), abs=1e-5
    )
    assert [n.cosine for n in names] == sorted((n.cosine for n in names), reverse=True)
    assert residual == pytest.approx(0.0, abs=2e-3)
    assert made.nearest(-tasks.vectors["c"])[1][-1].name == "c"


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nearest_tells_what_the_atoms_cannot_explain(
    tasks: Any, tmp_path: Path, granularity: Any
) -> None:
    """Every group explains its own part with its own atoms."""
    some = {name: tasks.vectors[name] for name in "ab"}
    made = fit(some, tmp_path / "b", Design(2, "autoencoder", granularity=granularity))
    _, _, residual = made.nearest(tasks.vectors["e"])
    outside = 0.0
    for group in made.contents.groups:
        dense = tasks.dense(group.tensors)
        explained = dense[:, :2] @ np.linalg.lstsq(dense[:, :2], dense[:, 4], rcond=None)[0]
        outside += np.sum((dense[:, 4] - explained) ** 2)
    whole = np.linalg.norm(tasks.dense()[:, 4])
    assert residual == pytest.approx(np.sqrt(outside) / whole, abs=1e-4)
    _, names, residual = made.nearest(0 * tasks.vectors["a"])
    assert residual == 0.0
    assert {n.cosine for n in names} == {0.0}
