"""Image files: their size without decoding them, and their pixels."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from raylg.errors import EnvironmentUnfitError, ShardError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
ASPECT_TOLERANCE = 2
"""Over the shortest side: by less than this differ the aspects of one image at two sizes. Rounding to whole pixels
gives at most 1; where both were rounded from a third size, 2."""
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_image(data: bytes | np.ndarray, *, upright: bool) -> np.ndarray | None:
    """Pixels of an encoded image, uint8 [H, W, 3] RGB; None where it is damaged or cut short.

    Args:
        data: a whole file, in any format that OpenCV knows.
        upright: whether the orientation tag of a camera is honoured. Photographs alone should be upright, for detectors
            expect that; images with poses stay as they are stored, for COLMAP's models refer to those pixels.
    """
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:  # in memory: from a file, OpenCV takes a JPEG that is cut short and makes the rest of it grey
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if len(data) else None
    except cv2.error:  # more pixels than OpenCV takes
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image(path: Path) -> np.ndarray:
    """Pixels as they are stored, uint8 [H, W, 3] RGB.

    Raises:
        ShardError: no image there, or one that is damaged or cut short.
        EnvironmentUnfitError: it cannot be read.
    """
    with _opened(path) as file:
        data = np.fromfile(file, dtype=np.uint8)
    image = decode_image(data, upright=False)
    if image is None:
        raise ShardError(f"{path}: cannot be decoded as an image, it is damaged or cut short; copy it there again")
    return image


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a JPEG or PNG file; other formats are decoded. Errors as of `read_image`."""
    size = None
    with _opened(path) as file:
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
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < ASPECT_TOLERANCE / min(*size, *other)


def size_text(size: tuple[int, int]) -> str:
    """(width, height) for messages."""
    return f"{size[0]} x {size[1]}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ShardError(f"{path}: no such image; copy it there") from error
    except OSError as error:
        raise EnvironmentUnfitError(f"{path}: cannot be read ({error.strerror}); check the disk") from error


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
