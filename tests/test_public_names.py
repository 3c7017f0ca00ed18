"""What `import taskbasis` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import taskbasis


def test_all_is_sorted_and_without_doubles() -> None:
    names = taskbasis.__all__
    assert names == sorted(set(names))
    assert len(names) <= 24


def test_every_package_offers_few_names() -> None:
    packages = [m.name for m in pkgutil.walk_packages(taskbasis.__path__, "taskbasis.") if m.ispkg]
    assert len(packages) > 10
    sizes = {name: len(getattr(importlib.import_module(name), "__all__", ())) for name in packages}
    assert {name: size for name, size in sizes.items() if size > 24} == {}


def test_what_is_exposed_is_what_is_listed() -> None:
    assert dir(taskbasis) == taskbasis.__all__
    lazily = set(taskbasis._HOMES)
    assert lazily | {"__version__"} == set(taskbasis.__all__)


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(taskbasis.__file__).read_text(encoding="utf-8"))
    told = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"taskbasis.{home}" for name, home in taskbasis._HOMES.items()}


@pytest.mark.parametrize("name", taskbasis.__all__)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    found: Any = getattr(taskbasis, name)
    if name == "__version__":
        assert isinstance(found, str)
        return
    assert found.__name__ == name
    assert found.__module__.startswith(f"taskbasis.{taskbasis._HOMES[name]}")
    text = inspect.getdoc(found)
    assert text
    first = text.splitlines()[0]
    assert first[0].isupper() or first[0] in "`["
    assert not first.startswith(f"{name}("), "a docstring of its own, not the generated one"


@pytest.mark.parametrize("name", taskbasis.__all__)
def test_every_public_method_is_documented(name: str) -> None:
    found = getattr(taskbasis, name)
    if not inspect.isclass(found):
        return
    bare = [
        method
        for method, value in vars(found).items()
        if not method.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (property, classmethod)))
        and not inspect.getdoc(value)
    ]
    assert bare == []


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'taskbasis' has no attribute 'TaskVectors'"):
        _ = taskbasis.TaskVectors


HEAVY = {"numpy", "numba", "click", "torch", "rich", "scipy", "safetensors", "yaml", "ml_dtypes"}


def test_importing_the_package_loads_nothing(loaded_by: Callable[[str], set[str]]) -> None:
    code = "import taskbasis; taskbasis.__version__; dir(taskbasis); taskbasis.TaskbasisError"
    assert loaded_by(code) & HEAVY == set()


def test_the_core_needs_neither_torch_nor_the_command_line(
    loaded_by: Callable[[str], set[str]],
) -> None:
    code = "from taskbasis import Basis, Checkpoint, Engine, TaskVector, fit, merge, update"
    assert loaded_by(code).isdisjoint({"torch", "click", "rich"})
