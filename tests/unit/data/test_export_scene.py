"""One scene: what a shard holds of an image, cameras and depth after resizing, continuing after an interruption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from raylg.batch import Features
from raylg.data.export_scene import SceneExporter, file_stem
from raylg.data.resize import decode_thumbnail
from raylg.data.scene import SceneRef
from raylg.data.shard import read_shard
from raylg.errors import ShardError
from tests.unit.data.scenes import DIM, FakeExtractor, FakeScene, FakeSource, export_options

REF = SceneRef(name="one", split="train")


def nothing(ref: SceneRef, done: int, total: int) -> None:
    pass


def fixed_features(keypoints: list[list[float]], **changes: np.ndarray) -> Features:
    count = len(keypoints)
    features = Features(
        keypoints=np.array(keypoints, dtype=np.float32).reshape(-1, 2),
        keypoint_scores=np.linspace(1, 0, count, dtype=np.float32),
        descriptors=np.ones((count, DIM), dtype=np.float16),
    )
    return replace(features, **changes)


@pytest.mark.parametrize("resize", [None, 32, 50])
def test_camera_depth_and_size_follow_the_resize(tmp_path: Path, resize: int | None) -> None:
    @dataclass
    class AtFixedShare:
        def __call__(self, image: np.ndarray) -> Features:
            height, width = image.shape[:2]
            return fixed_features([[0.75 * width, 0.5 * height], [0.1 * width, 0.5 * height], [width, height]])

    exporter = SceneExporter(tmp_path, export_options(resize=resize), AtFixedShare(), nothing)
    record = exporter.export(REF, FakeSource().load)
    shard = read_shard(tmp_path / record.shards[0].file)
    width, height = {None: (64, 48), 32: (32, 24), 50: (50, 38)}[resize]  # 37.5 rounds to 38
    assert shard.image_size.tolist() == [[width, height]] * 6
    scale = np.array([width / 64, height / 48] * 2)
    np.testing.assert_allclose(shard.camera, np.tile(np.array([60, 61, 31, 25]) * scale, (6, 1)))
    depth = shard.depth_keypoints.reshape(6, 3)
    assert np.isnan(depth[0]).all()  # this image has no depth map
    np.testing.assert_allclose(depth[1:, 0], 1.75, atol=1e-6)
    assert np.isnan(depth[1:, 1]).all()
    np.testing.assert_allclose(depth[1:, 2], 2, atol=0.01)


def test_shard_content(tmp_path: Path) -> None:
    source, extractor = FakeSource(), FakeExtractor()
    record = SceneExporter(tmp_path, export_options(), extractor, nothing).export(REF, source.load)
    assert (record.num_images, record.complete, len(record.shards)) == (6, True, 1)
    shard, scene = read_shard(tmp_path / record.shards[0].file), source.load(REF)
    np.testing.assert_array_equal(shard.pairs, scene.pairs)
    np.testing.assert_array_equal(shard.overlap, scene.overlap)
    assert shard.names == tuple(view.name for view in scene.views)
    for i, view in enumerate(scene.views):
        features, rows = extractor(scene.image(i)), slice(shard.offsets[i], shard.offsets[i + 1])
        np.testing.assert_array_equal(shard.keypoints[rows], features.keypoints)
        np.testing.assert_array_equal(shard.descriptors[rows], features.descriptors)
        np.testing.assert_array_equal(shard.scales[rows], features.scales)
        np.testing.assert_array_equal(shard.oris[rows], features.oris)
        np.testing.assert_array_equal(shard.T_w2c[i], view.T_w2c)
        assert decode_thumbnail(shard.thumbnails[i], "").shape == (48, 64)


def test_large_scene_is_divided(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = FakeSource(num_views=20, reach=3, log=log)
    record = SceneExporter(tmp_path, export_options(images_per_shard=7), FakeExtractor(), nothing).export(
        REF, source.load
    )
    shards = [read_shard(tmp_path / entry.file) for entry in record.shards]
    assert len(shards) > 2 and all(shard.num_images <= 7 for shard in shards)
    named = [(s.names[i], s.names[j]) for s in shards for i, j in s.pairs]
    scene = source.load(REF)
    assert sorted(named) == sorted((scene.views[i].name, scene.views[j].name) for i, j in scene.pairs)
    assert len(log.read_text().split()) == 20  # each image is read once, though in several shards
    by_name = {}
    for shard in shards:
        for i, name in enumerate(shard.names):
            content = shard.keypoints[shard.offsets[i] : shard.offsets[i + 1]].tobytes()
            assert by_name.setdefault(name, content) == content


def test_images_without_a_pair_are_left_out(tmp_path: Path) -> None:
    def load(ref: SceneRef) -> FakeScene:
        scene = FakeSource().load(ref)
        return replace(scene, pairs=np.array([[1, 4]], np.int32), overlap=np.array([0.5], np.float32))

    record = SceneExporter(tmp_path, export_options(), FakeExtractor(), nothing).export(REF, load)
    shard = read_shard(tmp_path / record.shards[0].file)
    assert shard.names == ("01.jpg", "04.jpg") and shard.pairs.tolist() == [[0, 1]]
    assert record.num_images == 2


def test_interrupted_scene_continues_with_the_next_shard(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    source = FakeSource(num_views=20, reach=3, log=tmp_path / "log")
    options = export_options(images_per_shard=7)
    expected = SceneExporter(whole, options, FakeExtractor(), nothing).export(REF, source.load)
    (tmp_path / "log").unlink()

    class Killed(Exception):
        pass

    def stop(ref: SceneRef, done: int, total: int) -> None:
        if done > 12:
            raise Killed

    with pytest.raises(Killed):
        SceneExporter(part, options, FakeExtractor(), stop).export(REF, source.load)
    read_before = len((tmp_path / "log").read_text().split())
    told: list[tuple[int, int]] = []
    exporter = SceneExporter(part, options, FakeExtractor(), lambda ref, done, total: told.append((done, total)))
    record = exporter.export(REF, source.load)
    assert record == expected
    assert len((tmp_path / "log").read_text().split()) - read_before < 20
    assert 0 < told[0][0] < told[-1][0] == told[-1][1] == 20
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    (tmp_path / "log").unlink()
    assert exporter.export(REF, source.load) == expected
    assert not (tmp_path / "log").exists()
    (part / expected.shards[0].file).unlink()
    assert exporter.export(REF, source.load) == expected
    assert (part / expected.shards[0].file).is_file()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (fixed_features([[1, 1]], descriptors=np.zeros((1, 3), np.float16)), r"descriptors are \[1, 3\]"),
        (fixed_features([[1, 1], [2, 2]], keypoint_scores=np.array([0, 1], np.float32)), "not sorted"),
        (fixed_features([[np.nan, 1]]), "not finite"),
    ],
)
def test_extractor_that_breaks_its_contract(tmp_path: Path, features: Features, message: str) -> None:
    with pytest.raises(ShardError, match=rf"image 00\.jpg: .*{message}"):
        SceneExporter(tmp_path, export_options(), lambda image: features, nothing).export(REF, FakeSource().load)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": np.zeros(3, np.float32)}, "9 pairs, but overlap of 3"),
        ({"pairs": np.full((9, 2), 6, np.int32)}, "index images up to 6, but there are 6"),
        ({"views": [FakeSource().load(REF).views[0]] * 6}, r"repeated: 00\.jpg"),
        (
            {"views": [replace(v, image_size=(48, 64)) for v in FakeSource().load(REF).views]},
            r"expected uint8 \[64, 48",
        ),
    ],
)
def test_scene_that_breaks_its_contract(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        SceneExporter(tmp_path, export_options(), FakeExtractor(), nothing).export(
            REF, lambda ref: replace(FakeSource().load(ref), **change)
        )


def test_file_stems_are_safe_and_differ() -> None:
    names = ["one", "a/b", "a-b", "a b", "../x", ".hidden", "ä"]
    stems = [file_stem(name) for name in names]
    assert stems[0] == "one" and len(set(stems)) == len(names)
    assert all(stem.isascii() and "/" not in stem and not stem.startswith(".") for stem in stems)
