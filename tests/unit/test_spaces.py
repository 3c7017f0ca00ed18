"""The algebra of spaces: everything that is allowed, and nothing else."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from taskbasis.errors import SpaceError
from taskbasis.spaces import Operator, Space, combine

ALLOWED = {
    "weights - weights": "delta",
    "weights + delta": "weights",
    "weights - delta": "weights",
    "delta + weights": "weights",
    "delta + delta": "delta",
    "delta - delta": "delta",
    "number * delta": "delta",
    "delta * number": "delta",
    "delta / number": "delta",
    "mask * delta": "delta",
    "delta * mask": "delta",
    "mask * mask": "mask",
}


@pytest.mark.parametrize(
    ("left", "operator", "right"),
    list(itertools.product(get_args(Space), get_args(Operator), get_args(Space))),
)
def test_every_combination(left: Space, operator: Operator, right: Space) -> None:
    expected = ALLOWED.get(f"{left} {operator} {right}")
    if expected is not None:
        assert combine(left, operator, right, "a", "b") == expected
        return
    with pytest.raises(SpaceError) as caught:
        combine(left, operator, right, "one.safetensors", "two.safetensors")
    message = str(caught.value)
    assert message.startswith(f"{left} (one.safetensors) {operator} {right} (two.safetensors) ")
    assert "has no meaning: " in message
    assert caught.value.exit_code == 1


def test_sides_without_names() -> None:
    with pytest.raises(SpaceError, match=r"^score \* weights has no meaning: "):
        combine("score", "*", "weights")


@pytest.mark.parametrize(
    ("left", "operator", "right", "advice"),
    [
        ("weights", "+", "weights", "take the difference of one to a base first"),
        ("number", "*", "weights", "scale a task vector"),
        ("delta", "-", "weights", "subtract the task vector from the weights instead"),
        ("delta", "*", "delta", "only numbers and masks multiply"),
        ("score", "+", "delta", "see taskbasis.spaces"),
    ],
)
def test_advice(left: Space, operator: Operator, right: Space, advice: str) -> None:
    with pytest.raises(SpaceError, match=advice):
        combine(left, operator, right)
