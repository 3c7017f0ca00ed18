"""One table on real tasks: every method with its variants, added and forgotten, seed by seed."""

from taskbasis.bench.contenders import Contender, Recipe, contenders, pick
from taskbasis.bench.rows import COLUMNS, Difference, differences, page
from taskbasis.bench.running import run, run_seed
from taskbasis.bench.spec import SUITES, Bench

__all__ = [
    "COLUMNS",
    "SUITES",
    "Bench",
    "Contender",
    "Difference",
    "Recipe",
    "contenders",
    "differences",
    "page",
    "pick",
    "run",
    "run_seed",
]
