"""The stream of batches: order, resuming, reading ahead, errors, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from raylg.batch import PairBatch, View
from raylg.data import stopping, stream
from raylg.data.config import DataConfig, StorageConfig
from raylg.data.manifest import CreatedBy, Manifest
from raylg.data.order import EndlessOrder, batch_indices
from raylg.data.stream import PairData, evaluation_indices, first_uses, stream_batches
from raylg.errors import EnvironmentUnfitError, ShardError
from raylg.geometry.camera import Camera, Pose
from tests.system.small_shards import write_data_set
from tests.unit.data.fake_s3 import fake_s3


@dataclass
class Indices:
    """Pairs that are nothing but their indices."""

    shard_sizes: tuple[int, ...] = (7, 5, 9, 4)
    open_shards: int = 2
    on_fetch: Callable[[int], None] = lambda shard: None
    on_batch: Callable[[np.ndarray], None] = lambda indices: None
    log: list[tuple[str, int]] = field(default_factory=list)
    """("fetch" | "fetched" | "use", shard), as it happened."""
    data_hash: str = "0"

    @property
    def num_pairs(self) -> int:
        return sum(self.shard_sizes)

    @property
    def manifest(self) -> Manifest:
        created_by = CreatedBy(version="0", git_sha=None, command="", config={}, fingerprint="")
        return Manifest(name="", created_by=created_by, extractor=None, splits={}, shards=(), content="images")

    def batch(self, indices: np.ndarray) -> PairBatch:
        self.log += [("use", int(shard)) for shard in indices[:, 0]]
        self.on_batch(indices)
        return pair_batch(tuple((str(s), str(p), str(e)) for s, p, e in indices.tolist()))

    def thumbnails(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8)) for _ in indices]

    def fetch(self, shard: int) -> None:
        self.log.append(("fetch", shard))
        self.on_fetch(shard)
        self.log.append(("fetched", shard))


def pair_batch(names: tuple[tuple[str, str, str], ...]) -> PairBatch:
    """A batch without keypoints."""
    count = len(names)
    view = View(
        keypoints=torch.zeros(count, 0, 2),
        descriptors=torch.zeros(count, 0, 1),
        mask=torch.zeros(count, 0, dtype=torch.bool),
        image_size=torch.zeros(count, 2),
        camera=Camera.from_params(torch.ones(count, 4)),
        depth_keypoints=torch.zeros(count, 0),
    )
    pose = Pose.from_matrix(torch.eye(4).expand(count, 4, 4))
    return PairBatch(view0=view, view1=view, T_0to1=pose, overlap=torch.zeros(count), names=names)


def config(batch_size: int = 4, *, prefetch: int = 2, threads: int = 4) -> DataConfig:
    return DataConfig(batch_size=batch_size, prefetch_batches=prefetch, storage=StorageConfig(parallel_reads=threads))


@contextmanager
def streaming(
    dataset: PairData, config: DataConfig, *, rank: int = 0, world_size: int = 1, start_pairs: int = 0, seed: int = 0
) -> Iterator[Iterator[PairBatch]]:
    with closing(stream_batches(dataset, config, seed, rank, world_size, start_pairs=start_pairs)) as batches:
        yield batches


def names(
    num_batches: int, dataset: PairData | None = None, batch_size: int = 4, **where: int
) -> list[tuple[str, ...]]:
    """(shard, pair, epoch) of the pairs of some batches."""
    with streaming(dataset or Indices(), config(batch_size), **where) as batches:
        return [name for batch in islice(batches, num_batches) for name in batch.names]


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("read-pairs", "fetch-shards"))]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_stream_follows_the_order_and_resumes(prefetch: int, threads: int) -> None:
    settings = config(5, prefetch=prefetch, threads=threads)
    with streaming(Indices(), settings) as batches:
        whole = list(islice(batches, 12))
    seen = [name for batch in whole for name in batch.names]
    for epoch in (0, 1):
        assert len({name for name in seen if name[2] == str(epoch)}) == 25
    assert [name[2] for name in seen] == sorted(name[2] for name in seen)
    with streaming(Indices(), settings, start_pairs=25) as batches:
        assert [batch.names for batch in islice(batches, 3)] == [batch.names for batch in whole[5:8]]
    for rank in range(2):
        with streaming(Indices(), settings, rank=rank, world_size=2) as batches:
            for part, batch in zip(islice(batches, 8), whole, strict=False):
                assert part.names == batch.names[rank::2]


def test_a_run_continued_with_another_number_of_workers_sees_the_same_pairs() -> None:
    """One worker sees 7 batches, then two, then three: together what one alone sees, batch by batch."""
    alone = names(16)
    parts = [names(7)]
    seen = 7 * 4
    for world_size, num_batches in ((2, 4), (3, 5)):
        ranks = [names(num_batches, rank=rank, world_size=world_size, start_pairs=seen) for rank in range(world_size)]
        for number in range(num_batches):
            expected = set(alone[seen : seen + 4])
            share = [-(-(4 - rank) // world_size) for rank in range(world_size)]
            now = [part[number * n : (number + 1) * n] for part, n in zip(ranks, share, strict=True)]
            assert {name for part in now for name in part} == expected and sum(map(len, now)) == 4
            seen += 4
        parts += ranks
    assert sorted(name for part in parts for name in part) == sorted(alone)


def test_order_depends_on_the_seed_and_the_open_shards() -> None:
    assert names(6) == names(6)
    assert names(6) != names(6, seed=1)
    assert names(6) != names(6, Indices(open_shards=4))


def test_reads_ahead_a_bounded_number_of_batches() -> None:
    dataset, calls = Indices(), list[int]()
    dataset.on_batch = lambda indices: calls.append(len(indices))
    with streaming(dataset, config(prefetch=2)) as batches:
        assert own_threads() == [] and calls == []
        next(batches), next(batches)
        assert within(5, lambda: len(calls) == 4)
        time.sleep(0.05)
        assert len(calls) == 4
    assert own_threads() == []


def test_first_uses() -> None:
    entries = [[[3, 0, 0], [1, 0, 0]], [[3, 1, 0], [3, 2, 0]], [[2, 0, 0], [1, 0, 1]], [[1, 1, 1], [3, 0, 1]]]
    assert list(first_uses(map(np.array, entries))) == [(0, 3), (0, 1), (2, 2), (2, 1), (3, 3)]


@pytest.mark.parametrize(("sizes", "open_shards"), [((7, 5, 9, 4), 2), ((6,), 3), ((1,) * 40, 2), ((30, 1, 0, 1), 1)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_shard_is_fetched_before_its_first_use_in_each_epoch(
    sizes: tuple[int, ...], open_shards: int, world_size: int
) -> None:
    dataset, uses = Indices(sizes, open_shards), set[tuple[int, int]]()
    dataset.on_fetch = lambda shard: time.sleep(0.001 * (shard % 3))

    def fetched_for_this_epoch(indices: np.ndarray) -> None:
        uses.update((shard, epoch) for shard, _, epoch in indices.tolist())
        for shard in set(indices[:, 0].tolist()):
            assert dataset.log.count(("fetched", shard)) >= sum(used == shard for used, _ in uses)

    dataset.on_batch = fetched_for_this_epoch
    names(30, dataset, world_size=world_size)
    assert max(epoch for _, epoch in uses) >= 1


def test_fetches_in_the_order_of_first_use_and_across_epochs() -> None:
    dataset = Indices((4,) * 12, open_shards=3)
    with streaming(dataset, config(4, threads=1)) as batches:
        seen = [name for batch in islice(batches, 36) for name in batch.names]
    needed = [int(shard) for _, shard in dict.fromkeys((epoch, shard) for shard, _, epoch in seen)]
    assert len(needed) == 3 * 12
    assert [shard for event, shard in dataset.log if event == "fetch"][:36] == needed


def test_fetches_ahead_a_bounded_number_of_shards() -> None:
    """Before the first batch is read, its shards and others up to `open_shards` are fetched; no more until it is."""
    dataset, go_on = Indices((10,) * 50, open_shards=6), threading.Event()
    dataset.on_batch = lambda indices: cast(None, go_on.wait(10))

    def count() -> int:
        return sum(event == "fetched" for event, _ in dataset.log)

    with streaming(dataset, config(prefetch=1)) as batches:
        consumer = threading.Thread(target=lambda: next(batches))
        consumer.start()
        assert within(5, lambda: count() == 6)
        time.sleep(0.05)
        assert count() == 6
        go_on.set()
        consumer.join()
        for _ in range(20):
            next(batches)
            used = {shard for event, shard in dataset.log if event == "use"}
            fetched = {shard for event, shard in dataset.log if event == "fetch"}
            assert len(fetched - used) <= 6


def test_fetching_ahead_hides_the_wait() -> None:
    """12 shards that take 50 ms each arrive by 4 threads while others are used: sooner than by one."""

    def seconds(threads: int) -> float:
        dataset = Indices((4,) * 12, open_shards=4)
        dataset.on_fetch = lambda shard: time.sleep(0.05)
        start = time.monotonic()
        with streaming(dataset, config(4, threads=threads)) as batches:
            list(islice(batches, 12))
        return time.monotonic() - start

    assert seconds(4) < 0.7 * seconds(1)


@pytest.mark.parametrize("error", [ShardError("lost"), EnvironmentUnfitError("unreachable")])
def test_errors_of_reading_reach_the_consumer_where_they_are_due(error: Exception) -> None:
    dataset = Indices()
    calls = list[int]()

    def third_fails(indices: np.ndarray) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise error

    dataset.on_batch = third_fails
    with streaming(dataset, config()) as batches:
        next(batches), next(batches)
        with pytest.raises(type(error), match=str(error)):
            next(batches)
        assert own_threads() == []


def test_errors_of_fetching_reach_the_consumer_where_they_are_due() -> None:
    """Shards used late fail at once, but the batches before them come."""
    plain = names(25, Indices((4,) * 25, open_shards=2))
    lost = int(plain[40][0])
    due = next(k for k in range(25) if any(int(name[0]) == lost for name in plain[4 * k : 4 * k + 4]))
    assert due > 3
    dataset = Indices((4,) * 25, open_shards=2)

    def fails(shard: int) -> None:
        if shard == lost:
            raise ShardError(f"shard {shard} is lost")

    dataset.on_fetch = fails
    with streaming(dataset, config()) as batches:
        assert [name for batch in islice(batches, due) for name in batch.names] == plain[: 4 * due]
        with pytest.raises(ShardError, match=f"shard {lost} is lost"):
            next(batches)
        assert own_threads() == []


def test_closing_ends_all_threads_while_they_fetch() -> None:
    """What runs is waited for (0.3 s), the 7 fetches that have not begun are cancelled."""
    dataset = Indices((4,) * 50, open_shards=8)
    dataset.on_fetch = lambda shard: time.sleep(0.3)
    batches = stream_batches(dataset, config(1, threads=1), 0, 0, 1, start_pairs=0)
    next(batches)
    assert len(own_threads()) == 2
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 1.2
    assert own_threads() == []


def test_closing_does_not_wait_for_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CLOSING_S", 0.1)
    dataset, go_on = Indices((4,) * 50, open_shards=8), threading.Event()
    first = {int(name[0]) for name in names(1, Indices((4,) * 50, open_shards=8))}
    dataset.on_fetch = lambda shard: None if shard in first else cast(None, go_on.wait(20))
    batches = stream_batches(dataset, config(), 0, 0, 1, start_pairs=0)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 2
    assert own_threads() != []
    go_on.set()
    assert within(5, lambda: own_threads() == [])


def test_closing_ends_waits_at_once() -> None:
    """For storage, and for other processes that hold a lock: neither is waited for, nor left behind."""
    dataset = Indices((4,) * 50, open_shards=8)
    first = {int(name[0]) for name in names(1, Indices((4,) * 50, open_shards=8))}

    def wait_for_ever(shard: int) -> None:
        while shard not in first:
            stopping.check()
            time.sleep(0.01)

    dataset.on_fetch = wait_for_ever
    batches = stream_batches(dataset, config(), 0, 0, 1, start_pairs=0)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 1
    assert own_threads() == []
    stopping.check()  # this thread goes on
    assert len(names(1, Indices())) == 4  # and so does another stream


CLOSED = """
import sys
from raylg.data.config import DataConfig, StorageConfig
from raylg.data.dataset import PairDataset
from raylg.data.reader import ShardReader
from raylg.data.stream import stream_batches
storage = StorageConfig(cache_gb=float(sys.argv[3]))
config = DataConfig(source="shards", path=("x",), cache_dir=sys.argv[2], batch_size=1, open_shards=2, storage=storage)
dataset = PairDataset(ShardReader.open(sys.argv[1], config), "train", 20, config.open_shards)
batches = stream_batches(dataset, config, 0, 0, 1, start_pairs=0)
next(batches)
print("read", flush=True)
sys.stdin.readline()
batches.close()
"""


@pytest.mark.parametrize("cache_gb", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_ends_though_its_storage_does_not_answer(tmp_path: Path, cache_gb: int) -> None:
    """The deadline is 300 s."""
    sizes = (10,) * 5
    order = EndlessOrder(seed=0, shard_sizes=sizes, open_shards=2)
    first = next(batch_indices(order, start_pairs=0, batch_size=1, rank=0, world_size=1))[0, 0]
    write_data_set(tmp_path / "set", len(sizes))
    credentials = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with fake_s3() as fake:
        fake.files.update({f"set/{path.name}": path.read_bytes() for path in (tmp_path / "set").iterdir()})
        fake.silent = {key for key in fake.files if "shard-" in key and f"shard-{first}." not in key}
        with subprocess.Popen(
            [sys.executable, "-c", CLOSED, "s3://bucket/set", str(tmp_path / "cache"), str(cache_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | credentials | {"AWS_ENDPOINT_URL": fake.url},
        ) as process:
            try:
                assert process.stdout is not None and process.stdout.readline() == b"read\n"
                assert within(10, lambda: any(key in request for key in fake.silent for request in fake.log))
                start = time.monotonic()
                _, told = process.communicate(b"\n", timeout=15)
            finally:
                process.kill()
        assert (process.returncode, told) == (0, b"")
        assert time.monotonic() - start < 5


def test_many_streams_leave_no_thread() -> None:
    before = set(threading.enumerate())
    for k in range(20):
        names(k % 3, Indices((3,) * 10))
    assert set(threading.enumerate()) <= before


def test_a_stream_of_one_pair() -> None:
    assert names(3, Indices((0, 1, 0), open_shards=1), batch_size=2) == [("1", "0", str(e)) for e in range(6)]


def test_evaluation_indices_are_spread() -> None:
    dataset = Indices((7, 0, 5, 6))
    whole = evaluation_indices(dataset, None).tolist()
    assert len(whole) == 18 and whole == sorted(whole)
    some = evaluation_indices(dataset, 6).tolist()
    assert [whole.index(entry) for entry in some] == [0, 3, 6, 9, 12, 15]
    assert evaluation_indices(dataset, 100).tolist() == whole
    assert evaluation_indices(cast(PairData, Indices(())), None).shape == (0, 2)
