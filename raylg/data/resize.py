"""Image sizes: shrinking for extraction, and thumbnails for figures."""

from __future__ import annotations

import cv2
import numpy as np

from raylg.errors import ShardError

THUMBNAIL_SIZE = 320
"""Long side in pixels."""
THUMBNAIL_QUALITY = 80
"""JPEG quality, of 100; about 15 kB an image."""


def shrink(image: np.ndarray, long_side: int | None) -> np.ndarray:
    """Resize so that the long side is at most `long_side` pixels; never enlarges.

    A Gaussian of sigma (factor - 1) / 2 goes before bilinear sampling, against aliasing; these are the numbers of
    kornia's antialiased resize, which glue-factory uses. Pixel coordinates scale by new size / old size per axis.

    Args:
        image: uint8 [H, W] or [H, W, 3].
        long_side: pixels, or None to keep the size.
    """
    height, width = image.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return image
    new_width, new_height = _new_size(width, height, long_side)
    sigma_x, sigma_y = (width / new_width - 1) / 2, (height / new_height - 1) / 2
    blurred = cv2.GaussianBlur(
        image,
        (_kernel_size(sigma_x), _kernel_size(sigma_y)),
        sigmaX=max(sigma_x, 1e-3),
        sigmaY=max(sigma_y, 1e-3),
        borderType=cv2.BORDER_REFLECT_101,
    )
    return cv2.resize(blurred, (new_width, new_height), interpolation=cv2.INTER_LINEAR)


def fit(image: np.ndarray, long_side: int | None) -> np.ndarray:
    """Resize so that the long side is `long_side` pixels: smaller images by bilinear sampling, others as `shrink`."""
    height, width = image.shape[:2]
    if long_side is None or max(height, width) >= long_side:
        return shrink(image, long_side)
    return cv2.resize(image, _new_size(width, height, long_side), interpolation=cv2.INTER_LINEAR)


def encode_thumbnail(image: np.ndarray) -> bytes:
    """Grey JPEG of an RGB image, uint8 [H, W, 3]."""
    grey = shrink(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), THUMBNAIL_SIZE)
    done, jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
    assert done, f"image of shape {image.shape} cannot be encoded"
    return jpeg.tobytes()


def decode_thumbnail(jpeg: bytes, where: str) -> np.ndarray:
    """Grey image uint8 [h, w].

    Raises:
        ShardError: not a JPEG; the message starts with `where`.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, dtype=np.uint8), cv2.IMREAD_GRAYSCALE) if jpeg else None
    if image is None:
        raise ShardError(f"{where}: the thumbnail is not a JPEG; prepare the features again")
    return image


def _new_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) with that long side; the short one is cut to whole pixels, in floats as in glue-factory."""
    aspect = width / height
    if aspect >= 1:
        return long_side, max(1, int(long_side / aspect))
    return max(1, int(long_side * aspect)), long_side


def _kernel_size(sigma: float) -> int:
    """Odd, and about four sigma."""
    return int(max(4 * sigma, 3)) | 1
