"""Time in process, the profile, and what it is summed to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = """\
import os, sys, threading, time
calls = []

def main():
    calls.append(os.path.exists(sys.argv[1]))
    with open(sys.argv[1], "w") as file:
        file.write(str(calls))
    time.sleep(0.02)
    sys.exit(int(sys.argv[2]))

def threaded():
    one = threading.Thread(target=time.sleep, args=(0.05,))
    one.start()
    one.join()
    return None
"""


@pytest.fixture
def inside(scripts: dict[str, ModuleType], measure: ModuleType) -> ModuleType:
    return scripts["inside"]


def timed(
    inside: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: str,
    target: str,
    *words: str,
) -> tuple[int, dict[str, object]]:
    (folder / "a_program_of_the_test.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", ["inside.py"])
    monkeypatch.delitem(sys.modules, "a_program_of_the_test", raising=False)
    report, output = folder / "report.json", folder / "output"
    program = f"a_program_of_the_test:{target}"
    code = inside.main([str(report), calls, str(output), program, str(output), *words])
    return code, json.loads(report.read_text())


def test_every_call_starts_without_an_output(
    inside: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = timed(inside, tmp_path, monkeypatch, "3", "main", "0")
    assert (code, found["code"]) == (0, 0)
    assert len(found["calls"]) == 3  # type: ignore[arg-type]
    assert min(found["calls"]) >= 0.02  # type: ignore[call-overload]
    assert (tmp_path / "output").read_text() == "[False, False, False]"


def test_an_exit_code_is_passed_on(
    inside: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = timed(inside, tmp_path, monkeypatch, "1", "main", "3")
    assert (code, found["code"]) == (3, 3)


def test_a_profile_sees_other_threads(
    inside: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = timed(inside, tmp_path, monkeypatch, "profile", "threaded")
    assert len(found["calls"]) == 2  # type: ignore[arg-type]
    slept = [
        line
        for line in found["profile"]  # type: ignore[attr-defined]
        if "sleep" in line["where"] and line["thread"] == "other"
    ]
    assert slept
    assert slept[0]["seconds"] >= 0.04


def test_words_instead_of_a_code_are_a_failure(inside: ModuleType) -> None:
    assert inside.call(lambda: sys.exit("no"))[1] == 1
    assert inside.call(lambda: sys.exit(None))[1] == 0
    assert inside.call(lambda: 2)[1] == 2
    assert inside.call(lambda: "done")[1] == 1


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("<built-in method posix.preadv>", "reading"),
        ("<built-in method posix.pwrite>", "writing"),
        ("<method 'acquire' of '_thread.lock' objects>", "waiting for threads"),
        ("src/taskbasis/counting.py:_count", "kernels"),
        ("numpy/linalg/_linalg.py:svd", "linear algebra"),
        ("taskbasis/cli/merge.py:merge", "Python"),
    ],
)
def test_what_a_function_is_counted_as(
    scripts: dict[str, ModuleType], where: str, kind: str
) -> None:
    assert scripts["shares"].kind(where) == kind


def test_waiting_is_no_share_of_the_work(scripts: dict[str, ModuleType]) -> None:
    lines = [
        {"where": "<built-in method posix.pread>", "thread": "other", "seconds": 3.0, "calls": 1},
        {"where": "kernels.py:_form", "thread": "main", "seconds": 1.0, "calls": 2},
        {"where": "<method 'acquire' of lock>", "thread": "main", "seconds": 3.0, "calls": 2},
    ]
    found = scripts["shares"].shares(lines, 4.0, 0.25)
    assert found["seconds"] == {
        "reading, in threads": 3.0,
        "waiting for threads": 3.0,
        "kernels": 1.0,
    }
    assert [line["calls"] for line in found["top"]] == [1, 2, 2]
    sentence = scripts["shares"].explanation(found)
    assert "reading, in threads 75 %, kernels 25 %; starting adds 0.25 s" in sentence


def test_the_function_that_takes_most_of_python_is_named(scripts: dict[str, ModuleType]) -> None:
    line = {"where": "methods/noise.py:draws", "thread": "main", "seconds": 1.0, "calls": 1}
    found = scripts["shares"].shares([line], 1.0, 0.0)
    assert "Python 100 % (most in methods/noise.py:draws)" in scripts["shares"].explanation(found)
