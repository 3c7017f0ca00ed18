"""What is held against what: every method with its settings, as plain data.

A contender is a recipe for one model, with the scales and densities that may be chosen among. One
candidate alone is untuned: it is built and tested, and validation is never looked at.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskbasis.errors import UsageError, nearest

LEARNT: Mapping[str, Mapping[str, str]] = {
    "weight": {"factor": "weight"},
    "delta": {"factor": "delta"},
    "grad": {"factor": "grad"},
    "fisher": {"factor": "fisher"},
    "fisher_delta": {"factor": "fisher_delta"},
    "weight, base": {"factor": "weight", "at": "base"},
    "weight, path": {"factor": "weight", "at": "path"},
    "weight, abs_mean": {"factor": "weight", "aggregation": "abs_mean"},
    "grad, path": {"factor": "grad", "at": "path"},
    "fisher, path": {"factor": "fisher", "at": "path"},
    "delta, path, abs_mean": {"factor": "delta", "at": "path", "aggregation": "abs_mean"},
}
"""Importance scores that are learnt, and how; see :class:`taskbasis.learn.How`."""

MAGNITUDE = "magnitude"
"""Scores that need no data: the size of a vector's own entries."""

FACTORS = ("weight", "delta", "grad", "fisher", "fisher_delta", MAGNITUDE)
"""What selection is compared by."""

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
TUNED_DENSITIES = (0.1, 0.3, 0.5)
"""Where the scale is chosen, too."""
FORGET_DENSITIES = (0.1, 0.3, 1.0)
CONSTRUCTIONS = ("autoencoder", "pca", "svd", "cluster", "select", "random")
SHARES = (2, 4)

TUNED = "task arithmetic, tuned"
"""What the others are compared with, pair by pair."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made of the task vectors.

    Attributes:
        method: of :func:`taskbasis.methods.registered`.
        options: of the method; a density that is chosen stands in for its ``density``.
        scores: which importance scores it is given: a name in :data:`LEARNT`; None for none.
        moments: whether it is given the activation moments.
        basis: the construction whose recovered vectors stand in for the vectors; None for none.
        share: the basis has T / share atoms.
        atoms: whether the atoms are added instead of the recovered vectors.
        disentangled: whether what all vectors share is taken out of them first.
        per_task: whether every task gets a model of its own, by the method's option ``task``.
    """

    method: str = "task_arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    scores: str | None = None
    moments: bool = False
    basis: str | None = None
    share: int = 1
    atoms: bool = False
    disentangled: bool = False
    per_task: bool = False


@dataclass(frozen=True)
class Contender:
    """A recipe under a name, and what may be chosen on validation.

    Attributes:
        label: how tables call it.
        family: what it belongs to; shares a colour in pictures.
        recipe: how the model is made.
        scales: the coefficient, when it is fixed; None when it is chosen from the suite's grid.
        densities: to choose among; none for the recipe's own.
        forgets: whether it is also asked to forget every task, one by one, at these densities;
            None when it is not.
    """

    label: str
    family: str
    recipe: Recipe
    scale: float | None = 1.0
    densities: tuple[float, ...] = ()
    forgets: tuple[float | None, ...] | None = None

    @property
    def tuned(self) -> bool:
        """Whether anything is chosen on validation."""
        return self.scale is None or len(self.densities) > 1


def contenders() -> list[Contender]:
    """All of them, in the order of the table.

    >>> [contender.label for contender in contenders()][:3]
    ['average', 'task arithmetic, λ 1', 'task arithmetic, λ 0.3']
    """
    return [*_sums(), *_merges(), *_selections(), *_effects(), *_bases()]


def _sums() -> Iterable[Contender]:
    plain, ties = Recipe(), Recipe("ties")
    yield Contender("average", "average", Recipe("average"))
    yield Contender("task arithmetic, λ 1", "task arithmetic", plain)
    yield Contender("task arithmetic, λ 0.3", "task arithmetic", plain, 0.3)
    yield Contender(TUNED, "task arithmetic", plain, None, forgets=(None,))
    yield Contender("TIES, λ 1", "TIES", ties)
    yield Contender("TIES, tuned", "TIES", ties, None, forgets=(None,))
    for density in (0.5, 0.1):
        made = Recipe("dare_linear", {"density": density})
        yield Contender(f"DARE {density}, tuned", "DARE", made, None)
    yield Contender("Fisher", "Fisher", Recipe("fisher", scores="fisher"))
    evened = Recipe("fisher", {"normalize": "mean"}, scores="fisher")
    yield Contender("Fisher, normalised", "Fisher", evened)
    yield Contender("RegMean", "RegMean", Recipe("regmean", moments=True))
    yield Contender("LOT", "LOT", Recipe("lot", moments=True))


_MERGES: Mapping[str, Recipe] = {
    "Karcher mean": Recipe("karcher"),
    "Multi-SLERP": Recipe("multislerp"),
    "Model Stock": Recipe("model_stock"),
    "NAN": Recipe("nan"),
    "LiNeS": Recipe("lines"),
    "DARE-TIES 0.5": Recipe("dare_ties", {"density": 0.5}),
    "DELLA": Recipe("della"),
    "DELLA-linear": Recipe("della_linear"),
    "Breadcrumbs": Recipe("breadcrumbs"),
    "Breadcrumbs-TIES": Recipe("breadcrumbs_ties"),
    "Consensus": Recipe("consensus"),
    "PCB": Recipe("pcb"),
    "MagMax": Recipe("magmax"),
    "SCE": Recipe("sce"),
    "RAM": Recipe("ram"),
    "RAM plus": Recipe("ramplus_tl"),
    "FedGMA": Recipe("fedgma"),
    "median": Recipe("median"),
    "CCLIP": Recipe("cclip"),
    "TSV-Merge": Recipe("tsv_merge"),
    "Iso-C": Recipe("iso_c"),
    "Iso-CTS": Recipe("iso_cts"),
    "CART": Recipe("cart"),
    "STAR": Recipe("star"),
    "KnOTS-TIES": Recipe("knots"),
    "SVC": Recipe("svc"),
    "WUDI": Recipe("wudi"),
}
"""Further methods, with their default options."""


def _merges() -> Iterable[Contender]:
    for name, made in _MERGES.items():
        yield Contender(f"{name}, λ 1", name, made)
        yield Contender(f"{name}, tuned", name, made, None)
    for name, method in (("", "task_arithmetic"), (" and TIES", "ties")):
        apart, family = Recipe(method, disentangled=True), f"AWD{name}"
        yield Contender(f"{family}, λ 1", family, apart)
        yield Contender(f"{family}, tuned", family, apart, None)
    for name, method in (("EMR", "emr"), ("TALL masks", "tall"), ("TSV-Compress", "tsv_compress")):
        yield Contender(f"{name}, a model per task", name, Recipe(method, per_task=True))


def _selected(scores: str, exclusive: bool = False, **options: Any) -> Recipe:
    return Recipe(
        "sta", {"exclusive": exclusive, **options}, None if scores == MAGNITUDE else scores
    )


_FIXED = ((0.1, False), (0.1, True), (0.3, False), (0.3, True), (1.0, True))
"""Density, and whether masks exclude each other; everything without exclusion is the plain sum."""


def _selections() -> Iterable[Contender]:
    for factor in FACTORS:
        family = f"STA {factor}"
        for density, exclusive in _FIXED:
            label = f"{family} {density}{' exclusive' if exclusive else ''}, λ 1"
            made = _selected(factor, density=density, exclusive=exclusive)
            yield Contender(label, family, made)
        yield Contender(
            f"{family}, density chosen",
            family,
            _selected(factor),
            densities=DENSITIES,
            forgets=FORGET_DENSITIES,
        )
        made = _selected(factor, exclusive=True)
        label = f"{family} exclusive, density chosen"
        yield Contender(label, family, made, densities=(*DENSITIES, 1.0))
    for factor in ("weight", MAGNITUDE):
        made, family = _selected(factor), f"STA {factor}"
        yield Contender(f"{family}, tuned", family, made, None, TUNED_DENSITIES)
    for scores in LEARNT:
        if scores not in FACTORS:
            for density in (0.1, 0.3):
                made = _selected(scores, density=density)
                family = f"STA {scores.split(',')[0]}"
                yield Contender(f"STA {scores} {density}, λ 1", family, made)


def _effects() -> Iterable[Contender]:
    """Scores times what the vector does to the entry, against the other tasks' claims to it."""
    for scores in ("weight", "grad", "fisher", "grad, path", "fisher, path"):
        family = f"STA {scores} effect"
        for density in (0.1, 0.3, 1.0):
            made = _selected(scores, density=density, exclusive=True, effect=True)
            yield Contender(f"{family} {density} exclusive, λ 1", family, made)
        plain = _selected(scores, density=1.0, exclusive=True)
        if scores not in FACTORS:
            yield Contender(f"STA {scores} 1.0 exclusive, λ 1", f"STA {scores}", plain)


def _bases() -> Iterable[Contender]:
    for construction in CONSTRUCTIONS:
        for share in SHARES:
            name = f"{construction} T/{share}"
            made = Recipe(basis=construction, share=share)
            forgets = (None,) if construction == "autoencoder" else None
            yield Contender(f"{name}, tuned", construction, made, None, forgets=forgets)
            if construction == "autoencoder":
                atoms = Recipe(basis=construction, share=share, atoms=True)
                yield Contender(f"{name} atoms, tuned", construction, atoms, None)
    for scores in ("weight", MAGNITUDE):
        learnt = None if scores == MAGNITUDE else scores
        made = Recipe(
            "sta", {"density": 0.3, "exclusive": False}, learnt, basis="autoencoder", share=2
        )
        yield Contender(f"STA {scores} 0.3 on autoencoder T/2, λ 1", "STA on a basis", made)


def pick(known: Sequence[Contender], wanted: Sequence[str]) -> list[Contender]:
    """Those whose label or family matches one of the patterns; all without patterns.

    Letters' case does not matter; ``*`` stands for anything.

    Raises:
        UsageError: a pattern matches none; the message names the nearest family.

    >>> [found.label for found in pick(contenders(), ["ties"])]
    ['TIES, λ 1', 'TIES, tuned']
    """
    if not wanted:
        return list(known)
    found: dict[str, Contender] = {}
    for pattern in wanted:
        hits = [one for one in known if _matches(one, pattern.lower())]
        if not hits:
            families = dict.fromkeys(one.family.lower() for one in known)
            raise UsageError(
                f"no method of the bench is {pattern!r}; {nearest(pattern.lower(), families)}"
            )
        found |= {one.label: one for one in hits}
    return [one for one in known if one.label in found]


def _matches(one: Contender, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for name in (one.label, one.family))
