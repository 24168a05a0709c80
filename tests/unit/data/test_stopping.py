"""Waits that their caller can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import pytest

from raylg.data import stopping
from raylg.data.stopping import Stopped, stop_when


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def thread(stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A thread that shall stop when `stop` is set."""
    with ThreadPoolExecutor(1, initializer=stop_when, initargs=(stop,)) as pool:
        yield pool
        stop.set()


def test_a_result_is_passed_on() -> None:
    future: Future[int] = Future()
    threading.Timer(0.1, future.set_result, (3,)).start()
    assert stopping.result(future) == stopping.result(future, 0) == 3
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        stopping.result(failed)


def test_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        stopping.result(Future(), start + 0.1)
    assert 0.1 <= time.monotonic() - start < 1


def test_a_thread_that_shall_stop_waits_no_longer(stop: threading.Event, thread: ThreadPoolExecutor) -> None:
    waiting = thread.submit(stopping.result, Future[int]())
    time.sleep(0.1)
    assert not waiting.done()
    stop.set()
    with pytest.raises(Stopped):
        waiting.result(1)
    with pytest.raises(Stopped):
        thread.submit(stopping.check).result()
    done: Future[int] = Future()
    done.set_result(1)
    assert thread.submit(stopping.result, done).result() == 1  # what is there is worth having


def test_others_go_on(stop: threading.Event, thread: ThreadPoolExecutor) -> None:
    stop.set()
    stopping.check()
    with ThreadPoolExecutor(1) as other:
        other.submit(stopping.check).result()
        inherited = thread.submit(lambda: other.submit(copy_context().run, stopping.check)).result()
        with pytest.raises(Stopped):
            inherited.result()
        other.submit(stopping.check).result()
