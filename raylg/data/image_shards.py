"""A shard of photographs: JPEG files for homography training, in one HDF5 file that h5py alone reads.

`images` u8 (the JPEG files, one after the other), `offsets` [I + 1] i64: photograph i is
images[offsets[i]:offsets[i + 1]], `image_size` [I, 2] i32 (width, height), `names` [I] UTF-8; attributes: format,
content (`images`), scene, split. One photograph counts as one pair per epoch.

The orientation tag of a camera is honoured: detectors expect upright images, and there is no camera model that refers
to the pixels as stored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from raylg.data.hdf5 import Source, opened
from raylg.data.manifest import FORMAT
from raylg.data.pixels import decode_image
from raylg.data.scene import Split
from raylg.errors import ShardError

CONTENT = "images"


@dataclass(frozen=True, kw_only=True)
class ImageShard:
    """Photographs as a shard holds them."""

    images: np.ndarray
    """uint8 [bytes], JPEG files one after the other."""
    offsets: np.ndarray
    """int64 [I + 1]."""
    image_size: np.ndarray
    """int32 [I, 2], (width, height), upright."""
    names: tuple[str, ...]
    """Paths in the folder that they come from."""
    scene: str
    split: Split

    @property
    def num_images(self) -> int:
        """Number of photographs I."""
        return len(self.names)

    @property
    def num_pairs(self) -> int:
        """Likewise: each is one pair per epoch."""
        return len(self.names)

    def decode(self, index: int, where: str) -> np.ndarray:
        """A photograph, uint8 [H, W, 3] RGB.

        Raises:
            ShardError: it is not what the shard says; the message starts with `where`.
        """
        image = decode_image(self.images[self.offsets[index] : self.offsets[index + 1]], upright=True)
        expected = tuple(self.image_size[index].tolist())
        if image is None or image.shape[1::-1] != expected:
            found = "cannot be decoded" if image is None else f"has {image.shape[1::-1]} pixels, expected {expected}"
            raise ShardError(f"{where}: {self.names[index]} {found}; prepare the photographs again")
        return image

    def check(self, where: str) -> None:
        """Verify that the arrays fit each other.

        Raises:
            ShardError: they do not; the message starts with `where`.
        """
        count = len(self.names)
        shapes = {"images": (np.uint8, self.images.shape), "offsets": (np.int64, (count + 1,))}
        expected = shapes | {"image_size": (np.int32, (count, 2))}
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ShardError(f"{where}: {name} is {array.dtype.name} {list(array.shape)}, expected {list(shape)}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.images) or (np.diff(self.offsets) < 0).any():
            raise ShardError(f"{where}: offsets must rise from 0 to the number of bytes {len(self.images)}")


def image_shard_bytes(shard: ImageShard) -> bytes:
    """The HDF5 file of a shard; the same shard always gives the same bytes.

    Raises:
        ShardError: the arrays of `shard` do not fit each other.
    """
    shard.check(f"shard of {shard.scene!r}")
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file.attrs.update(format=FORMAT, content=CONTENT, scene=shard.scene, split=shard.split)
        for name in ("images", "offsets", "image_size"):
            file.create_dataset(name, data=getattr(shard, name))
        file.create_dataset("names", data=list(shard.names), dtype=h5py.string_dtype(), shape=(len(shard.names),))
    return target.getvalue()


def read_image_shard(source: Source, where: str) -> ImageShard:
    """Read a whole shard into memory; photographs stay encoded.

    Args:
        source: a file, or its content, of which the arrays become views.
        where: for messages.

    Raises:
        ShardError: missing, truncated, not of photographs, or of another format.
    """
    with opened(source, where) as file:
        found = file.attrs.get("content")
        if found != CONTENT:
            raise ValueError(f"content {found}, but photographs are wanted")
        arrays: dict[str, Any] = {name: file[name] for name in ("images", "offsets", "image_size")}
        shard = ImageShard(names=file.names, scene=file.scene, split=file.split, **arrays)
    shard.check(where)
    return shard
