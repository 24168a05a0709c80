"""Image files: size from the header, pixels as stored or upright, damage, sizes of the same shape."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.data.pixels import decode_image, read_image, read_image_size, same_aspect
from raylg.errors import EnvironmentUnfitError, ShardError

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


def test_orientation_tag_is_ignored_on_request(tmp_path: Path) -> None:
    """Tag 6, rotate by 90 degrees, in an EXIF segment before everything else, after a fill byte."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    jpeg = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert cv2.imread(str(path)).shape == (41, 30, 3)  # the tag is in force
    assert read_image(path).shape == (30, 41, 3)
    assert read_image_size(path) == (41, 30)
    stored, upright = (decode_image(path.read_bytes(), upright=upright) for upright in (False, True))
    assert stored is not None and upright is not None
    np.testing.assert_array_equal(stored, read_image(path))
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\x10", b"\x89PNG\r\n\x1a\n\0\0", b"text"])
def test_damaged(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (read_image, read_image_size):
        with pytest.raises(ShardError, match=r"a\.jpg: cannot be decoded"):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", "progressive.jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_is_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    """The header is whole, and decoders that fill up what is missing with grey would go unnoticed."""
    parameters = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if "progressive" in suffix else []
    data = cv2.imencode(suffix[-4:] if "jpg" in suffix else suffix, IMAGE, parameters)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert read_image(path).shape == IMAGE.shape
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ShardError, match=rf"{suffix}: cannot be decoded as an image, it is damaged or cut short; copy"):
        read_image(path)
    for upright in (False, True):
        assert decode_image(path.read_bytes(), upright=upright) is None


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    for read in (read_image, read_image_size):
        with pytest.raises(EnvironmentUnfitError, match=r"a\.jpg: cannot be read \(.*links"):
            read(tmp_path / "a.jpg")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a\.jpg: no such image"):
        read_image_size(tmp_path / "a.jpg")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"{tmp_path.name}: no such image"):
        read_image(tmp_path)


@pytest.mark.parametrize("rounding", [math.floor, round, math.ceil])
def test_sizes_that_were_rounded_have_the_same_shape(rounding: Callable[[float], int]) -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(300, 3000, (500, 2)).tolist():
        scale = rng.uniform(50 / min(width, height), 1)
        assert same_aspect((width, height), (rounding(width * scale), rounding(height * scale)))


@pytest.mark.parametrize(
    ("size", "other"), [((1600, 1200), (1568, 1200)), ((1600, 1200), (1597, 1200)), ((1600, 1200), (1200, 1600))]
)
def test_cropped_images_have_another_shape(size: tuple[int, int], other: tuple[int, int]) -> None:
    """A crop of 32 px, taken for a shrunk image, would put the camera off by 16 px at one side."""
    assert not same_aspect(size, other) and not same_aspect(other, size)
    assert same_aspect(size, size) and same_aspect(size, (160, 120))
