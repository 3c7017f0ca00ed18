"""From recipes to plans: which tensors are merged or copied, in which cuts, in how much memory.

A plan is resolved from headers alone. Its cuts depend on the recipe, never on the number of
workers, so every sum over cuts has the same bits however the work is shared out.
"""

from taskbasis.plan.cutting import Plan
from taskbasis.plan.making import make_plan
from taskbasis.plan.tensors import Companion, Cut, Merge

__all__ = ["Companion", "Cut", "Merge", "Plan", "make_plan"]
