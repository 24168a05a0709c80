"""Shards from object storage on the local disk, shared by all ranks and trials of a machine.

A shard is named by the SHA-256 of its content, so that a file never means anything else and a shard of two data sets
is stored once. One process downloads it while others wait; the locks are the kernel's, so a killed process holds none.

A file was last used at its time of access. Its time of change is a mark made of its name and of this start of the
machine, put on what was verified: the mark goes with any change and with a restart, which may lose unwritten data. So
each content is verified once, and not by every process that reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raylg.data import stopping
from raylg.data.manifest import ShardEntry
from raylg.data.storage import NO_SPACE, is_temporary, temporary_name

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.01
STORE_LOCK = "store.lock"


class ShardCache:
    """A folder of at most `limit_bytes` of shards; those used least recently go first. Safe between processes."""

    def __init__(self, root: Path, limit_bytes: int, wait_s: float) -> None:
        """Nothing is created before the first shard is kept.

        Args:
            root: folder on a local disk. On one that machines share, each machine takes away the others' marks and
                verifies again, and the locks are only as good as those of the network file system.
            limit_bytes: of all shards together.
            wait_s: how long to wait for another process that downloads the same shard, before doing so as well.
        """
        self.root, self.limit_bytes, self.wait_s = root, limit_bytes, wait_s
        self._storing = threading.Lock()
        self._warned = False

    def get(self, entry: ShardEntry, fetch: Callable[[], bytes]) -> Path | None:
        """The file of a shard, downloaded unless it is there.

        Another process may delete the file to make room: open it at once, and ask again where it is gone. Who has it
        open goes on reading.

        Args:
            entry: which shard.
            fetch: gives its verified content; what it raises passes through.

        Returns:
            None where it cannot be kept (larger than the limit, disk full); `fetch` has not always been called then.
        """
        path = self.root / f"{entry.sha256}.h5"
        if _touch(path, entry.bytes):
            return path
        if entry.bytes > self.limit_bytes:
            self._warn(f"a shard of {entry.bytes / 1e9:.3g} GB is larger than data.storage.cache_gb allows")
            return None
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._lock(f"{entry.sha256}.lock", lambda: _touch(path, entry.bytes)))
            except OSError as error:
                self._unusable(error)
                return None
            if _touch(path, entry.bytes):  # another process has brought it meanwhile
                return path
            data = fetch()
            try:
                self._store(path, data)
            except OSError as error:
                self._unusable(error)
                return None
            return path

    def is_coming(self, entry: ShardEntry) -> bool:
        """Whether another process or thread is downloading the shard just now."""
        try:
            file = os.open(self.root / f"{entry.sha256}.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def is_verified(self, entry: ShardEntry) -> bool:
        """Whether the file is as it was when it was verified; False where it is gone."""
        try:
            return (self.root / f"{entry.sha256}.h5").stat().st_mtime_ns == _mark(entry.sha256)
        except OSError:
            return False

    def mark_verified(self, entry: ShardEntry) -> None:
        """Say that the file has the right content."""
        mark = _mark(entry.sha256)
        if mark is not None:
            with contextlib.suppress(OSError):
                os.utime(self.root / f"{entry.sha256}.h5", ns=(time.time_ns(), mark))

    def drop(self, entry: ShardEntry) -> None:
        """Delete a damaged file."""
        with contextlib.suppress(OSError):
            (self.root / f"{entry.sha256}.h5").unlink()

    def _store(self, path: Path, data: bytes) -> None:
        """Make room, then write; one at a time, or together they would pass the limit.

        Raises:
            OSError: of the file system.
        """
        with self._storing, self._lock(STORE_LOCK, lambda: False):
            self._shrink(self.limit_bytes - len(data))
            while True:
                temporary = temporary_name(path)
                try:
                    temporary.write_bytes(data)  # not flushed to disk: it is verified again after a restart
                    mark = _mark(path.stem)
                    if mark is not None:
                        os.utime(temporary, ns=(time.time_ns(), mark))
                    temporary.replace(path)
                except OSError as error:
                    temporary.unlink(missing_ok=True)
                    used = self._shrink(self.limit_bytes)
                    if error.errno not in NO_SPACE or not used:
                        raise
                    self._shrink(max(used - len(data), 0))  # others have filled the disk: be content with less
                else:
                    return

    def _shrink(self, limit: int) -> int:
        """Delete the least recently used until at most `limit` bytes are left, and what killed processes left.

        Called by the holder of the store lock only: nobody else writes, so every temporary file is a left-over.

        Returns:
            Bytes that are left.
        """
        shards = []
        for item in os.scandir(self.root):
            with contextlib.suppress(FileNotFoundError):  # dropped by another process
                if is_temporary(item.name):
                    os.unlink(item.path)
                elif item.name.endswith(".lock") and item.name != STORE_LOCK:
                    _release(_try_lock(Path(item.path)), Path(item.path))
                elif item.name.endswith(".h5"):
                    shards.append((item.stat().st_atime_ns, item.stat().st_size, item.path))
        total = sum(size for _, size, _ in shards)
        for _, size, path in sorted(shards):
            if total <= limit:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    @contextlib.contextmanager
    def _lock(self, name: str, until: Callable[[], bool]) -> Iterator[None]:
        """Hold a lock between processes and threads, or go on without when `until` is true or `wait_s` is over.

        Raises:
            OSError: of the file system.
            Stopped: the thread shall stop.
        """
        path, deadline = self.root / name, time.monotonic() + self.wait_s
        file = _try_lock(path)
        while file is None and not until() and time.monotonic() < deadline:
            stopping.check()
            time.sleep(POLL_SECONDS)
            file = _try_lock(path)
        try:
            yield
        finally:
            _release(file, path)

    def _unusable(self, error: OSError) -> None:
        what = "the disk is full" if error.errno in NO_SPACE else error.strerror
        self._warn(f"{what}; free some space there, or give another data.cache_dir")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s: shards are not kept, and downloaded again whenever needed: %s", self.root, reason)


@functools.cache
def _mark(sha256: str) -> int | None:
    """Time of change, in nanoseconds, of a verified file: whole seconds in 2001-2018. None: this system knows none."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return None
    digest = hashlib.sha256(sha256.encode() + start).digest()
    return (10**9 + int.from_bytes(digest[:4], "big") // 8) * 10**9


def _touch(path: Path, size: int) -> bool:
    """Whether the whole file is there; marks it as used now."""
    try:
        found = path.stat()
    except OSError:
        return False
    if found.st_size != size:
        return False  # cut short; it is replaced by a new download
    with contextlib.suppress(OSError):  # another user's file, or a disk that is read only: it can be read all the same
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
    return True


def _try_lock(path: Path) -> int | None:
    """File descriptor that holds the lock, None where another holds it.

    Raises:
        OSError: the file cannot be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(file).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):  # the holder deletes the file at the end: that lock is worth nothing
        pass
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None


def _release(file: int | None, path: Path) -> None:
    if file is not None:
        path.unlink(missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a fork has copied the file
        os.close(file)
