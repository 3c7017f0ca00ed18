"""The algebra that is checked before a byte is read.

    weights - weights = delta      delta + delta = delta      mask * delta   = delta
    weights + delta   = weights    delta - delta = delta      number * delta = delta
    weights - delta   = weights    - delta       = delta      delta / number = delta

Scores become masks by a rule, never by arithmetic. Anything else is a :class:`SpaceError`
naming both sides.
"""

from __future__ import annotations

from typing import Literal

from taskbasis.errors import SpaceError

Space = Literal["weights", "delta", "mask", "score", "number"]
Operator = Literal["+", "-", "*", "/"]

_TABLE: dict[tuple[str, str, str], Space] = {
    ("weights", "-", "weights"): "delta",
    ("weights", "+", "delta"): "weights",
    ("weights", "-", "delta"): "weights",
    ("delta", "+", "weights"): "weights",
    ("delta", "+", "delta"): "delta",
    ("delta", "-", "delta"): "delta",
    ("number", "*", "delta"): "delta",
    ("delta", "*", "number"): "delta",
    ("delta", "/", "number"): "delta",
    ("mask", "*", "delta"): "delta",
    ("delta", "*", "mask"): "delta",
    ("mask", "*", "mask"): "mask",
}

_ADVICE: dict[tuple[str, str, str], str] = {
    ("weights", "+", "weights"): "take the difference of one to a base first, then add that",
    ("number", "*", "weights"): "scale a task vector (tuned - base), not a model",
    ("weights", "*", "number"): "scale a task vector (tuned - base), not a model",
    ("weights", "/", "number"): "scale a task vector (tuned - base), not a model",
    ("delta", "-", "weights"): "subtract the task vector from the weights instead",
    ("delta", "*", "delta"): "only numbers and masks multiply a task vector",
}


def combine(
    left: Space, operator: Operator, right: Space, left_name: str = "", right_name: str = ""
) -> Space:
    """The space of ``left operator right``.

    Args:
        left, right: the spaces of both sides.
        operator: ``+``, ``-``, ``*`` or ``/``.
        left_name, right_name: what to call the sides in the message, usually their files.

    Raises:
        SpaceError: when the combination has no meaning.

    >>> combine("weights", "-", "weights")
    'delta'
    >>> combine("weights", "+", "weights", "a.safetensors", "b.safetensors")
    Traceback (most recent call last):
        ...
    taskbasis.errors.SpaceError: weights (a.safetensors) + weights (b.safetensors) has no meaning: \
take the difference of one to a base first, then add that
    """
    key = (left, operator, right)
    if key in _TABLE:
        return _TABLE[key]
    sides = [
        f"{space} ({name})" if name else space
        for space, name in ((left, left_name), (right, right_name))
    ]
    advice = _ADVICE.get(key, "see taskbasis.spaces for what combines with what")
    raise SpaceError(f"{sides[0]} {operator} {sides[1]} has no meaning: {advice}")
