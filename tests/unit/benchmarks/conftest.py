"""The benchmarks are scripts, not part of the wheel: they are loaded from their files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
# Each imports only what stands before it.
ORDER = (
    "measure",
    "checkpoints",
    "compare",
    "inside",
    "shares",
    "records",
    "targets",
    "report",
    "references",
    "rival",
    "jobs",
    "pieces",
    "checking",
    "work",
    "picture",
    "speed_page",
    "speed",
    "growth",
    "importance",
    "device",
    "results_page",
    "paired",
    "cases",
    "granularity",
)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Every script as a module, by name; importable under that name meanwhile."""
    hidden = {name: sys.modules.pop(name) for name in ORDER if name in sys.modules}
    yield {name: _load(name) for name in ORDER}
    for name in ORDER:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.fixture
def measure(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``measure.py``, spared from waiting for other people's writes."""
    monkeypatch.setattr("os.sync", lambda: None)
    return scripts["measure"]


@pytest.fixture
def checkpoints(scripts: dict[str, ModuleType]) -> ModuleType:
    """``checkpoints.py``."""
    return scripts["checkpoints"]


@pytest.fixture
def compare(scripts: dict[str, ModuleType]) -> ModuleType:
    """``compare.py``."""
    return scripts["compare"]


@pytest.fixture
def report(scripts: dict[str, ModuleType]) -> ModuleType:
    """``report.py``."""
    return scripts["report"]


@pytest.fixture
def rival(scripts: dict[str, ModuleType]) -> ModuleType:
    """``rival.py``."""
    return scripts["rival"]


@pytest.fixture
def speed(
    scripts: dict[str, ModuleType], measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """``speed.py``, spared from measuring the machine's memory."""
    for name in ("report", "jobs"):
        monkeypatch.setattr(scripts[name], "fresh_memory_seconds", lambda: 0.25)
    return scripts["speed"]
