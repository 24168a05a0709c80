"""Pairs in an endless order, read ahead of the training step: shards by several threads, batches by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import tee
from threading import Event
from typing import Any, Protocol

import numpy as np

from raylg.batch import PairBatch
from raylg.data.config import DataConfig
from raylg.data.manifest import Manifest
from raylg.data.order import EndlessOrder, all_entries, batch_indices
from raylg.data.stopping import stop_when

CLOSING_S = 5.0
"""A closed stream waits this long for what its threads do; waits for storage or other processes end at once."""


class PairData(Protocol):
    """The pairs of one split, in shards; what training and scoring read. Must allow use from several threads.

    Indices are int64 [n, 2] (shard, pair), both from 0 within the split, or [n, 3] with the epoch, which is 0 where it
    is absent. A data set may draw a pair anew in each epoch; for one epoch a pair is always the same.
    """

    @property
    def num_pairs(self) -> int:
        """Number of pairs."""

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of pairs in each shard."""

    @property
    def open_shards(self) -> int:
        """Shards that are mixed and kept in memory at a time."""

    @property
    def data_hash(self) -> str:
        """Changes with any image, pair or feature."""

    @property
    def manifest(self) -> Manifest:
        """Of the whole data set."""

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Read pairs, in the order of `indices`.

        Raises:
            ShardError: a shard is missing or damaged.
            EnvironmentUnfitError: the storage refuses or does not answer.
        """

    def thumbnails(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Small grey images, uint8 [h, w], of both sides of each pair; errors as of `batch`."""

    def fetch(self, shard: int) -> None:
        """Bring a shard near ahead of need; errors as of `batch`."""


def stream_batches(
    dataset: PairData, config: DataConfig, seed: int, rank: int, world_size: int, *, start_pairs: int
) -> Generator[PairBatch, None, None]:
    """Batches of one rank, for ever. Closing the generator ends its threads; what they are downloading is given up.

    While `config.prefetch_batches` batches are decoded ahead by one thread, `config.storage.parallel_reads` threads
    fetch the shards that come after them, in the order of their first use and across the end of an epoch, at most
    `dataset.open_shards` of them.

    Args:
        dataset: with at least one pair.
        config: `batch_size` (global), `prefetch_batches`, `storage.parallel_reads`.
        seed: of the order.
        rank: from 0.
        world_size: number of ranks, at most `config.batch_size`.
        start_pairs: pairs that all ranks together have seen before.

    Yields:
        Batches of `config.batch_size` / `world_size` pairs, rounded up for the first ranks.

    Raises:
        ShardError: a shard is missing or damaged; raised where its batch is due.
        EnvironmentUnfitError: the storage refuses or does not answer; likewise.
    """
    order = EndlessOrder(seed=seed, shard_sizes=dataset.shard_sizes, open_shards=dataset.open_shards)
    entries, preview = tee(
        batch_indices(order, start_pairs=start_pairs, batch_size=config.batch_size, rank=rank, world_size=world_size)
    )
    needs = first_uses(preview)
    closed = Event()
    reader = ThreadPoolExecutor(1, "read-pairs", stop_when, (closed,))
    fetchers = ThreadPoolExecutor(config.storage.parallel_reads, "fetch-shards", stop_when, (closed,))
    fetches: deque[tuple[int, Future[None]]] = deque()
    batches: deque[tuple[Future[PairBatch], list[Future[None]]]] = deque()

    def fetch_next() -> None:
        number, shard = next(needs)
        fetches.append((number, fetchers.submit(dataset.fetch, shard)))

    try:
        for number, indices in enumerate(entries):
            while not fetches or fetches[-1][0] <= number:
                fetch_next()
            needed = []
            while fetches[0][0] <= number:
                needed.append(fetches.popleft()[1])
            batches.append((reader.submit(_read, dataset, indices, needed), needed))
            # Fetched but not yet read by a batch: what a data set without a cache must hold.
            ahead = len(fetches) + sum(len(shards) for batch, shards in batches if not batch.done())
            for _ in range(dataset.open_shards - ahead):
                fetch_next()
            if len(batches) > config.prefetch_batches:
                yield batches.popleft()[0].result()
    finally:
        running = [fetch for _, fetch in fetches] + [fetch for _, needed in batches for fetch in needed]
        closed.set()
        _end((fetchers, reader), [*running, *(batch for batch, _ in batches)])


def first_uses(entries: Iterable[np.ndarray]) -> Iterator[tuple[int, int]]:
    """(number of the batch, shard) for each shard that a batch is the first to use in an epoch, in order.

    Args:
        entries: int64 [n, 3] of each batch.
    """
    epoch, seen = -1, set[int]()
    for number, indices in enumerate(entries):
        for shard, now in indices[:, ::2].tolist():
            if now != epoch:
                epoch, seen = now, set()
            if shard not in seen:
                seen.add(shard)
                yield number, shard


def evaluation_indices(dataset: PairData, max_pairs: int | None) -> np.ndarray:
    """At most `max_pairs` pairs, evenly spaced over the shards, always the same; None takes all.

    Returns:
        int64 [n, 2], (shard, pair), sorted.
    """
    entries = all_entries(dataset.shard_sizes)
    count = len(entries) if max_pairs is None else min(max_pairs, len(entries))
    return entries[np.arange(count) * len(entries) // max(count, 1)]


def _read(dataset: PairData, indices: np.ndarray, needed: Sequence[Future[None]]) -> PairBatch:
    for fetch in needed:
        fetch.result()
    return dataset.batch(indices)


def _end(executors: Sequence[ThreadPoolExecutor], futures: Sequence[Future[Any]]) -> None:
    """Cancel what has not begun and wait for the rest, but not for a disk that has stopped answering."""
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    _, stuck = wait([future for future in futures if not future.done()], timeout=CLOSING_S)
    for executor in executors:
        executor.shutdown(wait=not stuck)
