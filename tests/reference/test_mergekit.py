"""mergekit 0.1.5 and PEFT 0.21.2 as recorded: we agree within one unit, but where they are wrong.

``benchmarks/parity`` ran them; ``scripts/parity`` runs them again. A unit is the distance to the
next number of the stored dtype. Where their own rounding on the way exceeds a unit, what is
recorded was computed in float64 (``units`` says how far off the ordinary result was).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from taskbasis import Checkpoint, TaskVector, merge
from taskbasis.methods import Method, method

FOLDER = Path(__file__).parent / "mergekit"
CASES: dict[str, dict[str, Any]] = {
    name: {"library": "mergekit", **case}
    for name, case in json.loads((FOLDER / "cases.json").read_text())["cases"].items()
}
WRONG = {name: case for name, case in CASES.items() if "wrong" in case}
RIGHT = {name: case for name, case in CASES.items() if "wrong" not in case}

Floats = NDArray[np.float64]
Tensors = dict[str, Floats]


# Reading, and counting in units


def raw(path: Path) -> dict[str, dict[str, Any]]:
    """A file's tensors as dtype, shape and bytes, which NumPy has no names for."""
    return dict(safetensors.deserialize(path.read_bytes()))


def bits(tensor: dict[str, Any]) -> NDArray[Any]:
    return np.frombuffer(tensor["data"], {"F32": "<u4", "BF16": "<u2"}[tensor["dtype"]])


def wide(row: NDArray[Any]) -> Floats:
    """The numbers that bits of float32 or bfloat16 stand for."""
    upper = row.astype("<u4") << 16 if row.dtype.itemsize == 2 else row
    return np.asarray(upper.view("<f4"), np.float64)


def narrow(values: Floats, like: NDArray[Any]) -> NDArray[Any]:
    """The bits of the nearest numbers; ties to even."""
    found = values.astype("<f4").view("<u4")
    if like.dtype.itemsize == 4:
        return found
    return ((found + 0x7FFF + ((found >> 16) & 1)) >> 16).astype("<u2")


def units(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    """How many numbers of the dtype two bit patterns are apart, entry by entry."""
    sign = 1 << (8 * left.dtype.itemsize - 1)

    def place(row: NDArray[Any]) -> NDArray[np.int64]:
        numbers = row.astype(np.int64)
        return np.where(numbers >= sign, sign - numbers, numbers)

    assert left.dtype == right.dtype
    assert left.shape == right.shape
    return np.abs(place(left) - place(right))


def test_units_count_the_numbers_between() -> None:
    one = np.array([1.0, 1.0, -1.0, 0.0, 0.0], "<f4")
    other = np.array([1.0, np.nextafter(np.float32(1), 2), -1.0, -0.0, 1e-45], "<f4")
    assert units(one.view("<u4"), other.view("<u4")).tolist() == [0, 1, 0, 0, 1]
    apart = np.array([-1e-45, 1e-45], "<f4").view("<u4")
    assert units(apart[:1], apart[1:]).tolist() == [2]
    halves = np.array([1.0, 1 + 2**-9, 1 + 3 * 2**-9, -3.0])
    assert wide(narrow(halves, np.zeros(1, "<u2"))).tolist() == [1, 1, 1 + 2**-7, -3]


@pytest.fixture(scope="session")
def recorded() -> dict[str, NDArray[Any]]:
    """Every case's result, all tensors in one row; and the bits of masks."""
    found = raw(FOLDER / "outputs.safetensors")
    return {
        name: np.frombuffer(tensor["data"], np.uint8).reshape(tensor["shape"])
        if tensor["dtype"] == "U8"
        else bits(tensor)
        for name, tensor in found.items()
    }


def tensors(path: Path) -> Tensors:
    """A model's tensors in float64."""
    found = sorted(raw(path.with_suffix(".safetensors")).items())
    return {name: wide(bits(tensor)).reshape(tensor["shape"]) for name, tensor in found}


# What is ours for what is theirs


@dataclass(frozen=True)
class Ours:
    """Our merge for one of theirs: which models are merged on which base, and how."""

    method: Method
    weights: Sequence[float] = ()
    scale: float = 1.0
    base: str = "base"
    models: Sequence[str] = ()


def weighted(case: dict[str, Any], name: str, **options: Any) -> Ours:
    """A method of task vectors: mergekit's weight and lambda, and parameters that are ours."""
    given = dict(case.get("parameters", {}))
    weights, scale = given.pop("weight"), given.pop("lambda", 1.0)
    given.pop("int8_mask", None)  # what masks are stored in while it works
    return Ours(method(name, **{**options, **given}), weights, scale)


def trimmed(name: str, **defaults: Any) -> Callable[[dict[str, Any]], Ours]:
    """A method of mergekit's generalised task arithmetic, by its defaults."""
    return lambda case: weighted(case, name, **{"density": 1.0, **defaults})


def plain(name: str, **defaults: Any) -> Callable[[dict[str, Any]], Ours]:
    """A method without weights whose parameters are ours."""
    return lambda case: Ours(method(name, **{**defaults, **case.get("parameters", {})}))


def linear(case: dict[str, Any]) -> Ours:
    return weighted(case, "linear")


def slerp(case: dict[str, Any]) -> Ours:
    base, *models = case["models"]
    return Ours(method("slerp", threshold=0.9995, **case["parameters"]), (), 1.0, base, models)


def nuslerp(case: dict[str, Any]) -> Ours:
    given = case["parameters"]
    per = "tensor" if given.get("nuslerp_flatten", True) else "row"
    if given.get("nuslerp_row_wise"):
        per = "column"
    return Ours(method("nuslerp", per=per, space=space(case)), given["weight"])


def multislerp(case: dict[str, Any]) -> Ours:
    """Weights that are not normalised stretch the result and do nothing else."""
    given = case["parameters"]
    scale = 1.0 if given.get("normalize_weights", True) else sum(given["weight"])
    return Ours(method("multislerp", space=space(case)), given["weight"], scale)


def space(case: dict[str, Any]) -> str:
    """mergekit works on deltas when it is given a base, else on weights."""
    return "weights" if case.get("base", "base") is None else "deltas"


def peft(name: str, **options: Any) -> Callable[[dict[str, Any]], Ours]:
    """A function of PEFT's merge_utils."""

    def build(case: dict[str, Any]) -> Ours:
        given = dict(case["parameters"])
        weights = given.pop("weights")
        if "majority_sign_method" in given:
            given["vote"] = given.pop("majority_sign_method")
        return Ours(method(name, **options, **given), weights)

    return build


MERGEKIT = {"variant": "mergekit"}
PEFT = {"variant": "peft"}

TABLE: dict[str, Callable[[dict[str, Any]], Ours]] = {
    "mergekit/linear": linear,
    "mergekit/slerp": slerp,
    "mergekit/nuslerp": nuslerp,
    "mergekit/multislerp": multislerp,
    "mergekit/karcher": plain("karcher"),
    "mergekit/model_stock": plain("model_stock"),
    "mergekit/nearswap": plain("nearswap"),
    "mergekit/arcee_fusion": plain("arcee_fusion"),
    "mergekit/passthrough": plain("passthrough"),
    "mergekit/task_arithmetic": lambda case: weighted(case, "task_arithmetic"),
    "mergekit/ties": trimmed("ties", **MERGEKIT),
    "mergekit/dare_linear": trimmed("dare_linear", **MERGEKIT),
    "mergekit/dare_ties": trimmed("dare_ties", normalize=False, **MERGEKIT),
    "mergekit/della_linear": trimmed("della_linear", epsilon=0.15, **MERGEKIT),
    "mergekit/della": trimmed("della", epsilon=0.15, **MERGEKIT),
    "mergekit/breadcrumbs": trimmed("breadcrumbs", gamma=0.01),
    "mergekit/breadcrumbs_ties": trimmed(
        "breadcrumbs_ties", gamma=0.01, normalize=False, **MERGEKIT
    ),
    "mergekit/sce": plain("sce"),
    "mergekit/ram": plain("ram"),
    "mergekit/ramplus_tl": plain("ramplus_tl"),
    "peft/task_arithmetic": peft("task_arithmetic"),
    "peft/magnitude_prune": peft("breadcrumbs", gamma=0.0),
    "peft/ties": peft("ties", **PEFT),
    "peft/dare_linear": peft("dare_linear", **PEFT),
    "peft/dare_ties": peft("dare_ties", **PEFT),
}


@dataclass
class Masks:
    """What stands for our random numbers: the masks that the other program drew."""

    kept: NDArray[np.bool_]
    models: Sequence[str]
    starts: dict[str, int]
    used: set[str] = field(default_factory=set)

    def __call__(self, key: str, start: int, count: int) -> NDArray[np.uint32]:
        """As noise.draws: 0, which any chance is above, for what was kept, else the largest."""
        *_, model, tensor = key.split("/")
        self.used.add(model)
        first = self.starts[tensor] + start
        row = self.kept[self.models.index(model), first : first + count]
        return np.where(row, 0, 2**32 - 1).astype(np.uint32)

    def keep_below(self, row: NDArray[Any], key: str, start: int, bound: int) -> None:
        """As noise.keep_below."""
        row *= self(key, start, row.size) < bound


def draw_as(masks: Masks, patch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("taskbasis.methods"):
            for drawing, theirs in (("draws", masks), ("keep_below", masks.keep_below)):
                if hasattr(module, drawing):
                    patch.setattr(module, drawing, theirs)


def merged(
    case: dict[str, Any],
    folder: Path,
    patch: pytest.MonkeyPatch,
    mask: Any = None,
    ours: Ours | None = None,
) -> Any:
    """The bits of what we make of a case, all tensors in one row."""
    ours = ours or TABLE[f"{case['library']}/{case['method']}"](case)
    folder /= case["world"]
    base = Checkpoint(folder / f"{ours.base}.safetensors")
    models = list(ours.models or case["models"])
    vectors = [TaskVector(base, folder / f"{model}.safetensors") for model in models]
    shapes = {name: values.size for name, values in tensors(folder / ours.base).items()}
    if mask is not None:
        starts = dict(zip(shapes, np.cumsum([0, *shapes.values()]).tolist(), strict=False))
        kept = np.unpackbits(mask, axis=1).astype(bool)
        masks = Masks(kept, models, starts)
        draw_as(masks, patch)
    named = dict(zip(models, vectors, strict=True)) if mask is not None else vectors
    found = merge(base, named, ours.method, ours.scale, weights=ours.weights).tensors()
    if mask is not None:
        assert masks.used == set(models)
    integers = {4: "<u4", 2: "<u2"}
    rows = [found[name].reshape(-1) for name in case.get("tensors", shapes)]
    return np.concatenate([row.view(integers[row.dtype.itemsize]) for row in rows])


@pytest.mark.parametrize("name", RIGHT)
def test_we_agree_within_one_unit(
    name: str,
    recorded: dict[str, NDArray[Any]],
    recorded_worlds: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = merged(RIGHT[name], recorded_worlds, monkeypatch, recorded.get(f"masks/{name}"))
    away = units(ours, recorded[name])
    assert away.max() <= 1, f"{RIGHT[name]}: {away.max()} units, {(away > 1).sum()} entries"


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["method"] == "slerp"])
def test_slerp_of_two_vectors_is_slerp_of_one_upon_the_other(
    name: str, recorded_worlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    upon, two = slerp(case), Ours(slerp(case).method, models=case["models"])
    away = units(*(merged(case, recorded_worlds, monkeypatch, ours=ours) for ours in (upon, two)))
    assert away.max() <= 1, f"{case}: {away.max()} units, {(away > 1).sum()} entries"


# Where they are wrong: the right values, in float64 and straight from the formulas


def shared(case: dict[str, Any], key: str, default: Any = None) -> Any:
    return case.get("parameters", {}).get(key, default)


def weights_of(case: dict[str, Any]) -> Floats:
    return np.array(shared(case, "weight"), np.float64)


def flat_dot(left: Floats, right: Floats) -> float:
    return float(np.sum(left * right))


def norm(values: Floats) -> float:
    return float(np.sqrt(flat_dot(values, values)))


def along_the_circle(first: Floats, second: Floats, t: float) -> Floats:
    """Linear where there is no angle, or no one great circle."""
    sizes = norm(first) * norm(second)
    cosine = flat_dot(first, second) / sizes if sizes else 1.0
    if abs(cosine) > 1 - 1e-12:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    parts = np.sin((1 - t) * angle) * first + np.sin(t * angle) * second
    return np.asarray(parts / np.sin(angle))


def mean_by_weight(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """base + sum w tau / sum |w|, or the plain sum."""
    weights = weights_of(case)
    total = np.tensordot(weights, deltas, 1)
    normalize = shared(case, "normalize", case["method"] == "linear")
    return base + (total / np.abs(weights).sum() if normalize else total)


def elected(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """base + sum of the agreeing w tau / sum of the agreeing |w|; a vote of 0 elects plus."""
    weights = weights_of(case)
    values = np.array([w * delta for w, delta in zip(weights, deltas, strict=True)])
    sign = np.where(values.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(values) == sign
    total = np.where(agree, values, 0).sum(axis=0)
    shares = np.tensordot(np.abs(weights), agree, 1)
    normalize = shared(case, "normalize", False)
    return base + (total / np.where(shares > 0, shares, 1) if normalize else total)


def crumbs(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """Each keeps its largest max(1, floor(density n)); a gamma of 0.01 removes none of n < 100."""
    density = shared(case, "density")
    if density is None:
        return elected(case, base, deltas)
    count = max(1, int(density * base.size))
    least = [np.sort(np.abs(delta), axis=None)[-count] for delta in deltas]
    kept = [np.where(np.abs(d) >= low, d, 0) for d, low in zip(deltas, least, strict=True)]
    of = elected if case["method"] == "breadcrumbs_ties" else mean_by_weight
    return of(case, base, np.array(kept))


def two_on_a_sphere(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """NuSLERP; a negative weight turns its vector round, and rows are [shape[0], rest]."""
    weights = weights_of(case)
    origin = base if case.get("base", "base") is None else np.zeros_like(base)
    first, second = (origin + np.sign(w) * d for w, d in zip(weights, deltas, strict=True))
    t = abs(weights[1]) / np.abs(weights).sum()
    if shared(case, "nuslerp_flatten", True):
        return base - origin + along_the_circle(first, second, t)
    rows = [along_the_circle(x, y, t) for x, y in zip(first, second, strict=True)]
    return base - origin + np.array(rows)


def mean_direction(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """Multi-SLERP: the mean of the directions, as long as the mean length."""
    shares = np.abs(weights_of(case)) / np.abs(weights_of(case)).sum()
    origin = base if case.get("base", "base") is None else np.zeros_like(base)
    turned = [origin + np.sign(w) * d for w, d in zip(weights_of(case), deltas, strict=True)]
    mean = sum(share * x / norm(x) for share, x in zip(shares, turned, strict=True))
    length = sum(share * norm(x) for share, x in zip(shares, turned, strict=True))
    return np.asarray(base - origin + length * mean / norm(np.asarray(mean)))


def stock(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """Model Stock with cosines of at least 0, per tensor or per index of the first axis."""
    count = len(deltas)

    def merged(parts: Sequence[Floats]) -> Floats:
        pairs = [(i, j) for i in range(count) for j in range(i)]
        found = [flat_dot(parts[i], parts[j]) / norm(parts[i]) / norm(parts[j]) for i, j in pairs]
        cosine = max(sum(found) / len(found), 0.0)
        return np.asarray(count * cosine / (1 + (count - 1) * cosine) * sum(parts) / count)

    if not shared(case, "filter_wise") or base.ndim < 2:
        return base + merged(list(deltas))
    return base + np.array([merged(list(deltas[:, row])) for row in range(len(base))])


def calculated(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    """SCE with weights of the mean squares whatever their size; a vote of 0 elects no sign."""
    weights = np.mean(deltas.reshape(len(deltas), -1) ** 2, axis=1)
    sign = np.sign(deltas.sum(axis=0))
    agree = (np.sign(deltas) == sign) & (sign != 0)
    total = np.tensordot(weights, np.where(agree, deltas, 0), 1)
    shares = np.tensordot(weights, agree, 1)
    return base + total / np.where(shares > 0, shares, 1)


def linear_mean(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    return base + deltas.mean(axis=0)


def on_the_line(case: dict[str, Any], base: Floats, deltas: Floats) -> Floats:
    return base + shared(case, "t") * deltas[0]


VALUES: dict[str, Callable[[dict[str, Any], Floats, Floats], Floats]] = {
    "task_arithmetic": mean_by_weight,
    "linear": mean_by_weight,
    "ties": elected,
    "dare_ties": elected,
    "della": elected,
    "breadcrumbs": crumbs,
    "breadcrumbs_ties": crumbs,
    "slerp": on_the_line,
    "nuslerp": two_on_a_sphere,
    "multislerp": mean_direction,
    "karcher": linear_mean,
    "model_stock": stock,
    "sce": calculated,
}


def right_value(case: dict[str, Any], folder: Path) -> Floats:
    """The exact result, all tensors in one row."""
    base_name, *models = ["base", *case["models"]]
    if case["method"] == "slerp":
        base_name, *models = case["models"]
    base = tensors(folder / case["world"] / base_name)
    tuned = [tensors(folder / case["world"] / model) for model in models]
    rows = []
    for name in case.get("tensors", base):
        deltas = np.array([model[name] - base[name] for model in tuned])
        rows.append(VALUES[case["method"]](case, base[name], deltas).reshape(-1))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", WRONG)
def test_where_they_are_wrong_we_are_right(
    name: str,
    recorded: dict[str, NDArray[Any]],
    recorded_worlds: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, theirs = WRONG[name], recorded[name]
    right = narrow(right_value(case, recorded_worlds), theirs)
    away = units(merged(case, recorded_worlds, monkeypatch), right)
    assert away.max() <= 1, f"{case}: {away.max()} units, {(away > 1).sum()} entries"
    least = 2 if theirs.dtype.itemsize == 2 else 100
    assert units(theirs, right).max() >= least, f"{case['wrong']}: no longer"


def moved(
    name: str, recorded: dict[str, NDArray[Any]], recorded_worlds: Path
) -> tuple[Floats, Floats]:
    """What their result adds to the base, and what it should."""
    case = CASES[name]
    base = tensors(recorded_worlds / case["world"] / "base")
    start = np.concatenate([base[part].reshape(-1) for part in base])
    return wide(recorded[name]) - start, right_value(case, recorded_worlds) - start


SIGNED = [name for name, case in WRONG.items() if "sign of a subtracted" in case["wrong"]]


@pytest.mark.parametrize("name", [n for n in SIGNED if shared(WRONG[n], "weight") == [-1]])
def test_they_add_a_model_that_is_to_be_subtracted(
    name: str, recorded: dict[str, NDArray[Any]], recorded_worlds: Path
) -> None:
    theirs, right = moved(name, recorded, recorded_worlds)
    assert flat_dot(theirs, right) / norm(theirs) / norm(right) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in SIGNED if shared(WRONG[n], "weight") == [1, -0.9]])
def test_they_enlarge_what_weights_nearly_cancel(
    name: str, recorded: dict[str, NDArray[Any]], recorded_worlds: Path
) -> None:
    theirs, right = moved(name, recorded, recorded_worlds)
    assert norm(theirs) > 5 * norm(right)


def test_breadcrumbs_without_a_whole_outlier_are_right_in_0_1_5(
    recorded: dict[str, NDArray[Any]], recorded_worlds: Path
) -> None:
    """Older releases, by reading, emptied tensors with gamma * size < 1; this one does not."""
    found = [
        name
        for name, case in RIGHT.items()
        if case["method"] == "breadcrumbs" and shared(case, "gamma") == 0.01
    ]
    assert found
    for name in found:
        theirs, _ = moved(name, recorded, recorded_worlds)
        sizes = [t.size for t in tensors(recorded_worlds / CASES[name]["world"] / "base").values()]
        assert all(0.01 * size < 1 for size in sizes)
        for part in np.split(theirs, np.cumsum(sizes)[:-1]):
            assert np.count_nonzero(part) >= int(0.9 * part.size)


# That nothing is left out

METHODS = {
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
    "della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp",
    "passthrough", "ram", "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties",
}  # fmt: skip
"""All of mergekit 0.1.5."""


def test_every_method_is_recorded_and_agrees_somewhere() -> None:
    for cases in (CASES, RIGHT):
        ran = {case["method"] for case in cases.values() if case["library"] == "mergekit"}
        assert ran == METHODS
    assert {f"{case['library']}/{case['method']}" for case in CASES.values()} == TABLE.keys()
    assert {case["method"] for case in WRONG.values()} == VALUES.keys()


def test_every_method_is_recorded_in_both_dtypes() -> None:
    halves = {case["method"] for case in RIGHT.values() if case["world"].endswith("_half")}
    assert halves >= METHODS


def test_what_is_recorded_is_finite_and_small(recorded: dict[str, NDArray[Any]]) -> None:
    for name in CASES:
        assert np.isfinite(wide(recorded[name])).all(), name
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


def test_random_methods_are_recorded_with_masks(recorded: dict[str, NDArray[Any]]) -> None:
    drawn = {name for name, case in CASES.items() if case.get("seed")}
    assert drawn == {name.partition("/")[2] for name in recorded if name.startswith("masks/")}
    for name in drawn:
        kept = np.unpackbits(recorded[f"masks/{name}"], axis=1)
        assert kept.any(axis=1).all(), name
        assert not kept.all(axis=1).any(), name
