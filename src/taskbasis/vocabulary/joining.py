"""The output's vocabulary: one model's, or that of all together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskbasis.vocabulary.reading import Vocabulary, plain_token


@dataclass(frozen=True)
class Joined:
    """The tokens of the output.

    Attributes:
        numbers: of every token.
        new: tokens that the donor's tokenizer lacks, as ``tokenizer.json`` lists added tokens.
    """

    numbers: Mapping[str, int] = field(repr=False)
    new: tuple[Mapping[str, Any], ...] = ()

    @property
    def size(self) -> int:
        """Rows that the tokens need: one more than the largest number."""
        return max(self.numbers.values()) + 1

    def names(self, rows: int) -> list[str | None]:
        """The token of every row; of two with one number the last, None where there is none."""
        found: list[str | None] = [None] * rows
        for token, number in self.numbers.items():
            found[number] = token
        return found


def join(
    donor: Vocabulary, others: Sequence[tuple[Vocabulary, int]], listed: Iterable[str] = ()
) -> Joined:
    """The donor's tokens with their numbers, then those that it lacks, as mergekit numbers them.

    First come the tokens that belong to the other models' vocabularies proper, then those that
    were added to one of them, then those listed: each in the order of models and of numbers.

    Args:
        donor: whose tokenizer the output takes.
        others: the models whose tokens are taken in, and how many rows each has: a token beyond
            them was never trained, and is left out. None for the donor's tokens alone.
        listed: tokens that have to be there.

    >>> from pathlib import Path
    >>> one, x = Vocabulary({"a": 0, "b": 1}, {}, Path("one")), {"<x>": plain_token("<x>")}
    >>> two = Vocabulary({"c": 0, "b": 1, "<x>": 2, "d": 3}, x, Path("two"))
    >>> dict(join(one, [(two, 4)], ["e"]).numbers)
    {'a': 0, 'b': 1, 'c': 2, 'd': 3, '<x>': 4, 'e': 5}
    """
    added: dict[str, Mapping[str, Any]] = {}
    for vocabulary, _ in others:
        added = {**vocabulary.added, **added}
    proper: dict[str, Mapping[str, Any]] = {}
    late: dict[str, Mapping[str, Any]] = {}
    for vocabulary, rows in others:
        for token, number in sorted(vocabulary.numbers.items(), key=lambda one: one[1]):
            if number < rows and token not in donor.numbers:
                if token in added:
                    late.setdefault(token, added[token])
                else:
                    proper.setdefault(token, plain_token(token))
    for token in listed:
        if token not in donor.numbers and token not in proper:
            late.setdefault(token, plain_token(token))
    numbers = dict(donor.numbers)
    new: list[Mapping[str, Any]] = []
    for token, entry in {**proper, **late}.items():
        number = new[-1]["id"] + 1 if new else max(numbers.values(), default=-1) + 1
        numbers[token] = number
        new.append({**entry, "id": number, "content": token})
    return Joined(numbers, tuple(new))
