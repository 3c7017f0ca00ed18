"""One BLAS thread inside, as many as before outside; nested and side by side."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from taskbasis.blas import one_thread
from taskbasis.engine import Engine


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _two() -> object:
    np.linalg.svd(np.eye(3))
    with threadpool_limits(2, user_api="blas"):
        yield


def test_inside_and_outside() -> None:
    assert threads() == {2}
    with one_thread():
        assert threads() == {1}
        with one_thread():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}


def test_an_error_restores_them() -> None:
    with pytest.raises(ValueError, match="x"), one_thread():
        raise ValueError("x")
    assert threads() == {2}


def test_as_a_decorator() -> None:
    @one_thread()
    def inside() -> set[int]:
        return threads()

    assert [inside(), threads(), inside()] == [{1}, {2}, {1}]


def test_who_leaves_last_restores_them() -> None:
    """Another thread leaves while this one is still at work."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with one_thread():
        leave.set()
        thread.join()
        assert threads() == {1}
    assert threads() == {2}


def test_from_a_thread_that_did_not_begin() -> None:
    """The main thread has set a limit of its own before: see the fixture."""
    found: list[set[int]] = []

    def work() -> None:
        with one_thread():
            found.append(threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{1}]
    assert threads() == {2}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_engine_works_inside(workers: int) -> None:
    engine = Engine(workers=workers)
    found = engine.map(lambda item, scratch: threads(), range(6), lambda item: 1, "looking")
    assert list(found) == [{1}] * 6
    assert threads() == {2}
    begun = engine.map(lambda item, scratch: threads(), range(6), lambda item: 1, "looking")
    next(begun)
    begun.close()
    assert threads() == {2}
