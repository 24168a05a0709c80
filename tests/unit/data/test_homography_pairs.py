"""Homography pairs: what decides them, what a batch holds, and how much stays in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from raylg.batch import Features, PairBatch
from raylg.data import homography_pairs, stopping
from raylg.data.config import DataConfig, ImagesConfig
from raylg.data.homography_pairs import HomographyPairs
from raylg.data.image_export import export_images
from raylg.data.manifest import CreatedBy, ExtractorInfo, ShardEntry
from raylg.data.reader import ShardReader
from raylg.data.scene import Split
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError

DIM = 4
IMAGES = ImagesConfig(width=96, height=64, val_fraction=0.3)


@dataclass
class FakeExtractor:
    """The brightest pixels; as many as the mean of the view modulo 8, so that views differ in number."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    identity: Mapping[str, Any] = field(
        default_factory=lambda: {
            "name": "fake",
            "settings": {"max_num_keypoints": 100, "resize": None},
            "descriptor_dim": DIM,
        }
    )
    with_scales: bool = False
    empty: bool = False

    def __call__(self, images: Tensor) -> list[Features]:
        assert images.dtype == torch.uint8 and images.shape[1:] == (64, 96, 3) and images.device == self.device
        return [self._one(image.numpy()) for image in images]

    def _one(self, image: np.ndarray) -> Features:
        grey = image.astype(np.float32).sum(axis=2)
        count = 0 if self.empty else 3 + int(grey.sum()) % 8
        best = np.argsort(-grey, axis=None, kind="stable")[:count]
        keypoints = np.stack([best % 96, best // 96], -1).astype(np.float32) + 0.5
        numbers = np.arange(count, dtype=np.float32)
        return Features(
            keypoints=keypoints.reshape(-1, 2),
            keypoint_scores=numbers[::-1].copy(),
            descriptors=np.full((count, DIM), 0.5, np.float16),
            scales=numbers + 1 if self.with_scales else None,
            oris=numbers / 10 if self.with_scales else None,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 14 photographs, three each."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    for seed in range(14):
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        assert cv2.imwrite(str(photos / f"{seed}.jpg"), cv2.resize(pixels, (120 + seed, 90)))
    created_by = CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="x")
    export_images(config(path=(str(photos),)), Storage(out), created_by)
    return out


def config(images: ImagesConfig = IMAGES, **options: Any) -> DataConfig:
    return DataConfig(source="images", **({"path": ("x",), "images": images, "images_per_shard": 3} | options))


def pairs(
    folder: Path,
    split: Split = "train",
    *,
    seed: int = 0,
    num_keypoints: int = 100,
    data: DataConfig | None = None,
    extractor: FakeExtractor | None = None,
) -> HomographyPairs:
    data = data or config()
    reader = ShardReader.open(folder, data)
    return HomographyPairs(reader, split, num_keypoints, data, extractor=extractor or FakeExtractor(), seed=seed)


def index(*entries: tuple[int, ...]) -> np.ndarray:
    return np.array(entries, dtype=np.int64)


def assert_equal(a: PairBatch, b: PairBatch) -> None:
    assert a.names == b.names
    assert a.H_0to1 is not None and b.H_0to1 is not None
    assert torch.equal(a.H_0to1, b.H_0to1) and torch.equal(a.overlap, b.overlap)
    for one, other in ((a.view0, b.view0), (a.view1, b.view1)):
        assert torch.equal(one.keypoints, other.keypoints) and torch.equal(one.mask, other.mask)
        assert torch.equal(one.descriptors, other.descriptors)


def views(dataset: HomographyPairs, *entries: tuple[int, ...]) -> list[Tensor]:
    return [view for pair in dataset.render(index(*entries)) for view in pair.views]


def test_a_batch(folder: Path) -> None:
    dataset = pairs(folder, extractor=FakeExtractor(with_scales=True))
    entries = index((0, 0, 0), (1, 2, 5), (0, 1, 0))
    batch, rendered = dataset.batch(entries), list(dataset.render(entries))
    assert len(batch) == 3 and sum(dataset.shard_sizes) == dataset.num_pairs
    assert batch.names == tuple((pair.name[0], pair.name[1], pair.name[1]) for pair in rendered)
    assert len({name for _, name, _ in batch.names}) == 3
    assert batch.H_0to1 is not None and batch.H_0to1.dtype == torch.float32
    for row, pair in enumerate(rendered):
        np.testing.assert_allclose(batch.H_0to1[row], pair.geometry.H_0to1, rtol=1e-6)
        assert batch.overlap[row] == pytest.approx(pair.geometry.overlap)
        for view, image in zip((batch.view0, batch.view1), pair.views, strict=True):
            features = FakeExtractor(with_scales=True)._one(image.numpy())
            count = len(features)
            assert view.mask[row].sum() == count and view.mask[row, :count].all()
            np.testing.assert_array_equal(view.keypoints[row, :count], features.keypoints)
            assert view.scales is not None and view.oris is not None
            np.testing.assert_array_equal(view.scales[row, :count], features.scales)
            np.testing.assert_array_equal(view.oris[row, :count], features.oris)
            assert (view.keypoints[row, count:] == 0).all() and (view.descriptors[row, count:] == 0).all()
    for view in (batch.view0, batch.view1):
        assert view.image_size.tolist() == [[96, 64]] * 3
        assert view.camera.f.isnan().all() and view.camera.c.isnan().all() and view.camera.f.shape == (3, 2)
        assert view.depth_keypoints.isnan().all() and view.depth_keypoints.shape == view.mask.shape
        assert view.descriptors.dtype == torch.float32 and view.original_size is None
    assert batch.T_0to1.R.isnan().all() and batch.T_0to1.t.shape == (3, 3)
    assert len(batch[1:]) == 2 and len(batch.to("cpu")) == 3


def test_the_company_in_a_batch_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(shard, pair, epoch) for epoch in (0, 3) for shard in (0, 1, 2) for pair in (0, 1)]
    together = views(pairs(folder), *entries)
    backwards = views(pairs(folder, data=config(open_shards=1)), *entries[::-1])
    alone = [views(pairs(folder), entry) for entry in entries]
    for k in range(len(entries)):
        for side in (0, 1):
            assert torch.equal(together[2 * k + side], alone[k][side])
            assert torch.equal(together[2 * k + side], backwards[2 * (len(entries) - 1 - k) + side])
    whole = pairs(folder).batch(index(*entries))
    monkeypatch.setattr(homography_pairs, "PAIRS_AT_A_TIME", 5)
    assert_equal(whole, pairs(folder).batch(index(*entries)))


def test_epochs_and_seeds_differ_and_repeat(folder: Path) -> None:
    def first(seed: int, *entry: int, split: Split = "train") -> Tensor:
        return views(pairs(folder, split, seed=seed), entry)[0]

    assert torch.equal(first(0, 0, 0, 1), first(0, 0, 0, 1))
    different = [first(0, 0, 0, 0), first(0, 0, 0, 1), first(1, 0, 0, 0), first(0, 0, 1, 0), first(0, 1, 0, 0)]
    assert len({image.numpy().tobytes() for image in different}) == len(different)
    assert torch.equal(first(0, 0, 0), first(0, 0, 0, 0))


def test_validation_is_the_same_for_every_seed(folder: Path) -> None:
    entries = index((0, 0), (0, 1))
    assert_equal(pairs(folder, "val", seed=1).batch(entries), pairs(folder, "val", seed=2).batch(entries))


def test_light_does_not_change_the_geometry(folder: Path) -> None:
    dark = pairs(folder, data=config(replace(IMAGES, photometric=0.0)))
    geometries = [
        [pair.geometry.H_0to1 for pair in d.render(index((0, 0, 7), (0, 1, 7)))] for d in (dark, pairs(folder))
    ]
    np.testing.assert_array_equal(*geometries)


def test_the_strongest_keypoints_are_kept(folder: Path) -> None:
    many, few = pairs(folder).batch(index((0, 0), (0, 1))), pairs(folder, num_keypoints=2).batch(index((0, 0), (0, 1)))
    assert few.view0.mask.shape == (2, 2) and few.view0.mask.all()
    assert torch.equal(few.view0.keypoints, many.view0.keypoints[:, :2])


def test_views_without_keypoints(folder: Path) -> None:
    batch = pairs(folder, extractor=FakeExtractor(empty=True)).batch(index((0, 0), (0, 1)))
    for view in (batch.view0, batch.view1):
        assert view.keypoints.shape == (2, 0, 2) and view.descriptors.shape == (2, 0, DIM) and view.mask.shape == (2, 0)


@pytest.mark.parametrize("columns", [2, 3])
def test_no_pairs(folder: Path, columns: int) -> None:
    batch = pairs(folder).batch(np.zeros((0, columns), np.int64))
    assert len(batch) == 0 and batch.H_0to1 is not None and batch.H_0to1.shape == (0, 3, 3)
    assert batch.view0.descriptors.shape == (0, 0, DIM) and batch.view1.image_size.shape == (0, 2)
    empty = pairs(folder, "test")
    assert empty.num_pairs == 0 and empty.shard_sizes == ()


def test_thumbnails_show_the_views(folder: Path) -> None:
    dataset = pairs(folder)
    for pair, thumbnails in zip(dataset.render(index((0, 1))), dataset.thumbnails(index((0, 1))), strict=True):
        for view, thumbnail in zip(pair.views, thumbnails, strict=True):
            assert thumbnail.dtype == np.uint8
            np.testing.assert_array_equal(thumbnail, cv2.cvtColor(view.numpy(), cv2.COLOR_RGB2GRAY))
    large = pairs(folder, data=config(ImagesConfig(width=640, height=480, val_fraction=0.3)))
    assert [image.shape for image in large.thumbnails(index((0, 1)))[0]] == [(240, 320)] * 2


def test_what_changes_the_hash(folder: Path) -> None:
    identity = dict(FakeExtractor().identity)
    hashes = [
        pairs(folder).data_hash,
        pairs(folder, num_keypoints=50).data_hash,
        pairs(folder, data=config(replace(IMAGES, difficulty=0.6))).data_hash,
        pairs(folder, data=config(replace(IMAGES, photometric=0.5))).data_hash,
        pairs(folder, extractor=FakeExtractor(identity=identity | {"name": "other"})).data_hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert pairs(folder, "val", seed=5, data=config(open_shards=3)).data_hash == hashes[0]
    stored = replace(IMAGES, long_side=2048, val_fraction=0.1, test_fraction=0.1)  # play no part in drawing views
    assert pairs(folder, data=config(stored)).data_hash == hashes[0]


def test_few_shards_stay_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    content = ShardReader.content
    monkeypatch.setattr(ShardReader, "content", lambda self, entry: reads.append(entry.file) or content(self, entry))
    dataset = pairs(folder, data=config(open_shards=1))  # and one more
    for shard in (0, 1, 0, 1, 2, 1, 0):
        dataset.batch(index((shard, 0)))
    assert [dataset.entries.index(next(e for e in dataset.entries if e.file == file)) for file in reads] == [0, 1, 2, 0]
    dataset.fetch(1)  # a local folder is near already
    assert len(reads) == 4


def test_threads_that_decode_stop_with_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, stop = threading.Event(), threading.Event()

    def content(reader: ShardReader, entry: ShardEntry) -> np.ndarray:
        stalled.set()
        return stopping.result(Future[np.ndarray]())

    monkeypatch.setattr(ShardReader, "content", content)
    dataset = pairs(folder)
    with ThreadPoolExecutor(1, initializer=stopping.stop_when, initargs=(stop,)) as thread:
        batch = thread.submit(dataset.batch, index((0, 0), (1, 0)))
        assert stalled.wait(5)
        stop.set()
        with pytest.raises(stopping.Stopped):
            batch.result(2)


def test_a_manifest_that_lies_about_photographs(folder: Path) -> None:
    dataset = pairs(folder)
    dataset.entries[0] = replace(dataset.entries[0], num_images=2, num_pairs=2)
    with pytest.raises(ShardError, match="images 3, but the manifest says 2; pairs 3, but the manifest says 2"):
        dataset.batch(index((0, 0)))


def test_a_damaged_shard_is_told(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = pairs(tmp_path)
    path = tmp_path / dataset.entries[1].file
    path.write_bytes(path.read_bytes()[:-1])
    assert len(dataset.batch(index((0, 0)))) == 1
    with pytest.raises(ShardError, match=path.name):
        dataset.batch(index((0, 0), (1, 0)))


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    identity = dict(FakeExtractor().identity)
    with pytest.raises(ConfigError, match="num_keypoints = 101, but the extractor gives at most 100"):
        pairs(folder, num_keypoints=101)
    small = FakeExtractor(identity=identity | {"settings": {"max_num_keypoints": 100, "resize": 80}})
    with pytest.raises(ConfigError, match=r"model\.extractor\.resize = 80: views have 96 px"):
        pairs(folder, extractor=small)
    data = config()
    reader = ShardReader.open(folder, data)
    info = ExtractorInfo(name="sift", weights_sha256=None, settings={}, descriptor_dim=128)
    reader.manifest = replace(reader.manifest, content="features", extractor=info)
    with pytest.raises(ConfigError, match="holds features, not photographs"):
        HomographyPairs(reader, "train", 100, data, extractor=FakeExtractor(), seed=0)
