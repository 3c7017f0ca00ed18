"""taskbasis methods: the list, the docs' tables, and all of one method."""

from __future__ import annotations

from typing import Any

from taskbasis.methods import registered
from taskbasis.methods.catalogue import catalogue, markdown


def test_the_list_names_every_method(call: Any) -> None:
    said = call("methods").out
    for name in registered():
        assert f" {name} " in said
    assert "Per matrix, by singular values" in said
    assert "[V_1" in said, "brackets of a formula are no markup"


def test_the_tables_of_the_docs(call: Any) -> None:
    assert call("methods", "--markdown").out == markdown(catalogue())


def test_all_of_one(call: Any) -> None:
    said = call("methods ties").out
    assert said.startswith("ties: ")
    assert "Source: Yadav et al." in said
    assert ">>>" not in said
    assert "--set density=0.2" in said
    assert "it reads its inputs 3 times, and holds a few cuts in memory." in said
    assert "it takes 1 vector or more;" in said


def test_an_unknown_one(call: Any) -> None:
    answer = call("methods tie")
    assert answer.code == 2
    assert answer.sentence == "there is no method 'tie'; did you mean 'ties'?"
