"""Numbers for models: tasks, scales chosen on validation and reported on test, and judging."""

from taskbasis.evaluate.forgetting import (
    DENSITIES,
    SCALES,
    ForgetChoice,
    ForgetPoint,
    report_forgetting,
    search_forgetting,
)
from taskbasis.evaluate.judge import (
    COARSE,
    Collection,
    Effort,
    draw_subsets,
    judge,
    judge_addition,
    judge_left_out,
    judge_negation,
    judge_recovery,
    judge_subsets,
)
from taskbasis.evaluate.registry import load_tasks
from taskbasis.evaluate.search import (
    GRID,
    Choice,
    Point,
    normalised,
    report_choice,
    search_addition,
    search_negation,
)
from taskbasis.evaluate.task import Model, Split, Task, evaluate, pick_tasks
from taskbasis.evaluate.tuning import TRIALS, Trial, Tuned, report_tuned, tune_addition
from taskbasis.evaluate.yardstick import Yardstick, measure, reference_rows

__all__ = [
    "COARSE",
    "DENSITIES",
    "GRID",
    "SCALES",
    "TRIALS",
    "Choice",
    "Collection",
    "Effort",
    "ForgetChoice",
    "ForgetPoint",
    "Model",
    "Point",
    "Split",
    "Task",
    "Trial",
    "Tuned",
    "Yardstick",
    "draw_subsets",
    "evaluate",
    "judge",
    "judge_addition",
    "judge_left_out",
    "judge_negation",
    "judge_recovery",
    "judge_subsets",
    "load_tasks",
    "measure",
    "normalised",
    "pick_tasks",
    "reference_rows",
    "report_choice",
    "report_forgetting",
    "report_tuned",
    "search_addition",
    "search_forgetting",
    "search_negation",
    "tune_addition",
]
