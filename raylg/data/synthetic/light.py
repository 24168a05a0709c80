"""Light: sun with shadows, sky, haze. All colours linear float32 RGB."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raylg.data.synthetic.mesh import Mesh
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.raster import Raster, project_parallel, rasterise

SHADOW_SIZE = 768
LINEAR = (np.arange(256, dtype=np.float32) / 255) ** np.float32(2.2)
"""Linear value of an 8-bit texture value."""


@dataclass(frozen=True)
class Sun:
    """A position of the sun with its shadow map."""

    direction: np.ndarray
    """Unit vector towards the sun, float64 [3]."""
    axes: np.ndarray
    """float64 [3, 3]: shadow pixel = axes[:2] X + offset[:2], distance = axes[2] X + offset[2]."""
    offset: np.ndarray
    nearness: np.ndarray
    """float32 [SHADOW_SIZE, SHADOW_SIZE]: minus the smallest distance, -inf where nothing is hit."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """The light of one photograph."""

    sun: Sun | None
    """None under an overcast sky and indoors."""
    sunlight: np.ndarray
    """float32 [3]."""
    skylight: np.ndarray
    """float32 [3]."""
    haze: float
    """1 / m."""
    clouds: float
    """0 (clear) to 1."""
    lamp: np.ndarray | None = None
    """Position of a lamp, indoors."""


def make_sun(rng: np.random.Generator, mesh: Mesh) -> Sun:
    """Draw a sun that shines at the front of the scene and render its shadow map."""
    azimuth, elevation = np.radians(rng.uniform(-80, 80)), np.radians(rng.uniform(22, 62))
    direction = np.array([np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.cross([0.0, 0.0, 1.0], direction)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(direction, right), -direction])
    points = np.concatenate([mesh.origin, mesh.origin + mesh.u, mesh.origin + mesh.v, mesh.origin + mesh.u + mesh.v])
    lo, hi = (points @ axes.T).min(0), (points @ axes.T).max(0)
    scale = (SHADOW_SIZE - 2) / max(hi[0] - lo[0], hi[1] - lo[1])
    axes[:2] *= scale
    offset = np.array([1 - lo[0] * scale, 1 - lo[1] * scale, -lo[2]])
    raster = rasterise(mesh, project_parallel(mesh, axes, offset), (SHADOW_SIZE, SHADOW_SIZE), colour=False)
    return Sun(direction, axes, offset, raster.nearness)


def shade(mesh: Mesh, raster: Raster, weather: Weather, camera: np.ndarray, T_w2c: np.ndarray) -> np.ndarray:
    """Radiance of what a raster shows: float32 [H, W, 3]; zero where nothing is seen."""
    rays = _rays(raster.polygon.shape, camera)
    depth = np.where(raster.polygon >= 0, 1 / np.maximum(raster.nearness, 1e-6), 0).astype(np.float32)
    points = rays * depth[..., None]
    R, t = T_w2c[:3, :3], T_w2c[:3, 3]
    centre = -R.T @ t
    normals = mesh.normals()
    # Both sides of a polygon can be seen: turn the normal towards the camera.
    middle = mesh.origin + (mesh.u + mesh.v) / 2
    normals *= np.sign(np.einsum("ni,ni->n", centre - middle, normals))[:, None]
    skyward = np.where(mesh.foliage, 0.75, 0.62 + 0.38 * normals[:, 2] - 0.08 * normals[:, 1])
    polygon = np.maximum(raster.polygon, 0)
    light = np.take(skyward.astype(np.float32), polygon) * _occlusion(raster, depth)
    radiance = light[..., None] * weather.skylight
    if weather.sun is not None:
        lambert = np.where(mesh.foliage, 0.55, np.maximum(normals @ weather.sun.direction, 0))
        direct = np.take(lambert.astype(np.float32), polygon) * _lit(weather.sun, points, R, t)
        radiance += direct[..., None] * weather.sunlight
    if weather.lamp is not None:
        towards = (R @ weather.lamp + t).astype(np.float32) - points
        distance = np.linalg.norm(towards, axis=2)
        facing = np.take((normals @ R.T).astype(np.float32), polygon, axis=0)
        lambert = np.maximum(np.einsum("hwc,hwc->hw", facing, towards) / np.maximum(distance, 0.1), 0)
        radiance *= (3.0 * lambert / (1 + (distance / 2.5) ** 2) + 0.3)[..., None]
    albedo = cv2.LUT(raster.colour[..., :3], LINEAR)
    radiance *= albedo
    if weather.haze > 0:
        clear = np.exp(-weather.haze * depth)[..., None]
        radiance = radiance * clear + (1 - clear) * (0.55 * weather.skylight + 0.2 * weather.sunlight)
    return np.asarray(radiance, dtype=np.float32)


def draw_sky(
    rng: np.random.Generator,
    noise: NoiseBank,
    weather: Weather,
    camera: np.ndarray,
    T_w2c: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Radiance of the sky behind an image of `size` (width, height): float32 [H, W, 3]."""
    # The sky has no detail: half the resolution will do.
    small = ((size[1] + 1) // 2, (size[0] + 1) // 2)
    directions = cv2.transform(_rays(small, camera / 2), T_w2c[:3, :3].T.astype(np.float32))
    up = directions[..., 2] / np.linalg.norm(directions, axis=2)
    height = np.maximum(up, 0.03)
    blue = np.array([0.25, 0.45, 0.85], dtype=np.float32)
    white = np.array([0.95, 0.97, 1.0], dtype=np.float32)
    mix = np.clip(np.exp(-3.5 * height) + 0.15, 0, 1)[..., None]
    sky = (1 - mix) * blue + mix * white
    # Below the horizon: distant land in haze.
    sky = np.where((up < 0)[..., None], np.array([0.42, 0.43, 0.40], dtype=np.float32), sky)
    if weather.clouds > 0:
        # Clouds are a plane overhead.
        offset = rng.uniform(0, noise.coarse.shape[0], 2)
        place = directions[..., :2] / np.maximum(directions[..., 2:], 0.03) * 60 + offset.astype(np.float32)
        size_ = np.float32(noise.coarse.shape[0])
        u, v = np.mod(place[..., 0], size_), np.mod(place[..., 1], size_)
        field = cv2.remap(noise.coarse, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        cover = np.clip(field * 0.7 + 2.4 * weather.clouds - 1.0, 0, 1)[..., None] * np.clip(up * 8, 0, 1)[..., None]
        sky = sky * (1 - cover) + cover * (0.9 - 0.25 * cover) * white
    radiance = (sky * (1.6 * weather.skylight + 0.35 * weather.sunlight)).astype(np.float32)
    return np.asarray(cv2.resize(radiance, size, interpolation=cv2.INTER_LINEAR))


def _rays(shape: tuple[int, ...], camera: np.ndarray) -> np.ndarray:
    """Directions with z = 1 through the pixel centres: float32 [H, W, 3]."""
    rays = np.ones((*shape, 3), np.float32)
    rays[..., 0] = (np.arange(shape[1]) + 0.5 - camera[2]) / camera[0]
    rays[..., 1] = ((np.arange(shape[0]) + 0.5 - camera[3]) / camera[1])[:, None]
    return rays


def _occlusion(raster: Raster, depth: np.ndarray) -> np.ndarray:
    """Darkening of places that lie behind their surroundings (screen space): float32 [H, W] in [0.5, 1]."""
    small = cv2.resize(raster.nearness, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_NEAREST)
    small = np.maximum(small, 0)
    around = cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    behind = np.clip((around * depth - 1.0) * 4, 0, 1)
    return np.asarray(1 - 0.35 * behind, dtype=np.float32)


def _lit(sun: Sun, points: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Share of the sun that reaches camera-frame points [H, W, 3]: float32 [H, W]."""
    A = sun.axes @ R.T
    place = cv2.transform(points, np.column_stack([A, sun.offset - A @ t]).astype(np.float32))
    # The centre of the first shadow pixel is 0.5 in `axes`, 0 in remap.
    hit = cv2.remap(sun.nearness, place[..., 0] - 0.5, place[..., 1] - 0.5, cv2.INTER_NEAREST,
                    borderMode=cv2.BORDER_CONSTANT, borderValue=-1e9)  # fmt: skip
    free = (-place[..., 2] > hit - 0.12).astype(np.float32)
    return cv2.GaussianBlur(free, (0, 0), 1.0)
