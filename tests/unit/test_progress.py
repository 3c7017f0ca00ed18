"""Progress: silent unless asked, and a bar that counts bytes."""

from __future__ import annotations

import sys

import pytest

from taskbasis.engine import Engine
from taskbasis.progress import Bar, Silent


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with Silent().task("work", 10) as tick:
        tick(3)
        tick(7)
    assert capfd.readouterr() == ("", "")


def test_a_bar_writes_to_the_error_stream_alone(capfd: pytest.CaptureFixture[str]) -> None:
    results = Engine(2, progress=Bar()).map(
        lambda item, scratch: item, [1_000_000] * 3, lambda item: item, "reading"
    )
    assert sum(results) == 3_000_000
    out, err = capfd.readouterr()
    assert out == ""
    assert "reading" in err or err.strip() == ""  # no terminal: rich may draw nothing at all


def test_a_bar_counts_what_was_done() -> None:
    task = Bar().task("reading", 10)
    bar = task._progress  # type: ignore[attr-defined]
    with task as tick:
        tick(4)
        assert bar.tasks[0].completed == 4
        tick(6)
    assert bar.tasks[0].finished
    assert (bar.tasks[0].description, bar.tasks[0].total) == ("reading", 10)
    assert bar.console.file is sys.stderr


def test_a_bar_stops_after_an_error() -> None:
    task = Bar().task("reading", 10)
    with pytest.raises(ValueError, match="broken"), task:
        raise ValueError("broken")
    assert not task._progress.live.is_started  # type: ignore[attr-defined]
