"""Differences between two ways of making a basis, pair by pair: same seed, same subset or task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskbasis.report import t_interval

Factors = Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """One number for one basis.

    Attributes:
        factors: how the basis was made, such as ``{"granularity": "layer", "k": "4"}``.
        seed: of the models.
        metric: what was measured.
        case: on which task or subset.
        value: the number.
    """

    factors: Factors
    seed: int
    metric: str
    case: str
    value: float


@dataclass(frozen=True)
class Difference:
    """The mean of ``left - right`` over pairs.

    Attributes:
        mean, low, high: over cases, with the 95 % t-interval; each case of each seed counts once.
        cases: how many.
        by_seed: the mean of every seed.
    """

    mean: float
    low: float
    high: float
    cases: int
    by_seed: Mapping[int, float]

    @property
    def agreeing(self) -> int:
        """How many seeds have the sign of the mean."""
        return sum(value * self.mean > 0 for value in self.by_seed.values())

    @property
    def seed_half(self) -> float:
        """Half of the 95 % t-interval when each seed counts once; infinite for one seed."""
        if len(self.by_seed) < 2:
            return math.inf
        mean, low, _ = t_interval(list(self.by_seed.values()))
        return mean - low


def compare(
    outcomes: Iterable[Outcome], metric: str, factor: str, left: str, right: str, fixed: Factors
) -> Difference:
    """What changing one factor from `right` to `left` does to a metric, all else being equal.

    Differences of one seed and case are first averaged over whatever else varies (methods, sizes),
    because they are not independent of one another.

    Args:
        outcomes: of all bases.
        metric: which one.
        factor: what differs.
        left, right: its two values.
        fixed: other factors that are held at one value.

    Raises:
        ValueError: no basis has a counterpart.
    """
    sides: dict[str, dict[tuple[tuple[str, ...], int, str], float]] = {left: {}, right: {}}
    for found in outcomes:
        factors = dict(found.factors)
        side = factors.pop(factor, None)
        if found.metric != metric or side not in sides:
            continue
        if all(factors.get(name) == value for name, value in fixed.items()):
            key = tuple(factors[name] for name in sorted(factors))
            sides[side][(key, found.seed, found.case)] = found.value
    pairs: dict[tuple[int, str], list[float]] = {}
    for (key, seed, case), value in sides[left].items():
        other = sides[right].get((key, seed, case))
        if other is not None:
            pairs.setdefault((seed, case), []).append(value - other)
    if not pairs:
        raise ValueError(f"no pair differs in {factor}: {left} against {right} with {dict(fixed)}")
    return summarised({place: _mean(values) for place, values in pairs.items()})


def summarised(differences: Mapping[tuple[int, str], float]) -> Difference:
    """Mean and intervals of one difference per seed and case.

    >>> summarised({(0, "a"): 0.1, (0, "b"): 0.3, (1, "a"): -0.1, (1, "b"): 0.1}).by_seed
    {0: 0.2, 1: 0.0}
    """
    values = list(differences.values())
    seeds = sorted({seed for seed, _ in differences})
    by_seed = {s: _mean([v for (seed, _), v in differences.items() if seed == s]) for s in seeds}
    mean, low, high = t_interval(values) if len(values) > 1 else (values[0], -math.inf, math.inf)
    return Difference(mean, low, high, len(values), by_seed)


def with_worst(
    outcomes: Sequence[Outcome], metric: str, pick: Callable[[Sequence[float]], float]
) -> list[Outcome]:
    """The outcomes, and for every basis the worst case of one metric as a metric of its own.

    Args:
        outcomes: of all bases.
        metric: which one; the new one is called ``worst METRIC``.
        pick: ``min`` or ``max``, whichever is worse.
    """
    values: dict[tuple[tuple[tuple[str, str], ...], int], list[float]] = {}
    for found in outcomes:
        if found.metric == metric:
            key = (tuple(found.factors.items()), found.seed)
            values.setdefault(key, []).append(found.value)
    added = [
        Outcome(dict(factors), seed, f"worst {metric}", "", pick(cases))
        for (factors, seed), cases in values.items()
    ]
    return [*outcomes, *added]


def table(lines: Sequence[tuple[str, str, Difference]]) -> str:
    """A Markdown table: what is compared, the metric, and the difference."""
    text = [
        "| compared | metric | mean difference | 95 % interval over cases | cases "
        "| ± over seeds | seeds of that sign |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for what, metric, found in lines:
        cells = [
            what,
            metric,
            f"{found.mean:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}",
            str(found.cases),
            f"{found.seed_half:.4f}",
            f"{found.agreeing} of {len(found.by_seed)}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
