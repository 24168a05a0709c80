"""The protocol of a benchmark, where its shards are, what is refused before anything starts, and its numbers."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import poselib
import pytest

from raylg.data.export import PartRunner
from raylg.data.export_pool import ProcessPool
from raylg.data.export_scene import ExportJob
from raylg.data.manifest import ExtractorInfo, read_manifest, write_manifest
from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.evaluation.benchmarks import score_pairs
from raylg.models.nearest_neighbor import NearestNeighbor
from raylg.schema import override
from raylg.training.benchmarks import (
    benchmark_extractor,
    benchmark_location,
    benchmark_protocol,
    check_benchmarks,
    ensure_benchmark,
    open_benchmark,
    prepare_benchmark,
    with_prepared_benchmarks,
)
from raylg.training.config import RunConfig
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_benchmark, write_features
from tests.raw_benchmark import write_raw_benchmark
from tests.unit.training.one_scene import write_superpoint

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
    return write_benchmark(tmp_path_factory.mktemp("benchmark") / "shards", made)


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


def test_superpoint_is_run_as_for_the_published_numbers() -> None:
    own = {"model.extractor.name": "superpoint", "model.extractor.nms_radius": 5, "model.extractor.remove_borders": 0}
    extractor = benchmark_extractor(override(RunConfig(), own | {"model.extractor.detection_threshold": 0.1}), NAME)
    assert (extractor.detection_threshold, extractor.nms_radius, extractor.remove_borders) == (0.0, 3, 4)
    sift = benchmark_extractor(override(RunConfig(), {"model.extractor.detection_threshold": 0.001}), NAME)
    assert sift.detection_threshold == 0.001


def test_shards_at_the_path(shards: Path) -> None:
    assert benchmark_location(config_for(shards), NAME) == str(shards)
    assert with_prepared_benchmarks(config_for(shards)) == config_for(shards)
    check_benchmarks(config_for(shards))
    assert open_benchmark(config_for(shards), NAME).num_pairs == 13
    check_benchmarks(RunConfig())  # without benchmarks there is nothing to check


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_benchmark(tmp_path / "raw")


def raw_config(raw: Path, **changes: object) -> RunConfig:
    return config_for(raw, data__cache_dir=str(raw.parent / "cache"), **changes)


def test_place_in_the_cache_follows_content_and_options(raw: Path) -> None:
    config = raw_config(raw)
    location = benchmark_location(config, NAME)
    assert Path(location).parent == raw.parent / "cache" / "features"
    assert Path(location).name.startswith("megadepth1500-")
    same = {"optim.lr": 1.0, "data.images_per_shard": 7, "model.extractor.resize": 640, "evaluation.batch_size": 1}
    assert benchmark_location(override(config, same), NAME) == location
    for other in (
        {"benchmarks.megadepth1500.resize": 640},
        {"benchmarks.megadepth1500.num_keypoints": 64},
        {"model.extractor.detection_threshold": 0.001},
    ):
        assert benchmark_location(override(config, other), NAME) != location
    moved = raw.rename(raw.with_name("moved"))
    assert benchmark_location(raw_config(moved), NAME) == location
    with (moved / "images/0015/0.png").open("ab") as image:
        image.write(b"another photograph")
    assert benchmark_location(raw_config(moved), NAME) != location


def test_features_follow_the_benchmark_and_its_size_is_told(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Part of a benchmark is told each time it is used, and completed as soon as the rest is there."""
    whole = (raw / "pairs.txt").read_text()
    (raw / "pairs.txt").write_text(whole.splitlines()[0] + "\n")
    config = raw_config(raw)
    ensure_benchmark(config, NAME)
    for _ in range(2):
        caplog.clear()
        assert open_benchmark(config, NAME).num_pairs == 1
        assert "1 pairs, not the 1500 of megadepth1500: scores on them compare with no published one" in caplog.text
    (raw / "pairs.txt").write_text(whole)
    ensure_benchmark(config, NAME)
    assert open_benchmark(config, NAME).num_pairs == 2


def test_cached_features_with_more_keypoints_serve(raw: Path) -> None:
    config = raw_config(raw)
    manifest = ensure_benchmark(config, NAME)
    fewer = override(config, {"benchmarks.megadepth1500.num_keypoints": 20})
    assert benchmark_location(fewer, NAME) == benchmark_location(config, NAME)
    assert ensure_benchmark(fewer, NAME) == manifest
    assert open_benchmark(fewer, NAME).batch(np.array([[0, 0]])).view0.mask.sum() == 20
    for change in ({"benchmarks.megadepth1500.num_keypoints": 100}, {"model.extractor.detection_threshold": 0.001}):
        assert not Path(benchmark_location(override(config, change), NAME)).exists()
    (raw / "pairs.txt").write_text("0015/0.png 0015/1.png\n")
    assert not Path(benchmark_location(fewer, NAME)).exists()


def test_other_machines_need_no_images(raw: Path) -> None:
    config = with_prepared_benchmarks(raw_config(raw))
    ensure_benchmark(raw_config(raw), NAME)
    shutil.rmtree(raw)
    assert open_benchmark(config, NAME).num_pairs == 2


def test_benchmark_is_prepared_by_the_pool_that_is_given(raw: Path) -> None:
    class Pool(ProcessPool):
        used = 0

        def start(self, job: ExportJob) -> AbstractContextManager[PartRunner]:
            self.used += 1
            return super().start(job)

    pool = Pool(1)
    prepare_benchmark(raw_config(raw), NAME, str(raw.parent / "out"), pool=pool)
    assert pool.used == 1


def test_what_is_no_benchmark_is_refused(shards: Path, tmp_path: Path) -> None:
    tiny = {"a": tiny_shard("a", "test", 3, 0, ORIGINAL)}
    refused = {
        "features": (write_features(tmp_path / "features", tiny, resize=320, enlarge=True), "holds features, but not"),
        "other": (write_features(tmp_path / "other", tiny, {"benchmark": "hpatches"}), "holds features, but not"),
        "small": (
            write_features(tmp_path / "small", tiny, {"benchmark": NAME}, resize=320),
            r"enlarge = None, the protocol says True",
        ),
        "weak": (
            write_features(
                tmp_path / "weak", tiny, {"benchmark": NAME}, resize=320, enlarge=True, detection_threshold=0.5
            ),
            r"detection_threshold = 0\.5, the protocol says None",
        ),
    }
    for folder, message in refused.values():
        for refuse in (check_benchmarks, lambda config: open_benchmark(config, NAME)):
            with pytest.raises(ConfigError, match=message):
                refuse(config_for(folder))


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


def superpoint_shards(folder: Path, weights: str | None, source: dict[str, str], **settings: object) -> Path:
    """Shards that say they were made by SuperPoint with weights of this hash."""
    write_features(folder, {s: tiny_shard(s, s, 3, 0, ORIGINAL) for s in ("train", "val", "test")}, source)
    storage = Storage(folder)
    info = ExtractorInfo(name="superpoint", weights_sha256=weights, settings=settings, descriptor_dim=256)
    write_manifest(storage, replace(read_manifest(storage), extractor=info))
    return folder


PROTOCOL = {"resize": 320, "enlarge": True, "detection_threshold": 0.0, "nms_radius": 3, "remove_borders": 4}


def test_features_of_training_and_benchmark_come_of_the_same_weights(raw: Path, tmp_path: Path) -> None:
    weights = write_superpoint(tmp_path / "weights.pth", seed=0)
    sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    counts = {"max_num_keypoints": NUM_POINTS}
    other = superpoint_shards(tmp_path / "other", "b" * 64, {}, **counts)
    same = superpoint_shards(tmp_path / "same", sha256, {}, **counts)
    benchmark = superpoint_shards(tmp_path / "benchmark", sha256, {"benchmark": NAME}, **PROTOCOL, **counts)
    base = {"model.extractor.name": "superpoint", "data.source": "shards"}

    def config(path: Path, features: Path, weights: str | None = None) -> RunConfig:
        return override(raw_config(path), base | {"data.path": [str(features)], "model.extractor.weights": weights})

    check_benchmarks(config(benchmark, same))  # no weights needed: manifests decide
    with pytest.raises(ConfigError, match=rf"the shards in .*benchmark .* SHA-256 {sha256[:12]}, .* with bbbbbbbbbbbb"):
        check_benchmarks(config(benchmark, other))
    check_benchmarks(config(raw, same, weights))
    with pytest.raises(ConfigError, match=r"megadepth1500 would be read with .* the same weights to both"):
        check_benchmarks(config(raw, other, weights))
    with pytest.raises(ConfigError, match=r"model\.extractor\.weights = null"):
        check_benchmarks(config(raw, same))
    mini = override(config(benchmark, same, weights), {"data.source": "mini"})
    check_benchmarks(mini)
    write_superpoint(tmp_path / "weights.pth", seed=1)
    with pytest.raises(ConfigError, match="the same weights to both"):
        check_benchmarks(mini)
    check_benchmarks(config(benchmark, tmp_path / "gone"))  # who only scores needs no training data


def test_shards_without_original_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "old", {"a": tiny_shard("a", "test", 3, 0)})
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


def test_module_is_free_of_torch() -> None:
    code = "import sys, raylg.training.benchmarks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
