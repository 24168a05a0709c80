"""The same random pairs in four forms in one bucket: raylg's shards, tar files, MDS shards, one object per image."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

DIM = 128
PAIRS_PER_SHARD = 32
WIDTH, HEIGHT = 640, 480


def image_features(index: int, num_keypoints: int) -> dict[str, np.ndarray]:
    """Features of image `index`, as an extractor gives them."""
    rng = np.random.default_rng(index)
    descriptors = rng.standard_normal((num_keypoints, DIM), dtype=np.float32)
    return {
        "keypoints": rng.random((num_keypoints, 2), dtype=np.float32) * np.float32([WIDTH, HEIGHT]),
        "keypoint_scores": -np.sort(-rng.random(num_keypoints, dtype=np.float32)),
        "descriptors": (descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float16),
        "depth_keypoints": rng.random(num_keypoints, dtype=np.float32) + 1,
        "camera": np.array([500.0, 500.0, WIDTH / 2, HEIGHT / 2]),
        "T_w2c": np.eye(4),
    }


def upload(bucket: str, num_pairs: int, num_keypoints: int) -> int:
    """Write all four forms; returns the bytes of raylg's shards."""
    import s3fs
    import webdataset
    from streaming import MDSWriter

    from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, SplitCounts, write_manifest
    from raylg.data.shard import entry_of, shard_bytes
    from raylg.data.storage import Storage

    files = s3fs.S3FileSystem()
    storage = Storage(f"s3://{bucket}/raylg")
    entries = []
    scratch = Path(tempfile.mkdtemp(prefix="raylg-samples-"))
    columns = {f"{name}{side}": mds_type(array) for side in (0, 1) for name, array in image_features(0, 4).items()}
    with MDSWriter(out=str(scratch / "mds"), columns=columns, size_limit=2**24, hashes=["sha256"]) as mds:
        for k, first in enumerate(range(0, num_pairs, PAIRS_PER_SHARD)):
            pairs = range(first, min(first + PAIRS_PER_SHARD, num_pairs))
            images = [image_features(index, num_keypoints) for pair in pairs for index in (2 * pair, 2 * pair + 1)]
            name = f"shard-{k:05d}.h5"
            shard = pack(images, k)
            data = shard_bytes(shard)
            storage.write(name, data)
            entries.append(entry_of(name, shard, data))
            tar = io.BytesIO()
            with webdataset.TarWriter(tar) as writer:
                for offset, pair in enumerate(pairs):
                    sides = images[2 * offset : 2 * offset + 2]
                    record = {f"{key}{side}": array for side in (0, 1) for key, array in sides[side].items()}
                    mds.write(record)
                    writer.write({"__key__": f"{pair:06d}", **{f"{key}.npy": array for key, array in record.items()}})
            assert tarfile.is_tarfile(io.BytesIO(tar.getvalue()))
            files.pipe_file(f"{bucket}/tar/{k:05d}.tar", tar.getvalue())
            for offset, image in enumerate(images):
                buffer = io.BytesIO()
                np.savez(buffer, **image)
                files.pipe_file(f"{bucket}/objects/{2 * first + offset:06d}.npz", buffer.getvalue())
    for path in (scratch / "mds").iterdir():
        files.put_file(str(path), f"{bucket}/mds/{path.name}")
    shutil.rmtree(scratch)
    made = CreatedBy(version="0", git_sha=None, command="benchmark", config={}, fingerprint="benchmark")
    extractor = ExtractorInfo(
        name="sift", weights_sha256=None, settings={"max_num_keypoints": num_keypoints}, descriptor_dim=DIM
    )
    counts = {"train": SplitCounts(num_images=2 * num_pairs, num_pairs=num_pairs)}
    write_manifest(
        storage,
        Manifest(name="benchmark", created_by=made, extractor=extractor, splits=counts, shards=tuple(entries)),
    )
    os.environ["RAYLG_BENCHMARK_PAIRS"] = str(num_pairs)
    os.environ["RAYLG_BENCHMARK_KEYPOINTS"] = str(num_keypoints)
    return sum(entry.bytes for entry in entries)


def mds_type(array: np.ndarray) -> str:
    """Column type of an array whose shape differs between samples."""
    return f"ndarray:{array.dtype.name}"


def pack(images: list[dict[str, np.ndarray]], number: int):
    """Images and the pairs (0, 1), (2, 3), ... as one of raylg's shards."""
    from raylg.data.shard import Shard

    counts = [len(image["keypoints"]) for image in images]
    pairs = np.arange(len(images), dtype=np.int32).reshape(-1, 2)
    joined = {
        name: np.concatenate([image[name] for image in images])
        for name in ("keypoints", "keypoint_scores", "descriptors", "depth_keypoints")
    }
    return Shard(
        **joined,
        scales=None,
        oris=None,
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        camera=np.stack([image["camera"] for image in images]),
        T_w2c=np.stack([image["T_w2c"] for image in images]),
        image_size=np.tile(np.int32([WIDTH, HEIGHT]), (len(images), 1)),
        names=tuple(f"{i:04d}.jpg" for i in range(len(images))),
        thumbnails=(b"",) * len(images),
        pairs=pairs,
        overlap=np.full(len(pairs), 0.5, dtype=np.float32),
        scene=f"scene-{number:05d}",
        split="train",
    )
