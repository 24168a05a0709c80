"""Rendering of one scene: layout, suns, cameras, photographs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylg.data.synthetic.cameras import sample_camera
from raylg.data.synthetic.layout import KINDS, Layout, build_layout
from raylg.data.synthetic.light import Sun, Weather, draw_sky, make_sun, shade
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.overlap import overlap_matrix
from raylg.data.synthetic.photo import add_people, develop, smooth_edges
from raylg.data.synthetic.raster import project_perspective, rasterise
from raylg.data.synthetic.rendered import RenderedScene, encode_mask, plane_depth

RENDERER_VERSION = 1
"""Raised by every change that alters a pixel; part of the cache key."""
NUM_SUNS = 2


@dataclass(frozen=True)
class _Photograph:
    camera: np.ndarray
    pose: np.ndarray
    jpeg: np.ndarray
    polygon: np.ndarray
    planes: np.ndarray


def render_scene(entropy: tuple[int, int, int], num_views: int, size: tuple[int, int]) -> RenderedScene:
    """Build and photograph a scene; a pure function of its arguments.

    Args:
        entropy: (seed, number of the split, index in the split); decides everything random.
        num_views: photographs to take.
        size: (width, height) in pixels.
    """
    rng = np.random.default_rng(entropy)
    noise = NoiseBank.create(rng)
    layout = build_layout(rng, noise, KINDS[entropy[2] % len(KINDS)])
    suns = () if layout.indoor else tuple(make_sun(rng, layout.mesh) for _ in range(NUM_SUNS))
    photographs = [
        # A generator of its own for every view: the first n views do not depend on how many there are.
        _photograph(np.random.default_rng(child), noise, layout, suns, size)
        for child in np.random.SeedSequence(entropy).spawn(num_views)
    ]
    cameras = np.stack([photograph.camera for photograph in photographs])
    poses = np.stack([photograph.pose for photograph in photographs])
    depths = [plane_depth(photograph.polygon, photograph.planes) for photograph in photographs]
    jpegs = [photograph.jpeg for photograph in photographs]
    masks = [encode_mask(photograph.polygon) for photograph in photographs]
    return RenderedScene(
        cameras=cameras,
        poses=poses,
        overlap=overlap_matrix(depths, cameras, poses),
        jpegs=np.concatenate(jpegs),
        jpeg_ends=np.cumsum([len(data) for data in jpegs]),
        masks=np.concatenate(masks),
        mask_ends=np.cumsum([len(data) for data in masks]),
        planes=np.stack([photograph.planes for photograph in photographs]),
    )


def _photograph(
    rng: np.random.Generator, noise: NoiseBank, layout: Layout, suns: tuple[Sun, ...], size: tuple[int, int]
) -> _Photograph:
    camera, pose = sample_camera(rng, layout, size)
    projection = project_perspective(layout.mesh, camera, pose, size)
    raster = rasterise(layout.mesh, projection, size)
    strength = float(rng.uniform(0.3, 1.0))
    weather = _weather(rng, layout, suns, strength)
    radiance = shade(layout.mesh, raster, weather, camera, pose)
    sky = raster.polygon < 0
    if sky.any():
        radiance[sky] = draw_sky(rng, noise, weather, camera, pose, size)[sky]
    radiance = smooth_edges(radiance, raster.polygon)
    polygon = raster.polygon
    if not layout.indoor:
        # Where the horizontal through the camera meets the image, in its middle column.
        forward = pose[:3, :3].T[:, 2]
        horizon = camera[3] + camera[1] * forward[2] / np.hypot(forward[0], forward[1])
        eye = float((-pose[:3, :3].T @ pose[:3, 3])[2])
        place = (float(camera[0]), float(horizon), eye)
        hidden = add_people(rng, noise, radiance, np.maximum(raster.nearness, 0), weather, place)
        polygon = np.where(hidden, -1, polygon)
    return _Photograph(camera, pose, develop(rng, radiance, strength), polygon, projection.key)


def _weather(rng: np.random.Generator, layout: Layout, suns: tuple[Sun, ...], strength: float) -> Weather:
    """Sunny or overcast, warm or cool; indoors a lamp."""
    white = np.ones(3, np.float32)
    if layout.indoor:
        warm = np.array([1.0, rng.uniform(0.8, 1.0), rng.uniform(0.6, 1.0)], dtype=np.float32)
        x0, x1, y0, y1 = layout.area
        lamp = np.array([rng.uniform(x0, x1), rng.uniform(y0, y1 + 2), rng.uniform(2.2, 3.2)])
        return Weather(sun=None, sunlight=0 * white, skylight=0.7 * warm, haze=0.0, clouds=0.0, lamp=lamp)
    sunny = rng.random() < 0.65
    sun = suns[int(rng.integers(len(suns)))] if sunny else None
    level = rng.uniform(0.5, 1.4) * (0.5 + strength)
    sunlight = np.array([1.0, rng.uniform(0.85, 0.97), rng.uniform(0.65, 0.9)]) * level * sunny
    blue = rng.uniform(0.0, 0.12) if sunny else 0.0
    skylight = np.array([0.55 - blue, 0.55, 0.55 + blue])
    return Weather(
        sun=sun,
        sunlight=sunlight.astype(np.float32),
        skylight=skylight.astype(np.float32),
        haze=float(rng.choice([0.0, 0.002, 0.006]) * strength),
        clouds=float(rng.uniform(0.2, 0.7) if sunny else rng.uniform(0.6, 1.0)),
    )
