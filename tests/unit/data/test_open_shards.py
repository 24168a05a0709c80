"""Shards in memory: how many, read how often, by whom."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raylg.data.manifest import ShardEntry
from raylg.data.open_shards import OpenShards
from raylg.data.reader import ShardReader
from raylg.errors import ShardError

ENTRIES = [
    ShardEntry(file=str(k), bytes=0, sha256="", num_images=1, num_pairs=1, scene="s", split="train") for k in range(9)
]


def shards(reads: list[str], open_shards: int = 2, *, local: Any = None, cache: Any = None) -> OpenShards[str]:
    def read(entry: ShardEntry) -> str:
        reads.append(entry.file)
        return f"content {entry.file}"

    reader = SimpleNamespace(
        storage=SimpleNamespace(local=local), cache=cache, fetch=lambda entry: reads.append(f"cached {entry.file}")
    )
    return OpenShards(cast(ShardReader, reader), ENTRIES, open_shards, read)


def test_the_least_recently_used_makes_room() -> None:
    reads: list[str] = []
    opened = shards(reads, 1)  # and one more
    for index in (0, 1, 0, 2, 0, 1):
        assert opened[index] == f"content {index}"
    assert reads == ["0", "1", "2", "1"]
    reads.clear()
    spare = shards(reads, 4)
    for index in (0, 1, 2, 3, 4, 5, 0):
        assert spare[index] == f"content {index}"
    assert len(reads) == 6


def test_several_at_a_time() -> None:
    """None of those asked for makes room for another; the last ones used are kept."""
    reads: list[str] = []
    opened = shards(reads, 1)
    assert opened.several([0, 3]) == {0: "content 0", 3: "content 3"}
    assert opened.several([3, 0, 1, 2, 3]) == {k: f"content {k}" for k in range(4)}
    assert reads == ["0", "3", "1", "2"]
    opened.several([2, 3])
    assert len(reads) == 4


def test_what_is_fetched_stays_until_it_is_used() -> None:
    reads: list[str] = []
    opened = shards(reads)
    for index in (0, 1, 2):
        opened.fetch(index)  # the third finds no room
    assert reads == ["0", "1"]
    for index in (5, 6, 7, 0, 1, 2):
        assert opened[index] == f"content {index}"
    assert reads == ["0", "1", "5", "6", "7", "2"]
    opened.fetch(2)
    assert len(reads) == 6


def test_with_a_cache_or_a_folder_the_reader_fetches() -> None:
    for place in ({"cache": "x"}, {"local": "x"}):
        reads: list[str] = []
        shards(reads, **place).fetch(3)
        assert reads == ["cached 3"]


def test_threads_read_a_shard_once() -> None:
    started, go, reads = threading.Event(), threading.Event(), []
    opened = shards([])

    def slow(entry: ShardEntry) -> str:
        reads.append(entry.file)
        started.set()
        assert entry.file != "0" or go.wait(10)
        return entry.file

    opened._read = slow
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(opened.__getitem__, 0) for _ in range(2)]
        assert started.wait(10)
        assert threads.submit(opened.__getitem__, 1).result(10) == "1"  # another shard does not wait
        go.set()
        assert [future.result(10) for future in waiting] == ["0", "0"]
    assert sorted(reads) == ["0", "1"]


def test_a_failed_read_is_tried_again() -> None:
    opened, outcomes = shards([]), iter([ShardError("damaged"), "content"])

    def read(entry: ShardEntry) -> str:
        outcome = next(outcomes)
        if isinstance(outcome, ShardError):
            raise outcome
        return outcome

    opened._read = read
    with pytest.raises(ShardError, match="damaged"):
        opened[0]
    assert opened[0] == "content"
