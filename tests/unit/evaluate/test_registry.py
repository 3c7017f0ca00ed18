"""Texts that name tasks."""

import sys

import pytest

from taskbasis.errors import FileError, UsageError
from taskbasis.evaluate import Task, load_tasks
from taskbasis.evaluate.registry import SUITES

MODULE = """
from taskbasis.evaluate import Task

TASKS = [Task("a", lambda model, split: 0.5), Task("b", lambda model, split: 1.0)]
PAIR = tuple(TASKS)
TWICE = TASKS[:1] * 2
EMPTY = []
NUMBER = 7
MIXED = [*TASKS, "c"]

class Suites:
    small = TASKS[:1]

def make():
    return TASKS

def needs(folder):
    return TASKS

def breaks():
    raise TypeError("a fault of the user's own")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_suite_of_tasks.py").write_text(MODULE)
    (tmp_path / "needy_suite_of_tasks.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_suite_of_tasks"
    for name in ("my_suite_of_tasks", "needy_suite_of_tasks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("attribute", "names"),
    [("TASKS", ["a", "b"]), ("PAIR", ["a", "b"]), ("make", ["a", "b"]), ("Suites.small", ["a"])],
)
def test_an_attribute_of_a_module_may_be_a_list_or_give_one(module, attribute, names):
    tasks = load_tasks(f"{module}:{attribute}")
    assert [task.name for task in tasks] == names
    assert all(isinstance(task, Task) for task in tasks)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "names no tasks; write digits:FOLDER"),
        ("digits", "names no tasks"),
        ("digits:", "names no tasks"),
        (":TASKS", "names no tasks"),
        ("digts:folder", "no suite and no module .did you mean 'digits'"),
        ("no_such_module_here:TASKS", "names no suite and no module"),
        ("my_suite_of_tasks.inner:TASKS", "names no suite and no module"),
        (".relative:TASKS", "is not the name of a module"),
        ("my_suite_of_tasks:TASK", "no 'TASK' in it; did you mean 'TASKS'"),
        ("my_suite_of_tasks:EMPTY", "gives list, not a list of taskbasis Tasks"),
        ("my_suite_of_tasks:NUMBER", "gives int"),
        ("my_suite_of_tasks:MIXED", "not a list of taskbasis Tasks"),
        ("my_suite_of_tasks:TWICE", "two tasks of one name"),
        ("my_suite_of_tasks:needs", "cannot be called without arguments.*folder"),
        ("needy_suite_of_tasks:TASKS", "needs 'no_such_package_at_all'"),
    ],
)
def test_a_text_that_names_no_tasks_is_answered_with_a_sentence(module, spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_tasks(spec)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_fault_inside_the_users_function_is_not_hidden(module):
    with pytest.raises(TypeError, match="a fault of the user's own"):
        load_tasks(f"{module}:breaks")


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_suite_without_its_folder_is_a_file_error(suite, tmp_path):
    with pytest.raises(FileError, match="nothing"):
        load_tasks(f"{suite}:{tmp_path / 'nothing'}:data.tsv")
