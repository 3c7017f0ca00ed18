"""The table of scripts/robustness: counts of real commands, and no loss that is not seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "robust" / "acceptance.py"


@pytest.fixture(scope="module")
def acceptance() -> Any:
    spec = importlib.util.spec_from_file_location("acceptance", FILE)
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules["acceptance"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def script(acceptance: Any, words: str) -> Any:
    return acceptance.Part("part", [sys.executable, "-c", words]).run()


def test_a_script_says_its_counts_last(acceptance: Any) -> None:
    row = script(acceptance, 'print(\'x\\nRESULT {"tried": 3, "survived": 3, "more": 1}\')')
    assert (row.tried, row.survived, row.inputs, row.lossless) == (3, 3, 0, True)
    assert row.cells() == ("part", "3", "3", "-", "-", "0.00")
    row = script(acceptance, 'print(\'RESULT {"inputs": 7000, "crashes": 0, "seconds": 9}\')')
    assert row.cells() == ("part", "-", "-", "7,000", "0", "0.00")
    assert 0 < row.seconds < 60


@pytest.mark.parametrize(
    "words",
    [
        "print('no result')",
        "print('RESULT {}')",
        'print(\'RESULT {"tried": 3, "survived": 2}\')',
        'print(\'RESULT {"inputs": 3, "crashes": 1}\')',
        'print(\'RESULT {"tried": 3, "survived": 3}\'); raise SystemExit(1)',
    ],
)
def test_any_loss_is_a_failure(acceptance: Any, words: str) -> None:
    row = script(acceptance, words)
    assert not row.lossless
    assert row.cells()[0] == "part: FAILED"


def test_tests_are_counted_but_those_skipped(acceptance: Any, tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    head = "import pytest\ndef test_a(): ...\ndef test_b(): ...\n"
    file.write_text(head + "@pytest.mark.skip(reason='x')\ndef test_c(): ...\n")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        file,
    ]
    row = acceptance.Part("tests", words, tests=True).run()
    assert (row.tried, row.survived, row.lossless) == (2, 2, True)
    file.write_text(head + "def test_c(): assert False\n")
    row = acceptance.Part("tests", words, tests=True).run()
    assert (row.tried, row.survived, row.lossless) == (3, 2, False)
    file.write_text("syntax error")
    assert not acceptance.Part("tests", words, tests=True).run().lossless


def test_the_table(acceptance: Any) -> None:
    rows = [
        acceptance.Row("killed", 200, 200, seconds=3600),
        acceptance.Row("fuzzed", inputs=12_345, seconds=1800),
    ]
    assert acceptance.table(rows).splitlines() == [
        "what    faults tried  survived  inputs fuzzed  crashes  hours",
        "killed           200       200              -        -   1.00",
        "fuzzed             -         -         12,345        0   0.50",
        "all              200       200         12,345        0   1.50",
    ]
    lost = acceptance.table([*rows, acceptance.Row("more", 2, 1)])
    assert "more: FAILED" in lost
    assert "all: FAILED" in lost


def test_what_the_parts_run_is_there(acceptance: Any) -> None:
    for part in acceptance.parts(1, 1, 1, 0):
        for word in part.command:
            if str(word).startswith(("scripts/", "tests/")):
                assert (FILE.parents[1] / word).exists(), word
