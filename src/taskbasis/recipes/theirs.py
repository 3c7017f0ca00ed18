"""mergekit's methods as its release 0.1.5 has them: parameters, and the models they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BasePolicy = Literal["required", "optional", "ignored"]
"""Whether a method needs a base model among its inputs, may have one, or takes it for one more."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        name: as recipes write it.
        kind: bool, int or float.
        default: what holds where a recipe says nothing; None where it must say (``required``).
        each: every model has its own; else all models share one.
        of_base: with ``each``, the base model has one, too.
        least, most: the range, both ends allowed but where ``open_least`` or ``open_most``.
    """

    name: str
    kind: type
    default: Any = None
    required: bool = False
    each: bool = False
    of_base: bool = False
    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False

    def range_text(self) -> str:
        """The range in words, for a message; empty where any finite number does.

        >>> THEIRS["ties"].parameters["density"].range_text()
        'use a number in [0, 1]'
        """
        if self.least == -math.inf and self.most == math.inf:
            return ""
        if self.most == math.inf:
            return f"use a number {'above' if self.open_least else 'of at least'} {self.least:g}"
        ends = "(" if self.open_least else "[", ")" if self.open_most else "]"
        return f"use a number in {ends[0]}{self.least:g}, {self.most:g}{ends[1]}"

    def holds(self, value: float) -> bool:
        """Whether a number is finite and in the range."""
        above = value > self.least if self.open_least else value >= self.least
        below = value < self.most if self.open_most else value <= self.most
        return math.isfinite(value) and above and below


@dataclass(frozen=True)
class Theirs:
    """A method of mergekit's.

    Attributes:
        base: whether it takes a base model.
        inputs: least and most models, the base counted (None: any number).
        others: least and most models beside the base.
        parameters: by name.
    """

    name: str
    base: BasePolicy
    parameters: Mapping[str, Parameter]
    inputs: tuple[int, int | None] = (1, None)
    others: tuple[int, int | None] = (0, None)

    def has_own(self, parameter: Parameter, is_base: bool) -> bool:
        """Whether a model has a value of its own of a parameter."""
        return parameter.each and (parameter.of_base or not is_base or self.base == "ignored")


def _method(
    name: str,
    base: BasePolicy,
    *parameters: Parameter,
    inputs: tuple[int, int | None] = (1, None),
    others: tuple[int, int | None] = (0, None),
) -> Theirs:
    return Theirs(name, base, {p.name: p for p in parameters}, inputs, others)


_WEIGHT = Parameter("weight", float, required=True, each=True)
_INT8_MASK = Parameter("int8_mask", bool, False)


def _arithmetic(name: str, normalize: bool, rescale: bool, *more: Parameter) -> Theirs:
    """One of the methods that sparsify deltas, weigh them and sum or elect."""
    return _method(
        name,
        "required",
        _INT8_MASK,
        Parameter("normalize", bool, normalize),
        Parameter("rescale", bool, rescale),
        Parameter("lambda", float, 1.0),
        _WEIGHT,
        Parameter("density", float, 1.0, each=True, least=0, most=1),
        *more,
    )


_GAMMA = Parameter("gamma", float, 0.01, each=True, least=0, most=1, open_most=True)
_EPSILON = Parameter("epsilon", float, 0.15, each=True, least=0, most=0.5, open_most=True)
_CHANGE = Parameter("epsilon", float, 1e-5, least=0)

THEIRS: Mapping[str, Theirs] = {
    method.name: method
    for method in (
        _method("arcee_fusion", "required", inputs=(2, 2)),
        _arithmetic("breadcrumbs", False, False, _GAMMA),
        _arithmetic("breadcrumbs_ties", False, False, _GAMMA),
        _arithmetic("dare_linear", False, True),
        _arithmetic("dare_ties", False, True),
        _arithmetic("della", True, True, _EPSILON),
        _arithmetic("della_linear", False, True, _EPSILON),
        _method(
            "karcher",
            "ignored",
            Parameter("max_iter", int, 10, least=0),
            Parameter("tol", float, 1e-5, least=0, open_least=True),
        ),
        _method(
            "linear",
            "ignored",
            Parameter("weight", float, required=True, each=True, of_base=True),
            Parameter("normalize", bool, True),
        ),
        _method("model_stock", "required", Parameter("filter_wise", bool, False), inputs=(3, None)),
        _method(
            "multislerp",
            "optional",
            _WEIGHT,
            Parameter("normalize_weights", bool, True),
            Parameter("eps", float, 1e-8, least=0),
            others=(1, None),
        ),
        _method(
            "nearswap",
            "required",
            Parameter("t", float, required=True, least=0, open_least=True),
            inputs=(2, 2),
        ),
        _method(
            "nuslerp",
            "optional",
            _WEIGHT,
            Parameter("nuslerp_row_wise", bool, False),
            Parameter("nuslerp_flatten", bool, True),
            others=(2, 2),
        ),
        _method(
            "passthrough",
            "ignored",
            Parameter("scale", float, each=True, of_base=True),
            inputs=(1, 1),
        ),
        _method("ram", "required", _CHANGE),
        _method(
            "ramplus_tl",
            "required",
            Parameter("r", float, 0.1, least=0),
            Parameter("alpha", float, 0.2, least=0),
            _CHANGE,
        ),
        _method(
            "sce",
            "required",
            _INT8_MASK,
            Parameter("select_topk", float, 1.0, least=0, most=1, open_least=True),
        ),
        _method(
            "slerp",
            "required",
            Parameter("t", float, required=True, least=0, most=1),
            inputs=(2, 2),
        ),
        _arithmetic("task_arithmetic", False, False),
        _arithmetic("ties", True, False),
    )
}
"""By name. Names, defaults, scopes and numbers of inputs are facts of mergekit 0.1.5; ranges are
what the numbers can mean, which it does not check."""

ALL_PARAMETERS = sorted({name for method in THEIRS.values() for name in method.parameters})
