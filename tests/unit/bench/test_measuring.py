"""Choosing on validation, testing once: a toy whose best scale and density are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from taskbasis.bench.contenders import Contender, Recipe
from taskbasis.bench.measuring import Yard, add, forget
from taskbasis.evaluate import Effort, Task

EFFORT = Effort((0.0, 0.2, 0.4, 0.6, 1.0), (0.0, 0.25, 0.5, 1.0))


class Toy:
    """A lab of two numbers: the scale and the density that a model was made with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []
        self.built: list[tuple[Any, float, tuple[str, ...]]] = []
        self.names = ("a", "b")
        self.engine = None
        best = {"validation": (0.4, 0.3), "test": (0.6, 0.1)}  # test has its best elsewhere

        def score(name: str) -> Any:
            def of(model: Any, split: str) -> float:
                self.asked.append((split, name, float(model["scale"])))
                scale, density = best[split]
                off = abs(float(model["scale"]) - scale) + abs(float(model["density"]) - density)
                return 1 - off / 2

            return of

        def kept(model: Any, split: str) -> float:
            return 1 - 0.1 * float(model["scale"]) ** 2

        tasks = [Task(name, score(name)) for name in self.names]
        toy = self

        class World:
            pass

        world = World()
        world.tasks = tasks  # type: ignore[attr-defined]
        world.kept = lambda name: Task(f"not-{name}", kept)  # type: ignore[attr-defined]
        self.world = world
        del toy

    def model(self, density: float | None, scale: float) -> dict[str, Any]:
        return {"scale": np.float64(scale), "density": np.float64(density or 0.3)}

    def merged(
        self, recipe: Any, density: Any, scale: float, names: Sequence[str], of: str | None = None
    ) -> Any:
        self.built.append((density, scale, (of,) if of else tuple(names)))
        toy = self

        class Edited:
            def tensors(self, engine: Any) -> Any:
                return toy.model(density, abs(scale))

        return Edited()

    def line(self, recipe: Any, density: Any, names: Sequence[str]) -> Any:
        return lambda scale: self.model(density, abs(scale))

    def task(self, name: str) -> Task:
        tasks: list[Task] = self.world.tasks  # type: ignore[attr-defined]
        return tasks[self.names.index(name)]


@pytest.fixture
def yard() -> Yard:
    ones = {split: {"a": 1.0, "b": 1.0} for split in ("validation", "test")}
    return Yard(ones, ones, ones)


def test_nothing_is_chosen_for_an_untuned_contender(yard: Yard) -> None:
    toy = Toy()
    found = add(toy, Contender("x", "x", Recipe(), 0.3), yard, EFFORT)  # type: ignore[arg-type]
    assert {split for split, _, _ in toy.asked} == {"test"}
    assert found["scale"] == 0.3
    assert found["test"] == {"a": pytest.approx(0.75), "b": pytest.approx(0.75)}
    assert "validation" not in found


def test_a_model_per_task_is_asked_for_that_task_alone(yard: Yard) -> None:
    toy = Toy()
    recipe = Recipe("emr", per_task=True)
    found = add(toy, Contender("x", "x", recipe, 0.4), yard, EFFORT)  # type: ignore[arg-type]
    assert toy.asked == [("test", "a", 0.4), ("test", "b", 0.4)]
    assert [names for _, _, names in toy.built] == [("a",), ("b",)]
    assert set(found["test"]) == {"a", "b"}


def test_scale_and_density_are_chosen_on_validation_and_tested_once(yard: Yard) -> None:
    toy = Toy()
    contender = Contender("x", "x", Recipe(), None, (0.1, 0.3, 0.5))
    found = add(toy, contender, yard, EFFORT)  # type: ignore[arg-type]
    assert (found["scale"], found["density"]) == (0.4, 0.3)
    assert found["validation"] == pytest.approx(1)
    assert found["test"]["a"] == pytest.approx(0.8)
    tested = [asked for asked in toy.asked if asked[0] == "test"]
    assert tested == [("test", "a", 0.4), ("test", "b", 0.4)]
    assert toy.asked.index(tested[0]) == len(toy.asked) - 2  # after every search
    assert toy.built == [(0.3, 0.4, ("a", "b"))]
    assert [scale for scale, _ in found["curve"]["0.1"]] == list(EFFORT.grid)


def test_a_density_can_be_chosen_at_a_fixed_scale(yard: Yard) -> None:
    toy = Toy()
    contender = Contender("x", "x", Recipe(), 1.0, (0.5, 0.3, 0.1))
    found = add(toy, contender, yard, EFFORT)  # type: ignore[arg-type]
    assert (found["scale"], found["density"]) == (1.0, 0.3)
    assert all([scale for scale, _ in points] == [1.0] for points in found["curve"].values())


def test_forgetting_goes_as_far_as_the_control_allows(yard: Yard) -> None:
    """The toy's control falls by 0.1 s^2: scale 0.5 keeps 97.5 %, scale 1 only 90 %."""
    toy = Toy()

    def falling(name: str) -> Task:
        return Task(name, lambda model, split: 1 - 0.5 * float(model["scale"]))

    toy.world.tasks = [falling("a"), falling("b")]  # type: ignore[attr-defined]
    contender = Contender("x", "x", Recipe(), forgets=(0.1, 0.3))
    found = forget(toy, contender, yard, EFFORT)  # type: ignore[arg-type]
    assert set(found) == {"a", "b"}
    assert found["a"] == {
        "scale": 0.5, "density": 0.1, "target": pytest.approx(0.75),
        "control": pytest.approx(0.975),
    }  # fmt: skip
    assert toy.built == [(0.1, -0.5, ("a",)), (0.1, -0.5, ("b",))]
