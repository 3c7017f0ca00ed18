"""The value of a parameter: scopes, filters and gradients."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import UsageError
from taskbasis.recipes import Location, ModelRef
from taskbasis.recipes.resolving import look_up, resolve
from taskbasis.recipes.schema import Rule
from taskbasis.recipes.theirs import Parameter

UP = "model.layers.1.mlp.up_proj.weight"
WEIGHT = Parameter("weight", float, required=True, each=True)
DENSITY = Parameter("density", float, 0.25, each=True)

numbers = st.floats(-2, 2)


def at(values: tuple[Any, ...], layer: int | None, layers: int) -> Any:
    return resolve((Rule(values),), UP, layer, layers)


@pytest.mark.parametrize(
    ("values", "layer", "layers", "expected"),
    [
        ((0.5,), None, 0, 0.5),
        ((0.5,), 3, 4, 0.5),
        ((0.0, 1.0), 0, 5, 0.0),
        ((0.0, 1.0), 1, 5, 0.25),
        ((0.0, 1.0), 4, 5, 1.0),
        ((0.0, 1.0, 0.0), 2, 5, 1.0),
        ((0.0, 1.0, 0.0), 3, 5, 0.5),
        ((0.0, 0.5, 0.3, 0.7, 1.0), 3, 5, 0.7),
        ((1.0, 0.0), None, 5, 1.0),  # outside the layers: the first value
        ((1.0, 0.5, 0.0), 0, 1, 0.0),  # the only layer: the last value
        ((True, False), 3, 5, True),  # no number is between
        ((True, False), 4, 5, False),
        ((2, 4, 6), 1, 5, 3),
    ],
)
def test_gradients(values: tuple[Any, ...], layer: int | None, layers: int, expected: Any) -> None:
    found = at(values, layer, layers)
    assert found == expected
    assert type(found) is type(expected)


def test_whole_numbers_stay_whole() -> None:
    with pytest.raises(UsageError, match=r"the gradient \[2, 3\] of whole numbers passes 2\.25"):
        at((2, 3), 1, 5)


@given(st.lists(numbers, min_size=1, max_size=6), st.integers(1, 40), st.data())
def test_a_gradient_stays_between_its_values(values: list[float], layers: int, data: Any) -> None:
    layer = data.draw(st.integers(0, layers - 1))
    found = at(tuple(values), layer, layers)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert at(tuple(values), layers - 1, layers) == values[-1]
    if layers > 1:
        assert at(tuple(values), 0, layers) == values[0]


@given(numbers, st.integers(1, 40))
def test_equal_values_are_one_value(value: float, layers: int) -> None:
    for layer in (None, 0, layers - 1):
        assert at((value, value), layer, layers) == pytest.approx(value)


@given(st.integers(2, 9), st.integers(2, 9))
def test_a_line_stays_a_line(points: int, layers: int) -> None:
    """Values on a line, however many, give that line."""
    line = tuple(i / (points - 1) for i in range(points))
    for layer in range(layers):
        assert at(line, layer, layers) == pytest.approx(layer / (layers - 1))


def test_the_first_rule_that_matches_holds() -> None:
    setting = (Rule((1.0,), "mlp"), Rule((2.0,), "up_proj"), Rule((3.0,)))
    assert resolve(setting, UP, None, 0) == 1.0
    assert resolve(setting, "x.up_proj", None, 0) == 2.0
    assert resolve(setting, "norm", None, 0) == 3.0
    assert resolve(setting[:2], "norm", None, 0) is None


def test_a_filter_is_a_plain_part_of_the_name() -> None:
    assert resolve((Rule((1.0,), "layers.1."),), UP, None, 0) == 1.0
    assert resolve((Rule((1.0,), "layers.?"),), UP, None, 0) is None
    assert resolve((Rule((1.0,), "MLP"),), UP, None, 0) is None


def test_the_closest_scope_that_matches_holds() -> None:
    near, far = {"weight": (Rule((1.0,), "attn"),)}, {"weight": (Rule((2.0,)),)}
    assert look_up(WEIGHT, (near, {}, far), UP, None, 0) == 2.0
    assert look_up(WEIGHT, (near, {}, far), "attn", None, 0) == 1.0
    assert look_up(WEIGHT, (far, near), "attn", None, 0) == 2.0


def test_defaults_hold_where_nothing_matches() -> None:
    assert look_up(DENSITY, ({}, {}), UP, 0, 1) == 0.25
    assert look_up(DENSITY, ({"density": (Rule((1.0,), "attn"),)},), UP, 0, 1) == 0.25
    assert look_up(DENSITY, ({"density": (Rule((0.0,)),)},), UP, 0, 1) == 0.0


def test_what_is_required_and_missing_is_named() -> None:
    scopes = ({"weight": (Rule((1.0,), "attn"),)},)
    with pytest.raises(UsageError) as caught:
        look_up(WEIGHT, scopes, UP, 0, 1, ModelRef(Location("org/a")))
    assert str(caught.value) == (
        f"no rule gives the weight of org/a for tensor {UP!r}; "
        "add a value without a filter at the end"
    )
    with pytest.raises(UsageError, match="no rule gives the weight for tensor"):
        look_up(WEIGHT, scopes, UP, 0, 1)
