"""evaluate and search on the command line, with tasks that are one line of NumPy each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis.cli import run

TASKS = """
import numpy as np
from taskbasis import Task

def close(target):
    def score(model, split):
        offset = 0.0 if split == "validation" else 0.25
        return float(1 / (1 + np.abs(model["w"] - target).sum() + offset))
    return score

math = Task("math", close(np.array([1.0, 0.0])))
code = Task("code", close(np.array([0.0, 1.0])))
kept = Task("kept", lambda model, split: float(1 - 0.3 * np.abs(model["w"]).max()))
tasks = [math, code, kept]
uneven = [Task(name, close(np.array([0.9, 0.2]))) for name in ("math", "code")]
"""


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, values in {"base": (0, 0), "math": (1, 0), "code": (0, 1)}.items():
        (tmp_path / name).mkdir()
        tensors = {"w": np.array(values, np.float32)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    (tmp_path / "few_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("few_tasks", None)
    return tmp_path


def test_evaluate_prints_a_number_per_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "base", "math", "--tasks", "few_tasks:tasks"]) == 0
    text = capsys.readouterr().out
    assert "test scores" in text
    assert "0.8000" in text  # math on its own task, on test: 1 / 1.25
    assert run(["evaluate", "math", "--tasks", "few_tasks:tasks", "--split", "validation"]) == 0
    assert "1.0000" in capsys.readouterr().out


def test_search_chooses_on_validation_and_reports_test(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "base", "math", "code", "--tasks", "few_tasks:tasks", "-o", "best"]
    assert run([*arguments, "--grid", "0,0.5,1"]) == 0
    text = capsys.readouterr().out
    # |w - target| sums to 1 for every scale up to 1 when both are added: the first wins.
    assert "scale 0, chosen on validation (objective 0.5000)" in text
    assert "0.4444" in text  # 1 / 2.25, on test
    assert (world / "best" / "model.safetensors").exists()


def test_search_can_forget(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "base", "math", "--tasks", "few_tasks:tasks", "--negate"]
    assert run([*arguments, "--control", "kept", "--grid", "0,0.1,0.2,1", "--keep", "0.95"]) == 0
    assert "scale 0.1" in capsys.readouterr().out  # 0.2 would leave 0.94 of the control


def test_search_gives_every_vector_its_own_coefficient(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "base", "math", "code", "--tasks", "few_tasks:uneven"]
    arguments += ["--optimizer", "tpe", "--trials", "25", "--random-seed", "1"]
    assert run([*arguments, "-o", "best"]) == 0
    text = capsys.readouterr().out
    assert "coefficients chosen of 25 trials on validation (objective" in text
    found = load_file(world / "best" / "model.safetensors")["w"]
    assert found[0] == pytest.approx(0.9, abs=0.15)
    assert found[1] == pytest.approx(0.2, abs=0.15)
    words = [line.replace("│", " ").split() for line in text.splitlines()]
    rows = [row for row in words if row[:1] in (["math"], ["code"])]
    assert [float(row[1]) for row in rows] == pytest.approx(found.tolist(), abs=1e-4)
    assert all(float(row[2]) < 0.8 for row in rows)  # 1 / 1.25 at most: measured on test
    assert run([*arguments, "-o", "again"]) == 0
    again = load_file(world / "again" / "model.safetensors")["w"]
    assert found.tobytes() == again.tobytes()
    assert run([*arguments, "--bounds", "0,0.1"]) == 0
    assert "0.1000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["base", "base", "--tasks", "few_tasks:tasks"], "there is no task 'base'"),
        (["base", "math", "--tasks", "few_tasks:tasks", "--negate"], "--control"),
        (["base", "math", "--tasks", "few_tasks:tasks", "--grid", "a,b"], "--grid"),
        (["base", "math", "--tasks", "nowhere:tasks"], "nowhere"),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--trials", "9"],
            "--trials goes with --optimizer tpe",
        ),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--optimizer", "tpe", "--grid", "0,1"],
            "--grid goes with --optimizer grid",
        ),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--optimizer", "tpe", "--negate"],
            "--negate goes with --optimizer grid",
        ),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--optimizer", "tpe", "--bounds", "1"],
            "--bounds '1': write two numbers, e.g. 0,1",
        ),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--optimizer", "tpe", "--trials", "0"],
            "0 trials try nothing",
        ),
        (
            [
                "base",
                "math",
                "--tasks",
                "few_tasks:tasks",
                "--optimizer",
                "tpe",
                "--random-seed",
                "-1",
            ],
            "a seed of -1 draws nothing; use a number from 0 to 4294967295",
        ),
        (["base", "math", "--tasks", "few_tasks:tasks", "--grid", "0,0"], "names a scale twice"),
        (["base", "math", "--tasks", "few_tasks:task"], "few_tasks"),
        (
            ["base", "math", "--tasks", "few_tasks:tasks", "--negate", "--control", "kep"],
            "did you mean 'kept'",
        ),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


NEVER = """
from taskbasis import Task

def score(model, split):
    raise AssertionError("scored in vain")

tasks = [Task(name, score) for name in ("math", "code")]
"""


@pytest.mark.parametrize(
    "more",
    [
        ["-o", "used"],
        ["-o", "math", "--replace"],
        ["-o", "used", "--optimizer", "tpe"],
        ["--optimizer", "tpe", "--trials", "0"],
        ["--optimizer", "tpe", "--bounds", "1,0"],
        ["--optimizer", "tpe", "--random-seed", "4294967296"],
        ["--grid", "0,nan"],
    ],
)
def test_nothing_is_scored_before_what_can_be_refused(
    more: list[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "used").mkdir()
    (world / "used" / "mine").write_text("")
    (world / "never.py").write_text(NEVER)
    sys.modules.pop("never", None)
    assert run(["search", "base", "math", "code", "--tasks", "never:tasks", *more]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert "in vain" not in error


@pytest.mark.parametrize(
    "more",
    [["--grid", "0.5"], ["--negate", "--control", "code"], ["--optimizer", "tpe", "--trials", "1"]],
)
def test_a_search_obeys_its_cap(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "base", "math", "--tasks", "few_tasks:tasks", "--memory", "1MB"]
    assert run([*arguments, *more]) == 1
    assert "a memory cap of 1.00 MB is too small" in capsys.readouterr().err
