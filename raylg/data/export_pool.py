"""Where parts of scenes are exported: what every such place offers, and the processes of this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import cv2
import torch

from raylg.data.export_notes import ShardNote
from raylg.data.export_scene import ExportJob, Part, PartExporter, Progress
from raylg.data.scene import SceneRef
from raylg.errors import EnvironmentUnfitError, RaylgError
from raylg.processes import prepare_worker

POLL_SECONDS = 0.2

Finished = tuple[Part, tuple[ShardNote, ...]]
"""A part that is done, and its shards."""


class PartRunner(Protocol):
    """Exports the parts it is given, in no order."""

    def submit(self, parts: Sequence[Part]) -> None:
        """Add parts; returns at once."""

    def poll(self) -> tuple[Sequence[Progress], Sequence[Finished]]:
        """What has happened since the last call, after waiting a moment for it.

        Raises:
            RaylgError: a part has failed, naming its scene.
        """


class ExportPool(Protocol):
    """Where parts are exported, into the same shards everywhere."""

    @property
    def slots(self) -> int:
        """Parts that can be at work at the same time."""

    def start(self, job: ExportJob) -> AbstractContextManager[PartRunner]:
        """A runner; the end of the block ends all work, whatever is finished stays."""


def failure(error: BaseException, scene: SceneRef) -> RaylgError:
    """What a part has raised, as an error that names the scene, of the kind that fits the cause."""
    kind: type[RaylgError] = RaylgError
    if isinstance(error, RaylgError):
        kind = type(error)
    elif isinstance(error, OSError):
        kind = EnvironmentUnfitError
    what = str(error) if isinstance(error, RaylgError) else f"{type(error).__name__}: {error}"
    return kind(f"scene {scene.name!r}: {what}")


class ProcessPool:
    """Processes of this machine; an `ExportPool`. A scene that is alone begins in the calling process."""

    def __init__(self, num_processes: int | None = None) -> None:
        """None takes one process per processor; 1 works in the calling process."""
        self.slots = num_processes or len(os.sched_getaffinity(0))

    @contextmanager
    def start(self, job: ExportJob) -> Iterator[PartRunner]:
        """See `ExportPool`. Meanwhile, this process has one thread per library, too."""
        with _one_thread(), _LocalRunner(job, self.slots) as runner:
            yield runner


class _Events(Protocol):
    """What carries progress between processes or threads."""

    def put(self, item: Progress) -> None: ...

    def get(self) -> Progress: ...

    def empty(self) -> bool: ...


class _Teller:
    """Tells of progress, and notices that nobody wants more of it."""

    def __init__(self, events: _Events, stop: ctypes.c_bool) -> None:
        self._events, self._stop = events, stop

    def __call__(self, progress: Progress) -> None:
        if self._stop.value:
            raise CancelledError
        self._events.put(progress)


@dataclass(frozen=True)
class _Crew:
    """Processes or a thread, what they tell, and how they are stopped."""

    executor: Executor
    export: Callable[[Part], tuple[ShardNote, ...]]
    events: _Events
    stop: ctypes.c_bool

    def heard(self) -> Iterator[Progress]:
        while not self.events.empty():
            yield self.events.get()


class _LocalRunner:
    def __init__(self, job: ExportJob, slots: int) -> None:
        self._job, self._slots = job, slots
        self._futures: dict[Future[tuple[ShardNote, ...]], Part] = {}
        self._crews: list[_Crew] = []

    def __enter__(self) -> _LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self._crews:
            crew.stop.value = True
            crew.executor.shutdown(wait=False, cancel_futures=True)
        while running := [future for future in self._futures if not future.done()]:
            wait(running, POLL_SECONDS)
            for crew in self._crews:
                list(crew.heard())  # who still tells something must not wait for a reader
        for crew in self._crews:
            crew.executor.shutdown(wait=True)

    def submit(self, parts: Sequence[Part]) -> None:
        here = self._slots == 1 or (len(parts) == 1 and not self._crews)
        crew = self._thread if here else self._processes
        for part in parts:
            self._futures[crew.executor.submit(crew.export, part)] = part

    def poll(self) -> tuple[list[Progress], list[Finished]]:
        done, _ = wait(self._futures, POLL_SECONDS, FIRST_COMPLETED)
        told = [progress for crew in self._crews for progress in crew.heard()]
        finished = []
        for future in [future for future in self._futures if future in done]:  # the first failure counts
            part = self._futures.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise EnvironmentUnfitError(
                    "a process that extracts features was killed, most likely for lack of memory; repeat the command "
                    "to continue, with fewer processes if it happens again"
                ) from error
            if error is not None:
                raise failure(error, part.scene) from error
            finished.append((part, future.result()))
        return told, finished

    @cached_property
    def _thread(self) -> _Crew:
        events: _Events = queue.SimpleQueue()
        stop = ctypes.c_bool(False)
        exporter = PartExporter(self._job, _Teller(events, stop))
        self._crews.append(_Crew(ThreadPoolExecutor(1), exporter.export, events, stop))
        return self._crews[-1]

    @cached_property
    def _processes(self) -> _Crew:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and locks of torch and OpenCV
        events: _Events = context.SimpleQueue()
        stop = context.RawValue(ctypes.c_bool, False)  # without a lock, which a killed process might hold
        executor = ProcessPoolExecutor(self._slots, context, _start_process, (self._job, _Teller(events, stop)))
        self._crews.append(_Crew(executor, _export_in_process, events, stop))
        return self._crews[-1]


_exporter: PartExporter | None = None  # of a process of the pool


def _start_process(job: ExportJob, tell: _Teller) -> None:
    global _exporter
    prepare_worker()
    limit_threads(1)
    _exporter = PartExporter(job, tell)


def limit_threads(count: int) -> None:
    """Threads that the libraries of this process may take for one image."""
    cv2.setNumThreads(count)
    torch.set_num_threads(count)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per library, as processes of a pool have: the last digits of a network's features depend on that."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    limit_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _export_in_process(part: Part) -> tuple[ShardNote, ...]:
    assert _exporter is not None
    return _exporter.export(part)
