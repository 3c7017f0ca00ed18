"""Ways to combine task vectors: one small file each, found by the registry.

A method knows no files, devices, workers or architectures. It sees the deltas of T vectors over
a stretch of one tensor (a :class:`Chunk`), and returns the merged delta.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taskbasis.errors import UsageError, check_option, nearest
from taskbasis.methods.average import Average
from taskbasis.methods.base import Chunk, Method, Moment, Selecting
from taskbasis.methods.dare import Dare
from taskbasis.methods.fisher import Fisher
from taskbasis.methods.lot import Lot
from taskbasis.methods.magmax import MagMax
from taskbasis.methods.regmean import RegMean
from taskbasis.methods.sta import Sta
from taskbasis.methods.task_arithmetic import TaskArithmetic
from taskbasis.methods.ties import Ties

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Average, Dare, Fisher, Lot, MagMax, RegMean, Sta, TaskArithmetic, Ties)
}

__all__ = [
    "METHODS",
    "Average",
    "Chunk",
    "Dare",
    "Fisher",
    "Lot",
    "MagMax",
    "Method",
    "Moment",
    "RegMean",
    "Selecting",
    "Sta",
    "TaskArithmetic",
    "Ties",
    "method",
]


def method(name: str, /, **options: Any) -> Method:
    """The method called ``name`` with the given options.

    Raises:
        UsageError: the name or an option is unknown (the message names the nearest), or a value
            is not of the option's kind.

    >>> method("ties", density=0.3)
    Ties(density=0.3)
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}; {nearest(name, METHODS)}")
    defaults = {field.name: field.default for field in fields(METHODS[name])}
    for option, value in options.items():
        if option not in defaults:
            hint = nearest(option, defaults) if defaults else "it has none"
            raise UsageError(f"method {name!r} has no option {option!r}; {hint}")
        check_option(name, option, value, defaults[option])
    return METHODS[name](**options)
