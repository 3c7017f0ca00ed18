"""The one mechanism: read a cut of every input, work on it, fold a sum or store the result.

Three passes are built from it: inner products of all pairs of vectors, the sums that a method's
stages ask for, and the last pass, which forms the outputs and stores them at their offsets.
"""

from taskbasis.passes.forming import Former, Linear, Merged
from taskbasis.passes.gram import gram_by_tensor
from taskbasis.passes.resuming import numbers
from taskbasis.passes.stages import Found, run_stages
from taskbasis.passes.tally import Kept, Tally
from taskbasis.passes.writing import rounding, write

__all__ = [
    "Former",
    "Found",
    "Kept",
    "Linear",
    "Merged",
    "Tally",
    "gram_by_tensor",
    "numbers",
    "rounding",
    "run_stages",
    "write",
]
