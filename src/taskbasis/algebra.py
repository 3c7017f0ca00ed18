"""What the nouns' operators share: their spaces, and the refusals that name both sides."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from taskbasis import spaces


def space_of(value: object) -> spaces.Space:
    """The space of a noun or a number.

    Raises:
        TypeError: it is neither.
    """
    found = getattr(value, "space", None)
    if found is not None:
        return found  # type: ignore[no-any-return]
    if isinstance(value, Real):
        return "number"
    raise TypeError(f"{type(value).__name__} is neither weights, nor a task vector, nor a number")


def name_of(value: object) -> str:
    """What to call an operand in a message."""
    return "" if isinstance(value, Real) else str(value)


def mismatched(left: object, operator: spaces.Operator, right: object) -> Any:
    """Raise for two sides that do not combine; weights on the right know how to add a delta."""
    spaces.combine(space_of(left), operator, space_of(right), name_of(left), name_of(right))
    return NotImplemented


class Weights:
    """What weights refuse, naming both sides: to be scaled, and to be taken from a number."""

    space: ClassVar[spaces.Space] = "weights"

    def __rsub__(self, other: object) -> Any:
        return mismatched(other, "-", self)

    def __mul__(self, other: object) -> Any:
        return mismatched(self, "*", other)

    def __rmul__(self, other: object) -> Any:
        return mismatched(other, "*", self)

    def __truediv__(self, other: object) -> Any:
        return mismatched(self, "/", other)

    def __rtruediv__(self, other: object) -> Any:
        return mismatched(other, "/", self)
