"""What a run that was begun does not need any more, and what may be asked of it after all; as commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raylg import train
from raylg.training.reporter import read_metrics
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_benchmark, write_features

SMALL = [
    "model.matcher.descriptor_dim=16",
    "model.matcher.num_layers=2",
    "model.matcher.num_heads=2",
    f"data.num_keypoints={NUM_POINTS}",
    f"evaluation.num_keypoints={NUM_POINTS}",
    "data.batch_size=2",
    "optim.decay=none",
    "train.num_pairs=4",
    "train.report_every=2",
    "train.num_figures=0",
]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run that takes a second; in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    features = write_features(tmp_path / "features", {s: tiny_shard(s, s, 3, 0) for s in ("train", "val")})
    return ["data=shards", f"data.path={features}", *SMALL]


def test_a_run_that_was_begun_needs_its_start_no_more(words: list[str], tmp_path: Path) -> None:
    assert train.main(["--name", "first", *words]) == 0
    second = ["--name", "second", *words, "train.init_from=runs/first"]
    assert train.main(second) == 0
    shutil.rmtree(tmp_path / "runs" / "first")
    assert train.main(second) == 0  # finished
    assert train.main([*second, "train.num_pairs=8"]) == 0  # goes on
    assert [report["pairs_seen"] for report in read_metrics(tmp_path / "runs" / "second")] == [2, 4, 6, 8]


def test_a_run_that_was_begun_elsewhere_needs_its_start_no_more(words: list[str], tmp_path: Path) -> None:
    assert train.main(["--name", "first", *words]) == 0
    second = ["--name", "second", *words, "train.init_from=runs/first", f"train.checkpoint_storage={tmp_path}/copies"]
    assert train.main(second) == 0
    shutil.rmtree(tmp_path / "runs")
    assert train.main(second) == 0


def test_a_new_run_needs_its_start(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*words, "train.init_from=runs/first"]) == 2
    assert "train.init_from = 'runs/first': no such file or folder" in capsys.readouterr().err


def test_a_benchmark_may_be_asked_for_later(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words) == 0
    benchmark = [
        f"benchmarks.megadepth1500.path={write_benchmark(tmp_path / 'b', {'b': tiny_shard('b', 'test', 4, 1, 3)})}",
        "benchmarks.megadepth1500.resize=320",
        f"benchmarks.megadepth1500.num_keypoints={NUM_POINTS}",
        "evaluation.benchmarks=[megadepth1500]",
    ]
    capsys.readouterr()
    assert train.main([*words, *benchmark]) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "megadepth1500 is not scored, as the run had ended before: python -m raylg.evaluate runs/train" in printed
    assert train.main([*words, *benchmark, "train.num_pairs=8"]) == 0
    assert "megadepth1500 AUC@5/10/20 " in capsys.readouterr().out
    last = read_metrics(tmp_path / "runs" / "train")[-1]
    assert last["pairs_seen"] == 8 and 0 <= last["megadepth1500/auc@5"] <= 1
