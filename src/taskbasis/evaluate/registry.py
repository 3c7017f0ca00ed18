"""Finding tasks by a short text: a suite and its folder, or an attribute of the user's module.

    digits:FOLDER               the tasks of a folder made by taskbasis.suites.digits.prepare
    digits-control:FOLDER       its control task, for negation
    hf:MODEL_FOLDER:DATA        any model of that architecture, under the folder's own head
    lm_eval:MODEL_FOLDER:TASK   likewise, a task of lm-evaluation-harness
    package.module:attribute    a list of Task, or a callable without arguments that returns one

**The last form imports the module, which runs its code**: name only modules you trust. Suites
are found the same way, so importing this file loads none of them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from taskbasis.errors import UsageError, nearest
from taskbasis.evaluate.task import Task

SUITES: Mapping[str, str] = {
    "digits": "taskbasis.suites.digits:open_tasks",
    "digits-control": "taskbasis.suites.digits:open_control",
    "hf": "taskbasis.learn.task:open_tasks",
    "images": "taskbasis.suites.images:open_tasks",
    "images-control": "taskbasis.suites.images:open_control",
    "lm_eval": "taskbasis.learn.harness:open_tasks",
    "text": "taskbasis.suites.text:open_tasks",
    "text-control": "taskbasis.suites.text:open_control",
}
"""Suites by name: each is a callable that takes what follows the colon."""

_FORMS = "write digits:FOLDER, hf:MODEL_FOLDER:DATA or package.module:attribute"


def load_tasks(spec: str) -> list[Task]:
    """The tasks that a text names.

    Args:
        spec: ``SUITE:FOLDER`` or ``package.module:attribute``.

    Raises:
        UsageError: the text names nothing, or what it names is not a list of tasks.
        FileError: the suite's folder is missing or damaged.
        MissingExtraError: the suite needs a package that is not installed.

    >>> load_tasks("digits")
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: 'digits' names no tasks; write digits:FOLDER, \
hf:MODEL_FOLDER:DATA or package.module:attribute
    """
    name, colon, rest = spec.partition(":")
    if not (name and colon and rest):
        raise UsageError(f"{spec!r} names no tasks; {_FORMS}")
    if name in SUITES:
        module, _, attribute = SUITES[name].partition(":")
        return _checked(spec, _attribute(spec, module, attribute)(rest))
    found = _attribute(spec, name, rest)
    return _checked(spec, _called(spec, found) if callable(found) else found)


def _attribute(spec: str, module: str, attribute: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if not (module == missing or module.startswith(missing + ".")):
            raise UsageError(f"{spec!r}: importing {module!r} needs {missing!r}") from error
        hint = nearest(module, SUITES)
        raise UsageError(f"{spec!r} names no suite and no module ({hint}); {_FORMS}") from None
    except (ValueError, TypeError):
        raise UsageError(f"{spec!r}: {module!r} is not the name of a module; {_FORMS}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [name for name in vars(found) if not name.startswith("_")]
            raise UsageError(f"{spec!r}: there is no {part!r} in it; {nearest(part, known)}")
        found = getattr(found, part)
    return found


def _called(spec: str, function: Callable[[], Any]) -> Any:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{spec!r} cannot be called without arguments: {error}") from None
    return function()


def _checked(spec: str, found: Any) -> list[Task]:
    tasks = list(found) if isinstance(found, (list, tuple)) else []
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise UsageError(f"{spec!r} gives {type(found).__name__}, not a list of taskbasis Tasks")
    if len({task.name for task in tasks}) < len(tasks):
        raise UsageError(f"{spec!r} gives two tasks of one name; give each its own")
    return tasks
