"""Photographers: upright cameras that mostly aim at the same thing."""

from __future__ import annotations

import numpy as np

from raylg.data.synthetic.layout import Layout
from raylg.data.synthetic.raster import project_perspective, rasterise

AZIMUTH = 25.0
"""Largest azimuth of a camera about the target, degrees from straight ahead."""
AIMED = 0.8
"""Share of the cameras that aim at the target."""
ATTEMPTS = 40


def sample_camera(rng: np.random.Generator, layout: Layout, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a camera [4] and pose T_w2c [4, 4] whose view is neither blocked nor mostly empty.

    Distances vary by 0.6-1.5 and focal lengths by 0.75-1.7 times the width, roll stays near zero: what tourists do,
    and what upright features can bear.
    """
    for _ in range(ATTEMPTS):
        camera, pose = _draw(rng, layout, size)
        if _fit(layout, camera, pose, size):
            break
    return camera, pose


def _draw(rng: np.random.Generator, layout: Layout, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    width, height = size
    aim = layout.target + layout.spread * rng.normal(0, 0.12 if rng.random() < AIMED else 1.0, 3)
    azimuth = np.radians(rng.uniform(-AZIMUTH, AZIMUTH))
    distance = layout.distance * np.exp(rng.uniform(np.log(0.6), np.log(1.5)))
    x0, x1, y0, y1 = layout.area
    centre = np.array(
        [
            np.clip(layout.target[0] + distance * np.sin(azimuth), x0, x1),
            np.clip(layout.target[1] - distance * np.cos(azimuth), y0, y1),
            rng.uniform(*layout.eye),
        ]
    )
    forward = aim - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    roll = np.radians(np.clip(rng.normal(0, 1.8), -5, 5))
    axes = np.stack([np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right, forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axes, -axes @ centre
    focal = max(width, height) * np.exp(rng.uniform(np.log(0.75), np.log(1.7)))
    return np.array([focal, focal, width / 2, height / 2]), pose


def _fit(layout: Layout, camera: np.ndarray, pose: np.ndarray, size: tuple[int, int]) -> bool:
    """Judge a tiny depth image: enough structure, nothing right in front of the lens."""
    small = (64, 48)
    scale = np.array([small[0] / size[0], small[1] / size[1]])
    projection = project_perspective(layout.mesh, camera * np.tile(scale, 2), pose, small)
    raster = rasterise(layout.mesh, projection, small, colour=False)
    seen = raster.polygon >= 0
    near = seen & (raster.nearness > 3.0 / layout.distance)
    return bool(seen.mean() > 0.6 and near.mean() < 0.12)
