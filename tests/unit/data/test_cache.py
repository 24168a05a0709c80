"""The cache of a machine: one download among processes, the limit, full disks, and what the killed leave."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raylg.data.cache import ShardCache
from raylg.data.manifest import ShardEntry
from raylg.data.stopping import Stopped, stop_when

SIZE = 1000


def content_of(number: int) -> bytes:
    return bytes([number]) * SIZE


def entry_of(number: int) -> ShardEntry:
    digest = hashlib.sha256(content_of(number)).hexdigest()
    return ShardEntry(
        file=f"{number}.h5", bytes=SIZE, sha256=digest, num_images=2, num_pairs=1, scene="s", split="train"
    )


def never() -> bytes:
    raise AssertionError("must not be downloaded")


def kept(root: Path) -> set[int]:
    return {path.read_bytes()[0] for path in root.glob("*.h5")}


def touch_in_order(root: Path, numbers: list[int]) -> None:
    """Set the times of last use an hour ago, in this order."""
    for k, number in enumerate(numbers):
        moment = time.time() - 3600 + k
        os.utime(root / f"{entry_of(number).sha256}.h5", (moment, moment))


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "shards", limit_bytes=3 * SIZE, wait_s=5)


def fill(cache: ShardCache, *numbers: int) -> None:
    for number in numbers:
        assert cache.get(entry_of(number), lambda number=number: content_of(number)) is not None


def test_downloaded_once(cache: ShardCache) -> None:
    assert not cache.root.exists()
    fill(cache, 1)
    path = cache.get(entry_of(1), never)
    assert path is not None and path.read_bytes() == content_of(1)
    again = ShardCache(cache.root, cache.limit_bytes, cache.wait_s)
    assert again.get(entry_of(1), never) == path
    assert [file for file in cache.root.iterdir() if file != path] == []


def test_what_was_used_least_recently_makes_room_before_the_write(cache: ShardCache) -> None:
    fill(cache, 1, 2, 3)
    touch_in_order(cache.root, [2, 3, 1])
    assert cache.get(entry_of(2), never) is not None  # used again
    seen = []
    original = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        seen.append(kept(cache.root))
        return original(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        fill(cache, 4)
    assert seen == [{1, 2}]
    assert kept(cache.root) == {1, 2, 4}


def test_an_open_file_outlives_its_eviction(cache: ShardCache) -> None:
    fill(cache, 1)
    path = cache.get(entry_of(1), never)
    assert path is not None
    with path.open("rb") as file:
        fill(cache, 2, 3)
        touch_in_order(cache.root, [1, 2, 3])
        fill(cache, 4)
        assert not path.exists()
        assert file.read() == content_of(1)


def test_a_lower_limit_of_a_later_run(cache: ShardCache) -> None:
    fill(cache, 1, 2, 3)
    touch_in_order(cache.root, [3, 1, 2])
    fill(ShardCache(cache.root, 2 * SIZE + 1, 5), 4)
    assert kept(cache.root) == {2, 4}


def test_a_shard_beyond_the_limit_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = ShardCache(tmp_path, SIZE - 1, 5)
    for number in (1, 2):
        assert small.get(entry_of(number), lambda number=number: content_of(number)) is None
    assert not list(tmp_path.iterdir())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "larger than data.storage.cache_gb allows" in caplog.text


@pytest.mark.parametrize("length", [0, SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_replaced(cache: ShardCache, length: int) -> None:
    fill(cache, 1)
    path = cache.root / f"{entry_of(1).sha256}.h5"
    path.write_bytes(bytes(length))
    fill(cache, 1)
    assert path.read_bytes() == content_of(1)


def test_a_shard_is_coming_while_it_is_downloaded(cache: ShardCache) -> None:
    seen = []

    def fetch() -> bytes:
        seen.append((cache.is_coming(entry_of(1)), cache.is_coming(entry_of(2))))
        return content_of(1)

    assert not cache.is_coming(entry_of(1))
    cache.get(entry_of(1), fetch)
    assert seen == [(True, False)]
    assert not cache.is_coming(entry_of(1))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EROFS])
def test_a_file_whose_times_cannot_be_set_is_there(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Another user's, or on a disk that is read only."""
    fill(cache, 1)

    def utime(path: Path, ns: tuple[int, int]) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "utime", utime)
    assert cache.get(entry_of(1), never) is not None
    assert cache.is_verified(entry_of(1))


def test_drop(cache: ShardCache) -> None:
    cache.drop(entry_of(1))
    fill(cache, 1)
    cache.drop(entry_of(1))
    assert kept(cache.root) == set()


def test_what_fetch_raises_passes_and_holds_up_nobody(cache: ShardCache) -> None:
    with pytest.raises(AssertionError, match="must not be downloaded"):
        cache.get(entry_of(1), never)
    started = time.monotonic()
    fill(cache, 1)
    assert time.monotonic() - started < 20


# Disks that refuse.


def refusing(times: int, number: int = errno.ENOSPC) -> Callable[[Path, bytes], int]:
    """`Path.write_bytes` that fails midway for the first `times`."""
    original, calls = Path.write_bytes, []

    def write_bytes(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) <= times:
            original(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        return original(path, data)

    return write_bytes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_older_shards_first(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    fill(cache, 1, 2)
    touch_in_order(cache.root, [1, 2])
    monkeypatch.setattr(Path, "write_bytes", refusing(1, number))
    fill(cache, 3)
    assert kept(cache.root) == {2, 3}
    assert not caplog.records
    assert not list(cache.root.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(Path, "write_bytes", refusing(100, number))
    for shard in (1, 2):
        assert cache.get(entry_of(shard), lambda shard=shard: content_of(shard)) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    expected = "the disk is full" if number == errno.ENOSPC else os.strerror(number)
    assert expected in caplog.text and "data.cache_dir" in caplog.text
    assert not list(cache.root.glob("*.h5")) and not list(cache.root.glob(".*"))


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ShardCache(tmp_path / "file" / "shards", 10 * SIZE, 5)
    assert cache.get(entry_of(1), never) is None
    assert "data.cache_dir" in caplog.text


# Threads and processes.


def test_threads_share_a_download(cache: ShardCache) -> None:
    downloads: list[int] = []

    def fetch(number: int) -> bytes:
        downloads.append(number)
        time.sleep(0.1)
        return content_of(number)

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda k: cache.get(entry_of(k % 2), lambda: fetch(k % 2)), range(16)))
    assert sorted(downloads) == [0, 1]
    assert len(set(paths)) == 2 and None not in paths
    assert len(list(cache.root.iterdir())) == 2


def _read_all(root: Path, log: Path, numbers: list[int], limit: int) -> None:
    """A process that reads shards in its order, writing down what it downloads."""
    cache = ShardCache(root, limit, 20)

    def fetch(number: int) -> bytes:
        with log.open("a") as file:  # one short write: not mixed with another process's
            file.write(f"{number}\n")
        time.sleep(0.01)
        return content_of(number)

    for number in numbers:
        for _ in range(100):
            path = cache.get(entry_of(number), lambda number=number: fetch(number))
            assert path is not None
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # evicted between the two
                continue
            assert data == content_of(number)
            break
        else:
            raise AssertionError("evicted a hundred times")


def _run(*arguments: tuple[Any, ...]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_all, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_processes_download_each_shard_once(tmp_path: Path) -> None:
    root, log = tmp_path / "shards", tmp_path / "log"
    orders = [list(range(20)), list(range(20)), list(range(19, -1, -1)), [*range(10, 20), *range(10)]]
    _run(*[(root, log, order, 10**6) for order in orders])
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    assert kept(root) == set(range(20))
    assert len(list(root.iterdir())) == 20  # no locks, no temporary files


def test_processes_keep_within_the_limit_while_reading(tmp_path: Path) -> None:
    root, log = tmp_path / "shards", tmp_path / "log"
    largest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            sizes = []
            for path in root.glob("*.h5"):
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            largest[0] = max(largest[0], sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _run(*[(root, log, [(k * step) % 12 for k in range(24)], 5 * SIZE) for step in (1, 5, 7)])
    finally:
        stop.set()
        watcher.join()
    # A listing is not a moment: a file may be counted beside the one that replaced it.
    assert 4 * SIZE <= largest[0] <= 6 * SIZE
    assert sum(path.stat().st_size for path in root.glob("*.h5")) <= 5 * SIZE


def test_many_caches_in_a_folder_keep_within_the_limit(tmp_path: Path) -> None:
    """As the processes of a machine have them: what another one writes counts at once."""
    limit = 40 * SIZE
    caches = [ShardCache(tmp_path, limit, 5) for _ in range(32)]
    for number in range(200):
        fill(caches[number % len(caches)], number)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.h5")) <= limit
    assert len(kept(tmp_path)) == 40


KILLED = """
import sys, time
from pathlib import Path
from raylg.data.cache import ShardCache
from tests.unit.data.test_cache import content_of, entry_of
cache = ShardCache(Path(sys.argv[1]), 10**6, 60)
moment = sys.argv[2]
def fetch():
    if moment == "download":
        print("here", flush=True)
        time.sleep(60)
    return content_of(1)
if moment == "write":
    def write_bytes(path, data):
        with path.open("wb") as file:
            file.write(data[:10])
        print("here", flush=True)
        time.sleep(60)
    Path.write_bytes = write_bytes
cache.get(entry_of(1), fetch)
"""


@pytest.mark.parametrize("moment", ["download", "write"])
def test_a_killed_process_holds_up_nobody_and_leaves_nothing(tmp_path: Path, moment: str) -> None:
    root = tmp_path / "shards"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), moment], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        waiting = ThreadPoolExecutor(1).submit(fill, ShardCache(root, 10**6, 60), 1)
        time.sleep(0.2)
        assert not waiting.done()
        process.send_signal(signal.SIGKILL)
        waiting.result(5)
    fill(ShardCache(root, 10**6, 60), 2)
    assert kept(root) == {1, 2}
    assert len(list(root.iterdir())) == 2


def test_left_over_locks_are_cleaned(cache: ShardCache) -> None:
    cache.root.mkdir()
    (cache.root / "0123.lock").touch()
    with (cache.root / "4567.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fill(cache, 1)
        assert {path.name for path in cache.root.glob("*.lock")} == {"4567.lock"}


def test_waiting_ends_when_the_thread_shall_stop(cache: ShardCache) -> None:
    closed = threading.Event()
    cache.root.mkdir()
    with (cache.root / f"{entry_of(1).sha256}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with ThreadPoolExecutor(1, initializer=stop_when, initargs=(closed,)) as pool:
            waiting = pool.submit(cache.get, entry_of(1), never)
            time.sleep(0.1)
            assert not waiting.done()
            closed.set()
            with pytest.raises(Stopped):
                waiting.result(2)


def test_waiting_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that hangs while it holds the lock: others download as well."""
    caplog.set_level(logging.WARNING)
    cache = ShardCache(tmp_path, 10**6, wait_s=0.2)
    with (tmp_path / f"{entry_of(1).sha256}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started = time.monotonic()
        fill(cache, 1)
        assert 0.2 <= time.monotonic() - started < 20
    assert not caplog.records
