"""What every construction is: a frozen record of options that turns a Gram matrix into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import numpy as np

from taskbasis.basis.codes import Codes
from taskbasis.basis.gram import Matrix, checked, rank, root
from taskbasis.errors import UsageError, nearest


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be solved.

    Args:
        gram: [N, N], checked and symmetric; the first T vectors are the tasks.
        k: how many atoms are wanted, at least 1 and at most T.
        tasks: T.
        total: [T]; the coefficients of "the sum of all tasks" (ones, unless lengths were scaled).
    """

    gram: Matrix
    k: int
    tasks: int
    total: Matrix

    @cached_property
    def root(self) -> Matrix:
        """R [N, N] with ``RᵀR = G``: small vectors that stand in for the large ones."""
        return root(self.gram)

    @cached_property
    def rank(self) -> int:
        """How many of the N vectors are independent."""
        return rank(self.root)


class Construction(ABC):
    """A way to build a basis; a final class derives from this one and is a frozen dataclass.

    `name` is what users call it, `monotone` says that recovery never gets worse with a larger k,
    `joint` that it needs noise vectors behind the tasks in the Gram matrix (and that, its span
    being fixed, the lengths of the tasks cannot change it).
    """

    name: ClassVar[str]
    monotone: ClassVar[bool]
    joint: ClassVar[bool]

    @final
    def fit(
        self, gram: Matrix, k: int, tasks: int | None = None, total: Matrix | None = None
    ) -> Codes:
        """Codes of at most k atoms for the leading `tasks` vectors of a Gram matrix.

        Args:
            gram: [N, N], inner products of all vectors.
            k: the number of atoms; more than T is taken as T.
            tasks: T; by default all N vectors are tasks.
            total: [T], the coefficients of the sum of tasks that adding the atoms should point
                to; by default ones.

        Raises:
            UsageError: for k below 1, or a number of tasks that the Gram matrix cannot have.
            ValueProblem: for a matrix that holds no inner products (see :func:`.gram.checked`).
        """
        matrix = checked(gram)
        count = len(matrix) if tasks is None else tasks
        if k < 1:
            raise UsageError(f"a basis has at least 1 atom; got k = {k}")
        if not (1 <= count <= len(matrix) and (self.joint or count == len(matrix))):
            raise UsageError(
                f"{self.name} of {count} tasks does not fit a Gram matrix of {len(matrix)} vectors"
                + ("" if self.joint else "; it needs exactly the tasks")
            )
        whole = np.ones(count) if total is None else np.asarray(total, dtype=np.float64)
        return self._codes(Problem(matrix, min(k, count), count, whole))

    @abstractmethod
    def _codes(self, problem: Problem) -> Codes:
        """The codes; the one thing that a construction adds."""


def everything(tasks: int) -> Codes:
    """All tasks kept as they are: what k >= T comes to.

    >>> everything(2).encoder
    array([[1., 0.],
           [0., 1.]])
    """
    return Codes(np.eye(tasks), np.eye(tasks), np.ones(tasks))


def one_of(what: str, value: str, known: Collection[str]) -> None:
    """Refuse an option's value that is not among the known ones.

    >>> one_of("solver", "exat", ["exact", "adam"])
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: there is no solver 'exat'; did you mean 'exact'?
    """
    if value not in known:
        raise UsageError(f"there is no {what} {value!r}; {nearest(value, known)}")


def at_least(what: str, value: float, least: float) -> None:
    """Refuse a number below the least that makes sense; NaN is refused too.

    >>> at_least("steps", 0, 1)
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: steps must be at least 1; got 0
    """
    if not value >= least:
        raise UsageError(f"{what} must be at least {least}; got {value}")
