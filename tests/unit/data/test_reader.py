"""Reading shards: nothing wrong gets through, and nothing is read twice."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylg.data import stopping
from raylg.data.cache import ShardCache
from raylg.data.config import DataConfig, StorageConfig
from raylg.data.image_shards import image_shard_bytes
from raylg.data.manifest import Manifest, ShardEntry, write_manifest
from raylg.data.reader import DOWNLOADS, ShardReader
from raylg.data.shard import entry_of, shard_bytes
from raylg.data.stopping import Stopped
from raylg.data.storage import Storage
from raylg.errors import EnvironmentUnfitError, ShardError
from tests.unit.data.test_image_shards import shard as make_image_shard
from tests.unit.data.test_manifest import make_manifest
from tests.unit.data.test_shard import make_shard


class Bucket(Storage):
    """Files in memory, read as if they were remote."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__("s3://bucket/set", StorageConfig(parallel_reads=1))
        self.files, self.log = files, list[str]()
        self.before: Callable[[str], None] = lambda name: None
        """Called before a file is read."""

    def read(self, name: str, size: int | None = None) -> bytes:
        self.log.append(name)
        self.before(name)
        return self.files[name]


@pytest.fixture(scope="module")
def data_set() -> tuple[Manifest, dict[str, bytes]]:
    shards = [replace(make_shard(), scene=f"scene {k}") for k in range(4)]
    files = {f"{k}.h5": shard_bytes(shard) for k, shard in enumerate(shards)}
    entries = [entry_of(f"{k}.h5", shard, files[f"{k}.h5"]) for k, shard in enumerate(shards)]
    manifest = make_manifest()
    assert manifest.extractor is not None
    extractor = replace(manifest.extractor, descriptor_dim=shards[0].descriptors.shape[1])
    return replace(manifest, extractor=extractor, shards=tuple(entries)), files


@pytest.fixture
def entries(data_set: tuple[Manifest, dict[str, bytes]]) -> tuple[ShardEntry, ...]:
    return data_set[0].shards


@pytest.fixture
def bucket(data_set: tuple[Manifest, dict[str, bytes]]) -> Bucket:
    return Bucket(dict(data_set[1]))


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "shards", 10**6, 5)


@pytest.fixture
def cached(data_set: tuple[Manifest, dict[str, bytes]], bucket: Bucket, cache: ShardCache) -> ShardReader:
    return ShardReader(bucket, data_set[0], cache)


@pytest.fixture
def uncached(data_set: tuple[Manifest, dict[str, bytes]], bucket: Bucket) -> ShardReader:
    return ShardReader(bucket, data_set[0], None)


@pytest.fixture
def local(data_set: tuple[Manifest, dict[str, bytes]], tmp_path: Path) -> ShardReader:
    for name, data in data_set[1].items():
        Storage(tmp_path / "set").write(name, data)
    write_manifest(Storage(tmp_path / "set"), data_set[0])
    return ShardReader.open(tmp_path / "set", DataConfig(cache_dir=str(tmp_path / "cache")))


def damaged(data: bytes) -> bytes:
    return data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


def test_what_is_read_is_what_was_written(
    local: ShardReader, cached: ShardReader, uncached: ShardReader, entries: tuple[ShardEntry, ...]
) -> None:
    for reader in (local, cached, cached, uncached):
        for k, entry in enumerate(entries):
            reader.fetch(entry)
            shard = reader.read(entry)
            assert shard.scene == f"scene {k}"
            np.testing.assert_array_equal(shard.descriptors, make_shard().descriptors)


def test_open_of_a_folder_makes_no_cache(local: ShardReader, tmp_path: Path) -> None:
    assert local.cache is None
    assert local.manifest.name == "demo"
    local.fetch(local.manifest.shards[0])
    assert local.content(local.manifest.shards[0]).tobytes() == (tmp_path / "set" / "0.h5").read_bytes()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ShardError, match="does not exist"):
        ShardReader.open(tmp_path / "nowhere", DataConfig())


@pytest.mark.parametrize(("cache_gb", "limit"), [(0.5, 500_000_000), (0.0, None)])
def test_open_of_a_bucket(
    data_set: tuple[Manifest, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cache_gb: float,
    limit: int | None,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("raylg.data.reader.read_manifest", lambda storage: data_set[0])
    config = DataConfig(cache_dir="~/kept", storage=StorageConfig(cache_gb=cache_gb, deadline_s=77))
    cache = ShardReader.open("s3://bucket/set", config).cache
    if cache is None:
        assert limit is None
    else:
        assert (cache.root, cache.limit_bytes, cache.wait_s) == (tmp_path / "kept" / "shards", limit, 77)


def test_a_shard_is_downloaded_once(cached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]) -> None:
    for _ in range(3):
        for entry in entries:
            cached.fetch(entry)
            cached.read(entry)
    assert bucket.log == ["0.h5", "1.h5", "2.h5", "3.h5"]
    second = ShardReader(bucket, cached.manifest, cached.cache)
    assert second.read(entries[0]).scene == "scene 0"
    assert len(bucket.log) == 4


def test_without_a_cache_what_was_fetched_is_used_once(
    uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]
) -> None:
    for entry in entries[:2]:
        uncached.fetch(entry)
    for entry in entries[:2]:
        uncached.read(entry)
    assert bucket.log == ["0.h5", "1.h5"]
    uncached.read(entries[0])
    assert bucket.log == ["0.h5", "1.h5", "0.h5"]


def test_memory_for_what_was_fetched_is_bounded(
    uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]
) -> None:
    for entry in entries:
        uncached.fetch(entry)
    for entry in entries[::-1]:
        uncached.read(entry)
    assert bucket.log == ["0.h5", "1.h5", "2.h5", "3.h5", "1.h5", "0.h5"]  # twice parallel_reads = 1 were held


def test_threads_that_want_the_same_shard_share_a_download(
    uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]
) -> None:
    bucket.before = lambda name: time.sleep(0.2)
    with ThreadPoolExecutor(4) as pool:
        scenes = [shard.scene for shard in pool.map(uncached.read, [entries[0]] * 4)]
    assert scenes == ["scene 0"] * 4
    assert bucket.log == ["0.h5"]


@pytest.mark.parametrize("error", [EnvironmentUnfitError("no"), OSError("no"), MemoryError("no")])
def test_threads_that_want_the_same_shard_share_its_failure(
    uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...], error: Exception
) -> None:
    gate = threading.Barrier(3)

    def refuse(name: str) -> None:
        time.sleep(0.2)
        raise error

    def read(entry: ShardEntry) -> str:
        gate.wait(5)
        try:
            return uncached.read(entry).scene
        except type(error) as seen:
            return str(seen)

    bucket.before = refuse
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(read, [entries[0]] * 3)) == ["no"] * 3
    bucket.before = lambda name: None
    assert uncached.read(entries[0]).scene == "scene 0"  # the failure is not kept


def test_a_thread_that_shall_stop_waits_for_no_other_and_fails_no_other(
    uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]
) -> None:
    """Of three threads that want a shard, the one that downloads it is told to stop, and one that waits is, too."""
    stops = [threading.Event() for _ in range(3)]
    stalled = threading.Event()

    def stall(name: str) -> None:
        if len(bucket.log) == 1:
            stalled.set()
            while True:  # as requests of a bucket do
                stopping.check()
                time.sleep(0.01)

    def read(stop: threading.Event) -> str:
        stopping.stop_when(stop)
        return uncached.read(entries[0]).scene

    bucket.before = stall
    with ThreadPoolExecutor(3) as pool:
        try:
            first = pool.submit(read, stops[0])
            assert stalled.wait(5)
            second, third = pool.submit(read, stops[1]), pool.submit(read, stops[2])
            time.sleep(0.2)
            stops[1].set()
            with pytest.raises(Stopped):
                second.result(2)
            assert not first.done() and not third.done()
            stops[0].set()
            with pytest.raises(Stopped):
                first.result(2)
            assert third.result(2) == "scene 0"
        finally:
            for stop in stops:
                stop.set()
    assert bucket.log == ["0.h5", "0.h5"]


@pytest.mark.parametrize("which", ["cached", "uncached"])
@pytest.mark.parametrize("wrong", [damaged, lambda data: data[:-1], lambda data: b""])
def test_wrong_bytes_from_the_network(
    request: pytest.FixtureRequest,
    bucket: Bucket,
    entries: tuple[ShardEntry, ...],
    which: str,
    wrong: Callable[[bytes], bytes],
) -> None:
    reader: ShardReader = request.getfixturevalue(which)
    right = bucket.files["0.h5"]
    bucket.files["0.h5"] = wrong(right)

    def mend(name: str) -> None:
        if len(bucket.log) == DOWNLOADS:
            bucket.files[name] = right

    bucket.before = mend
    assert reader.read(entries[0]).scene == "scene 0"
    assert len(bucket.log) == DOWNLOADS


@pytest.mark.parametrize("which", ["cached", "uncached"])
def test_bytes_that_stay_wrong(
    request: pytest.FixtureRequest, bucket: Bucket, entries: tuple[ShardEntry, ...], cache: ShardCache, which: str
) -> None:
    reader: ShardReader = request.getfixturevalue(which)
    bucket.files["0.h5"] = damaged(bucket.files["0.h5"])
    for use in (reader.read, reader.fetch, reader.content):
        bucket.log.clear()
        with pytest.raises(
            ShardError, match=rf"s3://bucket/set/0\.h5: SHA-256 is .* manifest says {entries[0].sha256}"
        ):
            use(entries[0])
        assert len(bucket.log) == DOWNLOADS
    assert not list(cache.root.glob("*.h5"))


@pytest.mark.parametrize("wrong", [damaged, lambda data: data[:-1]])
def test_a_damaged_local_file(
    local: ShardReader, tmp_path: Path, entries: tuple[ShardEntry, ...], wrong: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "set" / "1.h5"
    path.write_bytes(wrong(path.read_bytes()))
    with pytest.raises(ShardError, match=r"1\.h5: .* the manifest says"):
        local.read(entries[1])
    path.unlink()
    with pytest.raises(ShardError, match=r"1\.h5: listed in the manifest but cannot be read"):
        local.content(entries[1])


def test_a_local_file_is_verified_once(
    local: ShardReader, entries: tuple[ShardEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[object] = []
    monkeypatch.setattr("raylg.data.reader.verify_shard", lambda *args: verified.append(args))
    for _ in range(2):
        for entry in entries:
            local.read(entry)
    assert len(verified) == len(entries)


def test_a_damaged_copy_in_the_cache(
    cached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Another process finds it: the one that has written it does not look again."""
    assert cached.cache is not None
    cached.fetch(entries[0])
    path = cached.cache.root / f"{entries[0].sha256}.h5"
    path.write_bytes(damaged(path.read_bytes()))
    other = ShardReader(bucket, cached.manifest, cached.cache)
    for _ in range(2):
        assert other.read(entries[0]).scene == "scene 0"
    assert bucket.log == ["0.h5", "0.h5"]
    assert path.read_bytes() == bucket.files["0.h5"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path.name in caplog.text and "downloaded again" in caplog.text


@pytest.mark.parametrize("has_start", [True, False])
def test_a_copy_is_verified_once_on_a_machine(
    data_set: tuple[Manifest, dict[str, bytes]],
    cached: ShardReader,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    has_start: bool,
) -> None:
    """By whoever writes it; every reader does where the system does not tell one start from another."""
    assert cached.cache is not None
    if not has_start:
        monkeypatch.setattr("raylg.data.cache._mark", lambda sha256: None)
    entry = cached.manifest.shards[0]
    cached.fetch(entry)
    verified: list[object] = []
    monkeypatch.setattr("raylg.data.reader.verify_shard", lambda *args: verified.append(args))
    for _ in range(2):
        ShardReader(bucket, data_set[0], cached.cache).read(entry)
    assert len(verified) == (0 if has_start else 2)
    path = cached.cache.root / f"{entry.sha256}.h5"
    path.touch()  # as any change would
    for _ in range(2):
        ShardReader(bucket, data_set[0], cached.cache).read(entry)
    assert len(verified) == (1 if has_start else 4)
    monkeypatch.setattr("raylg.data.cache._mark", lambda sha256: 1)  # the machine was started again
    for _ in range(2):
        ShardReader(bucket, data_set[0], cached.cache).read(entry)
    assert len(verified) == (2 if has_start else 5)


def test_a_copy_that_is_cut_short_after_it_was_verified(
    cached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]
) -> None:
    assert cached.cache is not None
    cached.read(entries[0])
    path = cached.cache.root / f"{entries[0].sha256}.h5"
    os.truncate(path, 3000)
    assert cached.read(entries[0]).scene == "scene 0"
    assert bucket.log == ["0.h5", "0.h5"]


def test_a_copy_that_another_process_evicts_in_between(
    cached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.fetch(entries[0])
    original = ShardCache.get
    times: list[int] = []

    def get(self: ShardCache, entry: ShardEntry, fetch: Callable[[], bytes]) -> Path | None:
        path = original(self, entry, fetch)
        times.append(1)
        if len(times) == 1 and path is not None:
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "get", get)
    assert cached.read(entries[0]).scene == "scene 0"
    assert bucket.log == ["0.h5", "0.h5"]


def test_a_full_disk_means_memory(
    cached: ShardReader,
    bucket: Bucket,
    entries: tuple[ShardEntry, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(Path, "write_bytes", full)
    for k, entry in enumerate(entries):
        cached.fetch(entry)
        assert cached.read(entry).scene == f"scene {k}"
    assert bucket.log == ["0.h5", "1.h5", "2.h5", "3.h5"]  # what was fetched is not downloaded again
    assert len(caplog.records) == 1
    assert "the disk is full" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 2, "num_pairs": 5}, "images 3, but the manifest says 2; pairs 2, but the manifest says 5"),
        ({"scene": "other"}, "scene 'scene 1', but the manifest says 'other'"),
        ({"split": "train"}, "split 'val', but the manifest says 'train'"),
    ],
)
def test_a_shard_that_is_not_what_the_manifest_says(
    local: ShardReader, entries: tuple[ShardEntry, ...], change: dict[str, object], message: str
) -> None:
    with pytest.raises(ShardError, match=rf"1\.h5: {message}; the manifest was changed after it was written: prepare"):
        local.read(replace(entries[1], **change))


def test_descriptors_of_another_size_than_the_manifest_says(local: ShardReader) -> None:
    assert local.manifest.extractor is not None
    local.manifest = replace(local.manifest, extractor=replace(local.manifest.extractor, descriptor_dim=9))
    with pytest.raises(ShardError, match="size of descriptors 8, but the manifest says 9"):
        local.read(local.manifest.shards[0])


def test_photographs_that_are_not_what_the_manifest_says(tmp_path: Path) -> None:
    shard = make_image_shard()
    data = image_shard_bytes(shard)
    Storage(tmp_path).write("0.h5", data)
    entry = ShardEntry(
        file="0.h5",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        num_images=3,
        num_pairs=3,
        scene=shard.scene,
        split=shard.split,
    )
    reader = ShardReader(
        Storage(tmp_path), replace(make_manifest(), extractor=None, content="images", shards=(entry,)), None
    )
    assert reader.read_images(entry).names == shard.names
    with pytest.raises(ShardError, match=r"0\.h5: images 3, but the manifest says 4; pairs 3, but .* says 4;"):
        reader.read_images(replace(entry, num_images=4, num_pairs=4))


def test_a_missing_shard_of_a_bucket(uncached: ShardReader, bucket: Bucket, entries: tuple[ShardEntry, ...]) -> None:
    def missing(name: str) -> None:
        raise ShardError(f"s3://bucket/set/{name}: no such file; copy it there again")

    bucket.before = missing
    with pytest.raises(ShardError, match=r"set/0\.h5: no such file; copy it there again, or prepare the data again"):
        uncached.read(entries[0])


def test_a_missing_shard(data_set: tuple[Manifest, dict[str, bytes]], tmp_path: Path) -> None:
    write_manifest(Storage(tmp_path), data_set[0])
    reader = ShardReader.open(tmp_path, DataConfig())
    with pytest.raises(ShardError, match=r"0\.h5: listed in the manifest but cannot be read"):
        reader.read(reader.manifest.shards[0])
