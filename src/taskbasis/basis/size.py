"""How many atoms: a count, a share, an error to meet, or a budget spread over groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from taskbasis.basis.cluster import eigengap
from taskbasis.basis.gram import Matrix, checked, rank, root
from taskbasis.basis.problem import Construction, at_least
from taskbasis.basis.registry import solve
from taskbasis.errors import UsageError, ValueProblem


def resolve_size(
    k: int | float | str | None,
    tasks: int,
    gram: Matrix | None = None,
    construction: Construction | None = None,
    normalize: str = "mean",
) -> int:
    """The number of atoms that `k` stands for.

    - an integer: that many, from 1 to T;
    - a fraction between 0 and 1: ``⌊T · k⌋``, at least 1 (as in the scripts of TVB v4/v5);
    - ``"error=0.1"``: the smallest k with which no task has a relative error above 0.1, found by
      running the construction itself. A construction that never gets worse with a larger k is
      bisected, the others are tried upwards one by one;
    - None: what the eigengap suggests for `cluster`, otherwise ``⌊T / 2⌋``, at least 1.

    The first two may be strings, as a command line has them.

    Args:
        k: the size as asked for.
        tasks: T.
        gram: [N, N]; needed by an error, and by None for `cluster`.
        construction: likewise.
        normalize: as the basis will be built.

    Raises:
        UsageError: for a size out of range (the range is named) or one that means nothing.
        ValueProblem: when no size meets the error (only `random` can fail at T).

    >>> resolve_size(0.5, 9), resolve_size("3", 9), resolve_size(None, 9)
    (4, 3, 4)
    >>> from taskbasis.basis.svd import SVD
    >>> resolve_size("error=0.5", 3, np.diag([1.0, 1.0, 0.0]), SVD())
    2
    """
    if isinstance(k, str) and k.strip().startswith("error="):
        return _meeting(_number(k.split("=", 1)[1], k), tasks, gram, construction, normalize)
    if k is None:
        if construction is not None and construction.name == "cluster" and gram is not None:
            return eigengap(gram)
        return max(1, tasks // 2)
    return _plain(_number(k, k) if isinstance(k, str) else k, tasks)


def _number(text: str, whole: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"the size {whole!r} means nothing; give a count, a fraction between 0 and 1, "
            "or an error to meet such as error=0.1"
        ) from None


def _plain(k: int | float, tasks: int) -> int:
    if isinstance(k, float) and 0.0 < k < 1.0:
        return max(1, math.floor(tasks * k + 1e-9))
    if isinstance(k, (bool, float)) or not 1 <= k <= tasks:
        raise UsageError(
            f"the size {k!r} is out of range; give a count from 1 to {tasks}, "
            "the number of tasks, or a fraction between 0 and 1"
        )
    return int(k)


def _meeting(
    error: float,
    tasks: int,
    gram: Matrix | None,
    construction: Construction | None,
    normalize: str,
) -> int:
    at_least("an error to meet", error, 0.0)
    if gram is None or construction is None:
        raise UsageError("a size given as an error needs the Gram matrix and the construction")
    matrix = checked(gram)

    def meets(k: int) -> bool:
        _, found = solve(matrix, construction, k, normalize, tasks)
        return bool(found.relative_error.max() <= error + 1e-12)

    first = _least(matrix[:tasks, :tasks], error)
    search = _bisect if construction.monotone else _upwards
    found = search(meets, first, min(tasks, len(matrix) - tasks) if construction.joint else tasks)
    if found is None:
        raise ValueProblem(
            f"no size up to {tasks} recovers every task within a relative error of {error}"
        )
    return found


def _least(gram: Matrix, error: float) -> int:
    """Where to begin: fewer atoms miss more energy than the error allows, whatever they are.

    One less than the spectrum demands, since PCA stores its mean beyond k.
    """
    energies = np.linalg.svd(root(gram), compute_uv=False) ** 2
    missed = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    allowed = error**2 * missed[0] * (1 + 1e-9)
    return min(max(1, int(np.argmax(missed <= allowed)) - 1), len(gram))


def _upwards(meets: Callable[[int], bool], first: int, last: int) -> int | None:
    return next((k for k in range(first, last + 1) if meets(k)), None)


def _bisect(meets: Callable[[int], bool], first: int, last: int) -> int | None:
    if first > last or not meets(last):
        return None
    while first < last:
        middle = (first + last) // 2
        if meets(middle):
            last = middle
        else:
            first = middle + 1
    return last


def allocate(
    grams: Sequence[Matrix], budget: int, params: Sequence[int] | None = None
) -> list[int]:
    """Spread a budget of stored parameters over groups, such as layers, by their spectra.

    An atom of group g costs ``params[g]`` and its m-th one removes the m-th eigenvalue of the
    group's Gram matrix from the squared error. Taken greedily by the error removed per parameter,
    the first group on ties; an atom that no longer fits is passed over. A group with any extent
    gets at least 1, none more than its rank, a group of zeros none. Derived for this project.

    Args:
        grams: one [T, T] matrix per group.
        budget: how many parameters may be stored in all; without `params`, how many atoms.
        params: the number of parameters of a vector in each group.

    Returns:
        k per group.

    Raises:
        UsageError: when the budget does not allow one atom for each group.

    >>> allocate([np.diag([9.0, 4.0]), np.diag([1.0, 0.5])], 3)
    [2, 1]
    >>> allocate([np.diag([9.0, 4.0]), np.diag([1.0, 0.5])], 30, [20, 5])
    [1, 2]
    """
    costs = [1] * len(grams) if params is None else list(params)
    if len(costs) != len(grams) or any(cost < 1 for cost in costs):
        raise UsageError(f"{len(grams)} groups need as many sizes of at least 1; got {costs}")
    spectra = [_spectrum(gram) for gram in grams]
    sizes = [min(1, len(spectrum)) for spectrum in spectra]
    left = budget - sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    if left < 0:
        raise UsageError(
            f"a budget of {budget} is too small: one atom for each group takes {budget - left}"
        )
    offers = [
        (-gain / costs[group], group)
        for group, spectrum in enumerate(spectra)
        for gain in spectrum[1:]
    ]
    for _, group in sorted(offers):
        if costs[group] <= left:
            sizes[group] += 1
            left -= costs[group]
    return sizes


def _spectrum(gram: Matrix) -> list[float]:
    """Eigenvalues that are not rounding, largest first."""
    stand_in = root(checked(gram))
    values = np.linalg.svd(stand_in, compute_uv=False)[: rank(stand_in)] ** 2
    return [float(value) for value in values]
