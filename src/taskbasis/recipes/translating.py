"""mergekit's merges in our words: which method, with what options, weights and scale.

Where mergekit 0.1.5 is known to be wrong the right value is kept, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskbasis.errors import UsageError
from taskbasis.methods import Method, method
from taskbasis.recipes.planning import Input, Names, Wanted, plan
from taskbasis.recipes.schema import Document, ModelRef
from taskbasis.recipes.theirs import THEIRS

Options = tuple[tuple[str, Any], ...]

_SIGNED = (
    "weights of both signs: mergekit divides by their signed sum, which turns a subtracted vector "
    "round or enlarges the result; here it is the sum of their sizes"
)
_NEGATIVE = (
    "a negative weight: mergekit divides by the signed sum of the weights, so that the vector is "
    "added; here it is subtracted"
)
_FILTERS = (
    "filter_wise: mergekit takes the last axis alone for a filter, which of a convolution it is "
    "not; here a filter is everything under one index of the first"
)
_DIFFERENT: Mapping[str, tuple[str, ...]] = {
    "model_stock": (
        "model_stock: where updates point apart mergekit steps away from the models, and it takes "
        "small updates for unrelated; here the base stays, and small updates count like others",
    ),
    "sce": (
        "sce: mergekit weighs all models alike where their mean squares sum to less than 1e-6, as "
        "those of language models do; here each has the weight of its mean square",
    ),
}
"""What differs with the numbers, not with the recipe, so it is always said."""

_STILL = (
    "nuslerp: where one model equals the base mergekit adds sin(t pi / 2) of the other's update; "
    "here it is the share t",
)

_TINY = 1e-6


@dataclass(frozen=True)
class Step:
    """``base + scale * method(weights * vectors)``: our merge, of one tensor or of many.

    Attributes:
        method, options: ours; :meth:`build` makes it.
        base: what the vectors are taken from and added to. Methods of mergekit's without a base
            model get one of the models, on which their result does not depend.
        models: whose vectors; the base itself may be among them, with a vector of zeros.
        weights: one for each, never 0.
        scale: lambda.
        notes: what differs from mergekit, a sentence each.
    """

    method: str
    options: Options
    base: ModelRef
    models: tuple[ModelRef, ...]
    weights: tuple[float, ...]
    scale: float = 1.0
    notes: tuple[str, ...] = field(default=(), compare=False)

    def build(self) -> Method:
        """The method.

        Raises:
            UsageError: it cannot be had with these options.
        """
        return method(self.method, **dict(self.options))


@dataclass(frozen=True)
class Translation:
    """A whole recipe in our words.

    Attributes:
        wanted: for every tensor of the output where it comes from.
        steps: for every tensor of the output how it is merged; few differ where a recipe has
            neither gradients nor filters.
        notes: what differs from mergekit, each once.
    """

    wanted: Mapping[str, Wanted]
    steps: Mapping[str, Step]
    notes: tuple[str, ...]

    def grouped(self) -> dict[Step, list[str]]:
        """The tensors that share each step."""
        found: dict[Step, list[str]] = {}
        for name, step in self.steps.items():
            found.setdefault(step, []).append(name)
        return found


def translate(document: Document, names: Names, seed: int = 0) -> Translation:
    """A recipe in our words, tensor by tensor.

    Args:
        names: of the tensors of all models that it names.
        seed: of methods that draw at random.

    Raises:
        UsageError, MismatchError: as for :func:`taskbasis.recipes.planning.plan`, or a step has
            no meaning (the message names the tensor).
    """
    wanted = plan(document, names)
    steps, known, notes = {}, {}, {}
    for name, one in wanted.items():
        key = _key(one)
        if key not in known:
            try:
                known[key] = translate_tensor(one, seed)
                known[key].build()
            except UsageError as error:
                raise UsageError(f"{one.method}, tensor {name!r}: {error}") from None
        steps[name] = known[key]
        notes.update(dict.fromkeys(steps[name].notes))
    return Translation(wanted, steps, tuple(notes))


def _key(wanted: Wanted) -> tuple[Any, ...]:
    """What a step depends on."""
    inputs = tuple((one.model, *one.values.items()) for one in wanted.inputs)
    return (wanted.method, wanted.base, inputs, *wanted.shared.items())


def translate_tensor(wanted: Wanted, seed: int = 0) -> Step:
    """How we merge one tensor.

    Raises:
        UsageError: mergekit has no sensible value for it, or we cannot give it.
    """
    base = wanted.base
    models = list(wanted.inputs)
    if THEIRS[wanted.method].base != "ignored":
        models = [one for one in models if one.model != base]
    if not models:
        assert base is not None
        return _unchanged(base)
    return _TABLE[wanted.method](wanted, models, base, seed)


def _unchanged(model: ModelRef, onto: ModelRef | None = None) -> Step:
    """A model as it is."""
    return Step("passthrough", (), onto or model, (model,), (1.0,))


Rule = Callable[[Wanted, list[Input], "ModelRef | None", int], Step]


def _weights(models: Sequence[Input]) -> list[float]:
    return [float(one.values["weight"] or 0) for one in models]


def _refs(models: Sequence[Input]) -> tuple[ModelRef, ...]:
    return tuple(one.model for one in models)


def _plain(name: str, **fixed: Any) -> Rule:
    """A method without weights, whose parameters are ours by the same names."""

    def rule(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
        given = {key: value for key, value in wanted.shared.items() if key != "int8_mask"}
        options = tuple({**given, **fixed}.items())
        notes = _DIFFERENT.get(name, ())
        if given.get("filter_wise"):
            notes += (_FILTERS,)
        ones = (1.0,) * len(models)
        return Step(name, options, base or models[0].model, _refs(models), ones, 1.0, notes)

    return rule


def _arithmetic(name: str, *options: str, elects: bool = False, **fixed: Any) -> Rule:
    """A method that sparsifies deltas, weighs them and sums or elects.

    Args:
        options: parameters that are ours, too.
        elects: it divides entry by entry, by those who agree.
        fixed: options that say whose function is meant.
    """

    def rule(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
        assert base is not None
        shared = wanted.shared
        trims = "density" in options
        kept = [
            one for one in models if one.values["weight"] and (one.values["density"] or not trims)
        ]
        normalize = bool(shared["normalize"])
        if (
            normalize
            and not elects
            and any(one.values["weight"] for one in models if one not in kept)
        ):
            raise UsageError("a density of 0 keeps nothing of a vector whose weight still counts")
        scale = float(shared["lambda"] or 0)
        if not kept or not scale:
            return _unchanged(base)
        drops = trims and any(one.values["density"] != 1 for one in kept)
        if drops and shared["rescale"] and "rescale" not in options:
            raise UsageError(f"rescale: true is not available in {name}; leave it out")
        found: dict[str, Any] = dict(fixed, normalize=normalize)
        if "seed" in options:
            found["seed"] = seed
        if "rescale" in options:
            found["rescale"] = bool(shared["rescale"])
        for key in ("density", "gamma"):
            if key in options:
                found[key] = _together([one.values[key] for one in kept])
        if "epsilon" in options:
            found["epsilon"] = _one_epsilon(kept)
        weights = tuple(_weights(kept))
        notes = _sign_notes(weights) if normalize else ()
        return Step(name, tuple(found.items()), base, _refs(kept), weights, scale, notes)

    return rule


def _together(values: list[Any]) -> Any:
    """One number where all are equal, else one for each."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _one_epsilon(kept: Sequence[Input]) -> float:
    found = {one.values["epsilon"] for one in kept if one.values["density"] != 1}
    if len(found) > 1:
        shown = ", ".join(f"{value}" for value in found)
        raise UsageError(f"epsilon differs between the models ({shown}); use one for all")
    return float(next(iter(found), 0.0) or 0.0)


def _sign_notes(weights: Sequence[float]) -> tuple[str, ...]:
    if min(weights) >= 0:
        return ()
    return (_SIGNED,) if max(weights) > 0 else (_NEGATIVE,)


def _linear(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
    """The mean of models by weight, or their sum.

    Without a base model there is nothing to subtract from: weights of both signs then go beyond
    the models, along the line through them, as in mergekit.
    """
    kept = [one for one in models if one.values["weight"]]
    if not kept:
        raise UsageError("all weights are 0, which leaves nothing; give one model another weight")
    weights, origin = _weights(kept), base or kept[0].model
    if not wanted.shared["normalize"]:
        options: Options = (("normalize", False),)
        return Step("linear", options, origin, _refs(kept), tuple(weights))
    if base is not None or min(weights) > 0:
        notes = _sign_notes(weights)
        return Step("linear", (), origin, _refs(kept), tuple(weights), 1.0, notes)
    total = sum(weights)
    if abs(total) <= _TINY * sum(map(abs, weights)):
        raise UsageError(
            f"weights {weights} cancel, and their mean has no meaning; "
            "to subtract a model, use task_arithmetic with a base_model"
        )
    shares = tuple(weight / total for weight in weights)
    return Step("linear", (("normalize", False),), origin, _refs(kept), shares)


def _passthrough(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
    scale = models[0].values["scale"]
    options = () if scale is None else (("scale", float(scale)),)
    return Step("passthrough", options, models[0].model, _refs(models), (1.0,))


def _on_sphere(models: list[Input], base: ModelRef | None) -> tuple[list[Input], str]:
    """The models whose weights are not 0, and the space they are in."""
    kept = [one for one in models if one.values["weight"]]
    if not kept:
        raise UsageError("all weights are 0, which prefers no model; give one another weight")
    if base is None and min(_weights(kept)) < 0:
        raise UsageError("a negative weight subtracts from a base; give base_model, too")
    return kept, "weights" if base is None else "deltas"


def _nuslerp(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
    kept, space = _on_sphere(models, base)
    weights = _weights(kept)
    notes = _sign_notes(weights)
    flat, by_column = wanted.shared["nuslerp_flatten"], wanted.shared["nuslerp_row_wise"]
    if flat and by_column:
        notes += ("nuslerp_row_wise has no effect unless nuslerp_flatten is false",)
    origin = base or kept[0].model
    if len(kept) == 1:  # the end of the arc
        if weights[0] > 0:
            return _unchanged(kept[0].model, base)
        return Step("task_arithmetic", (), origin, _refs(kept), (-1.0,), 1.0, notes)
    per = "tensor" if flat else "column" if by_column else "row"
    options = (("space", space), ("per", per))
    if space == "deltas":
        notes += _STILL
    return Step("nuslerp", options, origin, _refs(kept), tuple(weights), 1.0, notes)


def _multislerp(wanted: Wanted, models: list[Input], base: ModelRef | None, seed: int) -> Step:
    kept, space = _on_sphere(models, base)
    weights = _weights(kept)
    notes = _sign_notes(weights)
    if wanted.shared["eps"] != 1e-8:
        notes += ("eps has no effect here: nothing is divided by a length that may be 0",)
    scale = 1.0
    if not wanted.shared["normalize_weights"] and len(models) > 1:
        scale = sum(map(abs, weights))
        if base is None and abs(scale - 1) > _TINY:
            raise UsageError(
                f"weights that sum to {scale:g} and are not normalised multiply whole models; "
                "leave normalize_weights out, or let them sum to 1"
            )
    options = (("space", space),)
    origin = base or kept[0].model
    return Step("multislerp", options, origin, _refs(kept), tuple(weights), scale, notes)


_MERGEKIT: Mapping[str, Any] = {"variant": "mergekit"}

_TABLE: Mapping[str, Rule] = {
    "arcee_fusion": _plain("arcee_fusion"),
    "breadcrumbs": _arithmetic("breadcrumbs", "density", "gamma"),
    "breadcrumbs_ties": _arithmetic(
        "breadcrumbs_ties", "density", "gamma", elects=True, **_MERGEKIT
    ),
    "dare_linear": _arithmetic("dare_linear", "density", "rescale", "seed", **_MERGEKIT),
    "dare_ties": _arithmetic("dare_ties", "density", "rescale", "seed", elects=True, **_MERGEKIT),
    "della": _arithmetic(
        "della", "density", "epsilon", "rescale", "seed", elects=True, **_MERGEKIT
    ),
    "della_linear": _arithmetic(
        "della_linear", "density", "epsilon", "rescale", "seed", **_MERGEKIT
    ),
    "karcher": _plain("karcher"),
    "linear": _linear,
    "model_stock": _plain("model_stock"),
    "multislerp": _multislerp,
    "nearswap": _plain("nearswap"),
    "nuslerp": _nuslerp,
    "passthrough": _passthrough,
    "ram": _plain("ram"),
    "ramplus_tl": _plain("ramplus_tl"),
    "sce": _plain("sce"),
    "slerp": _plain("slerp", threshold=0.9995),
    "task_arithmetic": _arithmetic("task_arithmetic"),
    "ties": _arithmetic("ties", "density", elects=True, **_MERGEKIT),
}
