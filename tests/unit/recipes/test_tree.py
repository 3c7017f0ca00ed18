"""YAML as trees that know their lines; hostile and broken texts end in a sentence."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.recipes.problems import Findings, Mark, Problem, RecipeError
from taskbasis.recipes.tree import MOST_CHARACTERS, MOST_DEPTH, MOST_NODES, Tree, read_trees


def plain(tree: Tree) -> Any:
    if isinstance(tree.value, dict):
        return {key: plain(child) for key, child in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(child) for child in tree.value]
    return tree.value


def read(text: str) -> list[Any]:
    findings = Findings()
    trees = read_trees(text, findings)
    findings.check("t")
    return [plain(tree) for tree in trees]


def wrong(text: str) -> list[str]:
    findings = Findings()
    read_trees(text, findings)
    return [str(problem) for problem in findings.problems]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-1, 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_read_is_what_yaml_reads(value: Any) -> None:
    text = yaml.safe_dump(value)
    expected = yaml.safe_load(text)
    assert read(text) == ([] if expected is None else [expected])


def test_every_part_knows_where_it_stands() -> None:
    (tree,) = read_trees("a:\n  - x\n  - {b: 1, c: 2}\n", Findings())
    assert isinstance(tree.value, dict)
    assert tree.keys["a"] == Mark(1, 1)
    listed = tree.value["a"]
    assert listed.mark == Mark(2, 3)
    assert isinstance(listed.value, list)
    inner = listed.value[1]
    assert (inner.mark, inner.keys["c"]) == (Mark(3, 5), Mark(3, 12))
    assert isinstance(inner.value, dict)
    assert inner.value["c"].mark == Mark(3, 15)


def test_several_documents_and_empty_ones() -> None:
    assert read("a: 1\n---\n---\nb: 2\n...\n---\n# nothing\n") == [{"a": 1}, {"b": 2}]
    assert read("") == read("# only a comment\n") == []


def test_aliases_and_merge_keys_are_written_out() -> None:
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3, r: 4}\nd: {<<: [*x, {s: 5, p: 6}]}\n"
    (found,) = read(text)
    assert found["b"] == found["a"]
    assert found["c"] == {"p": 1, "q": 3, "r": 4}
    assert found["d"] == {"p": 1, "q": 2, "s": 5}
    assert yaml.safe_load(text) == found


def test_a_merge_key_of_something_else() -> None:
    assert wrong("a: {<<: 3}") == ["line 1, column 9: the key '<<' takes a mapping to merge, not 3"]


def test_a_date_is_a_word() -> None:
    assert isinstance(yaml.safe_load("2024-01-02"), datetime.date)
    assert read("a: 2024-01-02") == [{"a": "2024-01-02"}]
    assert read("a: " + "9" * 5000) == [{"a": "9" * 5000}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3, column 1: the key 'a' stands twice, first in line 1"]),
        ("1: a\n", ["line 1, column 1: the key '1' is no text; put it in quotes"]),
        ("on: a\n", ["line 1, column 1: the key 'on' is no text"]),
        ("? [a]\n: b\n", ["line 1, column 3: the key 'a list or mapping' is no text"]),
        (
            "a: !!python/object:os.system x\n",
            ["line 1, column 4: the tag 'tag:yaml.org,2002:python"],
        ),
        ("a: !include x\n", ["line 1, column 4: the tag '!include' is not allowed"]),
        ("a: [1\n", ["line 2, column 1: this is not YAML: while parsing a flow sequence"]),
        ("a: b: c\n", ["line 1, column 5: this is not YAML: mapping values are not allowed"]),
        ("a: *b\n", ["line 1, column 4: this is not YAML: found undefined alias"]),
        ("ab\ncd\x00: 1\n", ["line 2, column 3: the character '\\x00' cannot stand in YAML"]),
        ("a: &a [*a]\n", ["nested deeper than 50 levels"]),
        ("[" * (MOST_DEPTH + 1), ["line 1, column 51: nested deeper than 50 levels"]),
        ("[" * 100_000, ["nested deeper than 50 levels"]),
        ("- a\n" * (MOST_NODES + 5), ["more than 100,000 values"]),
        ("x" * (MOST_CHARACTERS + 1), ["longer than 4,000,000 characters"]),
    ],
    ids=range(15),
)
def test_what_is_wrong_is_said_with_its_line(text: str, expected: list[str]) -> None:
    found = wrong(text)
    assert len(found) == len(expected), found
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True)), found


def test_aliases_that_blow_up_are_stopped() -> None:
    laughs = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for i in range(1, 12):
        laughs += f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n"
    (found,) = wrong(laughs)
    assert "more than 100,000 values" in found


def test_depth_within_the_limit_is_read() -> None:
    text = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert len(read(text)) == 1


@given(st.text(max_size=60))
def test_no_text_ends_in_anything_but_sentences(text: str) -> None:
    findings = Findings()
    read_trees(text, findings)
    assert all(problem.mark.line >= 1 for problem in findings.problems)


def test_kinds_in_words() -> None:
    words = [Tree(Mark(), value).kind for value in ({}, [], None, "x", 1.5)]
    assert words == ["a mapping", "a list", "nothing", "'x'", "1.5"]


def test_one_problem_is_one_line() -> None:
    error = RecipeError("r.yml", [Problem(Mark(3, 2), "bad")])
    assert str(error) == "r.yml, line 3, column 2: bad"
    assert error.exit_code == 2
    twice = RecipeError("r.yml", [Problem(Mark(3, 2), "bad")] * 2)
    assert str(twice) == str(error)
