"""The crash harness, for a short while: scripts/crash tries every verb at many more moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERBS = (
    "extract",
    "add, 2 workers",
    "add, replace",
    "merge",
    "disentangle, replace",
    "basis fit, replace",
    "diagnose",
)


def harness(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "robust/crash.py", *words]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)


@pytest.mark.promise(
    "A run that is killed at any moment leaves its output absent or whole, its inputs untouched, "
    "and nothing that a later run trips over."
)
def test_nothing_is_lost_wherever_a_run_is_killed() -> None:
    done = harness("--moments", "28", "--seed", "5", "--verbs", ";".join(VERBS))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    table = [line.split("\t") for line in lines[1:-1]]
    assert [row[0].strip() for row in table] == list(VERBS)
    absent, whole, broken = (sum(int(row[at]) for row in table) for at in (5, 6, 7))
    assert (absent + whole, broken) == (28, 0)
    assert min(absent, whole) > 3
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert (result["tried"], result["survived"]) == (28, 28)


def test_the_harness_finds_what_is_broken(tmp_path: Path) -> None:
    """A writer that never removes its hidden folder is caught."""
    (tmp_path / "sitecustomize.py").write_text(
        "import taskbasis.io.hidden as hidden\n"
        "hidden.HiddenFolder._clear = lambda self: False\n"
        "hidden.HiddenFolder._clear_empty = lambda self: None\n"
    )
    command = [sys.executable, "robust/crash.py", "--moments", "4", "--verbs", "add"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode == 1
    assert "leaves something beside" in done.stderr or "FAULT" in done.stdout
