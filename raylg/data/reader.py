"""The only way shards are read: verified, from a folder, or from object storage through the machine's cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from raylg.data import stopping
from raylg.data.cache import ShardCache
from raylg.data.config import DataConfig
from raylg.data.image_shards import ImageShard, read_image_shard
from raylg.data.manifest import Manifest, ShardEntry, read_manifest
from raylg.data.shard import Shard, read_shard, verify_shard
from raylg.data.stopping import Stopped
from raylg.data.storage import Storage
from raylg.errors import ShardError

logger = logging.getLogger(__name__)

DOWNLOADS = 3
"""Times a shard is downloaded before its content counts as wrong in the bucket, too."""


class ShardReader:
    """Reads the shards of one data set. May be used from several threads.

    Attributes:
        storage: where they are.
        manifest: of the data set.
        cache: None where nothing is kept.
    """

    def __init__(self, storage: Storage, manifest: Manifest, cache: ShardCache | None) -> None:
        """The cache serves storage that is not local."""
        self.storage, self.manifest, self.cache = storage, manifest, cache
        self._verified: set[str] = set()
        """SHA-256 of local files that were found right."""
        self._ahead: dict[str, Future[bytes]] = {}
        """Downloads that nobody has taken, oldest first."""
        self._lock = threading.Lock()

    @classmethod
    def open(cls, location: str | Path, config: DataConfig) -> ShardReader:
        """Read the manifest of a folder or s3:// URL.

        Raises:
            ConfigError: the location cannot be one.
            ShardError: no manifest, or one of another format.
            EnvironmentUnfitError: the storage refuses or does not answer.
        """
        storage = Storage(location, config.storage)
        cache = None
        if storage.local is None and config.storage.cache_gb > 0:
            folder = Path(config.cache_dir).expanduser() / "shards"
            cache = ShardCache(folder, int(config.storage.cache_gb * 1e9), config.storage.deadline_s)
        return cls(storage, read_manifest(storage), cache)

    def read(self, entry: ShardEntry) -> Shard:
        """A shard of features.

        Raises:
            ShardError: missing or damaged, or not what the manifest says of it.
            EnvironmentUnfitError: the storage refuses or does not answer.
        """
        shard = read_shard(self.content(entry), self.storage.describe(entry.file))
        extractor = self.manifest.extractor
        expected = None if extractor is None else extractor.descriptor_dim
        self._compare(shard, entry, [("size of descriptors", shard.descriptors.shape[1], expected)])
        return shard

    def read_images(self, entry: ShardEntry) -> ImageShard:
        """A shard of photographs; errors as of `read`."""
        shard = read_image_shard(self.content(entry), self.storage.describe(entry.file))
        self._compare(shard, entry)
        return shard

    def content(self, entry: ShardEntry) -> np.ndarray:
        """The verified content of a shard, uint8 [bytes], which may be written to; errors as of `read`."""
        if self.storage.local is not None:
            return self._local(self.storage.local / entry.file, entry)
        if self.cache is not None:
            content = self._kept(self.cache, entry)
            if content is not None:
                return content
        data = self._once(entry)
        self._take(entry)
        return np.frombuffer(bytearray(data), dtype=np.uint8)

    def fetch(self, entry: ShardEntry) -> None:
        """Bring a shard here ahead of need, into memory where it cannot be kept on disk; errors as of `read`.

        Nothing to do for a local folder. In memory are at most twice `data.storage.parallel_reads` shards. What another
        worker of this machine is downloading is left to it, so that workers share the downloads instead of waiting.
        """
        if self.storage.local is not None or (self.cache is not None and self.cache.is_coming(entry)):
            return
        if self.cache is not None and self.cache.get(entry, lambda: self._once(entry)) is not None:
            self._take(entry)
        else:
            self._once(entry)

    def _compare(
        self, shard: Shard | ImageShard, entry: ShardEntry, more: Sequence[tuple[str, object, object]] = ()
    ) -> None:
        """Compare a shard with what the manifest says; what differs would be pairs lost, or read wrongly, unnoticed.

        Raises:
            ShardError: names all that differs.
        """
        problems = [
            f"{what} {found!r}, but the manifest says {expected!r}"
            for what, found, expected in (
                ("images", shard.num_images, entry.num_images),
                ("pairs", shard.num_pairs, entry.num_pairs),
                ("scene", shard.scene, entry.scene),
                ("split", shard.split, entry.split),
                *more,
            )
            if found != expected
        ]
        if problems:  # the SHA-256 fits, so it is the manifest that is wrong
            raise ShardError(
                f"{self.storage.describe(entry.file)}: {'; '.join(problems)}; the manifest was changed after it was "
                "written: prepare the data again, or copy it again"
            )

    def _local(self, path: Path, entry: ShardEntry) -> np.ndarray:
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError:
            verify_shard(path, entry)  # says why
            raise
        if entry.sha256 not in self._verified or len(content) != entry.bytes:
            verify_shard(content, entry, str(path))
            self._verified.add(entry.sha256)
        return content

    def _kept(self, cache: ShardCache, entry: ShardEntry) -> np.ndarray | None:
        """Content from the cache, downloaded if need be; None where it cannot be kept."""
        for _ in range(DOWNLOADS):
            path = cache.get(entry, lambda: self._once(entry))
            if path is None:
                return None
            self._take(entry)
            try:
                is_verified, content = cache.is_verified(entry), np.fromfile(path, dtype=np.uint8)
            except OSError:  # another process needed the room, or the disk fails
                continue
            if is_verified and len(content) == entry.bytes:
                return content
            try:
                verify_shard(content, entry, str(path))
            except ShardError as error:
                logger.warning("%s; it is downloaded again", str(error).partition(";")[0])
                cache.drop(entry)
            else:
                cache.mark_verified(entry)
                return content
        return None

    def _once(self, entry: ShardEntry) -> bytes:
        """Download, unless another thread does or has; the result is held until somebody takes it."""
        while True:
            with self._lock:
                download = self._ahead.get(entry.sha256)
                is_mine = download is None
                if download is None:
                    download = self._ahead[entry.sha256] = Future()
                    finished = [key for key, other in self._ahead.items() if other.done()]
                    for key in finished[: max(len(self._ahead) - 2 * self.storage.config.parallel_reads, 0)]:
                        del self._ahead[key]
            if is_mine:
                try:
                    download.set_result(self._download(entry))
                except BaseException as error:
                    self._take(entry)  # first, or those that wait might find it again
                    download.set_exception(error)
                    raise
            try:
                return stopping.result(download)
            except Stopped:
                stopping.check()  # if it was the other thread that has been told to stop, this one goes on

    def _take(self, entry: ShardEntry) -> bytes | None:
        """Content that is held in memory; it is forgotten."""
        with self._lock:
            download = self._ahead.pop(entry.sha256, None)
        return download.result() if download is not None and download.done() else None

    def _download(self, entry: ShardEntry) -> bytes:
        """Content from the storage, verified.

        Raises:
            ShardError: missing there, or damaged each time.
        """
        where = self.storage.describe(entry.file)
        for attempt in range(1, DOWNLOADS + 1):
            try:
                data = self.storage.read(entry.file, entry.bytes)
            except ShardError as error:
                raise ShardError(f"{error}, or prepare the data again") from error
            try:
                verify_shard(data, entry, where)
            except ShardError as error:
                if attempt == DOWNLOADS:
                    raise
                logger.warning("%s; it is read again", str(error).partition(";")[0])
            else:
                break
        return data
