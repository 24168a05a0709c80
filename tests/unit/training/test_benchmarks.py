"""The protocol of a benchmark, where its shards are, what is refused before anything starts, and its numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import poselib
import pytest

from raylg.errors import ConfigError
from raylg.evaluation.benchmarks import score_pairs
from raylg.evaluation.measures import HOMOGRAPHY, ScoreColumns
from raylg.models.nearest_neighbor import NearestNeighbor
from raylg.schema import override
from raylg.search.config import StudyConfig
from raylg.training.benchmarks import (
    add_objective_benchmark,
    benchmark_extractor,
    benchmark_location,
    benchmark_protocol,
    check_benchmarks,
    objective_columns,
    open_benchmark,
    protocol_hashes,
)
from raylg.training.config import RunConfig
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

NAME = "megadepth1500"
ORIGINAL = 3
"""Times that the images were larger before they were resized."""


def config_for(path: Path, **changes: object) -> RunConfig:
    values = {
        "benchmarks.megadepth1500.path": str(path),
        "benchmarks.megadepth1500.resize": 320,
        "benchmarks.megadepth1500.num_keypoints": NUM_POINTS,
        "evaluation.benchmarks": [NAME],
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return override(RunConfig(), values)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 pairs in two shards."""
    made = {s: tiny_shard(s, "test", count, seed, ORIGINAL) for s, count, seed in (("a", 5, 0), ("b", 3, 1))}
    return write_features(tmp_path_factory.mktemp("benchmark") / "shards", made, resize=320)


def test_protocol_is_that_of_the_published_numbers() -> None:
    protocol = benchmark_protocol(RunConfig(), NAME)
    assert (protocol.ransac_threshold, protocol.pixels, protocol.ransac_seed) == (2.0, "original", 0)
    assert (protocol.ransac_max_iterations, protocol.num_keypoints, protocol.max_pairs) == (100_000, 2048, None)
    extractor = benchmark_extractor(RunConfig(), NAME)
    assert (extractor.resize, extractor.max_num_keypoints, extractor.name) == (1600, 2048, "sift")


def test_options_of_the_run_do_not_touch_the_protocol() -> None:
    changed = override(
        RunConfig(),
        {"evaluation.ransac_threshold": 1.0, "evaluation.ransac_max_iterations": 7, "evaluation.num_keypoints": 64}
        | {"evaluation.max_pairs": 3, "evaluation.ransac_seed": 5, "evaluation.precision_threshold": 1.0},
    )
    assert benchmark_protocol(changed, NAME) == benchmark_protocol(RunConfig(), NAME)
    fewer = override(RunConfig(), {"benchmarks.megadepth1500.max_pairs": 10, "evaluation.batch_size": 2})
    assert benchmark_protocol(fewer, NAME) == replace(benchmark_protocol(RunConfig(), NAME), max_pairs=10, batch_size=2)


def test_shards_are_at_the_path_or_in_the_cache(shards: Path, tmp_path: Path) -> None:
    assert benchmark_location(config_for(shards), NAME) == str(shards)
    config = config_for(tmp_path, data__cache_dir=str(tmp_path / "cache"))
    location = benchmark_location(config, NAME)
    assert Path(location).parent.parent == tmp_path / "cache"
    assert Path(location).name.startswith("megadepth1500-")
    same = {"optim.lr": 1.0, "data.images_per_shard": 7, "model.extractor.resize": 640, "evaluation.batch_size": 1}
    assert benchmark_location(override(config, same), NAME) == location
    for other in (
        {"benchmarks.megadepth1500.resize": 640},
        {"benchmarks.megadepth1500.num_keypoints": 64},
        {"benchmarks.megadepth1500.path": str(tmp_path / "other")},
        {"model.extractor.detection_threshold": 0.001},
    ):
        assert benchmark_location(override(config, other), NAME) != location


def test_shards_that_fit_pass(shards: Path) -> None:
    check_benchmarks(config_for(shards))
    assert open_benchmark(config_for(shards), NAME).num_pairs == 13
    check_benchmarks(RunConfig())  # without benchmarks there is nothing to check


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks.megadepth1500.resize": 1600}, r"resize = 320, the protocol says 1600"),
        ({"benchmarks.megadepth1500.num_keypoints": 2048}, r"max_num_keypoints = 48, the protocol says 2048"),
        ({"model.extractor.name": "superpoint"}, r"hold 'sift' features, the run has .* 'superpoint'"),
    ],
)
def test_shards_that_give_other_numbers_are_refused(shards: Path, changes: dict[str, object], message: str) -> None:
    config = override(config_for(shards), changes)
    for refuse in (check_benchmarks, lambda config: open_benchmark(config, NAME)):
        with pytest.raises(ConfigError, match=message):
            refuse(config)


def test_shards_without_original_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "old", {"a": tiny_shard("a", "test", 3, 0)}, resize=320)
    with pytest.raises(ConfigError, match="original"):
        open_benchmark(config_for(folder), NAME)


def test_errors_are_those_of_poselib_on_the_matches_in_original_pixels(shards: Path) -> None:
    """Recomputed from the files, with none of raylg but the matcher."""
    config = config_for(shards)
    dataset = open_benchmark(config, NAME)
    indices = np.array([[s, p] for s, size in enumerate(dataset.shard_sizes) for p in range(size)])
    matcher = NearestNeighbor()
    scores = score_pairs(matcher, dataset, benchmark_protocol(config, NAME), device="cpu", indices=indices)
    assert scores.error.max() < 60  # something was found
    for row, (shard, pair) in enumerate(indices):
        batch = dataset.batch(indices[row : row + 1])
        matches0 = matcher.match(batch.view0, batch.view1).matches0[0].numpy()
        with h5py.File(shards / dataset.entries[shard].file) as file:
            images = file["pairs"][pair]
            expected = poselib_errors(file, images, np.flatnonzero(matches0 >= 0), matches0[matches0 >= 0])
        found = (scores.rotation_error[row], scores.translation_error[row], scores.num_inliers[row])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def poselib_errors(file: h5py.File, images: np.ndarray, here: np.ndarray, there: np.ndarray) -> tuple[float, ...]:
    """Degrees of rotation and translation, and inliers, by the official settings and the textbook formulas."""
    points, cameras = [], []
    for image, rows in zip(images, (here, there), strict=True):
        first = file["offsets"][image]
        points.append(file["keypoints"][first : first + NUM_POINTS][rows].astype(np.float64) * ORIGINAL)
        params = (file["camera"][image] * ORIGINAL).tolist()
        width, height = (int(x) for x in file["original_size"][image])
        assert (width, height) == tuple(file["image_size"][image] * ORIGINAL)
        cameras.append({"model": "PINHOLE", "width": width, "height": height, "params": params})
    pose, info = poselib.estimate_relative_pose(*points, *cameras, {"max_epipolar_error": 2.0}, {})
    T = file["T_w2c"][images[1]] @ np.linalg.inv(file["T_w2c"][images[0]])
    R, t = pose.R, pose.t
    rotation = np.degrees(np.arccos(np.clip((np.trace(R.T @ T[:3, :3]) - 1) / 2, -1, 1)))
    cosine = t @ T[:3, 3] / np.linalg.norm(t) / np.linalg.norm(T[:3, 3])
    translation = np.degrees(np.arccos(np.clip(abs(cosine), 0, 1)))
    return float(rotation), float(translation), info["num_inliers"]


def test_hash_of_the_protocol_belongs_to_the_hashes_of_a_study(shards: Path, tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", {s: tiny_shard(s, s, 3, seed=3) for s in ("train", "val")})
    small = {"data.num_keypoints": NUM_POINTS, "evaluation.num_keypoints": NUM_POINTS}
    config = override(config_for(shards), small | {"data.source": "shards", "data.path": [str(features)]})
    hashes = protocol_hashes(config)
    assert list(hashes) == ["data", "protocol", NAME]
    assert protocol_hashes(override(config, {"evaluation.ransac_threshold": 1.0}))[NAME] == hashes[NAME]
    for change in ({"benchmarks.megadepth1500.max_pairs": 4}, {"model.matcher.filter_threshold": 0.2}):
        assert protocol_hashes(override(config, change))[NAME] != hashes[NAME]


def test_objective_adds_its_benchmark(shards: Path) -> None:
    config = override(config_for(shards), {"evaluation.benchmarks": []})
    added = add_objective_benchmark(config, "megadepth1500/auc@5")
    assert added.evaluation.benchmarks == (NAME,)
    assert add_objective_benchmark(added, "megadepth1500/auc@10") == added
    assert add_objective_benchmark(config, "val/auc@5") == config
    with pytest.raises(ConfigError, match=r"benchmarks\.megadepth1500\.path = null"):
        add_objective_benchmark(RunConfig(), "megadepth1500/auc@5")


def test_objectives_that_the_pairs_do_not_have_are_refused(tmp_path: Path) -> None:
    posed = RunConfig()
    photographs = override(RunConfig(), {"data.source": "images", "data.path": [str(tmp_path)]})
    assert objective_columns(posed, "val/auc@5") == objective_columns(posed, "val/mean_auc") == ScoreColumns()
    assert objective_columns(photographs, "val/corner_auc@3") == ScoreColumns("val", HOMOGRAPHY)
    assert objective_columns(photographs, "val/mean_auc") == ScoreColumns("val", HOMOGRAPHY)
    assert objective_columns(photographs, "megadepth1500/auc@5") == ScoreColumns(NAME)
    with pytest.raises(ConfigError, match=r"'val/auc@5': the pairs of data.source=images .*val/corner_auc@1"):
        objective_columns(photographs, "val/auc@5")
    with pytest.raises(ConfigError, match=r"'val/corner_auc@3': .*data.source=mini .* choose one of val/auc@5"):
        objective_columns(posed, "val/corner_auc@3")


def test_objectives_of_a_study() -> None:
    for objective in ("val/auc@20", "val/corner_auc@1", "val/mean_auc", "megadepth1500/mean_auc"):
        assert StudyConfig(objective=objective).objective == objective
    for objective in ("megadepth1500/corner_auc@1", "val/auc@3", "val/loss", "other/auc@5"):
        with pytest.raises(ConfigError, match=r"objective = .*must be one of val/auc@5"):
            StudyConfig(objective=objective)


def test_module_is_free_of_torch() -> None:
    code = "import sys, raylg.training.benchmarks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
