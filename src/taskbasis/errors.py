"""Every error taskbasis raises on purpose, one family.

    TaskbasisError
    ├── UsageError          what was asked cannot mean anything (an option, a name, a number)
    ├── SpaceError          weights, deltas, scores and masks combined in a way that has no meaning
    ├── FileError           a file is missing, damaged, hostile or in the way
    │   └── HeaderError     a tensor file whose header contradicts itself or the file
    ├── MismatchError       tensors of two files do not fit together (names, shapes, dtypes)
    │   └── BaseError       a task vector meets a base that it was not taken from
    ├── ValueProblem        numbers that cannot be used (NaN, infinity, an empty collection)
    ├── MemoryCapError      the work cannot be done within the memory that was granted
    ├── MissingExtraError   an optional package is needed; the message says what to install
    └── SeveralErrors       all that is wrong at once, a line each

A message says what is wrong, where (file, tensor, shape), and what to do. The command line
prints it as one sentence and exits with :attr:`TaskbasisError.exit_code`; nothing is half done.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from types import ModuleType
from typing import Any, get_args


class TaskbasisError(Exception):
    """The root of the family; ``exit_code`` is what the command line exits with."""

    exit_code = 1


class UsageError(TaskbasisError):
    """What was asked cannot mean anything: an option, a name or a number out of range."""

    exit_code = 2


class SpaceError(TaskbasisError):
    """Two things were combined whose spaces do not allow it (see :mod:`taskbasis.spaces`)."""


class FileError(TaskbasisError):
    """A file or folder is missing, damaged, hostile or in the way."""


class HeaderError(FileError):
    """A tensor file's header contradicts itself or the file it stands in."""


class MismatchError(TaskbasisError):
    """Tensors of two files do not fit together."""


class BaseError(MismatchError):
    """A task vector meets a base that it was not taken from."""


class ValueProblem(TaskbasisError):
    """Numbers that cannot be used: NaN, infinity, an empty collection."""


class MemoryCapError(TaskbasisError):
    """The work cannot be done within the memory that was granted."""


class MissingExtraError(TaskbasisError):
    """An optional package is needed; the message says what to install."""


class SeveralErrors(TaskbasisError):
    """All that is wrong, found at once; it is an error of usage where all of it is."""

    def __init__(self, problems: Iterable[TaskbasisError]) -> None:
        self.problems = tuple(problems)
        self.exit_code = max(
            (problem.exit_code for problem in self.problems if problem.exit_code != 2), default=2
        )
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} things are wrong{lines}")


class Problems:
    """Collects errors, to say all of them at once.

    >>> problems = Problems()
    >>> for path in ("a", "b"):
    ...     with problems:
    ...         raise FileError(f"{path} is missing")
    >>> problems.check()
    Traceback (most recent call last):
        ...
    taskbasis.errors.SeveralErrors: 2 things are wrong
      a is missing
      b is missing
    """

    def __init__(self) -> None:
        self.found: list[TaskbasisError] = []

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, SeveralErrors):
            self.found += error.problems
        elif isinstance(error, TaskbasisError):
            self.found.append(error)
        return isinstance(error, TaskbasisError)

    def check(self) -> None:
        """Raise what was found: one error as it is, or all of them as one.

        Raises:
            TaskbasisError: something was.
        """
        unlike = list({str(error): error for error in self.found}.values())
        if len(unlike) == 1:
            raise unlike[0]
        if unlike:
            raise SeveralErrors(unlike)


_SHOWN = 24
"""Names in a hint: a model has thousands."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known name, or some of what is known when none is close.

    >>> nearest("autoencodr", ["autoencoder", "pca"])
    "did you mean 'autoencoder'?"
    >>> nearest("x", ["pca", "svd"])
    'known: pca, svd'
    >>> nearest("x", [f"layers.{n}" for n in range(900)])[-20:]
    'ers.23, and 876 more'
    """
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = len(choices) - _SHOWN
    return "known: " + ", ".join(choices[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def finite(what: str, number: float) -> float:
    """The number, refused when it is NaN or infinite.

    >>> finite("a scale", 0.5)
    0.5
    """
    if not math.isfinite(number):
        raise UsageError(f"{what} must be a finite number, not {number}")
    return number


def check_option(owner: str, option: str, value: object, default: object) -> None:
    """Refuse an option's value of another kind than its default, so that text is never computed.

    Raises:
        UsageError: naming the option, what it takes, and what it got.

    >>> check_option("ties", "density", "high", 0.2)
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: option 'density' of ties takes a number, such as 0.2; got 'high'
    """
    kinds: dict[type, tuple[str, type]] = {
        bool: ("true or false", bool),
        type(None): ("true or false", bool),  # None: decided by the other options
        int: ("a whole number", Integral),
        float: ("a number", Real),
        str: ("a word", str),
    }
    wanted, kind = kinds.get(type(default), ("something else", object))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        example = "" if default is None else f", such as {default!r}"
        raise UsageError(f"option {option!r} of {owner} takes {wanted}{example}; got {value!r}")


def check_word(option: str, word: str, words: Any) -> None:
    """Refuse a word that is none of a ``Literal``'s.

    Raises:
        UsageError: naming the nearest.

    >>> from typing import Literal
    >>> check_word("vote", "totl", Literal["total", "frequency"])
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: vote 'totl' is unknown; did you mean 'total'?
    """
    if word not in get_args(words):
        raise UsageError(f"{option} {word!r} is unknown; {nearest(word, get_args(words))}")


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say in one sentence what to install.

    Args:
        module: what to import.
        extra: the extra of taskbasis that brings it.
        purpose: what it is wanted for, as the start of the sentence.

    Raises:
        MissingExtraError: when the package is not installed.

    >>> require("no_such_package", "torch", "reading .bin files")
    Traceback (most recent call last):
        ...
    taskbasis.errors.MissingExtraError: reading .bin files needs the package 'no_such_package'; \
install it with: pip install 'taskbasis[torch]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package {error.name!r}; "
            f"install it with: pip install 'taskbasis[{extra}]'"
        ) from None
