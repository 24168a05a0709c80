"""A feature shard: some images of one scene, each stored once, and the pairs among them, in one HDF5 file.

All arrays are flat and uncompressed, so that h5py alone reads them, at disk speed:

    keypoints [K, 2] f32, keypoint_scores [K] f32, descriptors [K, D] f16, depth_keypoints [K] f32 (NaN = unknown),
    scales [K] f32 and oris [K] f32 (only where the detector has them), offsets [I + 1] i64: the features of image i
    are rows offsets[i] to offsets[i + 1]; camera [I, 4] f64 (fx fy cx cy), T_w2c [I, 4, 4] f64,
    image_size [I, 2] i32 (width, height), original_size [I, 2] i32 (likewise, before resizing; absent in older shards),
    names [I] UTF-8, thumbnails [bytes] u8 and thumbnail_offsets [I + 1] i64
    (grey JPEG); pairs [P, 2] i32 (indices of images), overlap [P] f32. Attributes: format, scene, split.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raylg.data.hdf5 import Source, opened
from raylg.data.manifest import FORMAT, ShardEntry
from raylg.data.scene import Split
from raylg.errors import ShardError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The content of one shard; K features and I images, P pairs."""

    keypoints: np.ndarray
    """float32 [K, 2], pixels at extraction resolution, strongest first within an image."""
    keypoint_scores: np.ndarray
    """float32 [K]."""
    descriptors: np.ndarray
    """float16 [K, D]."""
    depth_keypoints: np.ndarray
    """float32 [K], depth along the optical axis, NaN where unknown."""
    scales: np.ndarray | None
    """float32 [K] px, or None."""
    oris: np.ndarray | None
    """float32 [K] radians, or None."""
    offsets: np.ndarray
    """int64 [I + 1]."""
    camera: np.ndarray
    """float64 [I, 4], fx fy cx cy at extraction resolution."""
    T_w2c: np.ndarray
    """float64 [I, 4, 4]."""
    image_size: np.ndarray
    """int32 [I, 2], (width, height) at extraction resolution."""
    names: tuple[str, ...]
    thumbnails: tuple[bytes, ...]
    """Grey JPEG, long side at most 320 px."""
    pairs: np.ndarray
    """int32 [P, 2]."""
    overlap: np.ndarray
    """float32 [P]."""
    scene: str
    split: Split
    original_size: np.ndarray | None = None
    """int32 [I, 2], (width, height) before resizing, or None where not recorded."""

    @property
    def num_images(self) -> int:
        """Number of images I."""
        return len(self.names)

    @property
    def num_pairs(self) -> int:
        """Number of pairs P."""
        return len(self.pairs)

    def check(self, where: str) -> None:
        """Verify types, shapes and indices.

        Raises:
            ShardError: something does not fit; the message starts with `where`.
        """
        num_features, num_images, num_pairs = len(self.keypoints), len(self.names), len(self.pairs)
        expected: dict[str, tuple[type, tuple[int, ...]]] = {
            "keypoints": (np.float32, (num_features, 2)),
            "keypoint_scores": (np.float32, (num_features,)),
            "descriptors": (np.float16, (num_features, self.descriptors.shape[-1])),
            "depth_keypoints": (np.float32, (num_features,)),
            "scales": (np.float32, (num_features,)),
            "oris": (np.float32, (num_features,)),
            "offsets": (np.int64, (num_images + 1,)),
            "camera": (np.float64, (num_images, 4)),
            "T_w2c": (np.float64, (num_images, 4, 4)),
            "image_size": (np.int32, (num_images, 2)),
            "original_size": (np.int32, (num_images, 2)),
            "pairs": (np.int32, (num_pairs, 2)),
            "overlap": (np.float32, (num_pairs,)),
        }
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array is not None and (array.dtype != dtype or array.shape != shape):
                wanted = f"{np.dtype(dtype).name} {list(shape)}"
                raise ShardError(f"{where}: {name} is {array.dtype.name} {list(array.shape)}, expected {wanted}")
        for problem in self._index_problems():
            raise ShardError(f"{where}: {problem}")

    def _index_problems(self) -> list[str]:
        problems = []
        if (self.scales is None) != (self.oris is None):
            problems.append("scales and oris must come together")
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            problems.append(f"image names must be unique, repeated: {', '.join(repeated[:5])}")
        if len(self.thumbnails) != len(self.names):
            problems.append(f"{len(self.thumbnails)} thumbnails for {len(self.names)} images")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.keypoints) or (np.diff(self.offsets) < 0).any():
            problems.append(f"offsets must rise from 0 to the number of keypoints {len(self.keypoints)}")
        if len(self.pairs) and not (self.pairs.min() >= 0 and self.pairs.max() < len(self.names)):
            problems.append(f"pairs must index the {len(self.names)} images")
        elif (self.pairs[:, 0] == self.pairs[:, 1]).any():
            problems.append("a pair must have two different images")
        return problems


ARRAYS: tuple[str, ...] = (
    "keypoints",
    "keypoint_scores",
    "descriptors",
    "depth_keypoints",
    "scales",
    "oris",
    "offsets",
    "camera",
    "T_w2c",
    "image_size",
    "pairs",
    "overlap",
    "original_size",
)
OPTIONAL_ARRAYS = ("scales", "oris", "original_size")


def shard_bytes(shard: Shard) -> bytes:
    """The HDF5 file of a shard; the same shard always gives the same bytes.

    Raises:
        ShardError: the arrays of `shard` do not fit each other.
    """
    shard.check(f"scene {shard.scene!r}")
    jpeg = np.frombuffer(b"".join(shard.thumbnails), dtype=np.uint8)
    jpeg_offsets = np.cumsum([0, *map(len, shard.thumbnails)], dtype=np.int64)
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update(format=FORMAT, scene=shard.scene, split=shard.split)
        for name in ARRAYS:
            array = getattr(shard, name)
            if array is not None:
                file.create_dataset(name, data=array)
        file.create_dataset("names", data=list(shard.names), dtype=h5py.string_dtype(), shape=(len(shard.names),))
        file.create_dataset("thumbnails", data=jpeg)
        file.create_dataset("thumbnail_offsets", data=jpeg_offsets)
    return image.getvalue()


def entry_of(name: str, shard: Shard, data: bytes) -> ShardEntry:
    """The entry for the manifest.

    Args:
        name: of the file, relative to the manifest.
        shard: its content.
        data: `shard_bytes(shard)`.
    """
    return ShardEntry(
        file=name,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        num_images=shard.num_images,
        num_pairs=shard.num_pairs,
        scene=shard.scene,
        split=shard.split,
    )


def read_shard(source: Source, where: str | None = None) -> Shard:
    """Read a whole shard into memory.

    Args:
        source: a file, or its content, of which the arrays become views.
        where: for messages; needed with a content.

    Raises:
        ShardError: missing, truncated, of another format, or with arrays that are missing or do not fit.
    """
    where = where or (str(source) if isinstance(source, Path) else f"shard of {len(source)} bytes")
    with opened(source, where) as file:
        arrays: dict[str, Any] = {name: file[name] for name in ARRAYS if name not in OPTIONAL_ARRAYS}
        arrays |= {name: file.get(name) for name in OPTIONAL_ARRAYS}
        jpeg, offsets = file["thumbnails"].tobytes(), file["thumbnail_offsets"]
        shard = Shard(
            **arrays,
            names=file.names,
            thumbnails=tuple(jpeg[a:b] for a, b in itertools.pairwise(offsets)),
            scene=file.scene,
            split=file.split,
        )
    shard.check(where)
    return shard


def verify_shard(source: Source, entry: ShardEntry, where: str | None = None) -> None:
    """Compare a file, or its content, with its manifest entry.

    Raises:
        ShardError: missing, or its size or SHA-256 differs; names both values.
    """
    where = where or (str(source) if isinstance(source, Path) else entry.file)
    again = "it was damaged or replaced after it was written; prepare the data again, or copy the folder again"
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        actual = _sha256(source) if size == entry.bytes else None
    except OSError as error:
        raise ShardError(f"{where}: listed in the manifest but cannot be read ({error.strerror}); {again}") from error
    if actual is None:
        raise ShardError(f"{where}: {size} bytes, but the manifest says {entry.bytes}; {again}")
    if actual != entry.sha256:
        raise ShardError(f"{where}: SHA-256 is {actual}, but the manifest says {entry.sha256}; {again}")


def _sha256(source: Source) -> str:
    if not isinstance(source, Path):
        return hashlib.sha256(source if isinstance(source, bytes) else source.data).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
