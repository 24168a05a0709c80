"""Shrinking: sizes, the pixel convention, aliasing; thumbnails."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from raylg.data.resize import decode_thumbnail, encode_thumbnail, fit, shrink
from raylg.errors import ShardError


@pytest.mark.parametrize(
    ("shape", "long_side", "expected"),
    [
        ((480, 640, 3), 320, (240, 320, 3)),
        ((640, 427, 3), 320, (320, 213, 3)),  # 213.5, cut
        ((48, 64, 3), 320, (48, 64, 3)),
        ((48, 64, 3), 64, (48, 64, 3)),
        ((48, 64, 3), None, (48, 64, 3)),
        ((1000, 2), 100, (100, 1)),
    ],
)
def test_sizes(shape: tuple[int, ...], long_side: int | None, expected: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    assert shrink(image, long_side).shape == expected


@pytest.mark.parametrize(
    ("shape", "long_side", "expected"),
    [
        ((48, 64, 3), 1600, (1200, 1600, 3)),
        ((767, 1024, 3), 1600, (1198, 1600, 3)),  # 1198.4
        ((1063, 1600, 3), 1024, (680, 1024, 3)),  # 680.3
        ((1599, 1066, 3), 1600, (1600, 1066, 3)),  # 1066.7
        ((720, 459, 3), 1600, (1600, 1019, 3)),  # 1020 - 2e-13 in glue-factory's floats
        ((480, 640, 3), 320, (240, 320, 3)),
        ((48, 64, 3), 64, (48, 64, 3)),
        ((48, 64, 3), None, (48, 64, 3)),
    ],
)
def test_sizes_that_fit(shape: tuple[int, ...], long_side: int | None, expected: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    assert fit(image, long_side).shape == expected


def test_enlarging_is_bilinear_between_pixel_centres() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None].float(), (75, 100), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(fit(image, 100), expected[0, 0].numpy(), atol=1)


@pytest.mark.parametrize("long_side", [300, 201, 150, 97])
def test_coordinates_scale_about_the_corner(long_side: int) -> None:
    """The centroid of a blob is at s * x; the convention that puts pixel centres at integers is off by .5 - s / 2."""
    x, y = np.meshgrid(np.arange(400) + 0.5, np.arange(300) + 0.5)
    blob = 255 * np.exp(-((x - 230) ** 2 + (y - 110) ** 2) / (2 * 12**2))
    small = shrink(blob.astype(np.uint8), long_side).astype(np.float64)
    height, width = small.shape
    rows, columns = np.indices(small.shape) + 0.5
    assert (small * columns).sum() / small.sum() == pytest.approx(230 * width / 400, abs=0.05)
    assert (small * rows).sum() / small.sum() == pytest.approx(110 * height / 300, abs=0.05)


def test_no_aliasing() -> None:
    """A pattern beyond the new sampling limit becomes grey."""
    stripes = np.tile(np.array([0, 255], np.uint8), (400, 200))
    assert np.ptp(shrink(stripes, 97)[5:-5, 5:-5].astype(int)) <= 8
    assert np.ptp(cv2.resize(stripes, (97, 97), interpolation=cv2.INTER_LINEAR).astype(int)) > 200


def test_thumbnail() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 320:] = (0, 255, 0)
    thumbnail = decode_thumbnail(encode_thumbnail(image), "here")
    assert thumbnail.shape == (240, 320) and thumbnail.dtype == np.uint8
    assert thumbnail[:, :150].max() < 5
    assert abs(int(thumbnail[100, 300]) - 150) <= 2  # green is .587 of grey


@pytest.mark.parametrize("jpeg", [b"", b"no image"])
def test_broken_thumbnail(jpeg: bytes) -> None:
    with pytest.raises(ShardError, match=r"a\.h5: the thumbnail is not a JPEG"):
        decode_thumbnail(jpeg, "a.h5")
