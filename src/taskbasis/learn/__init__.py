"""What needs a forward pass: importance of parameters and moments of activations, as files.

Names are imported when they are first used: a suite needs :class:`Problem` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskbasis.learn.collecting import moments
    from taskbasis.learn.how import How
    from taskbasis.learn.problem import Problem
    from taskbasis.learn.scoring import importance

_HOMES = {
    "How": "how",
    "Problem": "problem",
    "importance": "scoring",
    "moments": "collecting",
}

__all__ = ["How", "Problem", "importance", "moments"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"taskbasis.learn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'taskbasis.learn' has no attribute {name!r}")
