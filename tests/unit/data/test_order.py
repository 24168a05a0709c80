"""The order of pairs: exactly once, the same for any world size, resumable, well mixed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylg.data.order import EndlessOrder, all_entries, batch_indices, pair_order

SIZES = st.one_of(
    st.lists(st.integers(0, 12), min_size=1, max_size=9),
    st.lists(st.integers(0, 2), min_size=20, max_size=60),  # many small ones
    st.tuples(st.lists(st.integers(0, 4), max_size=12), st.integers(50, 300)).map(lambda s: [*s[0], s[1]]),  # one huge
    st.just([1]),
).filter(lambda sizes: sum(sizes) > 0)
SEEDS = st.integers(0, 2**40)

Order = Callable[[int, int, Sequence[int], int], np.ndarray]


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
        batch = np.full((batch_size, 3), -1)
        for rank, stream in enumerate(streams):
            batch[rank::world_size] = next(stream)
        batches.append(batch)
    return np.concatenate(batches)


def entry_set(entries: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(entry) for entry in entries.tolist()}


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, seed=SEEDS, epoch=st.integers(0, 50), open_shards=st.integers(1, 10))
def test_every_pair_once_per_epoch(sizes: list[int], seed: int, epoch: int, open_shards: int) -> None:
    order = pair_order(seed, epoch, sizes, open_shards)
    assert order.dtype == np.int64
    expected = {(shard, pair) for shard, size in enumerate(sizes) for pair in range(size)}
    assert len(order) == len(expected)
    assert entry_set(order) == expected


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, seed=SEEDS, open_shards=st.integers(1, 10))
def test_never_more_open_shards_than_allowed(sizes: list[int], seed: int, open_shards: int) -> None:
    shards = pair_order(seed, 0, sizes, open_shards)[:, 0]
    first = {s: np.flatnonzero(shards == s)[0] for s in np.unique(shards)}
    last = {s: np.flatnonzero(shards == s)[-1] for s in np.unique(shards)}
    for place in range(len(shards)):
        assert sum(first[s] <= place <= last[s] for s in first) <= open_shards


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, seed=SEEDS, world_size=st.integers(1, 5), extra=st.integers(0, 40), open_shards=st.integers(1, 9))
def test_ranks_together_see_each_pair_once_per_epoch(
    sizes: list[int], seed: int, world_size: int, extra: int, open_shards: int
) -> None:
    order = EndlessOrder(seed=seed, shard_sizes=tuple(sizes), open_shards=open_shards)
    batch_size, total = world_size + extra, sum(sizes)
    streams = [
        batch_indices(order, start_pairs=0, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    num_batches = -(-2 * total // batch_size)
    seen = [np.concatenate(list(islice(stream, num_batches))) for stream in streams]
    everything = np.concatenate(seen)
    for epoch in (0, 1):
        pairs = everything[everything[:, 2] == epoch][:, :2]
        assert len(pairs) == total and len(entry_set(pairs)) == total
    sizes_of_parts = [len(part) for part in seen]
    assert max(sizes_of_parts) - min(sizes_of_parts) <= num_batches


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    seed=SEEDS,
    world_size=st.integers(1, 5),
    extra=st.integers(0, 20),
    num_batches=st.integers(1, 6),
)
def test_same_global_batches_for_any_world_size(
    sizes: list[int], seed: int, world_size: int, extra: int, num_batches: int
) -> None:
    order = EndlessOrder(seed=seed, shard_sizes=tuple(sizes), open_shards=2)
    batch_size = world_size + extra
    alone = take(order, num_batches, batch_size=batch_size, world_size=1)
    shared = take(order, num_batches, batch_size=batch_size, world_size=world_size)
    np.testing.assert_array_equal(alone, shared)
    epochs = np.concatenate([order.epoch(e) for e in range(len(alone) // sum(sizes) + 1)])
    np.testing.assert_array_equal(alone, epochs[: len(alone)])


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    seed=SEEDS,
    batch_sizes=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    worlds=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seen=st.integers(0, 8),
)
def test_resume_after_k_pairs_continues_with_pair_k_plus_1(
    sizes: list[int], seed: int, batch_sizes: tuple[int, int], worlds: tuple[int, int], seen: int
) -> None:
    """Also with another number of workers, and another batch size."""
    order = EndlessOrder(seed=seed, shard_sizes=tuple(sizes), open_shards=3)
    before = take(order, seen, batch_size=batch_sizes[0], world_size=worlds[0]) if seen else np.zeros((0, 3))
    after = take(order, 4, start_pairs=len(before), batch_size=batch_sizes[1], world_size=worlds[1])
    uninterrupted = np.concatenate([order.epoch(e) for e in range((len(before) + len(after)) // sum(sizes) + 1)])
    np.testing.assert_array_equal(np.concatenate([before, after]), uninterrupted[: len(before) + len(after)])


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES.filter(lambda sizes: sum(sizes) >= 20), seed=SEEDS, open_shards=st.integers(2, 10))
def test_epochs_and_seeds_differ(sizes: list[int], seed: int, open_shards: int) -> None:
    """A chance of at most 1 in 20! / 10!^2 each that two orders of 20 pairs in two shards agree."""
    first = pair_order(seed, 0, sizes, open_shards)
    assert not np.array_equal(first, pair_order(seed, 1, sizes, open_shards))
    assert not np.array_equal(first, pair_order(seed + 1, 0, sizes, open_shards))
    np.testing.assert_array_equal(first, pair_order(seed, 0, sizes, open_shards))


PINNED = "import numpy, hashlib; from raylg.data.order import pair_order; " + (
    "print(hashlib.sha256(pair_order(7, 3, [5, 0, 17, 1, 40, 9, 9, 300], 3).astype('<i8').tobytes()).hexdigest())"
)


def test_the_order_is_the_same_in_every_process_and_version() -> None:
    """Fails when raylg or NumPy gives another order: runs could then not be continued exactly (say so in CHANGELOG)."""
    few = [[3, 3], [3, 0], [3, 2], [1, 0], [3, 1], [0, 0], [1, 1], [0, 1], [0, 2]]
    assert pair_order(0, 0, [3, 2, 0, 4], 2).tolist() == few
    digest = hashlib.sha256(pair_order(7, 3, [5, 0, 17, 1, 40, 9, 9, 300], 3).astype("<i8").tobytes()).hexdigest()
    assert digest == "4446a09605857ab1c8c655885c1cebf7208846028dba5f622a8d4bcc72d56185"
    result = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digest


def one_after_the_other(seed: int, epoch: int, sizes: Sequence[int], open_shards: int) -> np.ndarray:
    return pair_order(seed, epoch, sizes, 1)


def full_shuffle(seed: int, epoch: int, sizes: Sequence[int], open_shards: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(all_entries(sizes))


def quality(order: Order, sizes: Sequence[int], open_shards: int, batch_size: int = 32) -> dict[str, float]:
    """What the docstring of `pair_order` states, over 20 seeds."""
    total, first_of_shard = sum(sizes), np.cumsum(sizes) - sizes
    rows = total // batch_size

    def batches(values: np.ndarray) -> np.ndarray:
        return values[: rows * batch_size].reshape(rows, batch_size)

    def couples(batch: np.ndarray) -> int:
        counts = np.unique(batch, return_counts=True)[1]
        return int(counts @ (counts - 1))

    values = []
    for seed in range(20):
        epochs = [order(seed, epoch, sizes, open_shards) for epoch in (0, 1)]
        ids = [first_of_shard[entries[:, 0]] + entries[:, 1] for entries in epochs]
        place = [np.argsort(i) for i in ids]
        shards = epochs[0][:, 0]
        together = np.mean([couples(batch) for batch in batches(place[1][ids[0]] // batch_size)])
        by_chance = batch_size * (batch_size - 1) * (batch_size - 1) / (total - 1)
        values.append(
            (
                np.mean(shards[1:] == shards[:-1]),
                np.mean([len(np.unique(batch)) for batch in batches(shards)]),
                together / by_chance,
                np.corrcoef(place)[0, 1] ** 2,
            )
        )
    neighbours, diversity, again, squared_correlation = np.mean(values, axis=0)
    return {
        "neighbours from one shard": neighbours,
        "shards in a batch": diversity,
        "meet again": again,
        "correlation of epochs": np.sqrt(squared_correlation),
    }


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (pair_order, (0.127, 7.9, 3.2, 0.08)),
        (one_after_the_other, (0.993, 1.2, 138, 0.08)),
        (full_shuffle, (0.0063, 29.1, 1.0, 0.007)),
    ],
)
def test_mixes_as_well_as_stated(order: Order, expected: tuple[float, ...]) -> None:
    *mixing, correlation = quality(order, [150] * 160, 8).values()
    assert mixing == pytest.approx(expected[:3], rel=0.05)
    assert correlation == pytest.approx(expected[3], abs=0.02)


@pytest.mark.parametrize(
    ("sizes", "most"), [([150] * 160, 2), (np.random.default_rng(0).integers(1, 300, 160).tolist(), 5)]
)
def test_shards_are_opened_one_by_one(sizes: list[int], most: int) -> None:
    """After the beginning, where half of the open shards are new, no stretch of one shard's pairs opens many."""
    shards = pair_order(0, 0, sizes, open_shards=8)[:, 0]
    opened = np.sort(np.unique(shards, return_index=True)[1])
    later = opened[opened > 8 * 150]
    assert max(np.sum((opened >= k) & (opened < k + 150)) for k in later) <= most
    assert np.sum(opened < 150) <= 6


def test_few_shards_are_shuffled_fully() -> None:
    """Any entry may come at any place: 4 shards of 5 pairs, 2000 orders."""
    places = np.array([np.argsort(full @ (5, 1)) for full in (pair_order(s, 0, [5] * 4, 4) for s in range(2000))])
    assert np.abs(places.mean(axis=0) - 9.5).max() < 5 * np.sqrt((20**2 - 1) / 12 / 2000)
    assert np.abs(np.corrcoef(places.T) + 1 / 19 - np.eye(20) * (1 + 1 / 19)).max() < 5 / np.sqrt(2000)


def test_just_more_shards_than_open_are_mixed_over_most_of_the_epoch() -> None:
    """Nine shards at eight open: the places of a shard span at least 4 of 9 parts, most of them nearly all."""
    shards = pair_order(0, 0, [100] * 9, open_shards=8)[:, 0]
    spans = [np.ptp(np.flatnonzero(shards == shard)) / 900 for shard in range(9)]
    assert min(spans) > 0.4 and np.median(spans) > 0.7


def test_all_entries() -> None:
    assert all_entries([2, 0, 1]).tolist() == [[0, 0], [0, 1], [2, 0]]
    assert all_entries([]).shape == (0, 2)


def test_stream_without_pairs_is_refused() -> None:
    order = EndlessOrder(seed=0, shard_sizes=(), open_shards=1)
    assert order.epoch(0).shape == (0, 3)
    with pytest.raises(AssertionError, match="no pairs"):
        next(batch_indices(order, start_pairs=0, batch_size=1, rank=0, world_size=1))


def test_world_size_above_the_batch_is_refused() -> None:
    order = EndlessOrder(seed=0, shard_sizes=(5,), open_shards=1)
    with pytest.raises(AssertionError, match="rank 2 of 3, batch of 2"):
        next(batch_indices(order, start_pairs=0, batch_size=2, rank=2, world_size=3))
