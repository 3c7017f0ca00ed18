"""The value of a parameter for one tensor: scopes, filters and gradients."""

from __future__ import annotations

from taskbasis.errors import UsageError
from taskbasis.recipes.schema import ModelRef, Setting, Settings, Value
from taskbasis.recipes.theirs import Parameter


def resolve(setting: Setting, tensor: str, layer: int | None, layers: int) -> Value | None:
    """The value that a setting has for a tensor; None where no rule matches.

    A gradient is piecewise linear over the layers: layer i of n takes it at ``i / (n - 1)``, the
    only layer of one at its end, and tensors outside the layers at its beginning. Words and
    booleans change where a number would reach the next.

    Args:
        tensor: its name, which filters are looked for in.
        layer: its layer, from 0; None: it belongs to none.
        layers: how many there are.

    >>> from taskbasis.recipes.schema import Rule
    >>> resolve((Rule((0.0, 1.0, 0.0), "mlp"), Rule((0.5,))), "layers.1.mlp.w", 1, 5)
    0.5
    """
    for rule in setting:
        if rule.matches(tensor):
            return _along(rule.values, layer, layers)
    return None


def _along(values: tuple[Value, ...], layer: int | None, layers: int) -> Value:
    t = 0.0 if layer is None else 1.0 if layers == 1 else layer / (layers - 1)
    place = t * (len(values) - 1)
    first = int(place)
    if any(isinstance(value, bool) for value in values):
        return values[first]
    share = place - first
    found = (1 - share) * values[first] + share * values[min(first + 1, len(values) - 1)]
    if all(isinstance(value, int) for value in values):
        if found != int(found):
            raise UsageError(f"the gradient {list(values)} of whole numbers passes {found:g}")
        return int(found)
    return found


def look_up(
    parameter: Parameter,
    scopes: tuple[Settings, ...],
    tensor: str,
    layer: int | None,
    layers: int,
    model: ModelRef | None = None,
) -> Value | None:
    """A parameter's value for a tensor: the first scope whose setting matches, or the default.

    Raises:
        UsageError: it is required, and nothing matches.
    """
    for scope in scopes:
        if parameter.name in scope:
            value = resolve(scope[parameter.name], tensor, layer, layers)
            if value is not None:
                return value
    if parameter.required:
        whose = f" of {model}" if model is not None else ""
        raise UsageError(
            f"no rule gives the {parameter.name}{whose} for tensor {tensor!r}; "
            "add a value without a filter at the end"
        )
    default: Value | None = parameter.default
    return default
