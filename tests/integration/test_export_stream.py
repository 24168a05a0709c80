"""Photographs to batches: what comes out of the stream obeys the geometry that went in."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from raylg.batch import PairBatch
from raylg.data.colmap import ColmapSource
from raylg.data.config import DataConfig, SplitConfig
from raylg.data.dataset import PairDataset
from raylg.data.export import ExportOptions, export_features
from raylg.data.manifest import CreatedBy, ExtractorInfo
from raylg.data.reader import ShardReader
from raylg.data.scene import Split
from raylg.data.storage import Storage
from raylg.data.stream import stream_batches
from raylg.geometry.depth import warp
from raylg.models.config import ExtractorConfig
from raylg.models.extractor import make_extractor
from raylg.models.identity import extractor_identity


@pytest.fixture(scope="module", params=[None, 400], ids=["full", "resized"])
def shards(request: pytest.FixtureRequest, photo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SIFT features of two scenes, one per split; the images are 640 px or 400 px long."""
    extractor = ExtractorConfig(max_num_keypoints=512, resize=request.param)
    data = DataConfig(
        source="colmap",
        path=(str(photo_dir / "fountain11"), str(photo_dir / "statue9")),
        split=SplitConfig(val=("statue9",)),
    )
    out = tmp_path_factory.mktemp("shards")
    options = ExportOptions(
        name="photographs",
        extractor=ExtractorInfo(**extractor_identity(extractor)),
        created_by=CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="x"),
        images_per_shard=6,
        resize=extractor.resize,
        num_processes=1,
    )
    export_features(ColmapSource(data), partial(make_extractor, extractor), Storage(out), options)
    return out


def reprojection_errors(batch: PairBatch) -> torch.Tensor:
    """Distance in pixels between mutual nearest neighbours, one moved into the other's image by its depth."""
    view0, view1 = batch.view0, batch.view1
    warped, visible = warp(
        view0.keypoints, view0.depth_keypoints, view0.camera, view1.camera, batch.T_0to1, view1.image_size
    )
    similarity = view0.descriptors @ view1.descriptors.transpose(1, 2)
    similarity = similarity.masked_fill(~(view0.mask[:, :, None] & view1.mask[:, None, :]), -1)
    forth, back = similarity.argmax(2), similarity.argmax(1)
    mutual = back.gather(1, forth) == torch.arange(forth.shape[1])
    partner = view1.keypoints.gather(1, forth[..., None].expand(-1, -1, 2))
    return (warped - partner).norm(dim=-1)[mutual & visible & view0.mask]


@pytest.mark.parametrize("split", ["train", "val"])
def test_matches_agree_with_depth_and_pose(shards: Path, split: Split) -> None:
    config = DataConfig(batch_size=16)
    dataset = PairDataset(ShardReader.open(shards, config), split, num_keypoints=512, open_shards=2)
    with closing(stream_batches(dataset, config, 0, 0, 1, start_pairs=0)) as batches:
        errors = torch.cat([reprojection_errors(batch) for batch in islice(batches, 2)])
    close = errors[errors < 5]
    assert len(errors) > 500
    assert len(close) > 0.2 * len(errors)  # by chance far less than one in a hundred
    assert close.median() < 1.0


def test_every_pair_of_the_split_comes_once_per_epoch(shards: Path) -> None:
    config = DataConfig(batch_size=4)
    dataset = PairDataset(ShardReader.open(shards, config), "train", num_keypoints=64, open_shards=2)
    with closing(stream_batches(dataset, config, 7, 0, 1, start_pairs=0)) as batches:
        names = [name for batch in islice(batches, -(-dataset.num_pairs // 4)) for name in batch.names]
    assert len(set(names[: dataset.num_pairs])) == dataset.num_pairs
    assert {scene for scene, _, _ in names} == {"fountain11"}
