"""Photographs to labelled batches of homography pairs: what comes out of the stream is exact and repeats itself."""

from __future__ import annotations

import resource
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from raylg.batch import PairBatch
from raylg.data.config import DataConfig, ImagesConfig
from raylg.data.homography_pairs import HomographyPairs
from raylg.data.image_export import export_images
from raylg.data.manifest import CreatedBy
from raylg.data.reader import ShardReader
from raylg.data.storage import Storage
from raylg.data.stream import stream_batches
from raylg.geometry.homography import warp_points
from raylg.models.config import ExtractorConfig
from raylg.models.extractor import make_batch_extractor
from raylg.supervision.config import GroundTruthConfig
from raylg.supervision.ground_truth import ground_truth_from_homography
from tests.unit.data.registration import SHIFT, displacements, half_pixel_mistake

SCENES = ("fountain11", "herzjesu25", "lund12", "statue9")
SMALL = ImagesConfig(width=160, height=120, val_fraction=0.001)
KEYPOINTS = 128


@pytest.fixture(scope="module")
def shards(photo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs of four scenes: three shards of training, one photograph of validation."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    for k in range(9):
        scene = SCENES[k % len(SCENES)]
        path = sorted((photo_dir / scene / "images").glob("*.jpg"))[k]
        shutil.copy(path, photos / f"{scene}-{k}.jpg")
    created_by = CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="x")
    manifest = export_images(config(SMALL, path=(str(photos),)), Storage(out), created_by)
    assert manifest.splits["train"].num_pairs == 8 and len(manifest.shards) == 4
    return out


def config(images: ImagesConfig, path: tuple[str, ...] = ("x",), batch_size: int = 4) -> DataConfig:
    return DataConfig(
        source="images", path=path, images=images, images_per_shard=3, open_shards=2, batch_size=batch_size
    )


def open_pairs(shards: Path, data: DataConfig, num_keypoints: int = KEYPOINTS) -> HomographyPairs:
    extractor = make_batch_extractor(ExtractorConfig(max_num_keypoints=num_keypoints))
    return HomographyPairs(ShardReader.open(shards, data), "train", num_keypoints, data, extractor=extractor, seed=7)


def stream(shards: Path, data: DataConfig, count: int, rank: int = 0, world_size: int = 1) -> list[PairBatch]:
    batches = stream_batches(open_pairs(shards, data), data, 7, rank, world_size, start_pairs=0)
    with closing(batches):
        return list(islice(batches, count))


def pair_rows(batches: list[PairBatch]) -> list[tuple[str, bytes, bytes]]:
    """Name, homography and keypoints of each pair, to compare."""
    rows = []
    for batch in batches:
        assert batch.H_0to1 is not None
        for k, (_, name, _) in enumerate(batch.names):
            keypoints = batch.view0.keypoints[k][batch.view0.mask[k]]
            rows.append((name, batch.H_0to1[k].numpy().tobytes(), keypoints.numpy().tobytes()))
    return rows


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_sift_finds_the_same_points_in_both_views(shards: Path, light: float) -> None:
    """Labels of RootSIFT at the full size, with 512 keypoints, without and with all changes of light."""
    data = config(ImagesConfig(val_fraction=0.001, photometric=light))
    batch = open_pairs(shards, data, 512).batch(
        np.array([(shard, 0, epoch) for epoch in (0, 1) for shard in (0, 1, 2)])
    )
    assert batch.H_0to1 is not None
    labels = ground_truth_from_homography(batch.view0, batch.view1, batch.H_0to1, GroundTruthConfig())
    positive = (labels.gt_matches0 >= 0) & batch.view0.mask
    share = positive.sum() / batch.view0.mask.sum()
    assert share > (0.15 if light else 0.35)
    partner = batch.view1.keypoints.gather(1, labels.gt_matches0.clamp(min=0)[..., None].expand(-1, -1, 2))
    residual = (warp_points(batch.view0.keypoints, batch.H_0to1) - partner)[positive]
    assert residual.norm(dim=-1).median() < 1.2
    nearest = (batch.view0.descriptors @ batch.view1.descriptors.transpose(1, 2)).argmax(dim=2)
    assert (nearest == labels.gt_matches0)[positive].float().mean() > 0.5


def test_views_are_where_their_homography_says(shards: Path) -> None:
    """The bias of the reprojection stays below 0.01 px; the same measurement notices a shift by half a pixel."""
    dataset = open_pairs(shards, config(replace(ImagesConfig(val_fraction=0.001), photometric=0.0)))
    entries = np.array([(shard, pair, epoch) for epoch in (0, 1) for shard in (0, 1) for pair in (0, 1)])
    found: dict[str, list[np.ndarray]] = {"exact": [], "wrong": [], "exact mistake": [], "wrong mistake": []}
    for pair in dataset.render(entries):
        grey0, grey1 = (view.double().mean(dim=2).numpy() for view in pair.views)
        exact = pair.geometry.H_0to1.astype(np.float32).astype(np.float64)
        for kind, H in (("exact", exact), ("wrong", np.linalg.inv(SHIFT) @ exact @ SHIFT)):
            patches = displacements(grey0, grey1, H)
            found[kind].append(patches.shift)
            found[f"{kind} mistake"].append(half_pixel_mistake(H, patches.at))
    exact, wrong, *mistakes = (np.concatenate(parts) for parts in found.values())
    share = [(shift * e).sum() / (e**2).sum() for shift, e in zip((exact, wrong), mistakes, strict=True)]
    assert len(exact) > 500
    assert np.abs(exact.mean(axis=0)).max() < 0.01 and abs(share[0]) < 0.02
    assert np.abs(wrong.mean(axis=0)).max() > 0.02 and share[1] > 0.8


def test_runs_repeat_and_epochs_differ(shards: Path) -> None:
    data = config(SMALL)
    rows, again = pair_rows(stream(shards, data, 6)), pair_rows(stream(shards, data, 6))
    assert rows == again
    epochs = [rows[:8], rows[8:16], rows[16:]]
    assert all(len({name for name, *_ in epoch}) == 8 for epoch in epochs)  # each photograph once per epoch
    assert len({H for _, H, _ in rows}) == len({keypoints for *_, keypoints in rows}) == 24
    dataset = open_pairs(shards, data)
    with closing(stream_batches(dataset, data, 7, 0, 1, start_pairs=12)) as resumed:
        assert pair_rows(list(islice(resumed, 3))) == rows[12:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_ranks_changes_nothing(shards: Path, world_size: int) -> None:
    data = config(SMALL)
    alone = sorted(pair_rows(stream(shards, data, 4)))
    ranks = [pair_rows(stream(shards, data, 4, rank, world_size)) for rank in range(world_size)]
    assert sorted(row for rank in ranks for row in rank) == alone


def test_memory_does_not_grow(shards: Path) -> None:
    """120 pairs at the full size: what they show takes 220 MB, what is kept of it nothing."""
    dataset = open_pairs(shards, config(ImagesConfig(val_fraction=0.001)))

    def show(epochs: range) -> None:
        entries = [(shard, pair, epoch) for epoch in epochs for shard in (0, 1) for pair in (0, 1)]
        for pair in dataset.render(np.array(entries)):
            assert pair.views[0].dtype == torch.uint8

    show(range(5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(5, 35, 5):
        show(range(start, start + 5))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60


def test_photographs_and_shards_in_a_bucket(photo_dir: Path, tmp_path: Path, bucket: str, shards: Path) -> None:
    """The same shards as from a folder, and the same pairs, with and without a cache on this machine."""
    photographs = Storage(f"s3://{bucket}/photos")
    for k in range(9):
        scene = SCENES[k % len(SCENES)]
        path = sorted((photo_dir / scene / "images").glob("*.jpg"))[k]
        photographs.write(f"{scene}-{k}.jpg", path.read_bytes())
    out = Storage(f"s3://{bucket}/shards")
    created_by = CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="x")
    data = config(replace(SMALL, photometric=0.5))
    manifest = export_images(replace(data, path=(photographs.url,)), out, created_by)
    local = open_pairs(shards, data)
    stems = [sorted(entry.file[: -len("-12345678.h5")] for entry in each.shards) for each in (manifest, local.manifest)]
    assert stems[0] == stems[1]  # the names end in their content, which names the folder
    expected = pair_rows([local.batch(np.array([(0, 0, 0), (2, 1, 1)]))])
    for cache_gb in (1.0, 0.0):
        remote = replace(data, cache_dir=str(tmp_path), storage=replace(data.storage, cache_gb=cache_gb))
        extractor = make_batch_extractor(ExtractorConfig(max_num_keypoints=KEYPOINTS))
        reader = ShardReader.open(out.url, remote)
        dataset = HomographyPairs(reader, "train", KEYPOINTS, remote, extractor=extractor, seed=7)
        for shard in range(3):
            dataset.fetch(shard)
        assert pair_rows([dataset.batch(np.array([(0, 0, 0), (2, 1, 1)]))]) == expected
