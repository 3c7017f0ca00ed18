"""One BLAS thread while numbers that reach an output are computed.

OpenBLAS and MKL split a product or a factorisation among as many threads as they have, and round
otherwise for each number of them. With one thread the same inputs give the same bits; the workers
of the engine keep the processors busy instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import threadpoolctl

_lock = threading.Lock()
_inside = 0
_before: Any = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread; who leaves last restores what was.

    Where the limit is of the whole process, concurrent and nested uses are counted. It can
    decorate a function, too.

    >>> import numpy as np
    >>> with one_thread():
    ...     bool((np.eye(2) @ np.eye(2) == np.eye(2)).all())
    True
    """
    global _inside, _before
    with _lock:
        limits = limit_this_thread()
        if _inside == 0:
            _before = limits
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _before is not None:
                _take_control()
                _before.restore_original_limits()
                _take_control()  # whoever comes next may have it
                _before = None


def limit_this_thread() -> Any:
    """Limit BLAS to one thread where the limit is each thread's own, as MKL's and OpenMP's are."""
    _take_control()
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """The libraries of this process, NumPy's among them; looking for them takes milliseconds."""
    return threadpoolctl.ThreadpoolController()


def _take_control() -> None:
    """Newer versions of threadpoolctl listen to one thread only where OpenBLAS has one limit."""
    clear = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
