"""Waits that end when nobody wants what they wait for: storage that does not answer must not keep a process alive."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, wait
from contextvars import ContextVar
from threading import Event
from typing import TypeVar

from raylg.errors import RaylgError

T = TypeVar("T")

POLL_SECONDS = 0.05

_event: ContextVar[Event | None] = ContextVar("stop", default=None)


class Stopped(RaylgError):
    """A wait has ended because its event is set; whoever set it does not look at what becomes of it."""


def stop_when(event: Event) -> None:
    """End the waits of this thread once `event` is set; threads that it gives work to need its context for that."""
    _event.set(event)


def check() -> None:
    """Do nothing, unless this thread has been told to stop.

    Raises:
        Stopped: it has.
    """
    event = _event.get()
    if event is not None and event.is_set():
        raise Stopped("given up: nobody waits for it any more")


def result(future: Future[T], deadline: float = math.inf) -> T:
    """Wait for a future.

    Args:
        future: what it raises passes through.
        deadline: in seconds of the monotonic clock.

    Raises:
        Stopped: this thread has been told to stop.
        TimeoutError: the deadline is over.
    """
    while not wait((future,), timeout=POLL_SECONDS).done:
        check()
        if time.monotonic() >= deadline:
            raise TimeoutError
    return future.result()
