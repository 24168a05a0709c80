"""The order in which pairs are seen: pure functions of seed, epoch and the sizes of the shards.

All epochs form one endless sequence of (shard, pair) entries that does not depend on the number of workers. Global
batch k is entries [k * batch_size, (k + 1) * batch_size) of it, and rank r takes every `world_size`-th entry of each
batch, starting at r. So the number of pairs seen is all that a run needs to continue, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


def pair_order(seed: int, epoch: int, shard_sizes: Sequence[int], open_shards: int) -> np.ndarray:
    """Order of all pairs in one epoch.

    Shards are shuffled and dealt into groups of nearly equal numbers, at most `open_shards` each; the pairs of a
    group are shuffled together and groups follow one another, so that no more than `open_shards` shards are needed
    at a time. Quality: with at most `open_shards` shards in all, every order is equally likely. With more, two
    successive pairs come from one shard with probability of about 1 / `open_shards` (for shards of equal size), and
    a pair's place is uniform within its group, whose place in the epoch is uniform too.

    Args:
        seed: seed of the run.
        epoch: from 0.
        shard_sizes: number of pairs in each shard; 0 is allowed.
        open_shards: largest number of shards that are mixed, at least 1.

    Returns:
        int64 [P, 2], (shard, pair within the shard); every pair exactly once.
    """
    assert open_shards >= 1, f"open_shards = {open_shards}"
    rng = np.random.default_rng((seed, epoch))
    entries = all_entries(shard_sizes)
    ends = np.cumsum(shard_sizes, dtype=np.int64)
    num_groups = max(1, -(-len(shard_sizes) // open_shards))
    order = [entries[:0]]
    for group in np.array_split(rng.permutation(len(shard_sizes)), num_groups):
        members = [entries[ends[shard] - shard_sizes[shard] : ends[shard]] for shard in group]
        order.append(rng.permutation(np.concatenate([entries[:0], *members])))
    return np.concatenate(order)


def all_entries(shard_sizes: Sequence[int]) -> np.ndarray:
    """All (shard, pair) entries in the order of the shards, int64 [P, 2]."""
    sizes = np.asarray(shard_sizes, dtype=np.int64).reshape(-1)
    shard = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.stack([shard, np.arange(len(shard), dtype=np.int64) - first], axis=1)


@dataclass(frozen=True, kw_only=True)
class EndlessOrder:
    """What decides the endless sequence of pairs."""

    seed: int
    shard_sizes: tuple[int, ...]
    """Number of pairs in each shard."""
    open_shards: int

    @property
    def pairs_per_epoch(self) -> int:
        """Length of one epoch."""
        return sum(self.shard_sizes)

    def epoch(self, epoch: int) -> np.ndarray:
        """All entries of one epoch, int64 [P, 2]."""
        return pair_order(self.seed, epoch, self.shard_sizes, self.open_shards)


def batch_indices(
    order: EndlessOrder, *, start_pairs: int, batch_size: int, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """Entries of one rank in each global batch, for ever; a batch may end one epoch and begin the next.

    Args:
        order: the sequence; it must hold at least one pair.
        start_pairs: entries of the sequence that all ranks together have seen before, at least 0.
        batch_size: pairs in a global batch.
        rank: from 0, below `world_size`.
        world_size: number of ranks, at most `batch_size`.

    Yields:
        int64 [n, 2], (shard, pair); n is `batch_size` / `world_size`, rounded up for the first ranks.
    """
    assert order.pairs_per_epoch > 0, "no pairs"
    assert 0 <= rank < world_size <= batch_size, f"rank {rank} of {world_size}, batch of {batch_size}"
    epoch, cursor = divmod(start_pairs, order.pairs_per_epoch)
    ahead = order.epoch(epoch)[cursor:]
    while True:
        while len(ahead) < batch_size:
            epoch += 1
            ahead = np.concatenate([ahead, order.epoch(epoch)])
        yield ahead[:batch_size][rank::world_size]
        ahead = ahead[batch_size:]
