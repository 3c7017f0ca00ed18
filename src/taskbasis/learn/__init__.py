"""What needs a forward pass: importance of parameters and moments of activations, as files."""

from __future__ import annotations

from taskbasis.learn.how import How
from taskbasis.learn.importance import importance
from taskbasis.learn.moments import moments
from taskbasis.learn.problem import Problem

__all__ = ["How", "Problem", "importance", "moments"]
