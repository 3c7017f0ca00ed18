"""The engine: order, what is in flight, errors, memory and progress."""

from __future__ import annotations

import mmap
import platform
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from taskbasis import engine as engine_module
from taskbasis.engine import (
    Engine,
    Scratch,
    available_workers,
    give_back_memory,
    keep_freed_memory,
    resident_bytes,
)
from taskbasis.errors import MemoryCapError, UsageError
from taskbasis.progress import Tick

WORKERS = [1, 2, 5]


def one(_: object) -> int:
    return 1


class Recorder:
    """A progress that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Tick]:
        self.events.append((title, total))
        yield lambda done: self.events.append(("tick", done))
        self.events.append(("end", 0))


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    delays = [random.Random(n).random() / 200 for n in range(40)]

    def work(item: int, scratch: Scratch) -> int:
        time.sleep(delays[item])
        return item * item

    found = list(Engine(workers).map(work, range(40), one, "squares"))
    assert found == [n * n for n in range(40)]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_few_items(workers: int, count: int) -> None:
    found = list(Engine(workers).map(lambda item, scratch: item, range(count), one, ""))
    assert found == list(range(count))


@pytest.mark.parametrize("workers", [2, 5])
def test_only_a_few_are_in_flight(workers: int) -> None:
    """A slow consumer holds the workers back: results never pile up in memory."""
    started: list[int] = []

    def work(item: int, scratch: Scratch) -> int:
        started.append(item)
        return item

    results = Engine(workers).map(work, range(100), one, "")
    taken = 0
    for _ in results:
        taken += 1
        time.sleep(0.001)
        assert len(started) <= taken + 3 * workers
    assert taken == 100


def test_all_workers_work() -> None:
    barrier = threading.Barrier(3, timeout=5)
    list(Engine(3).map(lambda item, scratch: barrier.wait(), range(3), one, ""))


def test_one_worker_is_the_calling_thread() -> None:
    threads = set(Engine(1).map(lambda i, s: threading.current_thread(), range(5), one, ""))
    assert threads == {threading.current_thread()}


def test_nothing_is_done_before_it_is_asked_for() -> None:
    done: list[int] = []
    results = Engine(1).map(lambda item, scratch: done.append(item), range(5), one, "")
    assert done == []
    next(results)
    assert done == [0]
    results.close()
    assert done == [0]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_the_first_error_ends_the_work(workers: int, error: type[BaseException]) -> None:
    started: list[int] = []
    running = threading.Semaphore(0)

    def work(item: int, scratch: Scratch) -> int:
        started.append(item)
        if item == 4:
            raise error("at four")
        time.sleep(0.001)
        running.release()
        return item

    results, found = Engine(workers).map(work, range(1000), one, ""), []
    with pytest.raises(error, match="at four"):
        found.extend(results)
    assert found == [] or found == [0, 1, 2, 3]
    after = list(started)
    assert len(after) <= 5 + 3 * workers
    time.sleep(0.02)
    assert started == after, "no piece is begun after the error was raised"
    assert not [t for t in threading.enumerate() if t.name.startswith("taskbasis")]


@pytest.mark.parametrize("workers", WORKERS)
def test_of_two_errors_the_first_in_order_is_raised(workers: int) -> None:
    def work(item: int, scratch: Scratch) -> int:
        if item == 1:
            time.sleep(0.02)
            raise ValueError("early item, late error")
        if item == 3:
            raise ValueError("late item, early error")
        return item

    with pytest.raises(ValueError, match="early item"):
        list(Engine(workers).map(work, range(9), one, ""))


@pytest.mark.parametrize("workers", [2, 5])
def test_closing_waits_for_what_is_under_way(workers: int) -> None:
    under_way, ended = [], []

    def work(item: int, scratch: Scratch) -> int:
        under_way.append(item)
        time.sleep(0.005)
        ended.append(item)
        return item

    results = Engine(workers).map(work, range(100), one, "")
    next(results)
    results.close()
    assert sorted(under_way) == sorted(ended)
    assert len(under_way) < 50


@pytest.mark.parametrize("workers", WORKERS)
def test_ticks_sum_to_the_total(workers: int) -> None:
    recorder = Recorder()
    sizes = [3, 0, 5, 7, 11, 2, 2, 100]
    list(Engine(workers, progress=recorder).map(lambda i, s: i, sizes, lambda i: i, "bytes"))
    assert recorder.events[0] == ("bytes", sum(sizes))
    assert recorder.events[-1] == ("end", 0)
    assert [done for kind, done in recorder.events if kind == "tick"] == sizes


@pytest.mark.parametrize("workers", WORKERS)
def test_scratch_is_reused(workers: int) -> None:
    lock = threading.Lock()
    addresses: dict[str, set[int]] = {}
    sharing: dict[int, set[str]] = {}

    def work(item: int, scratch: Scratch) -> None:
        array = scratch.array("a", (1000,), np.float32)
        time.sleep(0.0005)
        with lock:
            name = threading.current_thread().name
            addresses.setdefault(name, set()).add(array.ctypes.data)
            sharing.setdefault(array.ctypes.data, set()).add(name)

    list(Engine(workers).map(work, range(30), one, ""))
    assert len(addresses) <= workers
    assert all(len(found) == 1 for found in addresses.values())
    assert all(len(found) == 1 for found in sharing.values()), "no two workers share an array"


def test_scratch_arrays() -> None:
    scratch = Scratch()
    first = scratch.array("a", (10, 3), np.float64)
    assert (first.shape, first.dtype) == ((10, 3), np.float64)
    first[:] = 1
    smaller = scratch.array("a", (5,), np.int16)
    assert np.shares_memory(first, smaller)
    assert smaller.flags.c_contiguous
    assert not np.shares_memory(first, scratch.array("b", (10, 3), np.float64))
    larger = scratch.array("a", (100, 3), np.float64)
    assert not np.shares_memory(first, larger)
    assert np.shares_memory(larger, scratch.array("a", (10, 3), np.float64))
    assert scratch.array("a", (0, 3), np.float32).shape == (0, 3)
    assert scratch.array("a", (), np.float32).shape == ()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers(workers: int) -> None:
    with pytest.raises(UsageError, match=f"{workers} workers cannot do anything"):
        Engine(workers)


def test_as_many_workers_as_processors() -> None:
    assert Engine().workers == available_workers() >= 1


def test_no_cap_changes_nothing() -> None:
    engine = Engine(7)
    assert engine.within(10**15) is engine


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "resident_bytes", lambda: 1_000_000)


@pytest.mark.usefixtures("resident")
@pytest.mark.parametrize(
    ("memory", "shared", "workers"),
    [(1_400_000, 0, 4), (9_000_000, 0, 8), (1_399_999, 0, 3), (1_400_000, 200_000, 2)],
)
def test_the_cap_reduces_workers(memory: int, shared: int, workers: int) -> None:
    progress = Recorder()
    engine = Engine(8, memory, progress).within(100_000, shared)
    assert engine.workers == workers
    assert engine.memory == memory
    assert engine.progress is progress


@pytest.mark.usefixtures("resident")
def test_a_cap_too_small() -> None:
    with pytest.raises(MemoryCapError) as caught:
        Engine(8, 1_099_999).within(100_000)
    message = str(caught.value)
    for figure in ("cap of 1.10 MB", "needs 1.10 MB", "the program itself is 1.00 MB"):
        assert figure in message
    assert caught.value.exit_code == 1
    assert Engine(8, 1_100_000).within(100_000).workers == 1
    with pytest.raises(MemoryCapError, match="needs 51"):
        Engine(8, 10).within(50_000_000)


def test_resident_bytes_see_memory_that_is_used() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 50_000_000) as fresh:  # the heap may hand out pages that are resident
        fresh[:] = bytes([1]) * len(fresh)
        assert resident_bytes() - before > 40_000_000
    assert before > 5_000_000


def test_resident_bytes_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("no /proc here")

    now = resident_bytes()
    monkeypatch.setattr("builtins.open", missing)
    assert resident_bytes() >= now * 0.9


def test_a_system_that_grants_fewer_open_files_than_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS says that there is no limit, and refuses to set none."""

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        refused.append(limits)
        raise ValueError("current limit exceeds maximum limit")

    refused: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, -1))
    monkeypatch.setattr("resource.setrlimit", refuse)
    assert list(Engine(workers=1).map(lambda x, _: x + 1, [1, 2], one, "adding")) == [2, 3]
    assert refused == [(-1, -1)]


def test_open_files_are_allowed_as_far_as_the_system_grants() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
        list(Engine(1).map(lambda i, s: i, [1], one, ""))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_folding_gives_the_same_bits(floats: Callable[..., np.ndarray]) -> None:
    values = floats(3, 500)

    def fold(workers: int) -> np.float32:
        total = np.float32(0)
        for part in Engine(workers).map(lambda at, s: values[at] ** 3, range(500), one, ""):
            total += part
        return total

    assert fold(1).tobytes() == fold(2).tobytes() == fold(5).tobytes()


_TEMPORARIES = """
import resource, sys
import numpy as np
from taskbasis.engine import Engine, keep_freed_memory
if sys.argv[1] == "fresh":
    Engine.map.__globals__["keep_freed_memory"] = lambda: None
def work(item, scratch):
    held = [np.ones(1 << 16) for _ in range(40)]
    return float(held[3].sum())
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
list(Engine(2).map(work, range(100), lambda item: 1, "work"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again() -> None:
    """40 arrays of 512 KiB for each of 100 pieces: 512,000 pages, were each one fresh."""
    command = [sys.executable, "-c", _TEMPORARIES]
    kept, fresh = (
        int(subprocess.run([*command, how], check=True, capture_output=True).stdout)
        for how in ("kept", "fresh")
    )
    assert kept < fresh / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_given_back_when_it_is_counted() -> None:
    """What was freed does not count against a memory cap."""
    keep_freed_memory()
    pieces = [np.ones(1 << 16) for _ in range(300)]  # 512 KiB each: from the heap
    held = resident_bytes()
    last = pieces.pop()  # keeps the heap from shrinking by itself
    pieces.clear()
    give_back_memory()
    assert held - resident_bytes() > 80 << 20
    assert last.sum() == 1 << 16
