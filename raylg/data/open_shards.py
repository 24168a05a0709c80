"""The shards of one split that are in memory: a bounded number, each read once by whoever needs it first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from raylg.data.manifest import ShardEntry
from raylg.data.reader import ShardReader

T = TypeVar("T")


class OpenShards(Generic[T]):
    """Shards by their number, the least recently used of which make room. May be used from several threads.

    At most `open_shards` stay in memory beside those that callers hold, and as many again where shards come from a
    bucket without a cache: `fetch` keeps them here, because it has no other place.
    """

    def __init__(
        self, reader: ShardReader, entries: Sequence[ShardEntry], open_shards: int, read: Callable[[ShardEntry], T]
    ) -> None:
        """Nothing is read before a shard is asked for.

        Args:
            reader: of the data set.
            entries: the shards.
            open_shards: at least 1.
            read: reads one with `reader`.
        """
        self._reader, self._entries, self._read = reader, entries, read
        self._fetch_keeps = reader.storage.local is None and reader.cache is None
        self._limit = open_shards * (2 if self._fetch_keeps else 1)
        self._open: OrderedDict[int, _Slot[T]] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, index: int) -> T:
        """Raises what `read` raises."""
        with self._lock:
            if index not in self._open:
                while len(self._open) >= self._limit:
                    self._open.popitem(last=False)
                self._open[index] = _Slot()
            self._open.move_to_end(index)
            slot = self._open[index]
        with slot.lock:  # one thread reads it; those that want another shard go on
            if slot.content is None:
                slot.content = self._read(self._entries[index])
            return slot.content

    def fetch(self, index: int) -> None:
        """Bring a shard near ahead of need: into the cache of this machine, or into memory where there is no cache.

        Nothing to do for a local folder. Raises what `read` raises.
        """
        if self._fetch_keeps:
            self[index]
        else:
            self._reader.fetch(self._entries[index])


@dataclass
class _Slot(Generic[T]):
    """A shard in memory, or about to be; whoever holds the lock may read it."""

    lock: Lock = field(default_factory=Lock)
    content: T | None = None
