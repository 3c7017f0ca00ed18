"""What a command costs, and what the machine itself would need for the same bytes.

:func:`run` gives one command's wall time, CPU time, peak resident memory and exit code;
:func:`alternate` repeats several commands in turn, so that a noisy minute hits all of them;
:func:`floor` measures how fast this machine, now, reads given files and writes given bytes.

Peak resident memory is the kernel's ``ru_maxrss`` of the command alone. It counts mapped file
pages: a program that maps its inputs is charged for the pages it touched, although the kernel could
take them back at any time.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE = 8 << 20  # bytes moved by one call when the floor is measured
SAMPLE = 2 << 30  # more than this is not written to learn the write rate
TAIL = 2000  # characters kept of what a command printed


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds, bytes, exit code, the end of what it printed."""

    wall: float
    user: float
    system: float
    peak: int
    code: int
    printed: str = ""

    @property
    def cpu(self) -> float:
        """Seconds of CPU time, in the program and in the kernel on its behalf."""
        return self.user + self.system


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and how far they range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """The spread of at least one number.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
        """
        return cls(statistics.median(numbers), min(numbers), max(numbers))


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Runs a command to its end and says what it cost.

    Args:
        command: the program and its arguments.
        environment: variables added to this process's own.

    Returns:
        The cost; exit code 127 when the command cannot be started.
    """
    stopwatch = Path(__file__).with_name("stopwatch.py")
    variables = dict(os.environ)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # what pip installs comes with its bytecode
    variables |= environment or {}
    ours, theirs = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(ours, "rb") as report:
        watch = [sys.executable, "-I", "-S", str(stopwatch), str(theirs), *command]
        try:
            subprocess.run(
                watch,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=(theirs,),
                check=False,
            )
        finally:
            os.close(theirs)
        cost = report.read()
        printed.seek(0)
        text = printed.read().decode(errors="replace")[-TAIL:]
    if not cost:
        return Run(0.0, 0.0, 0.0, 0, 127, text)
    return Run(**json.loads(cost), printed=text)


def alternate(
    commands: Mapping[str, Sequence[str]],
    repeats: int,
    prepare: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[Run]]:
    """Runs A B A B ..., each ``repeats`` times.

    Args:
        commands: what to run, by name.
        repeats: how often each.
        prepare: called with the name before each run, not measured: clears outputs, warms inputs.
        environment: variables added to this process's own.

    Returns:
        The runs of each name in the order they were made. A name that fails is not run again.
    """
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            if runs[name] and runs[name][-1].code != 0:
                continue
            if prepare is not None:
                prepare(name)
            runs[name].append(run(command, environment))
    return runs


@dataclass(frozen=True)
class Floor:
    """How fast this machine moved the bytes of one job, in bytes and bytes per second."""

    read_bytes: int
    write_bytes: int
    read_rate: float
    write_rate: float
    sync_rate: float

    def seconds(self, passes: int = 1) -> float:
        """Reading the inputs ``passes`` times and writing the output into the page cache."""
        return self._reading(passes) + self.write_bytes / self.write_rate

    def synced_seconds(self, passes: int = 1) -> float:
        """The same, with the output on the disk at the end."""
        return self._reading(passes) + self.write_bytes / self.sync_rate

    def _reading(self, passes: int) -> float:
        return passes * self.read_bytes / self.read_rate


def floor(files_read: Sequence[Path], bytes_written: int, folder: Path, tries: int = 3) -> Floor:
    """Measures the physical floor of a job: nothing that moves these bytes can be faster.

    Files are first brought into the page cache, then read again with the clock running, by
    ``preadv`` into one reused buffer per core; the best of ``tries`` counts. Files that do not fit
    in the page cache are thereby measured at the speed of the disk, as the job meets them. Fresh
    files of ``bytes_written`` (at most :data:`SAMPLE`, then as a rate) are written from one reused
    buffer per core, with the clock stopped before and after ``fsync``.

    Args:
        files_read: what the job reads.
        bytes_written: how much it writes.
        folder: where it writes; the files made there are removed.
        tries: how often each is measured.
    """
    read_bytes = sum(path.stat().st_size for path in files_read)
    warm(files_read)
    reading = min(_timed(lambda: _read_all(files_read)) for _ in range(tries))
    sample = max(1, min(bytes_written, SAMPLE))
    writes = [_write_once(folder, sample) for _ in range(tries)]
    return Floor(
        read_bytes=read_bytes,
        write_bytes=bytes_written,
        read_rate=max(read_bytes, 1) / reading,
        write_rate=sample / min(cached for cached, _ in writes),
        sync_rate=sample / min(synced for _, synced in writes),
    )


def warm(files: Sequence[Path], most: int = 4) -> None:
    """Reads the files until reading gets no faster: then they stand in the page cache, if they fit.

    One pass is not always enough: where a hypervisor takes idle memory back, even a page that is
    in the cache costs more the first time it is touched again.
    """
    before = _timed(lambda: _read_all(files))
    for _ in range(most - 1):
        now = _timed(lambda: _read_all(files))
        if now > 0.8 * before:
            return
        before = now


def fresh_memory_seconds(nbytes: int = 256 << 20, tries: int = 3) -> float:
    """CPU seconds to touch a GiB of memory for the first time; the best of ``tries``.

    Where a hypervisor takes idle memory back and hands it out page by page this can be seconds, and
    a program that keeps asking for fresh memory pays it again and again.
    """
    return min(_touch(nbytes) for _ in range(tries)) * (1 << 30) / nbytes


def _touch(nbytes: int) -> float:
    start = time.process_time()
    with mmap.mmap(-1, nbytes) as fresh:
        for place in range(0, nbytes, mmap.PAGESIZE):
            fresh[place] = 1
    return time.process_time() - start


def scaling(tries: int = 5) -> float:
    """How many times the arithmetic of one core all of them do, on numbers in their own caches.

    What a virtual machine shows as two cores may be two halves of one.
    """
    pairs = [(np.ones(1 << 16, np.float32), np.ones(1 << 16, np.float32)) for _ in range(cores())]

    def multiply(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        for _ in range(2000):
            np.multiply(pair[0], pair[0], out=pair[1])

    with ThreadPoolExecutor(cores()) as threads:
        alone = min(_timed(lambda: multiply(pairs[0])) for _ in range(tries))
        together = min(_timed(lambda: list(threads.map(multiply, pairs))) for _ in range(tries))
    return cores() * alone / together


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return max(time.perf_counter() - start, 1e-9)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, PIECE):
        yield start, min(PIECE, size - start)


def _read_all(files: Sequence[Path]) -> None:
    descriptors = [os.open(path, os.O_RDONLY) for path in files]
    work = iter(
        [
            (descriptor, start, count)
            for descriptor in descriptors
            for start, count in _pieces(os.fstat(descriptor).st_size)
        ]
    )
    try:
        _on_all_cores(lambda buffer: _drain(work, buffer))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _drain(work: Iterator[tuple[int, int, int]], buffer: memoryview) -> None:
    """Takes pieces from the shared iterator until it is empty (a list's steps are atomic)."""
    for descriptor, start, count in work:
        os.preadv(descriptor, [buffer[:count]], start)


def _on_all_cores(action: Callable[[memoryview], None]) -> None:
    buffers = _buffers()
    with ThreadPoolExecutor(len(buffers)) as threads:
        for started in [threads.submit(action, buffer) for buffer in buffers]:
            started.result()


@functools.cache
def _buffers() -> list[memoryview]:
    """One buffer per core, touched before any clock runs."""
    return [memoryview(bytearray(b"\x5a") * PIECE) for _ in range(cores())]


def _write_once(folder: Path, nbytes: int) -> tuple[float, float]:
    """Seconds to write fresh files, one per core, and the same with ``fsync``."""
    names = [folder / f".floor-{number}" for number in range(cores())]
    for name in names:
        name.unlink(missing_ok=True)
    os.sync()
    descriptors = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) for name in names]
    share = -(-nbytes // len(descriptors))
    queue = iter(descriptors)
    _buffers()

    def write(buffer: memoryview) -> None:
        descriptor = next(queue)
        for start, count in _pieces(share):
            os.pwrite(descriptor, buffer[:count], start)

    start = time.perf_counter()
    try:
        _on_all_cores(write)
        cached = time.perf_counter() - start
        for descriptor in descriptors:
            os.fsync(descriptor)
        synced = time.perf_counter() - start
    finally:
        for descriptor, name in zip(descriptors, names, strict=True):
            os.close(descriptor)
            name.unlink()
    return max(cached, 1e-9), max(synced, 1e-9)
