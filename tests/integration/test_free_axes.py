"""What may be chosen after training: each setting scores as if the matcher had been set so, on as many pairs as fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raylg import evaluate
from raylg.console.free_axes import free_axes, free_axes_table
from raylg.data.stream import PairData, evaluation_indices
from raylg.evaluation.benchmarks import score_pairs
from raylg.evaluation.free_axes import FreeAxes, Point, Setting
from raylg.evaluation.pose import mean_score
from raylg.evaluation.reads import FILE, read_ledger
from raylg.evaluation.sweep import settings, sweep
from raylg.models.lightglue import LightGlue
from raylg.schema import override
from raylg.training.checkpoint import load_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import open_split
from raylg.training.trainer import Trainer
from tests.integration.recorder import Recorder
from tests.integration.test_training import config_for
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

OWN = 24
"""Keypoints of the protocol; shards have twice as many."""


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation pairs of two scenes, a test scene."""
    shards = {"train": tiny_shard("a", "train", 4, seed=0)}
    shards |= {name: tiny_shard(name, "val", 4, seed=seed) for seed, name in ((1, "b"), (2, "c"))}
    shards["test"] = tiny_shard("d", "test", 3, seed=3)
    return write_features(tmp_path_factory.mktemp("features") / "tiny", shards)


@pytest.fixture(scope="module")
def config(features: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return config_for(
        features,
        train__num_pairs=4,
        train__report_every=4,
        optim__lr=1e-12,
        model__matcher__init="identity",
        model__matcher__num_layers=3,
        evaluation__num_keypoints=OWN,
        evaluation__batch_size=5,
        evaluation__ransac_max_iterations=100,
        data__cache_dir=str(tmp_path_factory.mktemp("cache")),
    )


@pytest.fixture(scope="module")
def trained(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Trainer(config, World(), Recorder(), folder).fit()
    return folder


@pytest.fixture
def matcher(trained: Path) -> LightGlue:
    return load_matcher(trained)[0]


@pytest.fixture(scope="module")
def pairs(config: RunConfig) -> PairData:
    return open_split(override(config, {"evaluation.num_keypoints": NUM_POINTS}), "val")


@pytest.fixture(scope="module")
def swept(trained: Path, pairs: PairData, config: RunConfig) -> FreeAxes:
    return _sweep(load_matcher(trained)[0], pairs, config)


def _sweep(
    matcher: LightGlue,
    pairs: PairData,
    config: RunConfig,
    max_seconds: float = 600,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FreeAxes:
    return sweep(
        matcher,
        pairs,
        config.evaluation,
        max_num_keypoints=NUM_POINTS,
        max_seconds=max_seconds,
        progress=progress,
    )


def test_every_setting_scores_as_if_the_matcher_had_been_set_so(
    swept: FreeAxes, matcher: LightGlue, config: RunConfig
) -> None:
    own = matcher.config
    assert swept.num_pairs == swept.num_pairs_of == 12
    assert {point.setting.num_keypoints for point in swept.points} == {OWN // 2, OWN, NUM_POINTS}
    assert len({point.scores for point in swept.points}) > 5, "the settings must differ to be told apart"
    for point in swept.points[::3]:
        here = point.setting
        protocol = replace(config.evaluation, ransac_threshold=here.ransac_threshold, batch_size=1)
        matcher.config = replace(own, filter_threshold=here.filter_threshold, depth_confidence=here.depth_confidence)
        dataset = open_split(override(config, {"evaluation.num_keypoints": here.num_keypoints}), "val")
        indices = evaluation_indices(dataset, None)
        scores = score_pairs(matcher, dataset, protocol, device="cpu", indices=indices)
        assert point.scores == tuple(mean_score(scores.error, t) for t in (5.0, 10.0, 20.0)), here
        assert point.num_matches == scores.num_matches.mean()
        assert point.match_seconds > 0 and point.estimate_seconds > 0


def test_what_is_swept(matcher: LightGlue, config: RunConfig) -> None:
    found = settings(matcher, config.evaluation, NUM_POINTS)
    protocol = Setting(num_keypoints=OWN, depth_confidence=-1.0, filter_threshold=0.1, ransac_threshold=2.0)
    assert protocol in found and len(set(found)) == len(found)
    assert {s.num_keypoints for s in settings(matcher, config.evaluation, OWN)} == {OWN // 2, OWN}
    others = {s.ransac_threshold for s in found if s.num_keypoints != OWN}
    assert others == {2.0} and {s.ransac_threshold for s in found} == {0.5, 1.0, 2.0, 3.0}
    matcher.config = replace(matcher.config, filter_threshold=0.17, num_layers=2)
    assert 0.17 in {s.filter_threshold for s in settings(matcher, config.evaluation, OWN)}
    assert {s.depth_confidence for s in settings(matcher, config.evaluation, OWN)} == {-1.0}, "nothing to leave early"


def test_a_point_is_on_the_front_unless_another_is_as_fast_and_as_good(swept: FreeAxes) -> None:
    def is_beaten_by(point: Point, other: Point) -> bool:
        differs = (other.seconds, other.scores[0]) != (point.seconds, point.scores[0])
        return differs and other.seconds <= point.seconds and other.scores[0] >= point.scores[0]

    for point in swept.points:
        assert point.on_front != any(is_beaten_by(point, other) for other in swept.points), point
    assert [p.seconds for p in swept.points] == sorted(p.seconds for p in swept.points)
    assert swept.point(swept.best).scores[0] == max(p.scores[0] for p in swept.points)


def test_time_that_is_too_short_takes_the_first_pairs_and_says_so(
    swept: FreeAxes, matcher: LightGlue, pairs: PairData, config: RunConfig
) -> None:
    told: list[tuple[int, int]] = []
    own = matcher.config
    short = _sweep(matcher, pairs, config, max_seconds=0, progress=lambda done, total: told.append((done, total)))
    assert (short.num_pairs, short.num_pairs_of) == (5, 12)
    assert told == [(5, 12)] and matcher.config is own
    assert "on 5 of 12 validation pairs" in short.sentence and "on 12 validation pairs" in swept.sentence
    again = _sweep(matcher, pairs, config, max_seconds=0)
    assert {p.setting: p.scores for p in again.points} == {p.setting: p.scores for p in short.points}


def test_results_are_kept_until_weights_or_protocol_change(
    config: RunConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "free_axes.json"
    first = free_axes(config, {"trial 3": trained}, file, max_seconds=0.0)
    written = file.read_text()
    assert free_axes(config, {"trial 3": trained}, file, max_seconds=600) == first
    assert file.read_text() == written
    assert json.loads(written)["matchers"]["trial 3"]["sentence"] == first["trial 3"].sentence
    other = override(config, {"evaluation.ransac_threshold": 1.5})
    changed = free_axes(other, {"trial 3": trained}, file, max_seconds=0.0)["trial 3"]
    assert changed.protocol.ransac_threshold == 1.5
    assert 1.5 in {p.setting.ransac_threshold for p in changed.points}
    file.write_text("{")  # cut short by a full disk
    assert free_axes(config, {"trial 3": trained}, file, 0.0)["trial 3"].num_pairs == first["trial 3"].num_pairs


def test_table_shows_the_front_and_the_protocol(swept: FreeAxes) -> None:
    table = free_axes_table("trial 3", swept)
    stream = io.StringIO()
    Console(width=200, file=stream).print(table)
    text = stream.getvalue()
    assert "trial 3: accuracy against latency" in text and "protocol" in text and "best score" in text
    shown = sum(point.on_front or point.setting == swept.protocol for point in swept.points)
    assert table.row_count == shown < len(swept.points)


def test_evaluate_counts_each_look_at_the_test(
    config: RunConfig, trained: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained), f"data.cache_dir={tmp_path}", f"data.path={features}"]
    assert evaluate.main([*words, "--split", "val"]) == 0
    assert read_ledger(tmp_path / FILE) == [] and "read" not in capsys.readouterr().out
    assert evaluate.main(words) == 0
    assert "test pairs read once\n" in capsys.readouterr().out
    assert evaluate.main(words) == 0
    assert "test pairs read twice by 1 study or checkpoint\n" in capsys.readouterr().out
    first, second = read_ledger(tmp_path / FILE)
    assert (first.num_pairs, first.test, first.purpose) == (3, "test", "report")
    assert first.protocol == second.protocol and first.data == second.data
    assert np.char.endswith(first.reader, "lightglue.pth")
