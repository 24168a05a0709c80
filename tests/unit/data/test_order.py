"""The order of pairs: exactly once, the same for any world size, resumable, well mixed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylg.data.order import EndlessOrder, all_entries, batch_indices, pair_order

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0)


def take(
    order: EndlessOrder, num_batches: int, *, start_pairs: int = 0, batch_size: int, world_size: int
) -> np.ndarray:
    """Interleave the ranks' parts back to the global sequence."""
    batches = []
    streams = [
        batch_indices(order, start_pairs=start_pairs, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(num_batches):
        batch = np.full((batch_size, 2), -1)
        for rank, stream in enumerate(streams):
            batch[rank::world_size] = next(stream)
        batches.append(batch)
    return np.concatenate(batches)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31), epoch=st.integers(0, 50), open_shards=st.integers(1, 10))
def test_every_pair_once_per_epoch(sizes: list[int], seed: int, epoch: int, open_shards: int) -> None:
    order = pair_order(seed, epoch, sizes, open_shards)
    assert order.dtype == np.int64
    expected = {(shard, pair) for shard, size in enumerate(sizes) for pair in range(size)}
    assert len(order) == len(expected)
    assert {tuple(entry) for entry in order.tolist()} == expected


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99), open_shards=st.integers(1, 4))
def test_never_more_open_shards_than_allowed(sizes: list[int], seed: int, open_shards: int) -> None:
    shards = pair_order(seed, 0, sizes, open_shards)[:, 0]
    first = {s: np.flatnonzero(shards == s)[0] for s in np.unique(shards)}
    last = {s: np.flatnonzero(shards == s)[-1] for s in np.unique(shards)}
    for place in range(len(shards)):
        assert sum(first[s] <= place <= last[s] for s in first) <= open_shards


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 99),
    world_size=st.integers(1, 5),
    extra=st.integers(0, 7),
    num_batches=st.integers(1, 6),
)
def test_same_global_order_for_any_world_size(
    sizes: list[int], seed: int, world_size: int, extra: int, num_batches: int
) -> None:
    order = EndlessOrder(seed=seed, shard_sizes=tuple(sizes), open_shards=2)
    batch_size = world_size + extra
    alone = take(order, num_batches, batch_size=batch_size, world_size=1)
    shared = take(order, num_batches, batch_size=batch_size, world_size=world_size)
    np.testing.assert_array_equal(alone, shared)
    epochs = np.concatenate([order.epoch(e) for e in range(len(alone) // sum(sizes) + 1)])
    np.testing.assert_array_equal(alone, epochs[: len(alone)])


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 9), seen=st.integers(0, 8), seed=st.integers(0, 99))
def test_resume_continues_exactly(sizes: list[int], batch_size: int, seen: int, seed: int) -> None:
    order = EndlessOrder(seed=seed, shard_sizes=tuple(sizes), open_shards=3)
    whole = take(order, seen + 4, batch_size=batch_size, world_size=1)
    rest = take(order, 4, start_pairs=seen * batch_size, batch_size=batch_size, world_size=1)
    np.testing.assert_array_equal(whole[seen * batch_size :], rest)


def test_resume_with_another_batch_size_and_world() -> None:
    order = EndlessOrder(seed=3, shard_sizes=(7, 5, 9), open_shards=2)
    whole = take(order, 10, batch_size=6, world_size=1)
    rest = take(order, 4, start_pairs=24, batch_size=9, world_size=3)
    np.testing.assert_array_equal(whole[24:], rest)


def test_epochs_and_seeds_differ() -> None:
    sizes = [20, 20]
    first = pair_order(0, 0, sizes, 8)
    assert not np.array_equal(first, pair_order(0, 1, sizes, 8))
    assert not np.array_equal(first, pair_order(1, 0, sizes, 8))
    np.testing.assert_array_equal(first, pair_order(0, 0, sizes, 8))


def test_neighbours_come_from_one_shard_as_rarely_as_stated() -> None:
    order = pair_order(0, 0, [200] * 40, open_shards=8)
    same = np.mean(order[1:, 0] == order[:-1, 0])
    assert same == pytest.approx(1 / 8, abs=0.02)


def test_groups_are_balanced() -> None:
    """Nine shards at eight open are mixed as 5 + 4, not as 8 + 1."""
    shards = pair_order(0, 0, [100] * 9, open_shards=8)[:, 0]
    assert len(np.unique(shards[-100:])) == 4


def test_all_entries() -> None:
    assert all_entries([2, 0, 1]).tolist() == [[0, 0], [0, 1], [2, 0]]
    assert all_entries([]).shape == (0, 2)


def test_stream_without_pairs_is_refused() -> None:
    order = EndlessOrder(seed=0, shard_sizes=(), open_shards=1)
    assert order.epoch(0).shape == (0, 2)
    with pytest.raises(AssertionError, match="no pairs"):
        next(islice(batch_indices(order, start_pairs=0, batch_size=1, rank=0, world_size=1), 1))
