"""A study that is scored by MegaDepth-1500: the real command on a part of the real index, images in the true layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from raylg import prepare
from raylg.data.stream import evaluation_indices
from raylg.evaluation.benchmarks import score_pairs
from raylg.evaluation.pair_scores import PairScores
from raylg.models.nearest_neighbor import NearestNeighbor
from raylg.schema import override
from raylg.training.benchmarks import benchmark_protocol, ensure_benchmark, open_benchmark, prepare_benchmark
from raylg.training.config import RunConfig
from tests.unit.data.megadepth_tree import write_loftr_tree

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_PAIRS, NUM_TRIALS = 8, 3
BENCHMARK = ["benchmarks.megadepth1500.resize=480", "benchmarks.megadepth1500.num_keypoints=256"]
TINY = [
    "data.mini.num_train_scenes=1",
    "data.mini.num_val_scenes=1",
    "data.mini.num_test_scenes=1",
    "data.mini.views_per_scene=3",
    "data.mini.width=160",
    "data.mini.height=120",
    "data.num_keypoints=64",
    "evaluation.num_keypoints=64",
    "train.num_pairs=8",
    "train.report_every=8",
    "train.num_figures=0",
    f"study.budget={NUM_TRIALS}trials",
    "study.scheduler.grace_pairs=8",
    "study.confirm.enabled=false",
]


def raylg(verb: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    command = [sys.executable, "-m", f"raylg.{verb}", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def tree(photo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark in LoFTR's layout, a few pairs of it."""
    index = photo_dir / "megadepth1500_index"
    if not index.is_dir():
        pytest.skip(f"no index of MegaDepth-1500: {index} is not a folder")
    root = tmp_path_factory.mktemp("megadepth1500")
    write_loftr_tree(root, index, num_pairs=NUM_PAIRS, long_side=400)
    return root


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.mark.ray
@pytest.mark.slow
def test_every_trial_carries_the_scores_of_the_benchmark(tree: Path, tmp_path: Path) -> None:
    path = [f"benchmarks.megadepth1500.path={tree}", f"data.cache_dir={tmp_path / 'cache'}", *BENCHMARK]
    words = ["--space", "smoke", "study.objective=megadepth1500/auc@5", *path, *TINY]
    done = raylg("tune", *words, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("megadepth1500 AUC@5/10/20 ") >= NUM_TRIALS  # a line for each report and each end
    assert "megadepth1500 AUC@5" in done.stdout.partition("studies/smoke: megadepth1500/auc@5")[2]  # the final table
    assert done.stdout.count("therefore optimistic") == 1
    assert "megadepth1500 pairs read once; 1 of them chose trials by these pairs" in done.stdout

    study = tmp_path / "studies" / "smoke"
    last = json.loads((study / "test.json").read_text())
    assert [line.partition(" read")[0] for line in last["reads"]] == ["megadepth1500 pairs", "test pairs"]
    page = (study / "study.html").read_text()
    assert all(text in page for text in (*last["reads"], last["title"], "mutual nearest neighbours"))
    described = yaml.safe_load((study / "study.yaml").read_text())
    assert described["hashes"].keys() == {"data", "protocol", "megadepth1500"}
    assert described["run"]["evaluation"]["benchmarks"] == ["megadepth1500"]
    assert "megadepth1500/auc@5" in (study / "best.yaml").read_text()
    scored = {}
    for trial in sorted((study / "trials").iterdir()):
        last = json.loads((trial / "metrics.jsonl").read_text().splitlines()[-1])
        pairs = PairScores.load(trial / "pairs-megadepth1500.npz")
        assert len(pairs) == NUM_PAIRS
        metrics = pairs.metrics("megadepth1500")
        assert {key: last[key] for key in metrics} == metrics
        scored[trial.name] = last["megadepth1500/auc@5"]
    assert len(scored) == NUM_TRIALS and max(scored.values()) > 0.2
    best = done.stdout.split("best: trial ")[1].split(",")[0]
    assert scored[f"{int(best):04d}"] == max(scored.values())

    # The features of the benchmark were extracted once; they score a checkpoint alone, beside the baselines.
    (manifest,) = (tmp_path / "cache" / "features").glob("megadepth1500-*/manifest.json")
    made = manifest.stat().st_mtime_ns
    alone = raylg("evaluate", "studies/smoke/trials/0000", "benchmark=megadepth1500", *path, cwd=tmp_path)
    assert alone.returncode == 0, f"{alone.stdout}\n{alone.stderr}"
    assert f"{NUM_PAIRS} pairs of megadepth1500" in alone.stdout and "mutual nearest neighbours" in alone.stdout
    assert "megadepth1500 pairs read twice by 2 studies or checkpoints; 1 of them chose" in alone.stdout
    assert manifest.stat().st_mtime_ns == made
    row = next(line for line in alone.stdout.splitlines() if "LightGlue" in line)
    assert f" {100 * scored['0000']:.1f} " in row


def test_features_of_the_benchmark_find_the_real_poses(tree: Path, tmp_path: Path) -> None:
    """Extraction, original pixels and cameras fit together: nearest neighbours alone recover most poses."""
    values = {
        "benchmarks.megadepth1500.path": str(tree),
        "benchmarks.megadepth1500.resize": 640,
        "benchmarks.megadepth1500.num_keypoints": 768,
        "data.cache_dir": str(tmp_path),
    }
    config = override(RunConfig(), values)
    manifest = ensure_benchmark(config, "megadepth1500")
    assert manifest.splits["test"].num_pairs == NUM_PAIRS
    dataset = open_benchmark(config, "megadepth1500")
    batch = dataset.batch(np.array([[0, 0]]))
    assert batch.view0.image_size.max() == 640  # enlarged
    assert batch.view0.original_size is not None and batch.view0.original_size.max() == 400
    indices = evaluation_indices(dataset, None)
    protocol = benchmark_protocol(config, "megadepth1500")
    scores = score_pairs(NearestNeighbor(ratio=0.85), dataset, protocol, device="cpu", indices=indices)
    assert np.median(scores.error) < 5
    assert scores.metrics("m")["m/auc@20"] > 0.5


def test_shards_of_the_benchmark_are_prepared_where_the_user_wants(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["benchmark=megadepth1500", f"benchmarks.megadepth1500.path={tree}", *BENCHMARK, "out=shards"]
    assert prepare.main(words) == 0
    shown = ["benchmarks.megadepth1500.path=shards", *BENCHMARK]
    assert capsys.readouterr().out.endswith(f"benchmark=megadepth1500 {' '.join(shown)}\n")
    values = {key: value for key, _, value in (word.partition("=") for word in BENCHMARK)}
    options = {key: int(value) for key, value in values.items()} | {"benchmarks.megadepth1500.path": "shards"}
    assert open_benchmark(override(RunConfig(), options), "megadepth1500").num_pairs == NUM_PAIRS
    assert prepare.main([*words, "benchmarks.megadepth1500.resize=640"]) == 2
    assert "shards already holds 'shards'" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_of_the_benchmark_may_be_in_a_bucket(tree: Path, tmp_path: Path, bucket: str) -> None:
    url = f"s3://{bucket}/megadepth1500"
    options = {key: int(value) for key, _, value in (word.partition("=") for word in BENCHMARK)}
    config = override(RunConfig(), options | {"data.cache_dir": str(tmp_path)})
    source = override(config, {"benchmarks.megadepth1500.path": str(tree)})
    prepare_benchmark(source, "megadepth1500", url)
    ensure_benchmark(source, "megadepth1500")
    dataset = open_benchmark(override(config, {"benchmarks.megadepth1500.path": url}), "megadepth1500")
    local = open_benchmark(source, "megadepth1500")
    assert dataset.data_hash == local.data_hash
    index = np.array([[0, 0]])
    assert dataset.batch(index).names == local.batch(index).names


def test_absent_benchmark_is_answered_before_anything_starts(tmp_path: Path) -> None:
    words = ["--space", "smoke", "study.objective=megadepth1500/auc@5", f"data.cache_dir={tmp_path / 'cache'}"]
    done = raylg("tune", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: benchmarks.megadepth1500.path = null: give the folder")
    done = raylg("tune", *words, f"benchmarks.megadepth1500.path={tmp_path / 'nowhere'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere is missing" in done.stderr and "Undistorted_SfM/0015/images" in done.stderr and "GB" in done.stderr
    assert not (tmp_path / "studies").exists() and not (tmp_path / "cache").exists()
