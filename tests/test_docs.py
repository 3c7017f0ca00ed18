"""The documents: links lead somewhere, commands exist as they are written, code is Python."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from taskbasis.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)[^)]*\)")
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)
INLINE = re.compile(r"`(taskbasis [^`]+|basis (?:fit|show|recover|add|negate|update)[^`]*)`")


def commands(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language in ("", "bash", "sh"):
            yield from (line for line in block.splitlines() if line.startswith("taskbasis "))
    for command in INLINE.findall(FENCE.sub("", text)):
        yield command if command.startswith("taskbasis") else f"taskbasis {command}"


WRITTEN = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_there_are_commands_to_check() -> None:
    assert len(WRITTEN) >= 15


@pytest.mark.parametrize(("page", "command"), WRITTEN)
def test_commands_exist_as_written(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, options and option values are accepted; arguments are not opened."""
    monkeypatch.setattr("taskbasis.io.ids.check_there", lambda text: None)
    words = shlex.split(command, comments=True)[1:]
    found: click.Command = cli
    # The parent's settings reach the verb: click keeps a verb's help option once it is asked for.
    context = click.Context(cli, info_name="taskbasis", **cli.context_settings)
    while isinstance(found, click.Group):
        name, inner, words = found.resolve_command(context, words)
        assert inner is not None, command
        parent, found, context = context, inner, click.Context(inner, context, name)
    if "--help" in words or words == []:
        return
    recipe = words[0].endswith(".yml")  # merge RECIPE OUT has no -o
    if not recipe and "-o" not in words and any("-o" in option.opts for option in found.params):
        words += ["-o", "out"]
    missing = [p for p in found.params if isinstance(p, click.Argument) and p.required]
    given = [word for word in words if not word.startswith("-")]
    words = ["x"] * max(0, len(missing) - len(given)) + words
    with found.make_context(found.name, list(words), parent=parent) as made:
        assert made.params


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_typed_one_after_the_other(page: Path) -> None:
    """No two of a page's blocks write to one place, which the second would be refused."""
    written = []
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            written += re.findall(r"\.save\(\"([^\"]+)\"", block)
        for line in block.splitlines() if language == "" else ():
            words = shlex.split(line, comments=True)
            if "-o" in words:
                written.append(words[words.index("-o") + 1])
            elif words[:2] == ["taskbasis", "merge"]:
                written.append(words[3])  # RECIPE OUT
    assert sorted(set(written)) == sorted(written)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python_and_uses_public_names(page: Path) -> None:
    import taskbasis

    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "taskbasis":
                assert {alias.name for alias in node.names} <= set(taskbasis.__all__)
