"""A large data set is read with the memory of a small one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, SplitCounts, write_manifest
from raylg.data.shard import Shard
from raylg.data.storage import Storage
from tests.shards import write_shard

ROOT = Path(__file__).resolve().parents[2]
IMAGES_PER_SHARD, KEYPOINTS, DIM = 64, 256, 128
PAIRS = np.array([[i, (i + d) % 64] for i in range(IMAGES_PER_SHARD) for d in (1, 2)], dtype=np.int32)
FEW, MANY = 16, 157
"""Shards of 1,024 and of 10,048 images."""

EPOCH = """
import itertools, json, sys
from contextlib import closing
from pathlib import Path
import torch
from raylg.data.config import DataConfig
from raylg.data.dataset import PairDataset
from raylg.data.stream import stream_batches
from tests.unit.data.buckets import open_bucket, open_folder

folder, kind, cache = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
config = DataConfig(batch_size=32, open_shards=4, prefetch_batches=2)
torch.set_num_threads(1)

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))

reader = open_folder(folder) if kind == "folder" else open_bucket(folder, cache if kind == "cached bucket" else None)
dataset = PairDataset(reader, "train", 256, config.open_shards)
names = set()
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak VmHWM starts anew
with closing(stream_batches(dataset, config, 0, 0, 1, start_pairs=0)) as batches:
    for batch in itertools.islice(batches, dataset.num_pairs // config.batch_size):
        names.update(batch.names)
print(json.dumps({"num_pairs": len(names), "grown_mb": resident("VmHWM") - before}))
"""

SHARD_MB = IMAGES_PER_SHARD * KEYPOINTS * (2 * DIM + 4 * 4) / 1e6
BATCH_MB = 32 * 2 * KEYPOINTS * (4 * DIM + 4 * 3) / 1e6
BATCHES_MB = 4 * BATCH_MB
"""Two ahead, one being made, one with the consumer."""
OPEN_MB = 6 * SHARD_MB
"""4 open shards and the spare room of `PairDataset`."""
BUFFER_MB = {
    "folder": BATCHES_MB + OPEN_MB,
    # By each of 4 + 1 threads a download, or bytes from the cache that are being decoded.
    "cached bucket": BATCHES_MB + OPEN_MB + 5 * SHARD_MB,
    # 4 shards fetched ahead; by each thread a download that is being decoded.
    "bucket": BATCHES_MB + OPEN_MB + 4 * SHARD_MB + 5 * 2 * SHARD_MB,
}
"""What the options allow."""
CONSTANT_MB = 40
"""Names, code that is loaded late, and what the allocator does not give back."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """Data sets by number of shards; deleted at once, since the larger has 0.7 GB."""
    root = tmp_path_factory.mktemp("noise")
    made = {count: root / str(count) for count in (FEW, MANY)}
    for count, folder in made.items():
        write_data_set(folder, count)
    yield made
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc of Linux")
@pytest.mark.parametrize("kind", BUFFER_MB)
def test_ten_thousand_images_take_the_memory_of_a_thousand(kind: str, folders: dict[int, Path], tmp_path: Path) -> None:
    """Resident memory (not page cache) that an epoch in a fresh process adds: within the buffers, whatever the size."""
    grown = {}
    for count, folder in folders.items():
        command = [sys.executable, "-c", EPOCH, str(folder), kind, str(tmp_path)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["num_pairs"] == count * len(PAIRS)
        grown[count] = report["grown_mb"]
        shutil.rmtree(tmp_path, ignore_errors=True)
    assert BATCH_MB + 4 * SHARD_MB < grown[FEW] < BUFFER_MB[kind] + CONSTANT_MB
    assert grown[MANY] < BUFFER_MB[kind] + CONSTANT_MB
    assert grown[MANY] - grown[FEW] < 60  # the data grew by 630 MB


def write_data_set(folder: Path, num_shards: int) -> Manifest:
    """Shards of noise, 64 images and 128 pairs each."""
    folder.mkdir()
    rng, count = np.random.default_rng(0), IMAGES_PER_SHARD * KEYPOINTS
    ones = np.ones(count, dtype=np.float32)
    shard = Shard(
        keypoints=rng.uniform(0, 640, (count, 2)).astype(np.float32),
        keypoint_scores=ones,
        descriptors=rng.normal(size=(count, DIM)).astype(np.float16),
        depth_keypoints=ones,
        scales=None,
        oris=None,
        offsets=np.arange(IMAGES_PER_SHARD + 1, dtype=np.int64) * KEYPOINTS,
        camera=np.tile([500.0, 500, 320, 240], (IMAGES_PER_SHARD, 1)),
        T_w2c=np.tile(np.eye(4), (IMAGES_PER_SHARD, 1, 1)),
        image_size=np.tile(np.array([640, 480], dtype=np.int32), (IMAGES_PER_SHARD, 1)),
        names=tuple(f"{i}.jpg" for i in range(IMAGES_PER_SHARD)),
        thumbnails=(b"",) * IMAGES_PER_SHARD,
        pairs=PAIRS,
        overlap=np.zeros(len(PAIRS), dtype=np.float32),
        scene="",
        split="train",
    )
    entries = []
    for i in range(num_shards):  # different content, so that a cache keeps each
        different = replace(shard, scene=f"scene-{i:03d}", overlap=np.full(len(PAIRS), i / num_shards, np.float32))
        entries.append(write_shard(folder / f"shard-{i:03d}.h5", different))
    manifest = Manifest(
        name="noise",
        created_by=CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="f"),
        extractor=ExtractorInfo(name="noise", weights_sha256=None, settings={}, descriptor_dim=DIM),
        splits={"train": SplitCounts(num_images=IMAGES_PER_SHARD * num_shards, num_pairs=len(PAIRS) * num_shards)},
        shards=tuple(entries),
    )
    write_manifest(Storage(folder), manifest)
    return manifest
