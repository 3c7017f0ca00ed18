"""Naive references of the spectral methods: LAPACK's SVD on whole matrices, term by term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.methods import Method, method, parse_method
from taskbasis.testing import Trial

Matrix = NDArray[np.float64]

ZERO = 2.0**-21
"""Singular values of at most this share of the largest count as 0."""


def triplets(matrix: Matrix, floor: float = 0.0) -> list[tuple[Matrix, float, Matrix]]:
    """``(u, s, v)`` one by one, the largest first; those that count as 0 are left out."""
    if matrix.size == 0:
        return []
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    least = max(ZERO * s[0], floor)
    return [(U[:, i], float(s[i]), Vt[i]) for i in range(len(s)) if s[i] > least]


def total(terms: list[tuple[Matrix, float, Matrix]], shape: tuple[int, ...]) -> Matrix:
    result = np.zeros(shape)
    for u, s, v in terms:
        result += s * np.outer(u, v)
    return result


def nearest_orthonormal(columns: list[Matrix]) -> list[Matrix]:
    """The polar factor of the matrix of these columns, column by column."""
    if not columns:
        return []
    stacked = np.stack(columns, axis=1)
    factor = total([(u, 1.0, v) for u, _, v in triplets(stacked)], stacked.shape)
    return [factor[:, i] for i in range(len(columns))]


def whitened(terms: list[tuple[Matrix, float, Matrix]], shape: tuple[int, ...]) -> Matrix:
    left = nearest_orthonormal([u for u, _, _ in terms])
    right = nearest_orthonormal([v for _, _, v in terms])
    values = [s for _, s, _ in terms]
    return total(list(zip(left, values, right, strict=True)), shape)


def matrices_of(trial: Trial) -> list[Matrix]:
    rest = 1
    for size in trial.whole_shape[1:]:
        rest *= size
    return [v.astype(np.float64).reshape(trial.whole_shape[0], rest) for v in trial.vectors]


def of_matrices(
    formula: Callable[[Any, list[Matrix]], Matrix],
    flat: Callable[[Any, Matrix], Matrix] = lambda of, vectors: vectors.mean(axis=0),
) -> Callable[[Any, Trial], Matrix]:
    """A reference from what is done to matrices and what to other tensors."""

    def dense(of: Any, trial: Trial) -> Matrix:
        if len(trial.whole_shape) < 2:
            return flat(of, trial.vectors.astype(np.float64))
        return np.asarray(formula(of, matrices_of(trial))).ravel()

    return dense


def kept(of: Any, tau: Matrix, tasks: int) -> int:
    return max(1, int((of.rank_share or 1 / tasks) * min(tau.shape)))


def tsv_merge(of: Any, taus: list[Matrix]) -> Matrix:
    terms = []
    for tau in taus:
        terms += triplets(tau)[: kept(of, tau, len(taus))]
    return whitened(terms, taus[0].shape)


def tsv_compress(of: Any, taus: list[Matrix]) -> Matrix:
    truncated = [total(triplets(tau)[: kept(of, tau, len(taus))], tau.shape) for tau in taus]
    return truncated[of.task - 1] if of.task else np.sum(truncated, axis=0)


def tsv_compress_flat(of: Any, vectors: Matrix) -> Matrix:
    return vectors[of.task - 1] if of.task else vectors.sum(axis=0)


def isotropic(terms: list[tuple[Matrix, float, Matrix]]) -> list[tuple[Matrix, float, Matrix]]:
    average = float(np.mean([s for _, s, _ in terms])) if terms else 0.0
    return [(u, average, v) for u, _, v in terms]


def iso_c(of: Any, taus: list[Matrix]) -> Matrix:
    return total(isotropic(triplets(np.sum(taus, axis=0))), taus[0].shape)


def iso_cts(of: Any, taus: list[Matrix]) -> Matrix:
    rank, tasks = min(taus[0].shape), len(taus)
    own = tasks * round((rank - int(rank * of.common)) / tasks)
    while own > rank:
        own -= tasks
    floor = ZERO * max(float(np.linalg.norm(tau)) for tau in taus)
    common = triplets(np.sum(taus, axis=0), floor)[: rank - own]
    terms = list(common)
    for tau in taus:
        rest = tau.copy()
        for u, _, _ in common:
            rest -= np.outer(u, u @ tau)
        terms += triplets(rest, floor)[: own // tasks]
    return whitened(isotropic(terms), taus[0].shape)


def cart(of: Any, taus: list[Matrix]) -> Matrix:
    middle = np.mean(taus, axis=0)
    rank = max(1, int(of.rank_share * min(middle.shape)))
    parts = [total(triplets(tau - middle)[:rank], middle.shape) for tau in taus]
    return np.asarray(middle + of.strength * np.sum(parts, axis=0))


def star(of: Any, taus: list[Matrix]) -> Matrix:
    results = []
    for tau in taus:
        terms, some = triplets(tau), []
        nuclear = sum(s for _, s, _ in terms)
        for term in terms:
            some.append(term)
            if sum(s for _, s, _ in some) >= of.energy * nuclear * (1 - 1e-14):
                break
        factor = nuclear / sum(s for _, s, _ in some) if some else 0.0
        results.append(factor * total(some, tau.shape))
    return np.mean(results, axis=0)


def inner_merge(text: str, rows: Matrix, shape: tuple[int, ...]) -> Matrix:
    """Naive forms of the methods that are tried inside of others."""
    of: Any = parse_method(text.replace(";", ","))
    if of.name == "task_arithmetic" or getattr(of, "inner", "") == "task_arithmetic":
        return rows.sum(axis=0)
    if of.name == "iso_c":
        return iso_c(of, [row.reshape(shape) for row in rows]).ravel()
    assert of.name == "ties"
    trimmed = np.zeros_like(rows)
    for row, out in zip(rows, trimmed, strict=True):
        if row.size:
            least = np.sort(np.abs(row))[::-1][max(1, int(of.density * row.size)) - 1]
            # The method compares in float32.
            large = np.abs(row).astype(np.float32) >= np.float32(least)
            out[large] = row[large]
    merged = np.zeros(rows.shape[1])
    for j, column in enumerate(trimmed.T):
        agreeing = column[column * np.sign(column.sum()) > 0]
        merged[j] = agreeing.mean() if len(agreeing) else 0.0
    return merged


def inner_flat(of: Any, vectors: Matrix) -> Matrix:
    if parse_method(of.inner.replace(";", ",")).name == "iso_c":
        return vectors.mean(axis=0)
    return inner_merge(of.inner, vectors, vectors.shape[1:])


def columns(terms: list[tuple[Matrix, float, Matrix]], rows: int) -> Matrix:
    return np.stack([u for u, _, _ in terms], axis=1) if terms else np.zeros((rows, 0))


def knots(of: Any, taus: list[Matrix]) -> Matrix:
    rows, width = taus[0].shape
    U = columns(triplets(np.concatenate(taus, axis=1)), rows)
    rotated = [U.T @ tau for tau in taus]
    flat = np.stack([tau.ravel() for tau in rotated])
    shape = (U.shape[1], width)
    return np.asarray(U @ inner_merge(of.inner, flat, shape).reshape(shape))


def core_space(of: Any, trial: Trial) -> Matrix:
    """By the factors that there are, or those of every delta's own singular triplets."""
    if len(trial.whole_shape) < 2:
        return inner_flat(of, trial.vectors.astype(np.float64))
    taus, ups, downs = matrices_of(trial), [], []
    for pair in trial.factors:
        ups += list(pair.up.T)
        downs += list(pair.down)
    for tau in () if trial.factors else taus:
        terms = triplets(tau)
        ups += [np.sqrt(s) * u for u, s, _ in terms]
        downs += [np.sqrt(s) * v for _, s, v in terms]
    if not ups:
        return np.zeros(trial.length)
    U = columns(triplets(np.stack(ups, axis=1)), taus[0].shape[0])
    V = columns(triplets(np.stack(downs, axis=1)), taus[0].shape[1])
    shape = (U.shape[1], V.shape[1])
    cores = np.stack([(U.T @ tau @ V).ravel() for tau in taus])
    return np.asarray(U @ inner_merge(of.inner, cores, shape).reshape(shape) @ V.T).ravel()


def svc(of: Any, taus: list[Matrix]) -> Matrix:
    flat = np.stack([tau.ravel() for tau in taus])
    merged = inner_merge(of.inner, flat, taus[0].shape).reshape(taus[0].shape)
    result = np.zeros(merged.shape)
    for u, s, v in triplets(merged):
        coefficients = []
        for tau in taus:
            own = u @ tau
            if np.linalg.norm(own) > ZERO * np.linalg.norm(tau):
                coefficients.append(max(of.alpha, float(s * v @ own / (own @ own))))
        gamma = len(coefficients) / sum(coefficients) if coefficients else 1.0
        result += gamma * s * np.outer(u, v)
    return result


DENSE: dict[str, Callable[[Any, Trial], Matrix]] = {
    "tsv_merge": of_matrices(tsv_merge),
    "tsv_compress": of_matrices(tsv_compress, tsv_compress_flat),
    "iso_c": of_matrices(iso_c),
    "iso_cts": of_matrices(iso_cts),
    "cart": of_matrices(cart),
    "star": of_matrices(star),
    "knots": of_matrices(knots, inner_flat),
    "core_space": core_space,
    "svc": of_matrices(svc, inner_flat),
}

OPTIONS: list[Method] = [
    method("tsv_merge", rank_share=0.3),
    method("tsv_merge", rank_share=1.0, exact=True),
    method("tsv_compress", task=1),
    method("tsv_compress", rank_share=0.4, exact=True),
    method("iso_c", exact=True),
    method("iso_cts", common=0.0),
    method("iso_cts", common=0.5, exact=True),
    method("iso_cts", common=1.0),
    method("cart", rank_share=0.5, strength=0.3),
    method("cart", rank_share=1.0, strength=10.0, exact=True),
    method("star", energy=0.7),
    method("star", energy=1.0, exact=True),
    method("knots", inner="task_arithmetic"),
    method("knots", inner="ties:density=0.6", exact=True),
    method("core_space", inner="task_arithmetic", exact=True),
    method("core_space", inner="iso_c"),
    method("core_space", inner="ties:density=1.0"),
    method("svc", alpha=1.0, exact=True),
    method("svc", inner="ties:density=0.7", alpha=0.5),
    method("svc", inner="knots:inner=task_arithmetic"),
]
