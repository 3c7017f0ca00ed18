"""Task vectors as first-class things: extract, store, build a basis, add, negate, evaluate.

    base = Checkpoint("base")
    merged = base + 0.4 * (TaskVector(base, "math") + TaskVector(base, "code"))
    merged.save("merged")

Names are imported when they are first used, so that importing taskbasis costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskbasis._version import __version__

if TYPE_CHECKING:
    from taskbasis.disentangling import disentangle
    from taskbasis.engine import Engine
    from taskbasis.errors import TaskbasisError
    from taskbasis.evaluate import Task, search_addition, search_negation
    from taskbasis.library import Basis, Design, fit, update
    from taskbasis.live import apply, merge_state_dicts
    from taskbasis.masks import Masks
    from taskbasis.merging import analogy, merge
    from taskbasis.methods import method
    from taskbasis.progress import Bar
    from taskbasis.scores import Importance
    from taskbasis.selection import restore, select
    from taskbasis.vectors import Checkpoint, EditedModel, TaskVector

_HOMES = {
    "Bar": "progress",
    "Basis": "library",
    "Checkpoint": "vectors",
    "Design": "library",
    "EditedModel": "vectors",
    "Engine": "engine",
    "Importance": "scores",
    "Masks": "masks",
    "Task": "evaluate",
    "TaskVector": "vectors",
    "TaskbasisError": "errors",
    "analogy": "merging",
    "apply": "live",
    "disentangle": "disentangling",
    "fit": "library",
    "merge": "merging",
    "merge_state_dicts": "live",
    "method": "methods",
    "restore": "selection",
    "search_addition": "evaluate",
    "search_negation": "evaluate",
    "select": "selection",
    "update": "library",
}

__all__ = [
    "Bar",
    "Basis",
    "Checkpoint",
    "Design",
    "EditedModel",
    "Engine",
    "Importance",
    "Masks",
    "Task",
    "TaskVector",
    "TaskbasisError",
    "__version__",
    "analogy",
    "apply",
    "disentangle",
    "fit",
    "merge",
    "merge_state_dicts",
    "method",
    "restore",
    "search_addition",
    "search_negation",
    "select",
    "update",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"taskbasis.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'taskbasis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
