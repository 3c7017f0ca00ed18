"""Rows into what a model takes: samples encoded one at a time, and batches made of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, overload

from taskbasis.errors import UsageError, ValueProblem, nearest
from taskbasis.learn.data import Rows

Sample = dict[str, Any]


class Coder(Protocol):
    """Encodes rows for one model."""

    def encode(self, number: int, row: Mapping[str, Any], where: str) -> Sample:
        """One row as a sample; ``where`` names it in messages."""

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A few samples as a batch of tensors."""


@dataclass(frozen=True)
class Encoded(Sequence[Sample]):
    """Rows that are encoded when they are asked for."""

    rows: Rows = field(repr=False)
    coder: Coder = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Sample]: ...

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        return self.coder.encode(number, self.rows[number], self.rows.where(number))


@dataclass(frozen=True)
class Labels:
    """Names of classes, and their numbers.

    Attributes:
        column: of the rows.
        numbers: the number of each name.
        count: how many classes there are.

    >>> labels = Labels("label", {"bad": 0, "good": 1}, 2)
    >>> labels.number({"label": "good"}, "data.tsv, row 1"), labels.number({"label": "1"}, "")
    (1, 1)
    """

    column: str
    numbers: Mapping[str, int]
    count: int

    @classmethod
    def of(cls, config: Any, column: str) -> Labels:
        """Those of a model's configuration.

        Raises:
            UsageError: the model has no classes to tell apart.
        """
        if config.num_labels < 2 or config.problem_type not in (
            None,
            "single_label_classification",
        ):
            raise UsageError(
                f"the model has {config.num_labels} labels and the problem type "
                f"{config.problem_type!r}; taskbasis scores classifiers with one label per sample"
            )
        try:
            known = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        except (TypeError, ValueError):
            raise UsageError(
                f"the model's label2id is no table of numbers: {config.label2id}"
            ) from None
        wrong = sorted(n for n, number in known.items() if not 0 <= number < config.num_labels)
        if wrong:
            raise UsageError(
                f"the model has {config.num_labels} labels, but {wrong[0]!r} has a number beyond"
            )
        return cls(column, known, config.num_labels)

    def number(self, row: Mapping[str, Any], where: str) -> int:
        """The number of a row's class.

        Raises:
            ValueProblem: it names no class; the message names the row.
        """
        value = row.get(self.column)
        text = str(value).strip()
        if isinstance(value, Integral) and not isinstance(value, bool):
            number = int(value)
            if 0 <= number < self.count:  # even where names look like numbers
                return number
        if text in self.numbers:
            return self.numbers[text]
        if text.isdecimal() and int(text) < self.count:
            return int(text)
        known = sorted(self.numbers, key=lambda name: self.numbers[name])
        hint = nearest(text, known) if known else "there are no names"
        raise ValueProblem(
            f"{where}: the label is {text!r}, but the model knows the numbers 0 to "
            f"{self.count - 1} and its own names ({hint}); a table without a header is: label, text"
        )


def text_of(row: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The texts of a row.

    Raises:
        ValueProblem: one of them is not text, or all are empty.
    """
    found = tuple(row.get(column) for column in columns)
    if not all(isinstance(text, str) for text in found) or not any(map(str.strip, found)):  # type: ignore[arg-type]
        raise ValueProblem(f"{where}: {' and '.join(map(repr, columns))} should hold text")
    return found  # type: ignore[return-value]
