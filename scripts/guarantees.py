"""Writes docs/guarantees.md: every promise that a test is marked with, and where the test is.

A test says what it holds by ``@pytest.mark.promise("A sentence for users.")``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- begin: scripts/docs -->\n", "<!-- end -->"

TOPICS = {
    "tests/robust": "Crashes, full disks, other processes",
    "tests/determinism": "The same bytes",
    "tests/unit/test_verifying.py": "Integrity",
    "tests/cli/test_verify.py": "Integrity",
    "tests/attacks": "Hostile and broken files",
    "tests/stateful": "All of it together",
    "tests": "What is computed",
}
"""What a test is about, by where it stands: the first that fits."""


@dataclass(frozen=True)
class Promise:
    """What is promised, and the test that holds it."""

    sentence: str
    file: str
    test: str

    @property
    def topic(self) -> str:
        """The heading it stands under."""
        return next(topic for place, topic in TOPICS.items() if self.file.startswith(place))


def promises(root: Path = ROOT) -> list[Promise]:
    """All promises of the tests, in the order of their files and lines."""
    return [
        found for path in sorted((root / "tests").rglob("test_*.py")) for found in _of(path, root)
    ]


def _of(path: Path, root: Path) -> Iterator[Promise]:
    name = path.relative_to(root).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                yield Promise(ast.literal_eval(mark.args[0]), name, node.name)  # type: ignore[union-attr]


def text(found: list[Promise]) -> str:
    """The promises by topic, as a page of lists."""
    lines = []
    for topic in dict.fromkeys(TOPICS.values()):
        own = [promise for promise in found if promise.topic == topic]
        lines += [f"## {topic}", ""] if own else []
        for one in own:
            lines += [f"- {one.sentence}", f"  ([{one.test}](../{one.file}))"]
        lines += [""] if own else []
    return "\n".join(lines)


def page(before: str, found: list[Promise]) -> str:
    """The page with its lists written anew."""
    head, rest = before.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{text(found)}{END}{tail}"


def main() -> None:
    """Write the page."""
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(before, promises()), encoding="utf-8")


if __name__ == "__main__":
    main()
