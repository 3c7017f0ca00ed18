"""What is merged, and how: every method of mergekit and of PEFT, with several settings each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from inputs import TENSORS


@dataclass(frozen=True)
class Case:
    """One merge by the other program.

    Attributes:
        library: "mergekit" or "peft".
        method: as that program calls it.
        world: which models.
        models: those that are merged, in order.
        base: the base model; none where the method is given none.
        parameters: as that program calls them; lists have one number per model.
        dtype: what is computed in.
        seed: of its random numbers.
        tensors: which of the models' tensors.
        wrong: why its result is not what its method says; empty where it is right.
    """

    library: str
    method: str
    world: str
    models: tuple[str, ...]
    base: str | None = "base"
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 0
    tensors: tuple[str, ...] = TENSORS
    wrong: str = ""


SIGN = (
    "divides by the signed sum of the weights, so the sign of a subtracted vector is lost, and "
    "weights that nearly cancel enlarge the result"
)

FURTHER = (
    "divides by the signed sum of the weights, so with 1 and -0.9 it goes ten times round the angle"
)
SCE = (
    "gives all vectors the same weight once their mean squares sum to less than 1e-6, as those of "
    "language models do"
)
EMPTY = "keeps nothing of tensors with fewer than 1 / density entries, where its ties keeps one"
OPPOSITE = (
    "rounding decides whether two opposite vectors are seen to be, so tensors are treated unlike"
)
ANTIPODAL = "divides rounding errors by the sine of 180 degrees, so noise decides where it goes"
TINY = "takes a product of norms below 1e-6 for 1e-6, so that small updates seem unrelated"
ROUNDED = "rounds every difference, product and sum to bfloat16"

AXIS = "takes the last axis alone for a filter or a row, which of a convolution it is not"
APART = "steps away from the models where their updates point apart, and further the more they do"
PLUS = "elects plus where votes cancel, so opposite models do not give the opposite result"
RIGHT_ANGLE = "takes zeros for a vector at a right angle, and so scales the other one up"

FLAT = ("matrix", "tall", "vector")
NEAR, FAR, EXACT = ("near", "near_half"), ("far", "far_half"), ("exact", "exact_half")
KIN = ("kin", "kin_half")
TWO, THREE, FOUR = ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")
BOTH = ("plus", "minus")


def _in(worlds: Sequence[str], method: str, models: Sequence[str], **more: Any) -> Iterator[Case]:
    """The same merge in every world; what is no attribute of a case is a parameter."""
    own = {
        key: more.pop(key) for key in ("base", "dtype", "seed", "tensors", "wrong") if key in more
    }
    library, _, name = method.rpartition("/")
    for world in worlds:
        yield Case(library or "mergekit", name, world, tuple(models), parameters=more, **own)


def _sums() -> Iterator[Case]:
    for method in ("task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"):
        yield from _in(NEAR, method, TWO, weight=[1, 1])
        yield from _in(NEAR[:1], method, THREE, weight=[0.5, 0.3, 0.4], **{"lambda": 0.7})
        yield from _in(NEAR[:1], method, ("a",), weight=[-1])
        yield from _in(NEAR[:1], method, TWO, weight=[1, -0.9])
    yield from _in(NEAR, "task_arithmetic", THREE, weight=[0.5, 0.3, 0.4], normalize=True)
    yield from _in(EXACT, "task_arithmetic", ("plus", "minus", "same"), weight=[1, 1, 1])
    yield from _in(NEAR[:1], "task_arithmetic", ("a",), weight=[-1], normalize=True, wrong=SIGN)
    yield from _in(NEAR[:1], "task_arithmetic", TWO, weight=[1, -0.9], normalize=True, wrong=SIGN)
    yield from _in(
        NEAR[1:], "task_arithmetic", FOUR, weight=[1, 1, 1, -1], dtype="bfloat16", wrong=ROUNDED
    )


def _elected() -> Iterator[Case]:
    for method in ("ties", "dare_ties", "della", "breadcrumbs_ties"):
        for worlds, models in ((NEAR, THREE), (EXACT, ("plus", "minus", "other"))):
            yield from _in(worlds, method, models, weight=[1, 1, 1], normalize=True)
        yield from _in(NEAR[:1], method, THREE, weight=[0.5, 0.3, 0.4], normalize=True)
        yield from _in(NEAR[:1], method, THREE, weight=[0.5, 0.3, 0.4], normalize=False)
        yield from _in(NEAR[:1], method, ("a",), weight=[-1], normalize=False)
        yield from _in(NEAR[:1], method, TWO, weight=[1, -0.9], normalize=False)
        yield from _in(NEAR[:1], method, ("a",), weight=[-1], normalize=True, wrong=SIGN)
        yield from _in(NEAR[:1], method, TWO, weight=[1, -0.9], normalize=True, wrong=SIGN)


def _trimmed() -> Iterator[Case]:
    yield from _in(NEAR, "ties", THREE, weight=[1, 1, 1], density=0.2)
    yield from _in(NEAR, "ties", THREE, weight=[0.5, 0.3, 0.4], density=[0.3, 0.6, 0.9])
    yield from _in(NEAR[:1], "ties", FOUR, weight=[1] * 4, density=0.5, int8_mask=True)
    yield from _in(NEAR[:1], "ties", TWO, weight=[1, 1], density=0.05)
    yield from _in(NEAR[:1], "ties", ("a", "a"), weight=[0.5, 0.3], density=0.5)
    yield from _in(EXACT[:1], "ties", ("plus", "same"), weight=[0.5, 0.3])
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        yield from _in(NEAR, method, THREE, weight=[1, 1, 1], density=0.5, gamma=0.1)
        yield from _in(NEAR[:1], method, TWO, weight=[0.4, 0.7], density=[0.3, 0.8], gamma=0.05)
        # gamma keeps no whole entry of the tensors of 60, 77 and 13
        yield from _in(NEAR, method, TWO, weight=[1, 1], density=0.9, gamma=0.01)
        # more than is there is asked for: fewer outliers go
        yield from _in(NEAR[:1], method, TWO, weight=[1, 1], density=0.95, gamma=0.1)
        yield from _in(NEAR[:1], method, TWO, weight=[1, 1], density=0.5, gamma=0)
        yield from _in(NEAR[:1], method, TWO, weight=[1, 1], density=0.05, wrong=EMPTY)


def _random() -> Iterator[Case]:
    for method in ("dare_linear", "dare_ties", "della_linear", "della"):
        for seed in (1, 2):
            yield from _in(NEAR, method, TWO, weight=[0.8, 0.6], density=0.5, seed=seed)
        yield from _in(NEAR[:1], method, THREE, weight=[1, 1, 1], density=[0.3, 0.5, 0.8], seed=3)
        yield from _in(NEAR[:1], method, TWO, weight=[1, 1], density=0.5, rescale=False, seed=4)


def _spherical() -> Iterator[Case]:
    for t in (0.0, 0.3, 0.5, 1.0):
        yield from _in(FAR, "slerp", ("base", "a"), t=t)
    yield from _in(NEAR, "slerp", ("base", "a"), t=0.3)
    for models in (("a", "against"), ("a", "a")):
        yield from _in(FAR[:1], "slerp", models, t=0.3, base="a")
    yield from _in(FAR[:1], "slerp", ("a", "zero"), t=0.3, base="a", wrong=RIGHT_ANGLE)
    for base in ("base", None):
        rows: dict[str, Any] = {"nuslerp_flatten": False}
        columns: dict[str, Any] = {**rows, "nuslerp_row_wise": True}
        for shape, of in (({}, TENSORS), (rows, FLAT), (columns, FLAT)):
            more = {"base": base, "tensors": of, **shape}
            yield from _in(FAR, "nuslerp", TWO, weight=[0.3, 0.9], **more)
            yield from _in(NEAR[:1], "nuslerp", TWO, weight=[1, 1], **more)
        more = {"base": base, **columns}  # of three axes, where no two changes are opposite
        yield from _in(KIN[:1], "nuslerp", TWO, weight=[1, 1], **more)
        more = {"base": base, "tensors": ("cube",), **rows}
        yield from _in(FAR[:1], "nuslerp", TWO, weight=[0.3, 0.9], wrong=AXIS, **more)
        yield from _in(NEAR[:1], "nuslerp", TWO, weight=[1, -0.9], base=base, wrong=FURTHER)
        yield from _in(FAR, "multislerp", THREE, weight=[1, 1, 1], base=base)
        yield from _in(FAR[:1], "multislerp", THREE, weight=[0.5, 0.3, 0.4], base=base)
        yield from _in(NEAR, "multislerp", TWO, weight=[0.5, 0.3], base=base)
        yield from _in(NEAR[:1], "multislerp", TWO, weight=[1, -0.9], base=base, wrong=FURTHER)
    yield from _in(EXACT[:1], "nuslerp", BOTH, weight=[1, 3], wrong=OPPOSITE)
    more = {"weight": [0.5, 0.3, 0.4], "normalize_weights": False}
    yield from _in(FAR[:1], "multislerp", THREE, **more)
    yield from _in(EXACT[:1], "multislerp", BOTH, weight=[1, 3])
    yield from _in(FAR[:1], "multislerp", ("a", "against"), weight=[1, 1], base=None)
    for base, method in (("base", "nuslerp"), (None, "nuslerp"), ("base", "multislerp")):
        yield from _in(NEAR[:1], method, ("a", "a"), weight=[1, 3], base=base)
        wrong = RIGHT_ANGLE if (base, method) == ("base", "nuslerp") else ""
        yield from _in(EXACT[:1], method, ("plus", "same"), weight=[1, 3], base=base, wrong=wrong)
    yield from _in(NEAR[:1], "karcher", ("a", "a"), base=None)
    yield from _in(FAR, "karcher", ("a", "b"), base=None)
    yield from _in(FAR, "karcher", THREE, base=None)
    yield from _in(FAR[:1], "karcher", THREE, base=None, max_iter=1)
    yield from _in(NEAR, "karcher", THREE, base=None)
    yield from _in(FAR[:1], "karcher", ("a", "zero"), base=None)
    yield from _in(FAR[:1], "karcher", ("a", "against"), base=None, wrong=ANTIPODAL)


def _averages() -> Iterator[Case]:
    yield from _in(NEAR, "linear", THREE, weight=[1, 1, 1], base=None)
    yield from _in(NEAR, "linear", THREE, weight=[0.5, 0.3, 0.4], base=None)
    yield from _in(NEAR, "linear", THREE, weight=[0.5, 0.3, 0.4], normalize=False, base=None)
    yield from _in(NEAR[:1], "linear", TWO, weight=[2, -1], normalize=False, base=None)
    yield from _in(NEAR, "linear", ("base", "a"), weight=[0.25, 0.75], base=None)
    yield from _in(NEAR[:1], "linear", TWO, weight=[1, -0.9], base=None, wrong=SIGN)
    for filters, of in ((False, TENSORS), (True, FLAT)):
        more = {"filter_wise": filters, "tensors": of}
        yield from _in(KIN, "model_stock", TWO, **more)
        yield from _in(KIN, "model_stock", THREE, **more)
        yield from _in(EXACT[:1], "model_stock", BOTH, **more)
        yield from _in(EXACT[:1], "model_stock", ("plus", "same"), **more)
        yield from _in(NEAR[:1], "model_stock", FOUR, wrong=APART, **more)
        yield from _in(("small",), "model_stock", THREE, wrong=TINY, **more)
    yield from _in(KIN[:1], "model_stock", TWO, filter_wise=True, tensors=("cube",), wrong=AXIS)
    for t in (0.001, 0.01):
        yield from _in(NEAR, "nearswap", ("a",), t=t)
    yield from _in(FAR, "nearswap", ("a",), t=0.1)
    yield from _in(EXACT[:1], "nearswap", ("plus",), t=1 / 64)
    for worlds in (NEAR, FAR):
        yield from _in(worlds, "arcee_fusion", ("a",))
    yield from _in(EXACT[:1], "arcee_fusion", ("same",))
    yield from _in(NEAR, "passthrough", ("a",), base=None)
    yield from _in(NEAR, "passthrough", ("a",), base=None, scale=0.5)


def _selected() -> Iterator[Case]:
    for topk in (1.0, 0.5, 0.1):
        yield from _in(NEAR, "sce", ("a", "b", "d"), select_topk=topk)
    yield from _in(NEAR[:1], "sce", TWO, select_topk=0.3)
    yield from _in(NEAR[:1], "sce", ("a",))
    yield from _in(NEAR[:1], "sce", ("a", "a"))
    yield from _in(EXACT[:1], "sce", ("plus", "same"))
    yield from _in(EXACT, "sce", ("plus", "minus", "other"), wrong=PLUS)
    yield from _in(("small",), "sce", THREE, wrong=SCE)
    for method in ("ram", "ramplus_tl"):
        yield from _in(NEAR, method, THREE)
        yield from _in(NEAR, method, THREE, epsilon=0.01)
        yield from _in(EXACT, method, ("plus", "other", "same"))
        yield from _in(("small",), method, THREE, epsilon=1e-4)
    yield from _in(NEAR, "ramplus_tl", THREE, epsilon=0.01, r=0.5, alpha=1.0)


def _peft() -> Iterator[Case]:
    yield from _in(NEAR, "peft/task_arithmetic", THREE, weights=[0.5, -0.3, 0.4])
    for density in (0.2, 0.5):
        yield from _in(NEAR, "peft/magnitude_prune", TWO, weights=[0.5, -0.3], density=density)
        for vote in ("total", "frequency"):
            more = {"density": density, "majority_sign_method": vote}
            yield from _in(NEAR, "peft/ties", THREE, weights=[0.5, 0.3, 0.4], **more)
    yield from _in(NEAR[:1], "peft/ties", TWO, weights=[1, -0.9], density=0.5)
    yield from _in(NEAR[:1], "peft/ties", ("a",), weights=[-1], density=0.5)
    yield from _in(NEAR[:1], "peft/ties", TWO, weights=[1, 1], density=0.05)
    for method in ("peft/dare_linear", "peft/dare_ties"):
        yield from _in(NEAR, method, TWO, weights=[0.8, 0.6], density=0.5, seed=1)
        yield from _in(NEAR[:1], method, THREE, weights=[1, -0.5, 1], density=0.3, seed=2)
    yield from _in(
        NEAR[:1],
        "peft/dare_ties",
        THREE,
        weights=[1, 1, 1],
        density=0.5,
        majority_sign_method="frequency",
        seed=3,
    )


def cases() -> dict[str, Case]:
    """All of them, by a name that says the method and counts."""
    found: dict[str, Case] = {}
    groups = (_sums, _elected, _trimmed, _random, _spherical, _averages, _selected, _peft)
    for case in (case for group in groups for case in group()):
        stem = case.method if case.library == "mergekit" else f"{case.library}-{case.method}"
        number = sum(name.rpartition("-")[0] == stem for name in found) + 1
        found[f"{stem}-{number:02d}"] = case
    return found
