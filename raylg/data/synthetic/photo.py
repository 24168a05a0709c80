"""From radiance to a photograph: passers-by, lens, exposure, tone, sensor noise, JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from raylg.data.synthetic.light import Weather
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.props import person


def add_people(
    rng: np.random.Generator,
    noise: NoiseBank,
    radiance: np.ndarray,
    nearness: np.ndarray,
    weather: Weather,
    focal_horizon: tuple[float, float, float],
) -> np.ndarray:
    """Draw passers-by into `radiance` in place; returns the pixels that they hide, bool [H, W].

    Args:
        rng: source of randomness.
        noise: of the scene.
        radiance: float32 [H, W, 3].
        nearness: float32 [H, W], inverse depth of the scene.
        weather: gives their light.
        focal_horizon: focal length in px, row of the horizon in px, height of the camera above the ground in m.
    """
    focal, horizon, eye = focal_horizon
    hidden = np.zeros(nearness.shape, bool)
    height, width = nearness.shape
    for _ in range(int(rng.choice([0, 1, 2, 4, 6], p=[0.3, 0.25, 0.2, 0.15, 0.1]))):
        depth = rng.uniform(4, 18)
        tall = 1.75 * rng.uniform(0.9, 1.08) * focal / depth
        foot = horizon + eye * focal / depth
        albedo, alpha = person(rng, noise)
        scale = tall / albedo.shape[0]
        left = rng.uniform(-0.1, 1.0) * width
        size = (max(1, round(albedo.shape[1] * scale)), max(1, round(tall)))
        x, y = round(left), round(foot - tall)
        x0, x1, y0, y1 = max(0, x), min(width, x + size[0]), max(0, y), min(height, y + size[1])
        if x0 >= x1 or y0 >= y1:
            continue
        box, inner = np.s_[y0:y1, x0:x1], np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        cover = cv2.resize(alpha, size, interpolation=interpolation)[inner] * (nearness[box] < 1 / depth)
        look = cv2.resize(albedo, size, interpolation=interpolation)[inner]
        light = 0.8 * weather.skylight + 0.4 * weather.sunlight
        radiance[box] = radiance[box] * (1 - cover[..., None]) + cover[..., None] * look**2 * light
        hidden[box] |= cover > 0.3
    return hidden


def smooth_edges(radiance: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Anti-alias the outlines of polygons, where the rasteriser takes one sample per pixel."""
    edge = np.zeros(polygon.shape, bool)
    across, down = polygon[:, 1:] != polygon[:, :-1], polygon[1:] != polygon[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    soft = cv2.GaussianBlur(radiance, (3, 3), 0.6)
    return np.where(edge[..., None], soft, radiance)


def develop(rng: np.random.Generator, radiance: np.ndarray, strength: float) -> np.ndarray:
    """Take the photograph: JPEG bytes uint8 [n] of a linear image float32 [H, W, 3].

    Args:
        rng: source of randomness.
        radiance: linear RGB; its scale does not matter, as exposure is metered.
        strength: 0 to 1, how far the camera departs from a faithful one.
    """
    height, width = radiance.shape[:2]
    metered = float(np.mean(radiance[::4, ::4]) + 0.3 * np.median(radiance[::4, ::4]))
    image = radiance * (0.42 / max(metered, 1e-6) * 2 ** rng.normal(0, 0.55 * strength))
    image *= np.exp(rng.normal(0, 0.09 * strength, 3)).astype(np.float32)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image *= (1 - rng.uniform(0, 0.4) * strength * (x * x + y * y) / 2).astype(np.float32)[..., None]
    sigma = rng.uniform(0.3, 0.55) + 0.5 * strength * rng.random() ** 2
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.float32)
    bloom = cv2.GaussianBlur(cv2.resize(np.maximum(image - 0.9, 0), None, fx=0.25, fy=0.25), (0, 0), 4)
    image += 0.25 * cv2.resize(bloom, (width, height))
    gain = rng.uniform(0.002, 0.02) * strength
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    image += grain * gain * np.sqrt(np.maximum(image, 0) + 0.02)
    # Filmic shoulder, then gamma: highlights roll off instead of clipping.
    image = np.maximum(image, 0)
    image = image * (1 + image / 6.0) / (1 + image)
    tone = cv2.pow(image, float(1 / 2.2 * np.exp(rng.normal(0, 0.12 * strength))))
    grey = tone.mean(axis=2, keepdims=True)
    tone = grey + (tone - grey) * np.float32(rng.uniform(0.7, 1.15))
    contrast = np.float32(rng.uniform(1.0, 1.0 + 0.5 * strength))
    pixels = np.clip((0.45 + (tone - 0.45) * contrast) * 255, 0, 255).astype(np.uint8)
    quality = int(rng.uniform(95 - 40 * strength, 96))
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV was built without JPEG"
    return np.asarray(data).reshape(-1)
