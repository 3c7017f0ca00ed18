"""What is wrong, or could go wrong, with task vectors before they are merged.

Two passes: one reads every cut of all vectors and of the base once and keeps only sums
(``sums``), one reads some matrices whole for their singular values (``ranks``). The rest is
arithmetic on the sums: norms and angles (``parts``), where a vector was taken from (``origin``),
what rounding leaves of the update (``rounding``), and what is said of it (``sentences``).
"""

from taskbasis.diagnosis.making import diagnose
from taskbasis.diagnosis.origin import Likeness, Origin
from taskbasis.diagnosis.parts import Part
from taskbasis.diagnosis.ranks import Rank
from taskbasis.diagnosis.records import Diagnosis, Pairs, Shared
from taskbasis.diagnosis.rounding import Rounding, Survival

__all__ = [
    "Diagnosis",
    "Likeness",
    "Origin",
    "Pairs",
    "Part",
    "Rank",
    "Rounding",
    "Shared",
    "Survival",
    "diagnose",
]
