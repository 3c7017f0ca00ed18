"""What is wrong with a recipe, all of it at once, each with its line."""

from __future__ import annotations

from dataclasses import dataclass, field

from taskbasis.errors import UsageError


@dataclass(frozen=True, order=True)
class Mark:
    """A place in a file: line and column, both from 1."""

    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


NOWHERE = Mark()


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, or worth knowing, and where."""

    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.text}"


class RecipeError(UsageError):
    """A recipe cannot mean anything; the message lists everything that is wrong with it.

    Attributes:
        where: the file.
        problems: what is wrong, in the order of the lines.

    >>> print(RecipeError("r.yml", [Problem(Mark(2, 1), "no"), Problem(Mark(1, 4), "never")]))
    r.yml: 2 things are wrong
      line 1, column 4: never
      line 2, column 1: no
    """

    def __init__(self, where: str, problems: list[Problem]) -> None:
        self.where = where
        self.problems = tuple(sorted(set(problems)))
        if len(self.problems) == 1:
            text = f"{where}, {self.problems[0]}"
        else:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            text = f"{where}: {len(self.problems)} things are wrong{lines}"
        super().__init__(text)


@dataclass
class Findings:
    """Collects what is wrong (``problems``) and what is worth a sentence (``notes``)."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def wrong(self, mark: Mark, text: str) -> None:
        self.problems.append(Problem(mark, text))

    def note(self, mark: Mark, text: str) -> None:
        self.notes.append(Problem(mark, text))

    def since(self, count: int) -> bool:
        """Whether anything was found wrong since there were ``count`` problems."""
        return len(self.problems) > count

    def check(self, where: str) -> None:
        """Raise all problems, if there are any.

        Raises:
            RecipeError: listing them.
        """
        if self.problems:
            raise RecipeError(where, self.problems)
