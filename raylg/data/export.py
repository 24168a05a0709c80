"""Scenes to feature shards, in several processes; interrupted at any moment, the same call continues.

Each scene is written by one process, shard by shard. What is finished is noted in `.progress/` within the folder; the
manifest comes last and replaces these notes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import Protocol, get_args

import cv2
import torch

from raylg.data.export_scene import (
    PROGRESS_FOLDER,
    ExportOptions,
    Extractor,
    SceneExporter,
    SceneRecord,
    read_record,
)
from raylg.data.manifest import MANIFEST_NAME, Manifest, SplitCounts, read_manifest, write_manifest
from raylg.data.scene import SceneRef, SceneSource, Split
from raylg.errors import ConfigError, EnvironmentUnfitError, RaylgError

__all__ = ["ExportOptions", "Extractor", "export_features"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def export_features(
    source: SceneSource,
    make_extractor: Callable[[], Extractor],
    out: Path,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Extract the features of all images that are in a pair and write them as shards; the manifest comes last.

    Args:
        source: picklable; its scenes need different names.
        make_extractor: picklable; called once per process.
        out: folder, created if missing. Holding an unfinished export of the same fingerprint, that is continued;
            holding a finished one, nothing is done.
        options: see there.
        progress: told of images done and images in all; the latter is an estimate until all scenes are loaded.

    Raises:
        ConfigError: scenes share a name, no scene has a pair, or `out` holds another data set.
        EnvironmentUnfitError: a process died, or the disk refuses.
        RaylgError: any other failure, naming the scene; what is finished is kept.
    """
    if (out / MANIFEST_NAME).is_file():
        return _existing(out, options)
    refs = source.scenes()
    _check_names(refs)
    out.mkdir(parents=True, exist_ok=True)
    _discard_stale(out, options.created_by.fingerprint)
    records = _export_scenes(_Job(source, make_extractor, out, options), refs, progress)
    empty = [record.scene.name for record in records if not record.shards]
    if len(empty) == len(records):
        raise ConfigError(
            f"none of the {len(records)} scenes has a pair of images; allow a wider range of overlap "
            "(data.min_overlap, data.max_overlap), or give scenes whose images see the same things"
        )
    if empty:
        logger.warning("%d of %d scenes have no pair of images: %s", len(empty), len(records), ", ".join(empty))
    manifest = Manifest(
        name=options.name,
        created_by=options.created_by,
        extractor=options.extractor,
        splits=_count(records),
        shards=tuple(entry for record in records for entry in record.shards),
    )
    write_manifest(out, manifest)
    shutil.rmtree(out / PROGRESS_FOLDER, ignore_errors=True)
    for leftover in out.glob(".*.tmp"):  # of processes that were killed while writing
        leftover.unlink(missing_ok=True)
    return manifest


class _Queue(Protocol):
    """What carries (scene, images done, images in all) between processes or threads."""

    def put(self, item: tuple[str, int, int]) -> None: ...

    def get(self) -> tuple[str, int, int]: ...

    def empty(self) -> bool: ...


@dataclass(frozen=True)
class _Job:
    source: SceneSource
    make_extractor: Callable[[], Extractor]
    out: Path
    options: ExportOptions


class _Worker:
    """Exports one scene after the other, with one extractor."""

    def __init__(self, job: _Job, events: _Queue) -> None:
        self.job, self.events = job, events
        self.stopped = False
        """Set from another thread: the scene ends at its next image, and what is finished of it is kept."""

    @cached_property
    def exporter(self) -> SceneExporter:
        return SceneExporter(self.job.out, self.job.options, self.job.make_extractor(), self._tell)

    def export(self, ref: SceneRef) -> SceneRecord:
        return self.exporter.export(ref, self.job.source.load)

    def _tell(self, ref: SceneRef, done: int, total: int) -> None:
        if self.stopped:
            raise CancelledError
        self.events.put((ref.name, done, total))


_worker: _Worker | None = None  # of a process of the pool


def _start_process(job: _Job, events: _Queue) -> None:
    """Prepare a process of the pool: one thread per library, and no life after the parent's."""
    global _worker
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are loaded later
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()
    _worker = _Worker(job, events)


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)  # a killed parent leaves nobody who would end this process


def _export_in_process(ref: SceneRef) -> SceneRecord:
    assert _worker is not None
    return _worker.export(ref)


def _export_scenes(
    job: _Job, refs: Sequence[SceneRef], progress: Callable[[int, int], None] | None
) -> list[SceneRecord]:
    """Records in the order of `refs`."""
    num_processes = min(job.options.num_processes or len(os.sched_getaffinity(0)), len(refs))
    executor: Executor
    events: _Queue
    local: _Worker | None = None
    task: Callable[[SceneRef], SceneRecord]
    if num_processes <= 1:
        events = queue.SimpleQueue()
        local = _Worker(job, events)
        executor, task = ThreadPoolExecutor(1), local.export
    else:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and locks of torch and OpenCV
        events = context.SimpleQueue()
        executor, task = ProcessPoolExecutor(num_processes, context, _start_process, (job, events)), _export_in_process
    with executor:
        futures = [executor.submit(task, ref) for ref in refs]
        try:
            _watch(futures, events, progress)
            return [_result(future, ref) for future, ref in zip(futures, refs, strict=True) if not future.cancelled()]
        finally:  # after Ctrl-C too, which processes notice by themselves
            if local is not None:
                local.stopped = True
            executor.shutdown(wait=True, cancel_futures=True)


def _watch(futures: Sequence[Future[SceneRecord]], events: _Queue, progress: Callable[[int, int], None] | None) -> None:
    """Wait until all is done or one has failed; pass on the progress."""
    known: dict[str, tuple[int, int]] = {}
    pending: set[Future[SceneRecord]] = set(futures)
    while pending:
        finished, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
        told = not events.empty()
        while not events.empty():
            scene, done, total = events.get()
            known[scene] = (done, total)
        if progress is not None and told:
            total = sum(total for _, total in known.values())
            progress(sum(done for done, _ in known.values()), round(total * len(futures) / len(known)))
        if any(future.exception() for future in finished):
            for future in pending:
                future.cancel()
            return


def _result(future: Future[SceneRecord], ref: SceneRef) -> SceneRecord:
    """The record, or an error that names the scene.

    Raises:
        RaylgError: of the kind that fits the cause.
    """
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        raise EnvironmentUnfitError(
            "a process that extracts features was killed, most likely for lack of memory; repeat the command to "
            "continue, with fewer processes if it happens again"
        ) from error
    kind = RaylgError
    if isinstance(error, RaylgError):
        kind = type(error)
    elif isinstance(error, OSError):
        kind = EnvironmentUnfitError
    what = str(error) if isinstance(error, RaylgError) else f"{type(error).__name__}: {error}"
    raise kind(f"scene {ref.name!r}: {what}") from error


def _existing(out: Path, options: ExportOptions) -> Manifest:
    manifest = read_manifest(out)
    if manifest.created_by.fingerprint != options.created_by.fingerprint:
        raise ConfigError(
            f"{out} already holds the features {manifest.name!r} ({manifest.extractor.name}, made by "
            f"`{manifest.created_by.command}`) of other scenes or options; give another folder, or delete this one"
        )
    return manifest


def _check_names(refs: Sequence[SceneRef]) -> None:
    names = Counter(ref.name for ref in refs)
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated or not refs:
        raise ConfigError(f"scenes share a name: {', '.join(repeated[:5])}" if refs else "the source has no scenes")


def _discard_stale(out: Path, fingerprint: str) -> None:
    """Delete what an unfinished export of other scenes or options has left."""
    for path in sorted((out / PROGRESS_FOLDER).glob("*.json")):
        record = read_record(path)
        if record.fingerprint != fingerprint:
            for entry in record.shards:
                (out / entry.file).unlink(missing_ok=True)
            path.unlink()


def _count(records: Sequence[SceneRecord]) -> dict[str, SplitCounts]:
    splits = {}
    for split in get_args(Split):
        of_split = [record for record in records if record.scene.split == split]
        if of_split:
            num_pairs = sum(entry.num_pairs for record in of_split for entry in record.shards)
            splits[split] = SplitCounts(num_images=sum(r.num_images for r in of_split), num_pairs=num_pairs)
    return splits
