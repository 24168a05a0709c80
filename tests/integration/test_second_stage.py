"""The stage that trains only the classifiers of the early exit, through the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raylg.schema import override
from raylg.training import checkpoint
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.run_directory import latest
from raylg.training.trainer import Trainer
from tests.integration.recorder import Recorder
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

BASE = {
    "data.source": "shards",
    "data.batch_size": 2,
    "data.num_keypoints": NUM_POINTS,
    "evaluation.num_keypoints": NUM_POINTS,
    "evaluation.num_threads": 1,
    "model.matcher.descriptor_dim": 32,
    "model.matcher.num_layers": 3,
    "model.matcher.num_heads": 2,
    "optim.lr": 1e-2,
    "optim.ema_pairs": 20.0,
    "train.num_figures": 0,
}


def train(config: RunConfig, workdir: Path, resume_from=None, recorder=None) -> list[dict[str, float]]:
    recorder = recorder or Recorder()
    Trainer(config, World(), recorder, workdir).fit(resume_from)
    return recorder.reports


def test_second_stage_changes_the_confidences_alone_and_resumes(tmp_path: Path) -> None:
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 3, seed=1)}
    features = write_features(tmp_path / "features", shards)
    base = override(RunConfig(), BASE | {"data.path": [str(features)]})
    first = override(base, {"train.num_pairs": 40, "optim.lr": 1e-3})
    (before,) = train(first, tmp_path / "first")
    second = override(
        base,
        {
            "train.stage": "confidence",
            "train.init_from": str(tmp_path / "first"),
            "train.num_pairs": 60,
            "train.report_every": 20,
        },
    )
    reports = train(second, tmp_path / "second")
    for report in reports:
        for name in ("val/loss", "val/mean_auc", "val/num_matches", "val/match_recall"):
            assert report[name] == before[name], name
        assert report["micro_batch_size"] == 2
        assert report["loss_spikes"] == report["nonfinite_losses"] == report["nonfinite_gradients"] == 0
    assert reports[-1]["train/confidence"] < reports[0]["train/confidence"]

    start, _ = checkpoint.load_matcher(tmp_path / "first")
    trained, stored = checkpoint.load_matcher(tmp_path / "second")
    assert stored == second
    for name, value in trained.state_dict().items():
        assert torch.equal(value, start.state_dict()[name]) == (not name.startswith("token_confidence")), name

    with pytest.raises(KeyboardInterrupt):
        train(second, tmp_path / "parts", recorder=Recorder(interrupt_at=20))
    assert train(second, tmp_path / "parts", resume_from=latest(tmp_path / "parts")) == reports[1:]
    resumed, _ = checkpoint.load_matcher(tmp_path / "parts")
    for name, value in trained.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
