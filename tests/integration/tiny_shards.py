"""Feature shards of points in general position: small, and matched by their descriptors."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, SplitCounts, write_manifest
from raylg.data.scene import Split
from raylg.data.shard import Shard
from raylg.data.storage import Storage
from tests.shards import write_shard

NUM_POINTS = 48
WIDTH, HEIGHT, FOCAL = 320, 240, 300.0


def jpeg() -> bytes:
    return cv2.imencode(".jpg", np.full((HEIGHT // 2, WIDTH // 2), 90, np.uint8))[1].tobytes()


def tiny_shard(scene: str, split: Split, num_images: int, seed: int, original: int | None = None) -> Shard:
    """Views of one cloud of points, each seeing a random part of it at its exact depth.

    With `original` the images were that many times larger before they were resized.
    """
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-1, -0.8, 3), (1, 0.8, 5), (64, 3))
    point_descriptors = rng.normal(size=(64, 128))
    keypoints, descriptors, depth, T_w2c = [], [], [], []
    for _ in range(num_images):
        T = np.eye(4)
        angle = rng.uniform(-0.1, 0.1)
        T[:3, :3] = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
        T[:3, 3] = rng.uniform(-0.3, 0.3, 3)
        seen = rng.permutation(64)[:NUM_POINTS]
        points = cloud[seen] @ T[:3, :3].T + T[:3, 3]
        keypoints.append(points[:, :2] / points[:, 2:] * FOCAL + (WIDTH / 2, HEIGHT / 2))
        noisy = point_descriptors[seen] + 0.3 * rng.normal(size=(NUM_POINTS, 128))
        descriptors.append(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
        depth.append(points[:, 2])
        T_w2c.append(T)
    count = num_images * NUM_POINTS
    pairs = np.array([(i, j) for i in range(num_images) for j in range(i + 1, num_images)], np.int32)
    return Shard(
        keypoints=np.concatenate(keypoints).astype(np.float32),
        keypoint_scores=np.ones(count, np.float32),
        descriptors=np.concatenate(descriptors).astype(np.float16),
        depth_keypoints=np.concatenate(depth).astype(np.float32),
        scales=np.full(count, 2, np.float32),
        oris=np.zeros(count, np.float32),
        offsets=np.arange(num_images + 1, dtype=np.int64) * NUM_POINTS,
        camera=np.tile([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2], (num_images, 1)).astype(np.float64),
        T_w2c=np.stack(T_w2c),
        image_size=np.tile([WIDTH, HEIGHT], (num_images, 1)).astype(np.int32),
        original_size=None
        if original is None
        else np.tile([WIDTH, HEIGHT], (num_images, 1)).astype(np.int32) * original,
        names=tuple(f"{i}.png" for i in range(num_images)),
        thumbnails=(jpeg(),) * num_images,
        pairs=pairs,
        overlap=np.full(len(pairs), 0.5, np.float32),
        scene=scene,
        split=split,
    )


def write_features(
    folder: Path, shards: dict[str, Shard], source: dict[str, str] | None = None, **settings: object
) -> Path:
    """A folder of shards under their names, made of `source` by SIFT with these settings."""
    folder.mkdir()
    entries = tuple(write_shard(folder / f"{name}.h5", shard) for name, shard in shards.items())
    counts = {entry.split: SplitCounts(num_images=entry.num_images, num_pairs=entry.num_pairs) for entry in entries}
    made = CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="", source=source or {})
    all_settings = {"max_num_keypoints": NUM_POINTS, "resize": None, "detection_threshold": None, **settings}
    extractor = ExtractorInfo(name="sift", weights_sha256=None, settings=all_settings, descriptor_dim=128)
    manifest = Manifest(name="tiny", created_by=made, extractor=extractor, splits=counts, shards=entries)
    write_manifest(Storage(folder), manifest)
    return folder


def write_benchmark(folder: Path, shards: dict[str, Shard]) -> Path:
    """Shards that pass for MegaDepth-1500 at a long side of 320 pixels."""
    return write_features(folder, shards, {"benchmark": "megadepth1500"}, resize=320, enlarge=True)
