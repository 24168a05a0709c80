"""A rendered scene: what is kept of it, and how it is written to the cache.

Depth is kept as the number of the polygon seen at each pixel (a PNG) and the inverse depth of each polygon as an
affine form of the pixel, which is exact and takes a hundredth of the space of a depth map.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError)
"""What numpy and zipfile raise for a missing, cut or damaged file."""


@dataclass(frozen=True, kw_only=True)
class RenderedScene:
    """I views of one scene."""

    cameras: np.ndarray
    """float64 [I, 4]."""
    poses: np.ndarray
    """float64 [I, 4, 4], world to camera."""
    overlap: np.ndarray
    """float64 [I, I], covisibility of every pair."""
    jpegs: np.ndarray
    """uint8, the JPEG files one after the other."""
    jpeg_ends: np.ndarray
    """int64 [I]."""
    masks: np.ndarray
    """uint8, PNG files of uint16 [H, W]: number of the polygon plus one, 0 for sky and passers-by."""
    mask_ends: np.ndarray
    """int64 [I]."""
    planes: np.ndarray
    """float64 [I, N, 3]: inverse depth of polygon n at pixel (x, y) is planes[i, n] @ (x, y, 1)."""

    def image(self, index: int) -> np.ndarray:
        """Pixels of a view: uint8 [H, W, 3] RGB."""
        pixels = cv2.imdecode(_part(self.jpegs, self.jpeg_ends, index), cv2.IMREAD_COLOR)
        assert pixels is not None, "a JPEG of a verified cache entry cannot be decoded"
        return np.ascontiguousarray(pixels[..., ::-1])

    def depth(self, index: int) -> np.ndarray:
        """Depth at the pixel centres of a view: float32 [H, W], 0 where nothing fixed is seen."""
        number = cv2.imdecode(_part(self.masks, self.mask_ends, index), cv2.IMREAD_UNCHANGED)
        assert number is not None and number.dtype == np.uint16, "a mask of a verified cache entry cannot be decoded"
        return plane_depth(number.astype(np.int32) - 1, self.planes[index])


def plane_depth(polygon: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Depth float32 [H, W] from polygon numbers [H, W] (-1: none, depth 0) and planes float64 [N, 3]."""
    height, width = polygon.shape
    a, b, c = np.take(planes, np.maximum(polygon, 0), axis=0).transpose(2, 0, 1)
    inverse = a * (np.arange(width) + 0.5) + b * (np.arange(height) + 0.5)[:, None] + c
    seen = polygon >= 0
    return np.where(seen, 1 / np.where(seen, inverse, 1.0), 0.0).astype(np.float32)


def encode_mask(polygon: np.ndarray) -> np.ndarray:
    """PNG bytes uint8 [n] of polygon numbers [H, W]."""
    assert polygon.max() < 65535, f"{polygon.max()} polygons do not fit 16 bits"
    done, data = cv2.imencode(".png", (polygon + 1).astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done, "OpenCV was built without PNG"
    return np.asarray(data).reshape(-1)


def write_rendered(path: Path, scene: RenderedScene) -> None:
    """Write atomically: several processes may render the same scene at once, the last one wins with equal content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{field.name: getattr(scene, field.name) for field in fields(scene)})
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_rendered(path: Path) -> RenderedScene | None:
    """Read a scene; None if it is missing or damaged (every array is checked against its CRC), to be rendered anew."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return RenderedScene(**{field.name: arrays[field.name] for field in fields(RenderedScene)})
    except _UNREADABLE:
        return None


def _part(data: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    return data[int(ends[index - 1]) if index else 0 : int(ends[index])]
