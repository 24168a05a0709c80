"""Extracts features as tasks of a Ray cluster."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from raylg.cluster.resources import Resources, worker_resources
from raylg.cluster.session import RaySession
from raylg.data.export_notes import STARTED_NAME, ShardNote
from raylg.data.export_pool import POLL_SECONDS, Finished, failure, limit_threads
from raylg.data.export_scene import ExportJob, Extractor, Part, PartExporter, Progress
from raylg.errors import EnvironmentUnfitError, ShardError
from raylg.training.config import ScaleConfig

_LOG = logging.getLogger(__name__)

_QUEUED_PER_SLOT = 2
"""Tasks given to Ray for each that can run, so that none waits for this process."""
_TELL_SECONDS = 0.5
_VISIBLE_SECONDS = 10.0
"""Network folders may show a new file this late."""
_CANCEL_SECONDS = 10.0


@contextmanager
def cluster_pool(scale: ScaleConfig, *, network: bool, log_file: Path) -> Iterator[RayPool]:
    """Join a cluster for the length of a ``with`` block.

    Args:
        scale: whom to join, and what a task takes.
        network: whether the extractor is one that runs on GPUs.
        log_file: for the messages of Ray's libraries.

    Raises:
        EnvironmentUnfitError: the cluster cannot be reached.
    """
    with RaySession(scale, log_file) as session:
        yield RayPool(session, scale, network=network)


class RayPool:
    """Tasks of a cluster; a `raylg.data.export.ExportPool`.

    Each takes `scale.cpus_per_worker` cores, for as many threads, and `scale.gpus_per_worker` GPUs; null takes a GPU
    for a network where the cluster has any. The last digits of a network's features depend on both. A task whose
    process or machine dies is repeated up to `scale.max_failures` times, and goes on with the next shard. Sources must
    be readable on all machines, under the same path; so must a local folder that shards are written to, which a bucket
    need not.
    """

    def __init__(self, session: RaySession, scale: ScaleConfig, *, network: bool) -> None:
        """See `cluster_pool`."""
        self._session = session
        gpus = scale.gpus_per_worker
        if gpus is None:
            gpus = worker_resources(scale, session.resources).gpus if network else 0.0
        self.worker = Resources(scale.cpus_per_worker, gpus)
        self.max_failures = scale.max_failures

    @property
    def slots(self) -> int:
        """Tasks that fit the cluster as it is, at least 1: it may be about to grow."""
        return max(1, self._session.resources.capacity_for(self.worker))

    @contextmanager
    def start(self, job: ExportJob) -> Iterator[_RayRunner]:
        """See `ExportPool`."""
        if self._session.resources.capacity_for(self.worker) == 0:
            _LOG.warning(
                "no machine of the cluster has room for a task of %d CPU cores and %g GPUs; waiting for one",
                self.worker.cpus,
                self.worker.gpus,
            )
        runner = _RayRunner(job, self)
        try:
            yield runner
        finally:
            runner.cancel()


class _RayRunner:
    def __init__(self, job: ExportJob, pool: RayPool) -> None:
        self._pool = pool
        self._waiting: deque[Part] = deque()
        self._running: dict[Any, Part] = {}
        # No core of its own; a new one after a failure has merely forgotten how far the tasks are.
        self._board: Any = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()
        self._task = ray.remote(_export).options(
            num_cpus=pool.worker.cpus,
            num_gpus=pool.worker.gpus,
            max_retries=pool.max_failures,
        )
        self._setup = ray.put(_Setup(job, os.getcwd(), pool.worker))

    def submit(self, parts: Sequence[Part]) -> None:
        self._waiting.extend(parts)

    def poll(self) -> tuple[Sequence[Progress], Sequence[Finished]]:
        while self._waiting and len(self._running) < _QUEUED_PER_SLOT * self._pool.slots:
            part = self._waiting.popleft()
            self._running[self._task.remote(self._setup, part, self._board)] = part
        ray.wait(list(self._running), timeout=POLL_SECONDS)
        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return self._told(), [self._result(task) for task in done]

    def cancel(self) -> None:
        """End the tasks; what they have finished stays."""
        for task in self._running:
            ray.cancel(task, force=True)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_CANCEL_SECONDS)
        ray.kill(self._board)

    def _told(self) -> Sequence[Progress]:
        try:
            told: Sequence[Progress] = ray.get(self._board.take.remote())
        except RayActorError:  # its machine is gone; another one is being started
            return ()
        return told

    def _result(self, task: Any) -> Finished:
        """What a task gives.

        Raises:
            RaylgError: it failed, or was lost too often; names the scene.
        """
        part = self._running.pop(task)
        try:
            return part, ray.get(task)
        except RayTaskError as error:
            raise failure(error.cause, part.scene) from error
        except RayError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise EnvironmentUnfitError(
                f"scene {part.scene.name!r}: its task was lost {self._pool.max_failures + 1} times "
                f"(scale.max_failures), most likely for lack of memory ({lines[0]}); repeat the command to continue, "
                "with more scale.cpus_per_worker if it happens again, so that fewer tasks share a machine"
            ) from error


class _Board:
    """An actor that tasks write their progress on."""

    def __init__(self) -> None:
        self._told: list[Progress] = []

    def tell(self, progress: Progress) -> None:
        self._told.append(progress)

    def take(self) -> list[Progress]:
        told, self._told = self._told, []
        return told


@dataclasses.dataclass(frozen=True)
class _Setup:
    job: ExportJob
    cwd: str
    """Directory that relative paths start from."""
    worker: Resources


class _Teller:
    """Sends what the coordinator waits for: the size of a part at once, then its progress now and then."""

    def __init__(self) -> None:
        self.board: Any = None
        self._last: tuple[Part | None, float] = (None, 0.0)

    def __call__(self, progress: Progress) -> None:
        part, told = self._last
        if progress.part != part or time.monotonic() - told > _TELL_SECONDS:
            self._last = progress.part, time.monotonic()
            self.board.tell.remote(progress)


_exporter: tuple[str, PartExporter, _Teller] | None = None  # of a process, which Ray uses for many tasks of a call


def _export(setup: _Setup, part: Part, board: Any) -> tuple[ShardNote, ...]:
    """The task."""
    global _exporter
    job = setup.job
    if _exporter is None or _exporter[0] != job.token:
        if os.path.isdir(setup.cwd):
            os.chdir(setup.cwd)
        limit_threads(max(1, int(setup.worker.cpus)))
        _check_folder(job)
        if setup.worker.gpus:
            job = dataclasses.replace(job, make_extractor=functools.partial(_on_gpu, job.make_extractor))
        teller = _Teller()
        _exporter = (job.token, PartExporter(job, teller), teller)
    _, exporter, teller = _exporter
    teller.board = board
    return exporter.export(part)


def _on_gpu(make_extractor: Callable[[], Extractor]) -> Extractor:
    """An extractor on the GPU that Ray gave to this process, if it is a network."""
    extractor = make_extractor()
    if isinstance(extractor, torch.nn.Module) and torch.cuda.is_available():
        extractor.to("cuda")
    return extractor


def _check_folder(job: ExportJob) -> None:
    """Refuse to write shards into a folder of this machine alone.

    Raises:
        EnvironmentUnfitError: this machine does not see the folder that the caller sees.
    """
    end = time.monotonic() + _VISIBLE_SECONDS
    while job.out.local is not None:
        try:
            if job.out.read(STARTED_NAME) == job.token.encode():
                return
        except ShardError:  # not there, or not yet
            pass
        if time.monotonic() > end:
            raise EnvironmentUnfitError(
                f"{socket.gethostname()}, a machine of the cluster, does not share the folder {job.out.url}; write to "
                "a bucket (out=s3://bucket/folder) or to a folder that all machines see at this path"
            )
        time.sleep(POLL_SECONDS)
