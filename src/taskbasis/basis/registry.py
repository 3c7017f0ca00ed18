"""The constructions by name, and the one call that builds a basis with any of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taskbasis.basis.autoencoder import Autoencoder
from taskbasis.basis.cluster import Cluster
from taskbasis.basis.codes import Codes, Quality, quality
from taskbasis.basis.gram import Matrix, checked
from taskbasis.basis.pca import PCA
from taskbasis.basis.problem import Construction, one_of
from taskbasis.basis.random import Random
from taskbasis.basis.scaling import scaled
from taskbasis.basis.select import Select
from taskbasis.basis.svd import SVD
from taskbasis.errors import UsageError, check_option, nearest

CONSTRUCTIONS: dict[str, type[Construction]] = {
    kind.name: kind for kind in (Autoencoder, PCA, SVD, Cluster, Select, Random)
}


def construction(name: str, **options: Any) -> Construction:
    """A construction by its name, with options.

    Raises:
        UsageError: for a name or an option that does not exist, with the nearest one that does;
            for a value that is not of the option's kind.

    >>> construction("select", strategy="random", seed=3)
    Select(strategy='random', seed=3, recovery=True)
    >>> construction("select", sead=3)
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: select has no option 'sead'; did you mean 'seed'?
    """
    one_of("construction", name, CONSTRUCTIONS)
    kind = CONSTRUCTIONS[name]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise UsageError(f"{name} has no option {option!r}; {hint}")
    for field in fields(kind):  # type: ignore[arg-type]
        check_option(name, field.name, options.get(field.name, field.default), field.default)
    return kind(**options)


def solve(
    gram: Matrix,
    construction: Construction,
    k: int,
    normalize: str = "mean",
    tasks: int | None = None,
) -> tuple[Codes, Quality]:
    """Build a basis: check, normalise, fit, fold the lengths back, judge.

    Args:
        gram: [N, N], inner products of the tasks (and, for `random`, of the noise behind them).
        construction: see :func:`construction`.
        k: the number of atoms; see :func:`.size.resolve_size`.
        normalize: "mean", "cosine" or "none"; see :func:`.scaling.scaled`.
        tasks: T, when there are more vectors than tasks.

    Returns:
        Codes for the vectors as they are, and their quality on the Gram matrix as it is.

    Raises:
        UsageError: for an unknown normalisation, a k below 1 or sizes that do not fit.
        ValueProblem: for NaN, infinity, or numbers that are no inner products.

    >>> import numpy as np
    >>> codes, found = solve(np.diag([9.0, 4.0, 1.0]), SVD(), 2)
    >>> codes.atoms, round(found.kept_energy, 6)
    (2, 0.928571)
    """
    matrix = checked(gram)
    count = len(matrix) if tasks is None else tasks
    scaling = scaled(matrix, normalize, count)
    if construction.joint:
        codes = construction.fit(matrix, k, count)
    else:
        codes = scaling.fold(construction.fit(scaling.gram, k, count, scaling.total))
    return codes, quality(matrix, codes)
