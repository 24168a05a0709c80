"""Where an image is, to a hundredth of a pixel: independent of how the code under test warps and counts pixels.

Images are float [H, W]; points are (x, y) with the centre of the first pixel at (0.5, 0.5).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPACING = 24
RADIUS = 9
MARGIN = 4
MIN_TEXTURE = 4.0
"""Smallest eigenvalue of the mean gradient tensor of a patch, grey levels squared per square pixel."""
SHIFT = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


class Displacements(NamedTuple):
    """How far image 1 is from where a homography says, patch by patch."""

    at: np.ndarray
    """[N, 2], centres of the patches in image 1."""
    shift: np.ndarray
    """[N, 2] px."""


def displacements(image0: np.ndarray, image1: np.ndarray, H_0to1: np.ndarray) -> Displacements:
    """Register patches of image 1 with image 0 as a homography shows it (Lucas and Kanade, symmetric gradients)."""
    height, width = image1.shape
    inside = RADIUS + MARGIN + 1
    xs, ys = np.arange(inside, width - inside, SPACING), np.arange(inside, height - inside, SPACING)
    offset = np.arange(-RADIUS - 1, RADIUS + 2)
    at, shift = [], []
    for cx, cy in np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2):
        x, y = np.meshgrid(cx + offset, cy + offset)
        points = apply(np.linalg.inv(H_0to1), np.stack([x, y], -1) + 0.5)
        low, high = points.min((0, 1)), points.max((0, 1))
        if (low < MARGIN).any() or (high > np.array(image0.shape[::-1]) - MARGIN).any():
            continue
        patch0, patch1 = cubic(image0, points), image1[y, x]
        gx, gy = ((gradient(patch0, axis) + gradient(patch1, axis)) / 2 for axis in (1, 0))
        error = (patch1 - patch0)[1:-1, 1:-1]
        tensor = np.array([[(gx * gx).mean(), (gx * gy).mean()], [(gx * gy).mean(), (gy * gy).mean()]])
        if np.linalg.eigvalsh(tensor)[0] >= MIN_TEXTURE:
            at.append((cx + 0.5, cy + 0.5))
            shift.append(-np.linalg.solve(tensor, [(gx * error).mean(), (gy * error).mean()]))
    return Displacements(np.array(at).reshape(-1, 2), np.array(shift).reshape(-1, 2))


def half_pixel_mistake(H_0to1: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What `displacements` [N, 2] shows where homographies between pixel centres are used between pixel corners."""
    return at - apply(np.linalg.inv(SHIFT) @ H_0to1 @ SHIFT, apply(np.linalg.inv(H_0to1), at))


def apply(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] through a homography."""
    homogeneous = points @ H[:, :2].T + H[:, 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def gradient(image: np.ndarray, axis: int) -> np.ndarray:
    """Central differences of the inner pixels."""
    rows = image[1:-1] if axis == 1 else image[:, 1:-1]
    return (rows[:, 2:] - rows[:, :-2]) / 2 if axis == 1 else (rows[2:] - rows[:-2]) / 2


def cubic(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Keys's cubic convolution (1981) at points [..., 2] that lie at least two pixels inside."""
    position = points - 0.5
    first = np.floor(position).astype(int)
    wx, wy = (weights(position[..., axis] - first[..., axis]) for axis in (0, 1))
    value = np.zeros(points.shape[:-1])
    for j in range(4):
        for i in range(4):
            value += wy[j] * wx[i] * image[first[..., 1] + j - 1, first[..., 0] + i - 1]
    return value


def weights(t: np.ndarray) -> list[np.ndarray]:
    """Of the pixels at -1, 0, 1, 2 for a point at t, 0 to 1."""
    return [
        -0.5 * t**3 + t**2 - 0.5 * t,
        1.5 * t**3 - 2.5 * t**2 + 1,
        -1.5 * t**3 + 2 * t**2 + 0.5 * t,
        0.5 * t**3 - 0.5 * t**2,
    ]
