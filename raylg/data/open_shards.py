"""The shards of one split that are in memory: a bounded number, each read once by whoever needs it first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from raylg.data.manifest import ShardEntry
from raylg.data.reader import ShardReader
from raylg.data.scene import Split

T = TypeVar("T")


class OpenShards(Generic[T]):
    """Shards by their number. May be used from several threads.

    Those that were used last stay in memory: `open_shards`, a quarter more and one, because it is not always the
    finished one that was not used for the longest time; without spare room a worker with a small share of each batch
    would read each shard 1.6 times. Where shards come from a bucket without a cache, `open_shards` more that `fetch`
    brought stay until they are used.
    """

    def __init__(
        self, reader: ShardReader, entries: Sequence[ShardEntry], open_shards: int, read: Callable[[ShardEntry], T]
    ) -> None:
        """Nothing is read before a shard is asked for.

        Args:
            reader: of the data set.
            entries: the shards.
            open_shards: that are used at a time, at least 1.
            read: reads one with `reader`.
        """
        self._reader, self._entries, self._read, self._open_shards = reader, entries, read, open_shards
        self._fetch_keeps = reader.storage.local is None and reader.cache is None
        self._open: OrderedDict[int, _Slot[T]] = OrderedDict()
        self._ahead: dict[int, _Slot[T]] = {}
        self._lock = Lock()

    def __getitem__(self, index: int) -> T:
        """Raises what `read` raises."""
        return self.several((index,))[index]

    def several(self, indices: Sequence[int]) -> dict[int, T]:
        """Shards in order of their use, which may repeat; the last are kept. Raises what `read` raises."""
        with self._lock:
            for index in indices:
                if index not in self._open:
                    self._open[index] = self._ahead.pop(index) if index in self._ahead else _Slot()
                self._open.move_to_end(index)
            slots = {index: self._open[index] for index in indices}
            while len(self._open) > self._open_shards + self._open_shards // 4 + 1:
                self._open.popitem(last=False)
        return {index: self._content(index, slot) for index, slot in slots.items()}

    def fetch(self, index: int) -> None:
        """Bring a shard near ahead of need: into the cache of this machine, or into memory where there is no cache.

        Nothing to do for a local folder, or where the memory for this is full. Raises what `read` raises.
        """
        if not self._fetch_keeps:
            self._reader.fetch(self._entries[index])
            return
        with self._lock:
            if index in self._open or index in self._ahead or len(self._ahead) >= self._open_shards:
                return
            slot = self._ahead[index] = _Slot()
        self._content(index, slot)

    def _content(self, index: int, slot: _Slot[T]) -> T:
        with slot.lock:  # one thread reads it; those that want another shard go on
            if slot.content is None:
                slot.content = self._read(self._entries[index])
            return slot.content


class SplitShards(Generic[T]):
    """The shards of one split of a data set: what data sets of pairs have in common.

    Attributes:
        reader: of the data set.
        manifest: of the data set.
        split: of the manifest.
        entries: the shards of the split.
        open_shards: that are used at a time.
    """

    def __init__(self, reader: ShardReader, split: Split, open_shards: int, read: Callable[[ShardEntry], T]) -> None:
        """Arguments as of `OpenShards`."""
        self.reader, self.manifest, self.split, self.open_shards = reader, reader.manifest, split, open_shards
        self.entries = [entry for entry in self.manifest.shards if entry.split == split]
        self._shards: OpenShards[T] = OpenShards(reader, self.entries, open_shards, read)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of pairs in each shard of the split."""
        return tuple(entry.num_pairs for entry in self.entries)

    @property
    def num_pairs(self) -> int:
        """Number of pairs in the split."""
        return sum(self.shard_sizes)

    def fetch(self, shard: int) -> None:
        """See `OpenShards.fetch`."""
        self._shards.fetch(shard)


@dataclass
class _Slot(Generic[T]):
    """A shard in memory, or about to be; whoever holds the lock may read it."""

    lock: Lock = field(default_factory=Lock)
    content: T | None = None
