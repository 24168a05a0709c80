"""A data set of a few small shards, and a comparison of batches bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from raylg.batch import PairBatch
from raylg.data.config import DataConfig, StorageConfig
from raylg.data.dataset import PairDataset
from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, ShardEntry, SplitCounts, write_manifest
from raylg.data.reader import ShardReader
from raylg.data.resize import encode_thumbnail
from raylg.data.shard import Shard
from raylg.data.storage import Storage
from raylg.data.stream import stream_batches
from tests.shards import write_shard

DIM, KEYPOINTS, IMAGES = 8, 20, 5
PAIRS = np.array([[i, j] for i in range(IMAGES) for j in range(i + 1, IMAGES)], dtype=np.int32)
BATCH_SIZE = 7


def write_data_set(folder: Path, num_shards: int = 5) -> Manifest:
    """Shards of noise, 10 pairs each, for training."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [write_shard(folder / f"shard-{i}.h5", _shard(i)) for i in range(num_shards)]
    manifest = Manifest(
        name="small",
        created_by=CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="f"),
        extractor=ExtractorInfo(
            name="fake", weights_sha256=None, settings={"max_num_keypoints": KEYPOINTS}, descriptor_dim=DIM
        ),
        splits={"train": SplitCounts(num_images=IMAGES * num_shards, num_pairs=len(PAIRS) * num_shards)},
        shards=tuple(entries),
    )
    write_manifest(Storage(folder), manifest)
    return manifest


def data_config(cache_dir: Path, storage: StorageConfig | None = None) -> DataConfig:
    return DataConfig(
        source="shards",
        path=("unused",),
        cache_dir=str(cache_dir),
        storage=storage or StorageConfig(),
        batch_size=BATCH_SIZE,
        num_keypoints=KEYPOINTS,
        open_shards=2,
    )


def epoch(location: str | Path, config: DataConfig) -> Iterator[PairBatch]:
    """The batches of a little more than one epoch, through all layers."""
    dataset = PairDataset(ShardReader.open(location, config), "train", KEYPOINTS, config.open_shards)
    with closing(stream_batches(dataset, config, 0, 0, 1, start_pairs=0)) as batches:
        yield from itertools.islice(batches, -(-dataset.num_pairs // BATCH_SIZE))


def damaged(entry: ShardEntry, data: bytes) -> bytes:
    """Of the same length, with one bit changed in the middle."""
    assert len(data) == entry.bytes
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def assert_identical(batches: list[PairBatch], expected: list[PairBatch]) -> None:
    """All tensors bit for bit, all names."""
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.names == other.names
        for path, ours, theirs in _tensors(batch, other, "batch"):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), path
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), path


def _tensors(a: object, b: object, path: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        yield path, a, b
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            yield from _tensors(getattr(a, field.name), getattr(b, field.name), f"{path}.{field.name}")


def _shard(seed: int) -> Shard:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, KEYPOINTS + 1, IMAGES)
    total = int(counts.sum())
    depth = rng.uniform(1, 9, total).astype(np.float32)
    depth[::3] = np.nan
    return Shard(
        keypoints=rng.uniform(0, 48, (total, 2)).astype(np.float32),
        keypoint_scores=rng.uniform(size=total).astype(np.float32),
        descriptors=rng.normal(size=(total, DIM)).astype(np.float16),
        depth_keypoints=depth,
        scales=None,
        oris=None,
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        camera=np.tile([60.0, 61.0, 31.0, 25.0], (IMAGES, 1)),
        T_w2c=np.tile(np.eye(4), (IMAGES, 1, 1)) + np.pad(rng.normal(size=(IMAGES, 3, 1)), ((0, 0), (0, 1), (3, 0))),
        image_size=np.tile(np.array([64, 48], dtype=np.int32), (IMAGES, 1)),
        names=tuple(f"{i}.jpg" for i in range(IMAGES)),
        thumbnails=tuple(encode_thumbnail(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(IMAGES)),
        pairs=PAIRS,
        overlap=rng.uniform(0.1, 0.7, len(PAIRS)).astype(np.float32),
        scene=f"scene-{seed}",
        split="train",
    )
