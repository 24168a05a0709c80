"""First homographies of plain photographs, then posed pairs from the weights of the first stage; both as commands."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raylg import train
from raylg.data.stream import PairData
from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.schema import override
from raylg.training import checkpoint, run_directory
from raylg.training.checkpoint import build_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import ensure_features, features_location, open_split
from raylg.training.reporter import read_metrics
from raylg.training.trainer import Trainer
from tests.integration.recorder import Recorder

NUM_PHOTOGRAPHS = 10
SMALL = {
    "model.matcher.descriptor_dim": 64,
    "model.matcher.num_layers": 2,
    "model.matcher.num_heads": 2,
    "data.num_keypoints": 96,
    "data.batch_size": 4,
    "evaluation.num_keypoints": 96,
    "evaluation.max_pairs": 8,
    "optim.lr": 1e-3,
    "optim.decay": "none",
    "train.num_figures": 1,
}
IMAGES = {"data.source": "images", "data.images.width": 160, "data.images.height": 120, "data.images.val_fraction": 0.3}
MINI = {
    "data.source": "mini",
    "data.mini.num_train_scenes": 1,
    "data.mini.num_val_scenes": 1,
    "data.mini.num_test_scenes": 1,
    "data.mini.views_per_scene": 4,
    "data.mini.width": 160,
    "data.mini.height": 120,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sheets of paper of all sizes on each other, a little out of focus."""
    folder = tmp_path_factory.mktemp("photographs")
    for k in range(NUM_PHOTOGRAPHS):
        rng = np.random.default_rng(k)
        image = np.full((240, 320, 3), 128, np.uint8)
        for size in np.geomspace(80, 6, 250):
            box = cv2.boxPoints(
                (rng.uniform((0, 0), (320, 240)), (size * rng.uniform(0.5, 2), size), rng.uniform(0, 90))
            )
            cv2.fillConvexPoly(image, np.round(box).astype(np.int32), rng.integers(0, 256, 3).tolist(), cv2.LINE_AA)
        cv2.imwrite(str(folder / f"{k:02d}.jpg"), cv2.GaussianBlur(image, None, 0.7))
    return folder


@pytest.fixture
def config(photographs: Path, tmp_path: Path) -> RunConfig:
    """The first stage."""
    values = {"data.path": [str(photographs)], "data.cache_dir": str(tmp_path / "cache")}
    config = override(RunConfig(), SMALL | IMAGES | values)
    ensure_features(config)
    return config


def words(options: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in options.items()]


def test_posed_pairs_continue_from_homographies(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [*words(SMALL), f"data.cache_dir={tmp_path / 'cache'}"]
    first = ["--name", "pretrain", f"data.path={photographs}", "train.num_pairs=96", "train.report_every=24"]
    assert train.main([*first, *words(IMAGES), *small]) == 0
    assert "validation corner AUC@1/3/5 px " in capsys.readouterr().out
    losses = [record["train/loss"] for record in read_metrics(Path("runs/pretrain"))]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    assert PairScores.load(Path("runs/pretrain/pairs.npz")).kind == "homography"

    second = ["--name", "posed", "train.init_from=runs/pretrain", "train.num_pairs=48", "train.report_every=16"]
    assert train.main([*second, *words(MINI), *small]) == 0
    assert "validation AUC@5/10/20 " in capsys.readouterr().out
    losses = [record["train/loss"] for record in read_metrics(Path("runs/posed"))]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert PairScores.load(Path("runs/posed/pairs.npz")).kind == "pose"

    posed = checkpoint.load_config(run_directory.latest(Path("runs/posed")))
    pretrained, _ = checkpoint.load_matcher(Path("runs/pretrain"))
    start = build_matcher(posed)
    assert start.state_dict().keys() == pretrained.state_dict().keys()
    for name, value in start.state_dict().items():
        assert torch.equal(value, pretrained.state_dict()[name]), name
    scratch = override(posed, {"train.init_from": None, "train.num_pairs": 16})
    Trainer(scratch, World(), Recorder(), tmp_path / "scratch").fit()
    assert losses[0] < read_metrics(tmp_path / "scratch")[0]["train/loss"]  # the first stage was of use


def test_first_stage_is_scored_at_the_corners(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"train.num_pairs": 8})
    reporter = Recorder()
    Trainer(config, World(), reporter, tmp_path / "run").fit()
    (report,) = reporter.reports
    assert {f"val/corner_auc@{t}" for t in (1, 3, 5)} | {"val/mean_auc", "val/precision@3px"} <= report.keys()
    assert not any(key.startswith("val/auc@") for key in report)
    assert all(np.isfinite(value) for value in report.values())


def test_first_stage_resumes_bit_for_bit_in_a_later_epoch(config: RunConfig, tmp_path: Path) -> None:
    """A photograph gives another pair in each epoch, and all that a checkpoint keeps of that is the number of pairs."""
    pairs = open_split(config, "train")
    assert 4 < pairs.num_pairs < NUM_PHOTOGRAPHS
    config = override(config, {"train.num_pairs": 24, "train.report_every": 8})
    whole = Recorder()
    Trainer(config, World(), whole, tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, World(), Recorder(interrupt_at=16), tmp_path / "parts").fit()
    rest = Recorder()
    Trainer(config, World(), rest, tmp_path / "parts").fit(run_directory.latest(tmp_path / "parts"))
    assert rest.reports == whole.reports[2:]
    last = [run_directory.latest(tmp_path / run) for run in ("whole", "parts")]
    states = [torch.load(path / "lightglue.pth", weights_only=True) for path in last]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert differs_between_epochs(pairs)


def differs_between_epochs(pairs: PairData) -> bool:
    first, again, later = (pairs.batch(np.array([[0, 0, epoch]])) for epoch in (0, 0, 1))
    assert first.H_0to1 is not None and again.H_0to1 is not None and later.H_0to1 is not None
    assert torch.equal(first.H_0to1, again.H_0to1)
    return not torch.equal(first.H_0to1, later.H_0to1)


def test_warped_views_have_no_original_pixels(config: RunConfig, tmp_path: Path) -> None:
    shards = {"data.source": "shards", "data.path": [features_location(config)]}
    config = override(config, shards | {"evaluation.pixels": "original"})
    with pytest.raises(ConfigError, match=r"evaluation\.pixels = 'original'"):
        Trainer(config, World(), Recorder(), tmp_path / "run").fit()
