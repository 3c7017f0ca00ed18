"""What a command costs, and the floor."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_run_reports_its_exit_code_and_what_was_printed(measure: ModuleType) -> None:
    done = measure.run(
        python("import sys; print('out'); print('err', file=sys.stderr); raise SystemExit(3)")
    )
    assert done.code == 3
    assert set(done.printed.split()) == {"out", "err"}
    assert done.wall > 0
    assert done.cpu == done.user + done.system > 0


def test_a_run_killed_by_a_signal_has_its_negative_number(measure: ModuleType) -> None:
    done = measure.run(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.code == -signal.SIGKILL


def test_a_command_that_is_not_there_is_exit_code_127(measure: ModuleType) -> None:
    done = measure.run(["no-such-command"])
    assert done.code == 127
    assert "no-such-command" in done.printed


def test_a_run_sees_the_variables_given_and_no_input(measure: ModuleType) -> None:
    done = measure.run(
        python("import os, sys; print(os.environ['GIVEN'] + sys.stdin.read())"), {"GIVEN": "yes"}
    )
    assert done.printed == "yes\n"


def test_a_run_keeps_its_bytecode_as_installed_programs_do(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = measure.run([sys.executable, "-S", "-c", "import sys; print(sys.dont_write_bytecode)"])
    assert done.printed == "False\n"


def test_only_the_end_of_long_output_is_kept(measure: ModuleType) -> None:
    done = measure.run(python("print('x' * 10_000 + 'end')"))
    assert len(done.printed) == measure.TAIL
    assert done.printed.endswith("end\n")


def test_the_peak_is_that_of_the_command(measure: ModuleType) -> None:
    done = measure.run(python(f"b'x' * {64 * MIB}"))
    assert 64 * MIB < done.peak < 100 * MIB


def test_the_peak_does_not_contain_the_memory_of_whoever_measures(measure: ModuleType) -> None:
    ours = b"x" * (80 * MIB)
    done = measure.run(python("pass"))
    assert 0 < done.peak < 40 * MIB
    assert len(ours) == 80 * MIB


def test_contestants_take_turns(measure: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {name: python(f"open({str(log)!r}, 'a').write({name!r})") for name in "AB"}
    prepared: list[str] = []
    runs = measure.alternate(commands, 2, prepared.append)
    assert log.read_text() == "ABAB"
    assert prepared == ["A", "B", "A", "B"]
    assert {name: len(of) for name, of in runs.items()} == {"A": 2, "B": 2}


def test_who_failed_is_not_run_again(measure: ModuleType) -> None:
    runs = measure.alternate({"bad": python("raise SystemExit(1)"), "good": python("pass")}, 3)
    assert [done.code for done in runs["bad"]] == [1]
    assert [done.code for done in runs["good"]] == [0, 0, 0]


def test_spread(measure: ModuleType) -> None:
    assert measure.Spread.of([4.0, 1.0, 2.0, 3.0]) == measure.Spread(2.5, 1.0, 4.0)


def test_the_floor_reads_every_byte_and_leaves_nothing_behind(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PIECE", 1000)
    measure._buffers.cache_clear()
    read: list[int] = []
    preadv = measure.os.preadv

    def counting(descriptor: int, buffers: list[memoryview], start: int) -> int:
        read.append(preadv(descriptor, buffers, start))
        return read[-1]

    monkeypatch.setattr(measure.os, "preadv", counting)
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "empty"]
    for path, size in zip(files, (2500, 1000, 0), strict=True):
        path.write_bytes(b"x" * size)
    monkeypatch.setattr(measure, "warm", lambda files: None)
    ground = measure.floor(files, 4321, tmp_path, tries=2)
    measure._buffers.cache_clear()
    assert sum(read) == 2 * 3500
    assert (ground.read_bytes, ground.write_bytes) == (3500, 4321)
    assert min(ground.read_rate, ground.write_rate, ground.sync_rate) > 0
    assert ground.write_rate >= ground.sync_rate
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "empty"]


def test_the_floor_writes_no_more_than_a_sample(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(measure, "SAMPLE", 10_000)
    monkeypatch.setattr(
        measure, "_write_once", lambda folder, count: (written.append(count), (1.0, 2.0))[1]
    )
    ground = measure.floor([], 1_000_000, tmp_path, tries=1)
    assert written == [10_000]
    assert (ground.write_bytes, ground.write_rate, ground.sync_rate) == (1_000_000, 1e4, 5e3)


def test_floor_seconds(measure: ModuleType) -> None:
    ground = measure.Floor(
        read_bytes=100, write_bytes=60, read_rate=50.0, write_rate=30.0, sync_rate=6.0
    )
    assert ground.seconds() == 2 + 2
    assert ground.seconds(passes=2) == 4 + 2
    assert ground.synced_seconds() == 2 + 10


def test_warming_stops_when_it_gets_no_faster(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([8.0, 4.0, 3.9, 1.0])
    monkeypatch.setattr(measure, "_timed", lambda action: next(times))
    measure.warm([])
    assert next(times) == 1.0


def test_fresh_memory_costs_something(measure: ModuleType) -> None:
    assert measure.fresh_memory_seconds(4 * MIB, tries=1) > 0
