"""Shards as files of a local folder, for tests that need a few."""

from __future__ import annotations

from pathlib import Path

from raylg.data.manifest import ShardEntry
from raylg.data.shard import Shard, entry_of, shard_bytes
from raylg.data.storage import Storage


def write_shard(path: Path, shard: Shard) -> ShardEntry:
    """Write a shard and return its entry for the manifest."""
    data = shard_bytes(shard)
    Storage(path.parent).write(path.name, data)
    return entry_of(path.name, shard, data)
