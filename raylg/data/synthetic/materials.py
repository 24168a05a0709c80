"""Procedural albedo textures: masonry, plaster, paving, wood, soil, foliage. Colours are float32 RGB in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raylg.data.synthetic.noise import SIZE, NoiseBank

# Albedos of common building materials; low saturation, because photographs of streets have it.
WALLS = ((0.70, 0.63, 0.53), (0.62, 0.58, 0.52), (0.74, 0.70, 0.62), (0.66, 0.55, 0.44), (0.58, 0.56, 0.54),
         (0.70, 0.60, 0.50), (0.60, 0.62, 0.60), (0.72, 0.64, 0.60))  # fmt: skip
BRICKS = ((0.46, 0.29, 0.23), (0.52, 0.36, 0.29), (0.40, 0.28, 0.25), (0.55, 0.46, 0.36), (0.42, 0.37, 0.34))
STONES = ((0.52, 0.50, 0.47), (0.44, 0.43, 0.42), (0.58, 0.54, 0.48), (0.48, 0.44, 0.40))
WOODS = ((0.42, 0.30, 0.20), (0.34, 0.24, 0.17), (0.52, 0.40, 0.28), (0.30, 0.27, 0.24))
SOILS = ((0.36, 0.33, 0.24), (0.30, 0.34, 0.20), (0.44, 0.39, 0.31), (0.40, 0.40, 0.36))


@dataclass(frozen=True, kw_only=True)
class Courses:
    """Geometry of masonry laid in courses; lengths in texels."""

    height: float
    width: float
    joint: float
    """Thickness of the joint."""
    bond: float = 0.5
    """Shift from one course to the next, in units of `width`."""
    variation: float = 0.12
    """Standard deviation of the brightness from stone to stone, relative."""
    bevel: float = 0.15
    """Brightness step at the lit and shaded edges of a stone, relative."""


def pick(rng: np.random.Generator, palette: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """A colour of the palette, slightly altered: float32 [3]."""
    colour = np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.015, 3)
    return np.clip(colour, 0.05, 0.85).astype(np.float32)


def tinted(colour: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Colour [3] times brightness [h, w]: float32 [h, w, 3]."""
    return np.asarray(brightness[..., None] * colour, dtype=np.float32)


def masonry(
    rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], colour: np.ndarray, courses: Courses
) -> np.ndarray:
    """Bricks, ashlar, tiles or planks: float32 [h, w, 3]."""
    wobble = noise.crop(rng, noise.medium, shape)
    y = np.arange(shape[0], dtype=np.float32)[:, None] / courses.height + wobble * (0.4 / courses.height)
    row = np.floor(y)
    shift = row * np.float32(courses.bond % 1)
    x = np.arange(shape[1], dtype=np.float32)[None] / courses.width + shift + wobble * (0.5 / courses.width)
    column = np.floor(x)
    fy, fx = (y - row) * courses.height, (x - column) * courses.width
    rows, columns = max(1, round(shape[0] / courses.height)), max(1, round(shape[1] / courses.width))
    index = (row.astype(np.int32) % rows) * columns + column.astype(np.int32) % columns
    tone = 1 + rng.normal(0, courses.variation, rows * columns)
    tones = (tone[:, None] * (1 + rng.normal(0, 0.12 * courses.variation, (rows * columns, 3)))).astype(np.float32)
    grain = 1 + 0.10 * noise.crop(rng, noise.fine, shape) + 0.07 * noise.crop(rng, noise.medium, shape)
    edge = max(1.0, 1.5 * courses.joint)
    grain += courses.bevel * ((fy < courses.joint + edge) | (fx < courses.joint + edge))
    grain -= courses.bevel * ((fy > courses.height - edge) | (fx > courses.width - edge))
    joint = (fy < courses.joint) | (fx < courses.joint)
    result = np.take(tones * colour, index, axis=0) * grain[..., None]
    mortar = 0.55 * float(colour.mean()) * np.array([1.05, 1.0, 0.93], dtype=np.float32) * rng.uniform(0.7, 1.4)
    result[joint] = mortar * (grain[joint])[:, None]
    return np.asarray(result, dtype=np.float32)


def plaster(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """Old render with stains, cracks and places where the masonry shows: float32 [h, w, 3]."""
    blotches = noise.crop(rng, noise.medium, shape)
    grain = 1 + 0.06 * noise.crop(rng, noise.fine, shape) + 0.08 * blotches
    crack = np.abs(noise.crop(rng, noise.coarse, shape) + 0.15 * blotches) < 0.012
    grain[crack] *= 0.6
    result = tinted(colour, grain)
    flaked = noise.crop(rng, noise.medium, shape) + 0.8 * noise.crop(rng, noise.coarse, shape) > rng.uniform(1.6, 2.6)
    if flaked.any():
        under = masonry(rng, noise, shape, pick(rng, BRICKS), Courses(height=5, width=14, joint=1))
        result[flaked] = under[flaked]
        rim = cv2.dilate(flaked.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~flaked
        result[rim] *= 0.7
    return result


def weather(rng: np.random.Generator, noise: NoiseBank, albedo: np.ndarray, strength: float) -> np.ndarray:
    """Dirt at all scales: stains, rain streaks and a dark foot; returns a new float32 [h, w, 3]."""
    shape = albedo.shape[:2]
    dirt = 0.10 * noise.crop(rng, noise.coarse, shape) + 0.09 * noise.streaks(rng, shape)
    dirt += 0.08 * noise.crop(rng, noise.medium, shape) + 0.05 * noise.crop(rng, noise.fine, shape)
    spots = noise.crop(rng, noise.medium, shape) > 2.0
    foot = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None] ** 8
    gain = 1 + strength * (dirt - 0.25 * spots - 0.35 * foot)
    return np.asarray(np.clip(albedo * np.maximum(gain, 0.15)[..., None], 0, 1), dtype=np.float32)


def wall(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], ppm: float) -> np.ndarray:
    """A facade material at `ppm` texels per metre: float32 [h, w, 3]."""
    kind = rng.choice(4, p=[0.3, 0.25, 0.25, 0.2])
    if kind == 0:
        return masonry(rng, noise, shape, pick(rng, BRICKS),
                       Courses(height=0.1 * ppm, width=0.28 * ppm, joint=max(1.0, 0.018 * ppm)))  # fmt: skip
    if kind == 1:
        return plaster(rng, noise, shape, pick(rng, WALLS))
    if kind == 2:
        size = rng.uniform(0.35, 0.6) * ppm
        return masonry(rng, noise, shape, pick(rng, WALLS), Courses(height=size, width=size * rng.uniform(1.5, 2.4),
                       joint=max(1.0, 0.02 * ppm), variation=0.07))  # fmt: skip
    size = rng.uniform(0.18, 0.3) * ppm
    return masonry(rng, noise, shape, pick(rng, STONES), Courses(height=size, width=size * rng.uniform(1.3, 2.0),
                   joint=max(1.0, 0.03 * ppm), variation=0.17, bond=0.37))  # fmt: skip


def paving(rng: np.random.Generator, noise: NoiseBank, metres: float) -> np.ndarray:
    """A tileable floor, SIZE x SIZE texels over `metres`: float32 [SIZE, SIZE, 3]."""
    shape, ppm = (SIZE, SIZE), SIZE / metres
    size = rng.choice([0.16, 0.3, 0.5]) * ppm
    rows = max(4, 2 * round(SIZE / size / 2))
    columns = max(4, round(rows / rng.choice([1.0, 1.0, 1.6])))
    courses = Courses(height=SIZE / rows, width=SIZE / columns, joint=max(1.0, 0.016 * ppm), variation=0.13,
                      bond=float(rng.choice([0.0, 0.5])))  # fmt: skip
    result = masonry(rng, noise, shape, pick(rng, STONES), courses)
    dirt = 1 + 0.12 * noise.crop(rng, noise.coarse, shape) + 0.08 * noise.crop(rng, noise.medium, shape)
    dirt -= 0.3 * (noise.crop(rng, noise.medium, shape) > 2.2)
    return np.asarray(np.clip(result * dirt[..., None], 0, 1), dtype=np.float32)


def soil(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int]) -> np.ndarray:
    """Grass, gravel and earth mixed by fractal masks: float32 [h, w, 3]."""
    first, second = pick(rng, SOILS), pick(rng, SOILS)
    mix = 1 / (1 + np.exp(-4 * (noise.crop(rng, noise.coarse, shape) + 0.5 * noise.crop(rng, noise.medium, shape))))
    grain = 1 + 0.22 * noise.crop(rng, noise.fine, shape) + 0.12 * noise.crop(rng, noise.medium, shape)
    stones = noise.crop(rng, noise.fine, shape) + 0.4 * noise.crop(rng, noise.medium, shape) > 2.1
    result = (mix[..., None] * first + (1 - mix[..., None]) * second) * np.maximum(grain, 0.1)[..., None]
    result[stones] = result[stones] * 0.4 + 0.32
    return np.asarray(np.clip(result, 0, 1), dtype=np.float32)


def wood(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], plank: float) -> np.ndarray:
    """Horizontal planks of height `plank` texels with grain along them: float32 [h, w, 3]."""
    colour = pick(rng, WOODS)
    courses = Courses(height=plank, width=plank * 9, joint=1.2, bond=0.31, variation=0.14, bevel=0.05)
    fibre = noise.streaks(rng, (shape[1], shape[0]), 14).T
    result = masonry(rng, noise, shape, colour, courses) * (1 + 0.16 * fibre)[..., None]
    return np.asarray(np.clip(result, 0, 1), dtype=np.float32)


def roof(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], ppm: float) -> np.ndarray:
    """Roof tiles or slates, darker towards the lower edge of each row: float32 [h, w, 3]."""
    colour = pick(rng, BRICKS if rng.random() < 0.6 else STONES) * np.float32(0.85)
    size = rng.uniform(0.22, 0.32) * ppm
    courses = Courses(height=size, width=size * 0.8, joint=1.3, variation=0.2, bevel=0.22)
    return weather(rng, noise, masonry(rng, noise, shape, colour, courses), 1.0)


def cloth(rng: np.random.Generator, noise: NoiseBank) -> np.ndarray:
    """Striped awning cloth with folds and stains: float32 [96, 192, 3]."""
    shape = (96, 192)
    first = pick(rng, WALLS)
    second = (rng.uniform(0.12, 0.5) * (1 + rng.normal(0, 0.15, 3))).astype(np.float32)
    stripes = np.where((np.arange(shape[1]) // 16 % 2)[None, :, None] > 0, first, second)
    worn = 1 + 0.1 * noise.crop(rng, noise.medium, shape) + 0.05 * noise.crop(rng, noise.fine, shape)
    return np.asarray(stripes * worn[..., None], dtype=np.float32)
