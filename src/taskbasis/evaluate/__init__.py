"""Numbers for models: tasks, scales chosen on validation and reported on test, and judging."""

from taskbasis.evaluate.forgetting import (
    ForgetChoice,
    ForgetPoint,
    report_forgetting,
    search_forgetting,
)
from taskbasis.evaluate.judge import Effort, judge
from taskbasis.evaluate.registry import load_tasks
from taskbasis.evaluate.search import (
    GRID,
    Choice,
    Point,
    report_choice,
    search_addition,
    search_negation,
)
from taskbasis.evaluate.task import Model, Split, Task, evaluate
from taskbasis.evaluate.tuning import Trial, Tuned, report_tuned, tune_addition
from taskbasis.evaluate.yardstick import Yardstick, measure, reference_rows

__all__ = [
    "GRID",
    "Choice",
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
    "evaluate",
    "judge",
    "load_tasks",
    "measure",
    "reference_rows",
    "report_choice",
    "report_forgetting",
    "report_tuned",
    "search_addition",
    "search_forgetting",
    "search_negation",
    "tune_addition",
]
