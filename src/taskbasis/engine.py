"""Moves pieces of work through workers and hands the results back in order. No mathematics.

Results come in the order of the items whatever the number of workers, and only a few are ever
in flight, so folding them as they come gives the same bits for 1, 2 and 5 workers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from taskbasis import kernels
from taskbasis.blas import limit_this_thread, one_thread
from taskbasis.devices import Lane, Loops, open_device
from taskbasis.errors import MemoryCapError, UsageError
from taskbasis.progress import Progress, Silent, Tick
from taskbasis.units import bytes_text

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""What glibc's ``mallopt`` calls them."""

_THREAD = 2 << 20
"""Bytes beside its stack that a thread takes as it starts, at most."""

IN_FLIGHT = 3
"""Results per worker that may wait to be folded."""


class Scratch:
    """What one worker has: arrays that are reused from piece to piece, by name, and loops.

    Attributes:
        loops: what computes sums and inner products: the compiled loops, or a way to a device.
    """

    def __init__(self, lane: Lane | None = None) -> None:
        self.loops: Loops = kernels if lane is None else lane
        self._lane = lane
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(
        self, key: str, shape: tuple[int, ...], dtype: DTypeLike, travels: bool = False
    ) -> NDArray[Any]:
        """An uninitialised array whose memory is the same each time while it is large enough.

        Args:
            travels: whether it is copied to or from the device, if there is one.
        """
        wanted = np.dtype(dtype)
        count = wanted.itemsize
        for length in shape:
            count *= length
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < count:
            buffer = self._buffers[key] = self._fresh(count, travels)
        return buffer[:count].view(wanted).reshape(shape)

    def _fresh(self, count: int, travels: bool) -> NDArray[np.uint8]:
        if travels and self._lane is not None:
            return self._lane.empty(count)
        return np.empty(count, np.uint8)


def available_workers() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Engine:
    """How work is done: by how many workers, in how much memory, shown by what.

    Attributes:
        workers: threads; 1 works in the calling thread. Default: all processors.
        memory: a cap in bytes on this process's resident memory; None for no cap.
        progress: shows how far the work is.
        resume: whether the writing of a vector, model or basis goes on from what a run of the
            same that was killed has left, and leaves what is finished when it fails itself.
        device: the torch device that computes weighted sums and inner products (``cuda``,
            ``cuda:1``), opened when the work begins; None for the compiled loops. Other methods
            stay on the processor. What is stored of sums has the same bytes.

    Raises:
        UsageError: fewer than one worker.

    >>> squares = Engine(workers=2).map(lambda x, scratch: x * x, [1, 2, 3], int, "squaring")
    >>> list(squares)
    [1, 4, 9]
    """

    workers: int = field(default_factory=available_workers)
    memory: int | None = None
    progress: Progress = field(default_factory=Silent)
    resume: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"{self.workers} workers cannot do anything; use at least 1")

    def within(self, per_worker: int, shared: int = 0, least: int = 0) -> Engine:
        """This engine with as many workers as its memory cap allows.

        Args:
            per_worker: bytes that each worker's buffers take.
            shared: bytes that the work takes beside them.
            least: so many are granted at any rate, for work that takes less than what follows.

        Raises:
            MemoryCapError: not even one worker fits; the message says how much is needed.
            UsageError, MissingExtraError: the device cannot be used.
        """
        if self.memory is None:
            return self
        load_kernels()
        if self.device is not None and open_device(self.device).locks_pages:
            per_worker *= 2  # such memory is handed out in powers of two, and kept
        give_back_memory()
        used = resident_bytes() + shared
        fitting = max((self.memory - used) // max(per_worker, 1), least)
        if fitting < 1:
            raise MemoryCapError(
                f"a memory cap of {bytes_text(self.memory)} is too small: this work needs "
                f"{bytes_text(used + per_worker)}, of which the program itself is "
                f"{bytes_text(resident_bytes())}"
            )
        return replace(self, workers=min(self.workers, int(fitting)))

    def map(
        self,
        work: Callable[[Item, Scratch], Result],
        items: Sequence[Item],
        size: Callable[[Item], int],
        title: str,
    ) -> Generator[Result, None, None]:
        """``work(item, scratch)`` for every item; results in the order of the items.

        The first error ends the work: pieces not yet begun are dropped, those under way are
        waited for, and the error is raised here.

        Raises:
            UsageError, MissingExtraError: the device cannot be used.
        """
        raise_open_files_limit()
        keep_freed_memory()
        if self.memory is not None:
            share_freed_memory()
        scratch = self._scratch_maker()
        with one_thread(), self.progress.task(title, sum(map(size, items))) as tick:
            if self.workers == 1 or len(items) == 1:
                yield from _serial(scratch, work, items, size, tick)
            else:
                workers = min(self.workers, max(len(items), 1))
                yield from _threads(workers, scratch, work, items, size, tick)

    def _scratch_maker(self) -> Callable[[], Scratch]:
        """What makes each worker's scratch; the device is opened here, before they start."""
        if self.device is None:
            return Scratch
        device = open_device(self.device)
        return lambda: Scratch(device.lane())


def _serial(
    make_scratch: Callable[[], Scratch],
    work: Callable[[Item, Scratch], Result],
    items: Sequence[Item],
    size: Callable[[Item], int],
    tick: Tick,
) -> Generator[Result, None, None]:
    scratch = make_scratch()
    for item in items:
        yield work(item, scratch)
        tick(size(item))


def _threads(
    workers: int,
    make_scratch: Callable[[], Scratch],
    work: Callable[[Item, Scratch], Result],
    items: Sequence[Item],
    size: Callable[[Item], int],
    tick: Tick,
) -> Generator[Result, None, None]:
    local = threading.local()

    def call(item: Item) -> Result:
        if not hasattr(local, "scratch"):
            local.scratch = make_scratch()
        return work(item, local.scratch)

    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, "taskbasis")
    try:
        _start(pool, workers)
        for item in items:
            pending.append((item, pool.submit(call, item)))
            if len(pending) >= workers * IN_FLIGHT:
                done, future = pending.popleft()
                yield future.result()
                tick(size(done))
        for done, future in pending:
            yield future.result()
            tick(size(done))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(pool: ThreadPoolExecutor, workers: int) -> None:
    """Start all threads before any of them takes memory, and none where there is too little:
    Python waits for ever for a thread that finds no memory as it starts.

    Raises:
        MemoryError: the system grants no more memory, or no more threads.
    """
    try:
        mmap.mmap(-1, workers * _THREAD, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError(f"no memory is left for {workers} threads") from None
    together = threading.Barrier(workers)

    def begin() -> None:
        together.wait()
        limit_this_thread()

    try:
        begun = [pool.submit(begin) for _ in range(workers)]
    except BaseException as error:
        together.abort()
        if isinstance(error, RuntimeError):
            raise MemoryError(f"{workers} threads cannot be started: {error}") from None
        raise
    for future in begun:
        future.result()


def resident_bytes() -> int:
    """The memory this process holds now; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def keep_freed_memory() -> None:
    """Tell the C library to reuse arrays that were freed instead of giving them back at once.

    Fresh memory is zeroed by the kernel page by page, which can take longer than the work itself;
    methods make temporary arrays of a few MiB for every piece. Without effect where the C library
    is not glibc. :func:`give_back_memory` gives it back.
    """
    with suppress(OSError, AttributeError):
        tune = ctypes.CDLL(None).mallopt
        for parameter, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 128 << 20)):
            tune(parameter, size)


@cache
def share_freed_memory() -> None:
    """Tell the C library to keep one pool of freed memory for all threads, not one for each.

    What lies free at the end of a thread's own pool is never given back, and would count as held
    when the next pass is judged. Without effect where the C library is not glibc.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@cache
def load_kernels() -> None:
    """Load the compiler by a loop over one number: it takes more room than a worker does.

    A cap is only kept if that is part of what the program holds before the work begins.
    """
    kernels.decode(np.zeros(1, np.uint16), np.zeros(1, np.float32))


def give_back_memory() -> None:
    """Give freed memory back to the system, so that what is resident is in use."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def raise_open_files_limit() -> None:
    """Allow as many open files as the system grants: hundreds of sharded checkpoints need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems grant less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
