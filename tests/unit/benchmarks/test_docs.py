"""The examples in the scripts hold, and the README knows every script."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize(
    "name",
    ["checking", "compare", "growth", "measure", "picture", "references", "report", "shares"],
)
def test_examples(scripts: dict[str, ModuleType], name: str) -> None:
    result = doctest.testmod(scripts[name])
    assert result.attempted > 0
    assert result.failed == 0


def test_the_readme_names_every_script() -> None:
    text = (FOLDER / "README.md").read_text()
    scripts = {path.name for path in FOLDER.glob("*.py")} | {"setup_mergekit"}
    assert {name for name in scripts if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("name", ["speed", "growth"])
def test_the_readme_names_every_option(
    scripts: dict[str, ModuleType], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scripts[name].parse(["--help"])
    told = capsys.readouterr().out.split("options:")[1]
    options = {word.strip(",") for word in told.split() if word.startswith("--")} - {"--help"}
    text = (FOLDER / "README.md").read_text()
    assert {option for option in options if f"`{option}" not in text} == set()
