"""Image files: size from the header, pixels as stored, damage."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.data.pixels import read_image, read_image_size
from raylg.errors import ShardError

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "wrong-ending-png.jpg"])
def test_size_and_pixels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    suffix = ".png" if "png" in name else path.suffix
    path.write_bytes(cv2.imencode(suffix, IMAGE)[1].tobytes())
    assert read_image_size(path) == (41, 30)
    pixels = read_image(path)
    assert pixels.shape == (30, 41, 3) and pixels.dtype == np.uint8
    if suffix != ".jpg":
        np.testing.assert_array_equal(pixels, IMAGE[..., ::-1])


@pytest.mark.parametrize("parameters", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_kinds_of_jpeg(tmp_path: Path, parameters: list[int]) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), IMAGE, parameters)
    assert read_image_size(tmp_path / "a.jpg") == (41, 30)


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(IMAGE[..., :1], 3, axis=2))


def test_orientation_tag_is_ignored(tmp_path: Path) -> None:
    """Tag 6, rotate by 90 degrees, in an EXIF segment before everything else, after a fill byte."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    jpeg = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert cv2.imread(str(path)).shape == (41, 30, 3)  # the tag is in force
    assert read_image(path).shape == (30, 41, 3)
    assert read_image_size(path) == (41, 30)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\x10", b"\x89PNG\r\n\x1a\n\0\0", b"text"])
def test_damaged(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (read_image, read_image_size):
        with pytest.raises(ShardError, match=r"a\.jpg: cannot be decoded"):
            read(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a\.jpg: no such image"):
        read_image_size(tmp_path / "a.jpg")
