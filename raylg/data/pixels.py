"""Image files: their size without decoding them, and their pixels as they are stored.

The orientation tag of a camera is ignored, as COLMAP does: its models refer to the pixels as stored.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from raylg.errors import ShardError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
LARGEST_ASPECT_DEVIATION = 0.02
"""Images and depth maps of rounded size differ in aspect by less than this, other images by more."""
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: Path) -> np.ndarray:
    """Pixels, uint8 [H, W, 3] RGB.

    Raises:
        ShardError: no image there, or one that cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if path.is_file() else None
    if image is None:
        raise ShardError(f"{path}: {'cannot be decoded as an image' if path.is_file() else 'no such image'}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a JPEG or PNG file; other formats are decoded.

    Raises:
        ShardError: no image there, or one that cannot be decoded.
    """
    size = None
    if path.is_file():
        with path.open("rb") as file:
            signature = file.read(8)
            if signature == PNG_SIGNATURE:
                size = _png_size(file)
            elif signature.startswith(JPEG_SIGNATURE):
                file.seek(len(JPEG_SIGNATURE))
                size = _jpeg_size(file)
    if size is None:
        height, width = read_image(path).shape[:2]
        size = (width, height)
    return size


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether sizes (width, height) are the same up to scale and rounding to whole pixels."""
    rounding = 1 / min(*size, *other)
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < LARGEST_ASPECT_DEVIATION + rounding


def size_text(size: tuple[int, int]) -> str:
    """(width, height) for messages."""
    return f"{size[0]} x {size[1]}"


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    header = file.read(16)  # length and name of the first chunk, width, height
    return struct.unpack(">II", header[8:]) if len(header) == 16 else None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Skip segments up to the frame header; None where the file ends before it."""
    while (byte := file.read(1)) == b"\xff":
        while byte == b"\xff":  # any number of fill bytes
            byte = file.read(1)
        marker = byte[0] if byte else 0
        if marker in WITHOUT_LENGTH:
            continue
        segment = file.read(7)
        if len(segment) < 7:
            return None
        length, _, height, width = struct.unpack(">HBHH", segment)
        if marker in FRAME_HEADERS:
            return width, height
        file.seek(length - len(segment), 1)
    return None
