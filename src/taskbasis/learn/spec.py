"""What ``--task`` names, as a problem for one model: a data file, or a task of a suite.

DATA                    a path: the model's own folder says what is asked of it
hf:MODEL_FOLDER:DATA    the frozen head of another folder
digits:FOLDER:TASK      a task of a suite, by name
package.module:attribute:TASK
"""

from __future__ import annotations

from pathlib import Path

from taskbasis.errors import FileError, UsageError
from taskbasis.evaluate.registry import load_tasks
from taskbasis.evaluate.task import Task, pick_tasks
from taskbasis.learn.huggingface import Reading, hf_problem
from taskbasis.learn.problem import Problem


def problem_of(spec: str, model: Path, reading: Reading | None = None) -> Problem:
    """The problem that a text names, with the weights of a model.

    Args:
        spec: a path, or a suite's task.
        model: the folder of the model.
        reading: how a data file is read; of a suite's task nothing can be said.

    Raises:
        UsageError: the text names nothing, several tasks, or a task that only scores.
        FileError: nothing is there.
    """
    reading = reading or Reading()
    if Path(spec).exists() or ":" not in spec:
        if not Path(spec).exists():
            raise FileError(
                f"{spec}: no such data; name a file, a folder of datasets, or SUITE:FOLDER:TASK"
            )
        return hf_problem(model, spec, reading)
    if reading != Reading():
        raise UsageError(
            f"{spec!r} reads its own data; leave out --split and the options of columns, tokens "
            "and dtype"
        )
    task = _task(spec)
    if task.problem is None:
        raise UsageError(
            f"the task {task.name!r} only scores models; give it a problem, or name its data"
        )
    found = task.problem(model)
    if not isinstance(found, Problem):
        raise UsageError(f"the problem of task {task.name!r} is a {type(found).__name__}")
    return found


def _task(spec: str) -> Task:
    """The one task that a text names, the last part of which may be its name."""
    if spec.count(":") == 1 or spec.startswith("hf:"):
        tasks = load_tasks(spec)
        if len(tasks) > 1:
            names = ", ".join(task.name for task in tasks)
            raise UsageError(f"{spec!r} names {len(tasks)} tasks; add one of :{names}")
        return tasks[0]
    source, _, name = spec.rpartition(":")
    return pick_tasks(load_tasks(source), [name])[0]
