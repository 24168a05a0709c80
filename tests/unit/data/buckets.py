"""Something like a bucket: a local folder read as if it were remote, with delays and a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from raylg.data.cache import ShardCache
from raylg.data.config import StorageConfig
from raylg.data.manifest import read_manifest
from raylg.data.reader import ShardReader
from raylg.data.storage import Storage


class Bucket(Storage):
    """Files of `folder`, each read `delay_s` late."""

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        super().__init__("s3://bucket/set", StorageConfig())
        self.folder, self.delay_s = folder, delay_s
        self.log: list[str] = []
        """Names of files read."""

    def read(self, name: str, size: int | None = None) -> bytes:
        self.log.append(name)
        time.sleep(self.delay_s)
        return (self.folder / name).read_bytes()

    def sizes(self, prefix: str = "") -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.name.startswith(prefix)}

    def size(self, name: str) -> int | None:
        return self.sizes(name).get(name)


def open_bucket(folder: Path, cache: Path | None = None, delay_s: float = 0.0) -> ShardReader:
    """A reader of a folder as if it were remote."""
    bucket = Bucket(folder, delay_s)
    reader = ShardReader(bucket, read_manifest(bucket), None if cache is None else ShardCache(cache, 10**9, 10))
    bucket.log.clear()
    return reader


def open_folder(folder: Path) -> ShardReader:
    """A reader of a local folder."""
    storage = Storage(folder)
    return ShardReader(storage, read_manifest(storage), None)
