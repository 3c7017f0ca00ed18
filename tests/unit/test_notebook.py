"""What notebooks show: well-formed, escaped, and with the numbers that the value holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis import (
    Basis,
    Checkpoint,
    Design,
    Task,
    TaskVector,
    fit,
    merge,
    method,
    search_addition,
)
from taskbasis.diagnosis import diagnose
from taskbasis.evaluate import search_forgetting
from taskbasis.notebook import MOST, facts, listed, table, together
from taskbasis.report import Report, Row

HOSTILE = "<script>alert('x')</script>&\x1b[2J\u202e\"\ud800"


def tree(value: Any) -> ElementTree.Element:
    """The value's representation, parsed strictly."""
    text = value if isinstance(value, str) else value._repr_html_()
    text.encode()  # a lone surrogate could not be sent to the browser
    return ElementTree.fromstring(text)


def cells(value: Any) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in tree(value).iter("tr")]


def caption(value: Any) -> str:
    found = next(tree(value).iter("caption"))
    return found.text or ""


@pytest.fixture
def world(tiny_checkpoints: Path) -> tuple[Checkpoint, TaskVector, TaskVector]:
    base = Checkpoint(tiny_checkpoints / "base")
    return base, *(TaskVector(base, tiny_checkpoints / name) for name in ("math", "code"))  # type: ignore[return-value]


def test_a_checkpoint_counts_its_tensors_by_type(world: Any) -> None:
    base = world[0]
    assert caption(base) == f"checkpoint {base.path}"
    assert cells(base) == [
        ["dtype", "tensors", "numbers", "size"],
        ["float32", "2", "6", "24 B"],
        ["int64", "1", "1", "8 B"],
    ]


def test_a_vector_lists_its_terms(world: Any) -> None:
    base, math, code = world
    shown = cells(math - 0.5 * code)
    assert [row[1:] for row in shown] == [["coefficient", "tensors"], ["1", "2"], ["-0.5", "2"]]
    assert shown[2][0].endswith("code")
    assert caption(math) == f"task vector of {base.path}"


def test_an_edited_model_shows_its_recipe(world: Any) -> None:
    base, math, code = world
    shown = dict(cells(merge(base, [math, code], method("ties", density=0.3), 0.7)))
    assert shown["method"] == "ties"
    assert shown["scale"] == "0.7"
    assert "density: 0.3" in shown["options"]
    assert "weights" not in shown
    assert "math" in shown["vectors"]


def test_what_was_saved_shows_its_rules_and_rounding(world: Any, tmp_path: Path) -> None:
    base, math, _ = world
    saved = (base + math).save(tmp_path / "out")
    shown = dict(cells(saved))
    assert caption(saved) == f"wrote {tmp_path / 'out'}"
    assert (shown["tensors merged"], shown["tensors copied"]) == ("2", "1")
    assert shown["size"] == "32 B"
    assert float(shown["norm of the delta"]) == pytest.approx(saved.norm, rel=1e-5)
    assert shown["lost to rounding"] == "0.000%"


def test_a_basis_shows_what_each_task_loses(world: Any, tmp_path: Path) -> None:
    fit({"math": world[1], "code": world[2]}, tmp_path / "lib.safetensors", Design(k=1))
    found = Basis.open(tmp_path / "lib.safetensors")
    assert "2 tasks in 1 atom" in caption(found)
    shown = cells(found)
    assert shown[0] == ["task", "norm", "relative error"]
    assert [row[0] for row in shown[1:]] == ["math", "code"]
    assert float(shown[1][2]) == pytest.approx(found.errors["math"], rel=1e-5)


def test_a_diagnosis_shows_sentences_and_cosines(world: Any) -> None:
    base, math, code = world
    found = diagnose({"math": math, "code": code}, base)
    shown = tree(found)
    said = [item.text for item in shown.iter("li")]
    assert said == list(found.sentences or ("nothing looks wrong",))
    rows = cells(found)
    assert ["", "math", "code"] in rows
    cosine = next(row for row in rows if row[0] == "math" and row[1] == "1")[2]
    assert float(cosine) == pytest.approx(found.pairs.cosines[0][1], rel=1e-5)


def test_a_report_and_a_search_show_their_tables() -> None:
    report = Report([Row("a | <b>", 10, "accuracy", 0.5, 1, 0, "test")])
    header, line = cells(report)
    assert header == ["method", "storage", "n", "accuracy"]
    assert line == ["a | <b>", "10 B", "1", "0.500"]
    assert caption(report).startswith("Split: test")
    task = Task("t<", lambda model, split: float(model["s"]))
    choice = search_addition(lambda s: {"s": np.float64(s)}, [task], {"t<": 1.0}, [0.25, 0.5])
    assert caption(choice) == "scale 0.5, chosen on validation (objective 0.5000)"
    assert cells(choice) == [
        ["scale", "objective", "feasible", "t<"],
        ["0.25", "0.25", "yes", "0.25"],
        ["0.5", "0.5", "yes", "0.5"],
    ]


def test_forgetting_shows_its_grid() -> None:
    target = Task("t", lambda model, split: 1 - float(model["s"]))
    control = Task("c", lambda model, split: 1 - 0.2 * float(model["s"]))
    found = search_forgetting(
        lambda density, scale: {"s": np.float64(density * scale)},
        target, [control], {"c": 1.0}, densities=[0.5], scales=[0.25, 1.0],
    )  # fmt: skip
    assert caption(found) == "forgetting t: density 0.5, scale 0.25, chosen on validation"
    shown = cells(found)
    assert shown[0] == ["density", "scale", "t", "c", "feasible"]
    assert shown[-1] == ["0.5", "1", "0.5", "0.9", "no"]
    assert len(shown) == 1 + len(found.points)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    save_file({"w": np.zeros(2, np.float32)}, folder / "base.safetensors")
    save_file({"w": np.ones(2, np.float32)}, folder / "tuned.safetensors")
    base = Checkpoint(folder / "base.safetensors")
    vector = TaskVector(base, folder / "tuned.safetensors")
    for value in (base, vector, base + vector, diagnose([vector], base)):
        assert "<img" not in value._repr_html_()
        assert "<img" in "".join(tree(value).itertext()) or "nothing" in value._repr_html_()


@pytest.mark.parametrize("make", [
    lambda: table(HOSTILE, [HOSTILE], [[HOSTILE]]),
    lambda: facts(HOSTILE, {HOSTILE: {HOSTILE: [HOSTILE]}}),
    lambda: listed(HOSTILE, [HOSTILE]),
    lambda: together(table(HOSTILE, [], []), listed(HOSTILE, [])),
])  # fmt: skip
def test_nothing_hostile_gets_through(make: Any) -> None:
    text = make()
    found = tree(text)
    assert not list(found.iter("script"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert('x')</script>&\\x1b[2J" in "".join(found.itertext())


def test_long_tables_and_cells_are_cut_and_say_so() -> None:
    shown = cells(table("t", ["n"], [[n] for n in range(MOST + 7)]))
    assert len(shown) == 1 + MOST + 1
    assert shown[-1] == ["... and 7 more"]
    assert len(cells(facts("t", {"long": "x" * 5000}))[0][1]) == 303


def test_empty_facts_are_left_out() -> None:
    found = cells(facts("t", {"a": 0, "b": (), "c": None, "d": 0.5, "e": False}))
    assert found == [["a", "0"], ["d", "0.5"], ["e", "False"]]
