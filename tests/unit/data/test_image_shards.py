"""The file format of shards of photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from raylg.data.image_shards import ImageShard, image_shard_bytes, read_image_shard
from raylg.data.pixels import decode_image
from raylg.errors import ShardError


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(pixels, (width, height)))[1].tobytes()


def shard(count: int = 3) -> ImageShard:
    files = [jpeg(seed, 40 + 10 * seed) for seed in range(count)]
    return ImageShard(
        images=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
        image_size=np.array([(40 + 10 * seed, 30) for seed in range(count)], np.int32).reshape(-1, 2),
        names=tuple(f"a/ä{seed}.jpg" for seed in range(count)),
        scene="photos",
        split="train",
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written, data = shard(), image_shard_bytes(shard())
    (tmp_path / "shard.h5").write_bytes(data)
    for source in (data, tmp_path / "shard.h5"):
        found = read_image_shard(source, "here")
        assert (found.names, found.scene, found.split) == (written.names, "photos", "train")
        for name in ("images", "offsets", "image_size"):
            np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
        for index in range(3):
            pixels = decode_image(jpeg(index, 40 + 10 * index), upright=True)
            np.testing.assert_array_equal(found.decode(index, "here"), pixels)
    assert image_shard_bytes(shard()) == data
    with h5py.File(tmp_path / "shard.h5") as file:  # nothing else is needed to read it
        a, b = file["offsets"][:2]
        assert file["images"][a:b].tobytes() == jpeg(0)


def test_an_empty_shard() -> None:
    assert read_image_shard(image_shard_bytes(shard(0)), "here").names == ()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data = image_shard_bytes(shard())
    for cut in (0, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ShardError, match="here"):
            read_image_shard(data[:cut], "here")
    with pytest.raises(ShardError, match="no such shard"):
        read_image_shard(tmp_path / "absent.h5", "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 5, 3, 9], np.int64)}, "rise"),
        ({"offsets": np.array([0, 1], np.int64)}, r"offsets is int64 \[2\], expected \[4\]"),
        ({"image_size": np.zeros((3, 2))}, "image_size is float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        image_shard_bytes(replace(shard(), **change))


@pytest.mark.parametrize(("name", "value"), [("content", "features"), ("format", 2), ("split", "x")])
def test_other_shards_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(image_shard_bytes(shard()))
    with h5py.File(path, "a") as file:
        file.attrs[name] = value
    with pytest.raises(ShardError, match=str(value)):
        read_image_shard(path, "here")


def test_photographs_that_are_not_what_the_shard_says() -> None:
    other_size = replace(shard(), image_size=np.full((3, 2), 7, np.int32))
    with pytest.raises(ShardError, match=r"here: a/ä0.jpg has \(40, 30\) pixels, expected \(7, 7\)"):
        other_size.decode(0, "here")
    no_image = replace(shard(), images=np.zeros_like(shard().images))
    with pytest.raises(ShardError, match=r"here: a/ä1.jpg cannot be decoded"):
        no_image.decode(1, "here")
