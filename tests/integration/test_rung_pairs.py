"""Reports before the last score fewer pairs, and no score of theirs is weighed against one of all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylg.evaluation.pair_scores import PairScores
from raylg.training import run_directory
from raylg.training.distributed import World
from raylg.training.reporter import read_metrics
from raylg.training.trainer import Trainer
from raylg.training.validation import RUNG_SCORE, SCORE
from tests.integration.test_training import Recorder, config_for
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_benchmark, write_features


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 training pairs, 10 validation pairs."""
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 5, seed=1)}
    return write_features(tmp_path_factory.mktemp("features") / "tiny", shards)


def test_best_is_chosen_among_scores_of_the_same_pairs(features: Path, tmp_path: Path) -> None:
    shards = {"test": tiny_shard("c", "test", 4, seed=2, original=2)}
    changes = {
        "evaluation__rung_pairs": 3,
        "evaluation__benchmarks": ["megadepth1500"],
        "benchmarks__megadepth1500__path": str(write_benchmark(tmp_path / "b", shards)),
        "benchmarks__megadepth1500__resize": 320,
        "benchmarks__megadepth1500__num_keypoints": NUM_POINTS,
        "benchmarks__megadepth1500__rung_pairs": 2,
    }
    # Almost no learning: all reports score the same matches, so only the pairs could make a difference.
    config = config_for(
        features,
        train__num_pairs=12,
        train__report_every=4,
        optim__lr=1e-12,
        model__matcher__init="identity",
        **changes,
    )
    recorder = Recorder()
    Trainer(config, World(), recorder, tmp_path / "run").fit()
    assert [report["val/num_pairs"] for report in recorder.reports] == [3, 3, 10]
    assert [report["megadepth1500/num_pairs"] for report in recorder.reports] == [2, 2, 6]
    assert len(PairScores.load(tmp_path / "run" / "pairs.npz")) == 10
    rungs = [report[RUNG_SCORE] for report in recorder.reports]
    assert rungs == [recorder.reports[0][SCORE]] * 3
    assert recorder.reports[-1][SCORE] > rungs[-1]  # more pairs, another number: not a better matcher
    assert [path.name for path in run_directory.checkpoints(tmp_path / "run")] == [
        run_directory.name(4),
        run_directory.name(12),
    ]
    assert [record["val/num_pairs"] for record in read_metrics(tmp_path / "run")] == [3, 3, 10]
