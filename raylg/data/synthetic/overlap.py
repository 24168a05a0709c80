"""How much two views see of each other, from their depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GRID = 8
"""Every GRID-th pixel in both directions is asked."""
TOLERANCE = 0.02
"""Largest relative difference of depths of the same surface (nearest pixel, hence not exact on slopes)."""


def overlap_matrix(depths: Sequence[np.ndarray], cameras: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Covisibility of all pairs of views.

    The share of the grid pixels with depth of view i that project into view j onto a pixel of consistent depth, and
    the smaller of the two directions.

    Args:
        depths: I maps float32 [H, W] along the optical axis, 0 where unknown.
        cameras: float64 [I, 4].
        poses: float64 [I, 4, 4], world to camera.

    Returns:
        float64 [I, I], symmetric, 1 on the diagonal; 0 for a view without any depth.
    """
    count = len(depths)
    shares = np.eye(count)
    for i in range(count):
        points = _grid_points(depths[i], cameras[i]) - poses[i][:3, 3]
        world = points @ poses[i][:3, :3]
        for j in range(count):
            if i != j:
                shares[i, j] = _share(world @ poses[j][:3, :3].T + poses[j][:3, 3], depths[j], cameras[j])
    return np.minimum(shares, shares.T)


def _grid_points(depth: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Camera-frame points float64 [n, 3] of the grid pixels that have depth."""
    y, x = np.mgrid[GRID // 2 : depth.shape[0] : GRID, GRID // 2 : depth.shape[1] : GRID]
    z = depth[y, x].astype(np.float64)
    points = np.stack([(x + 0.5 - camera[2]) / camera[0] * z, (y + 0.5 - camera[3]) / camera[1] * z, z], axis=-1)
    return np.asarray(points[z > 0])


def _share(points: np.ndarray, depth: np.ndarray, camera: np.ndarray) -> float:
    """Share of camera-frame points [n, 3] that the depth map sees."""
    if not len(points):
        return 0.0
    height, width = depth.shape
    z = np.maximum(points[:, 2], 1e-6)
    x = np.floor(points[:, 0] / z * camera[0] + camera[2])
    y = np.floor(points[:, 1] / z * camera[1] + camera[3])
    inside = (points[:, 2] > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = depth[y[inside].astype(np.int64), x[inside].astype(np.int64)]
    return float(np.sum(np.abs(seen - z[inside]) < TOLERANCE * z[inside]) / len(points))
