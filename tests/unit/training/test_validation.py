"""Validation reads and matches each pair once, and says what two plain passes one after the other would say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raylg.batch import PairBatch
from raylg.data.config import DataConfig
from raylg.data.dataset import PairDataset
from raylg.data.reader import ShardReader
from raylg.data.shard import Shard
from raylg.data.stream import evaluation_indices
from raylg.errors import ConfigError
from raylg.evaluation.benchmarks import rung_indices
from raylg.evaluation.matched_pairs import PairScore, matched_pairs, score_pair
from raylg.evaluation.pair_scores import PairScores
from raylg.models.lightglue import LightGlue
from raylg.schema import override
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.supervision.match_metrics import match_metrics
from raylg.training.checkpoint import build_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.validation import RUNG_SCORE, SUPERVISED, comparable_score, score_benchmark, validate
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

CONFIG = override(
    RunConfig(),
    {
        "data.num_keypoints": NUM_POINTS,
        "evaluation.num_keypoints": NUM_POINTS,
        "evaluation.batch_size": 4,
        "model.matcher.descriptor_dim": 32,
        "model.matcher.num_layers": 2,
        "model.matcher.num_heads": 2,
        "model.matcher.init": "identity",
    },
)
NUM_PAIRS = 10 + 15


def uneven(shard: Shard, seed: int) -> Shard:
    """The same images with 0 to `NUM_POINTS` keypoints each, the first of them with none."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, NUM_POINTS + 1, len(shard.names))
    counts[0] = 0
    rows = np.concatenate([start + np.arange(n) for start, n in zip(shard.offsets, counts, strict=False)])
    per_keypoint = ("keypoints", "keypoint_scores", "descriptors", "depth_keypoints", "scales", "oris")
    return replace(
        shard,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        **{name: getattr(shard, name)[rows] for name in per_keypoint},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 validation pairs in two shards, padded in every batch."""
    shards = {s: uneven(tiny_shard(s, "val", count, seed), seed) for s, count, seed in (("a", 5, 0), ("b", 6, 1))}
    return write_features(tmp_path_factory.mktemp("features") / "uneven", shards)


class Watched(PairDataset):
    """Tells of every batch that is read."""

    seen: list[list[list[int]]]
    before: Callable[[int], None]
    """Called with the number of each batch before it is read."""

    def batch(self, indices: np.ndarray) -> PairBatch:
        """See `PairDataset.batch`."""
        self.before(len(self.seen))
        self.seen.append(indices.tolist())
        return super().batch(indices)


@pytest.fixture
def dataset(folder: Path) -> Watched:
    watched = Watched(ShardReader.open(folder, DataConfig()), "val", NUM_POINTS, 1)
    watched.seen, watched.before = [], lambda number: None
    return watched


@pytest.fixture
def matcher() -> LightGlue:
    torch.manual_seed(0)
    model = build_matcher(CONFIG)
    for parameter in model.parameters():  # the layers that `identity` leaves out take part, too
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def configured(**changes: Any) -> RunConfig:
    return override(CONFIG, {f"evaluation.{name}": value for name, value in changes.items()})


@torch.no_grad()
def two_passes(matcher: LightGlue, dataset: PairDataset, config: RunConfig) -> tuple[list[PairScore], np.ndarray]:
    """The plain twin: all batches against the labels, then all again for their poses, one pair after the other."""
    protocol = config.evaluation
    indices = evaluation_indices(dataset, protocol.max_pairs)
    chunks = [indices[start : start + protocol.batch_size] for start in range(0, len(indices), protocol.batch_size)]
    rows, found = [], []
    for chunk in chunks:
        batch = dataset.batch(chunk)
        layers, matches = matcher(batch.view0, batch.view1), matcher.match(batch.view0, batch.view1)
        labels = ground_truth_matches(batch, config.ground_truth)
        loss = matching_loss(layers, labels, config.loss, batch.view0.mask, batch.view1.mask).last
        metrics = match_metrics(matches, labels)
        rows.append(torch.stack([loss.double(), *(metrics[name].double() for name in SUPERVISED[1:])], dim=1).numpy())
        found.append(matches.matches0)
    scores = []
    for chunk, matches0 in zip(chunks, found, strict=True):
        scores += [
            score_pair(pair, protocol) for pair in matched_pairs(dataset.batch(chunk), matches0, chunk, protocol)
        ]
    return scores, np.concatenate(rows)


def assert_same(a: PairScores, b: PairScores) -> None:
    for field in fields(PairScores):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def test_one_pass_gives_the_numbers_of_two_bit_for_bit(matcher: LightGlue, dataset: Watched) -> None:
    scores, metrics = validate(matcher, dataset, CONFIG, World())
    expected, rows = two_passes(matcher, dataset, CONFIG)
    assert len(scores) == NUM_PAIRS
    for name in ("rotation_error", "translation_error", "num_inliers", "precision"):
        np.testing.assert_array_equal(getattr(scores, name), [getattr(score, name) for score in expected], name)
    np.testing.assert_array_equal(scores.num_matches, [score.pair.num_matches for score in expected])
    assert scores.num_inliers.max() > 0 and np.isinf(scores.error).any()  # some are found and some are not
    for column, name in zip(rows.T, SUPERVISED, strict=True):
        known = column[np.isfinite(column)]
        assert metrics[f"val/{name}"] == np.add.reduce(np.where(np.isfinite(column), column, 0)) / len(known), name
    assert np.isnan(rows[:, 1]).any()  # a pair without a keypoint has no recall
    assert metrics["val/num_pairs"] == NUM_PAIRS


def test_every_pair_is_read_once_in_order(matcher: LightGlue, dataset: Watched) -> None:
    validate(matcher, dataset, CONFIG, World())
    indices = evaluation_indices(dataset, None).tolist()
    assert [len(batch) for batch in dataset.seen] == [4] * 6 + [1]
    assert [pair for batch in dataset.seen for pair in batch] == indices
    dataset.seen.clear()
    score_benchmark(matcher, dataset, CONFIG.evaluation, World())
    assert [pair for batch in dataset.seen for pair in batch] == indices


def test_next_batch_is_read_while_one_is_matched(
    matcher: LightGlue, dataset: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matching of the first batch waits until the second is read: without reading ahead it would wait in vain."""
    second = threading.Event()
    dataset.before = lambda number: second.set() if number == 1 else None
    real = matcher.predict_and_match

    def wait(*views: Any) -> Any:
        assert second.wait(timeout=20), "matching does not overlap with reading"
        return real(*views)

    monkeypatch.setattr(matcher, "predict_and_match", wait)
    assert len(validate(matcher, dataset, CONFIG, World())[0]) == NUM_PAIRS


def test_next_shard_is_fetched_while_one_is_matched(
    matcher: LightGlue, dataset: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is of the first shard alone, and matching of it waits for the second shard."""
    fetched, event = [], threading.Event()

    def fetch(shard: int) -> None:
        fetched.append(shard)
        event.set()
        raise ZeroDivisionError  # reading will find out by itself, if it needs to

    real = matcher.predict_and_match

    def wait(*views: Any) -> Any:
        assert event.wait(timeout=20), "matching does not overlap with fetching"
        return real(*views)

    monkeypatch.setattr(dataset, "fetch", fetch)
    monkeypatch.setattr(matcher, "predict_and_match", wait)
    assert len(validate(matcher, dataset, CONFIG, World())[0]) == NUM_PAIRS
    assert fetched == [1]  # the first is read at once, and each is fetched once


def test_an_error_of_reading_or_matching_leaves_no_thread_and_the_mode_as_it_was(
    matcher: LightGlue, dataset: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    def broken_later(number: int) -> None:
        if number == 3:
            raise ZeroDivisionError

    dataset.before = broken_later
    with pytest.raises(ZeroDivisionError):
        validate(matcher, dataset, CONFIG, World())
    monkeypatch.setattr(matcher, "predict_and_match", broken)
    dataset.before = lambda number: None
    with pytest.raises(ZeroDivisionError):
        validate(matcher, dataset, CONFIG, World())
    assert matcher.training
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("pose", "read-pairs", "fetch-shards"))
    ]
    assert left == []


@dataclass
class Rank:
    """One of several ranks, each in a thread, that exchange as `World` does."""

    rank: int
    size: int
    barrier: threading.Barrier
    shared: list[Any]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def gather(self, value: Any) -> list[Any]:
        """See `World.gather`."""
        self.shared[self.rank] = value
        self.barrier.wait(timeout=60)
        gathered = list(self.shared)
        self.barrier.wait(timeout=60)
        return gathered


@pytest.mark.parametrize("size", [2, 3, 9])
def test_any_number_of_ranks_gives_the_same_bits(matcher: LightGlue, dataset: Watched, folder: Path, size: int) -> None:
    """With seven batches, two of nine ranks have none."""
    config = configured(rung_pairs=6)
    expected = validate(matcher, dataset, config, World())
    barrier, shared = threading.Barrier(size), [None] * size

    def rank(number: int) -> tuple[PairScores, dict[str, float]]:
        copy = build_matcher(config)
        copy.load_state_dict(matcher.state_dict())
        own = PairDataset(ShardReader.open(folder, DataConfig()), "val", NUM_POINTS, 1)
        return validate(copy, own, config, Rank(number, size, barrier, shared))  # type: ignore[arg-type]

    with ThreadPoolExecutor(size) as ranks:
        results = list(ranks.map(rank, range(size)))
    for scores, metrics in results:
        assert_same(scores, expected[0])
        assert metrics == expected[1]


def test_rungs_score_a_fixed_part_of_the_pairs_of_the_last_report(matcher: LightGlue, dataset: Watched) -> None:
    config = configured(max_pairs=20, rung_pairs=6)
    every = evaluation_indices(dataset, 20).tolist()
    rung, of_rung = validate(matcher, dataset, config, World(), final=False)
    again, _ = validate(matcher, dataset, config, World(), final=False)
    last, of_last = validate(matcher, dataset, config, World())
    assert_same(rung, again)
    assert (of_rung["val/num_pairs"], of_last["val/num_pairs"]) == (6, 20)
    assert last.indices.tolist() == every
    assert rung.indices.tolist() == [every[k] for k in (0, 3, 6, 10, 13, 16)]
    assert len({shard for shard, _ in rung.indices.tolist()}) == 2  # from all over the split


def test_only_scores_of_the_same_pairs_are_comparable(matcher: LightGlue, dataset: Watched) -> None:
    config = configured(rung_pairs=7, batch_size=1)  # alone in a batch no pair depends on what it is scored beside
    _, of_rung = validate(matcher, dataset, config, World(), final=False)
    _, of_last = validate(matcher, dataset, config, World())
    assert of_rung["val/mean_auc"] != of_last["val/mean_auc"]
    assert comparable_score(of_rung) == of_rung["val/mean_auc"] == of_last[RUNG_SCORE] == comparable_score(of_last)
    _, plain = validate(matcher, dataset, CONFIG, World())
    assert RUNG_SCORE not in plain and comparable_score(plain) == plain["val/mean_auc"]


def test_benchmarks_have_rungs_of_their_own(matcher: LightGlue, dataset: Watched) -> None:
    protocol = replace(CONFIG.evaluation, rung_pairs=3)
    assert len(score_benchmark(matcher, dataset, protocol, World(), final=False)) == 3
    assert len(score_benchmark(matcher, dataset, protocol, World())) == NUM_PAIRS


def test_rung_indices() -> None:
    indices = np.stack([np.zeros(10, dtype=np.int64), np.arange(10)], axis=1)
    assert rung_indices(indices, 3)[:, 1].tolist() == [0, 3, 6]
    assert rung_indices(indices, None).tolist() == rung_indices(indices, 99).tolist() == indices.tolist()
    assert rung_indices(indices[:0], 3).tolist() == []


@pytest.mark.parametrize(("max_pairs", "rung_pairs"), [(None, 0), (5, 6), (5, 0)])
def test_rungs_that_are_no_part_are_refused(max_pairs: int | None, rung_pairs: int) -> None:
    with pytest.raises(ConfigError, match=rf"evaluation\.rung_pairs = {rung_pairs}.*max_pairs = {max_pairs}"):
        configured(max_pairs=max_pairs, rung_pairs=rung_pairs)
    with pytest.raises(ConfigError, match=r"benchmarks\.megadepth1500\.rung_pairs"):
        override(
            CONFIG,
            {"benchmarks.megadepth1500.max_pairs": max_pairs, "benchmarks.megadepth1500.rung_pairs": rung_pairs},
        )


def test_memory_of_waiting_pairs_is_bounded(
    matcher: LightGlue, dataset: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the estimator stands still, matching stops soon after; it goes on with the estimator."""
    from raylg.evaluation import benchmarks

    monkeypatch.setattr(benchmarks, "PAIRS_WAITING", 3)
    go, real = threading.Event(), benchmarks.score_pair

    def held(*arguments: Any) -> PairScore:
        assert go.wait(timeout=60)
        return real(*arguments)

    monkeypatch.setattr(benchmarks, "score_pair", held)
    matched: list[int] = []
    predict = matcher.predict_and_match
    full = threading.Event()

    def count(*views: Any) -> Any:
        matched.append(len(matched))
        full.set()
        return predict(*views)

    monkeypatch.setattr(matcher, "predict_and_match", count)
    with ThreadPoolExecutor(1) as thread:
        validation = thread.submit(validate, matcher, dataset, configured(batch_size=2), World())
        assert full.wait(timeout=60)
        assert not validation.done()
        while len(matched) < 2:  # two batches of two are one more than may wait
            assert not validation.done()
        threading.Event().wait(0.3)
        assert len(matched) == 2
        go.set()
        assert len(validation.result()[0]) == NUM_PAIRS
