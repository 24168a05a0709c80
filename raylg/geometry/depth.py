"""Depth at keypoints, and where keypoints with depth appear in another view."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raylg.geometry.camera import Camera, Pose

MIN_DEPTH = 1e-4
"""Nearer to the camera than this, in scene units, a point has no projection (glue-factory: 1e-4)."""


def sample_depth(depth: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Depth at keypoints: bilinear, and that of the nearest pixel where a neighbour is a hole.

    Beyond the outermost pixel centres the border is extended; glue-factory blends it with zeros there.

    Args:
        depth: float32 [H, W], 0, negative or NaN where unknown.
        keypoints: [N, 2], pixels (x, y).

    Returns:
        float32 [N]; NaN where unknown and outside of the image.
    """
    height, width = depth.shape
    values = np.full(len(keypoints), np.nan, dtype=np.float32)
    x, y = keypoints[:, 0].astype(np.float64), keypoints[:, 1].astype(np.float64)
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    if height == 0 or width == 0 or not inside.any():
        return values
    x, y = x[inside], y[inside]
    known = np.where(depth > 0, depth, np.nan)
    # Pixel centres are at +0.5, so that pixel coordinate 0.5 is column 0.
    column = np.clip(x - 0.5, 0, width - 1)
    row = np.clip(y - 0.5, 0, height - 1)
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    dx, dy = column - left, row - top
    upper = known[top, left] * (1 - dx) + known[top, right] * dx
    lower = known[bottom, left] * (1 - dx) + known[bottom, right] * dx
    bilinear = upper * (1 - dy) + lower * dy
    nearest = known[np.minimum(y.astype(np.int64), height - 1), np.minimum(x.astype(np.int64), width - 1)]
    values[inside] = np.where(np.isnan(bilinear), nearest, bilinear)
    return values


def warp(
    keypoints: Tensor, depth: Tensor, camera0: Camera, camera1: Camera, T_0to1: Pose, image_size1: Tensor
) -> tuple[Tensor, Tensor]:
    """Move keypoints of view 0 into view 1 by their depth. No test of occlusion.

    Args:
        keypoints: [..., M, 2] px in view 0.
        depth: [..., M] along the optical axis, NaN where unknown.
        camera0: camera of view 0.
        camera1: camera of view 1.
        T_0to1: camera-0 to camera-1 coordinates.
        image_size1: [..., 2] (width, height) of view 1.

    Returns:
        Points [..., M, 2] px in view 1: NaN without depth, infinite behind the camera; and bool [..., M], whether the
        point has depth and projects into the image, [0, width] x [0, height].
    """
    in0 = camera0.unproject(keypoints) * depth[..., None]
    in1 = T_0to1.transform(in0)
    points = camera1.project(in1)
    points = points.masked_fill((in1[..., 2:] <= MIN_DEPTH), torch.inf)
    visible = ((points >= 0) & (points <= image_size1[..., None, :])).all(-1)  # false for NaN and infinity
    return points, visible
