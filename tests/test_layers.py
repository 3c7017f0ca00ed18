"""A module imports only what stands to its left: the house, kept by reading every file."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import taskbasis

ROOT = Path(taskbasis.__file__).parent

LAYERS = (
    "_version",
    "errors",
    "blas",
    "units",
    "spaces",
    "compiling",
    "words",
    "philox",
    "lanes",
    "combinations",
    "norms",
    "kernels",
    "counting",
    "devices",
    "io",
    "granularity",
    "methods",
    "basis",
    "recipe",
    "ties",
    "recipes",
    "plan",
    "terminal",
    "notebook",
    "progress",
    "engine",
    "digest",
    "passes",
    "difference",
    "adapters",
    "stored",
    "scores",
    "masks",
    "binding",
    "card",
    "sidefiles",
    "verifying",
    "saving",
    "algebra",
    "vectors",
    "merging",
    "live",
    "vocabulary",
    "preparing",
    "following",
    "chains",
    "lora",
    "selection",
    "library",
    "disentangling",
    "diagnosis",
    "report",
    "evaluate",
    "learn",
    "suites",
    "plot",
    "demo",
    "bench",
    "testing",
    "cli",
    "__main__",
)

INSIDE_FUNCTIONS = {
    # Optional extras: imported by who needs them, when they are needed.
    "torch": None,
    "transformers": None,
    "sklearn": None,
    "matplotlib": None,
    "datasets": None,
    # Installed always, but not worth their time until they are used.
    "rich": {"progress"},
    "ml_dtypes": {"io.dtypes"},
    "numba": {"combinations", "compiling", "lanes", "philox"},
    "llvmlite": {"combinations", "compiling", "lanes", "philox"},
}
"""What may be imported inside a function, and by which modules only (None: any)."""

NEVER_AT_THE_TOP = {"torch", "transformers", "sklearn", "matplotlib", "datasets"}


@dataclass(frozen=True)
class Import:
    """One import of one module: who asks, for what, and whether inside a function."""

    module: str
    target: str
    line: int
    deferred: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module by its name inside the package; a package goes by its own name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[Import]:
    """All imports of a module, those for type checkers left out."""
    yield from _walk(module, ast.parse(MODULES[module].read_text(encoding="utf-8")), False)


def _walk(module: str, node: ast.AST, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _for_type_checkers(child.test):
            for other in child.orelse:
                yield from _walk(module, other, deferred)
            continue
        for target in _targets(module, child):
            yield Import(module, target, child.lineno, deferred)  # type: ignore[attr-defined]
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(module, child, deferred or inside)


def _for_type_checkers(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _targets(module: str, node: ast.AST) -> list[str]:
    """What a node imports, as full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno} imports relatively"
        assert node.module is not None
        deeper = {f"{node.module}.{alias.name}" for alias in node.names}
        known = sorted(full for full in deeper if full.removeprefix("taskbasis.") in MODULES)
        own = len(known) < len(deeper) or not known
        return [*known, *([node.module] if own else [])]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        argument = node.args[0]
        if isinstance(argument, ast.Constant):
            return [str(argument.value)]
    return []


def layer(name: str) -> str:
    return name.partition(".")[0]


def internal(found: Import) -> str | None:
    """The module of this package that is imported; the package itself counts as its exports."""
    if found.target == "taskbasis" or not found.target.startswith("taskbasis."):
        return None
    return found.target.removeprefix("taskbasis.")


ALL = [found for module in MODULES for found in imports(module)]


def test_every_module_has_a_layer() -> None:
    present = {layer(module) for module in MODULES if module}
    assert present <= set(LAYERS)
    assert len(LAYERS) == len(set(LAYERS))


def test_the_page_of_the_house_has_every_room() -> None:
    text = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    order, _, table = text.partition("a test enforces it.\n")[2].partition("\n|")
    rooms = [name for name in LAYERS if not name.startswith("_")]
    assert re.findall(r"\w+", order) == rooms
    told = set(re.findall(r"`(\w+)/?`", " ".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert told == set(rooms)


def test_the_files_are_read_as_they_are_written() -> None:
    """The reader above sees what it should: known imports of known files."""
    seen = {(found.module, found.target, found.deferred) for found in ALL}
    assert ("vectors", "taskbasis.spaces", False) in seen
    assert ("vectors", "taskbasis.engine", False) in seen
    assert ("cli.add", "taskbasis.vectors", True) in seen
    assert ("progress", "rich.console", True) in seen
    assert not any(found.module == "io.torchbin" and found.target == "torch" for found in ALL)
    assert len(MODULES) > 60


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_a_module_imports_only_what_stands_to_its_left(module: str) -> None:
    place = LAYERS.index(layer(module))
    for found in imports(module):
        target = internal(found)
        assert found.target != "taskbasis", f"{found}: name the module, not the package"
        if target is None:
            continue
        assert target in MODULES, f"{found}, which does not exist"
        same = layer(target) == layer(module)
        assert same or LAYERS.index(layer(target)) < place, (
            f"{found}, which stands to the right of {layer(module)}"
        )


def test_there_are_no_cycles() -> None:
    """Not even inside a package; imports inside functions count, too, but for lazy loading."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES if module}
    for found in ALL:
        target = internal(found)
        if found.module and target and not (found.deferred and layer(found.module) == "cli"):
            graph[found.module].add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m and layer(m) != "cli"))
def test_imports_inside_functions_are_of_extras_only(module: str) -> None:
    """The package itself and its command line load lazily: that is what they are for."""
    for found in imports(module):
        if found.deferred:
            top = layer(found.target)
            assert top in INSIDE_FUNCTIONS, f"{found} inside a function"
            allowed = INSIDE_FUNCTIONS[top]
            assert allowed is None or module in allowed, f"{found} inside a function"


def test_no_extra_is_imported_at_the_top() -> None:
    for found in ALL:
        if not found.deferred:
            assert layer(found.target) not in NEVER_AT_THE_TOP, f"{found} at the top"


def test_only_declared_packages_are_imported() -> None:
    declared = {
        "numpy",
        "numba",
        "llvmlite",
        "ml_dtypes",
        "safetensors",
        "scipy",
        "xxhash",
        "click",
        "rich",
    }
    declared |= {"yaml", "threadpoolctl", "taskbasis", *NEVER_AT_THE_TOP}
    for found in ALL:
        top = layer(found.target)
        assert top in declared or top in sys.stdlib_module_names, f"{found}, which is not declared"


def test_modules_stay_small() -> None:
    sizes = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert {name: size for name, size in sizes.items() if size > 400} == {}
