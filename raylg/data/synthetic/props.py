"""What stands in front of buildings: trees, lamps, statues, stalls, furniture; and passers-by as image sprites."""

from __future__ import annotations

import cv2
import numpy as np

from raylg.data.synthetic.buildings import STONE, UP, add_column
from raylg.data.synthetic.materials import wood
from raylg.data.synthetic.mesh import FOLIAGE, MeshBuilder
from raylg.data.synthetic.noise import NoiseBank


def leaves(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder) -> int:
    """Texture of a leafy branch with holes."""
    size = 320
    shape = (size, size)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    rim = np.sqrt(x * x + y * y) + 0.16 * noise.crop(rng, noise.medium, shape)
    density = noise.crop(rng, noise.medium, shape) + 0.7 * noise.crop(rng, noise.fine, shape)
    alpha = ((rim < 0.92) & (density > -0.75 + 0.9 * np.maximum(rim, 0) ** 3)).astype(np.float32)
    green = np.array([rng.uniform(0.16, 0.3), rng.uniform(0.22, 0.3), rng.uniform(0.1, 0.17)], dtype=np.float32)
    light = 1 + 0.3 * noise.crop(rng, noise.fine, shape) + 0.35 * noise.crop(rng, noise.medium, shape) - 0.25 * y
    albedo = np.maximum(light, 0.15)[..., None] * green
    return builder.add_texture(np.clip(albedo, 0, 1).astype(np.float32), alpha)


def nature(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder) -> tuple[int, int]:
    """Textures of leaves and bark, for `add_tree`."""
    bark = wood(rng, noise, (160, 160), 9).transpose(1, 0, 2)
    return leaves(rng, noise, builder), builder.add_texture(bark * np.float32(0.7))


def add_tree(rng: np.random.Generator, builder: MeshBuilder, textures: tuple[int, int], foot: np.ndarray) -> None:
    """A trunk with a crown of crossed leaf cards; textures = (leaves, bark)."""
    height = rng.uniform(4, 9)
    radius = height * rng.uniform(0.2, 0.3)
    trunk = 0.05 * height
    frame = np.stack([foot - [trunk / 2, trunk / 2, 0.2], [trunk, 0, 0], [0, trunk, 0]])
    builder.box(frame, height * 0.7, textures[1], 3.0)
    centre = foot + UP * (height - radius)
    for _ in range(9):
        offset = rng.normal(0, 0.45, 3) * radius
        angle, tilt = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4)
        side = rng.uniform(1.0, 1.7) * radius
        u = side * np.array([np.cos(angle), np.sin(angle), 0])
        v = -side * np.array([-np.sin(tilt) * np.sin(angle), np.sin(tilt) * np.cos(angle), np.cos(tilt)])
        builder.quad(np.stack([centre + offset - (u + v) / 2, u, v]), textures[0], (0, 0, 1, 1), FOLIAGE)


def add_lamp(builder: MeshBuilder, texture: int, foot: np.ndarray) -> None:
    """A street lamp."""
    builder.box(np.stack([foot - [0.06, 0.06, 0], [0.12, 0, 0], [0, 0.12, 0]]), 4.0, texture, STONE)
    builder.box(np.stack([foot - [0.2, 0.2, 0], [0.4, 0, 0], [0, 0.4, 0]]), 0.5, texture, STONE)
    builder.box(np.stack([foot + np.array([-0.18, -0.18, 4.0]), [0.36, 0, 0], [0, 0.36, 0]]), 0.5, texture, STONE)


def add_monument(rng: np.random.Generator, builder: MeshBuilder, texture: int, foot: np.ndarray) -> None:
    """Steps, a plinth and a column or an obelisk of blocks."""
    side, z = rng.uniform(2.5, 4), 0.0
    for step in (0.25, 0.25, rng.uniform(0.8, 1.4)):
        base = foot + np.array([-side / 2, -side / 2, z])
        builder.box(np.stack([base, [side, 0, 0], [0, side, 0]]), step, texture, STONE)
        side, z = side * 0.78, z + step
    if rng.random() < 0.5:
        add_column(builder, texture, foot + UP * z, side * 0.25, rng.uniform(3, 6))
        return
    for _ in range(int(rng.integers(2, 5))):
        side, tall = side * rng.uniform(0.6, 0.95), rng.uniform(0.5, 1.3)
        base = foot + np.array([-side / 2, -side / 2, z])
        builder.box(np.stack([base, [side, 0, 0], [0, side, 0]]), tall, texture, STONE)
        z += tall


def add_stall(rng: np.random.Generator, builder: MeshBuilder, textures: tuple[int, int], foot: np.ndarray) -> None:
    """A market stall: table, posts and a pitched canopy; textures = (goods, cloth)."""
    width, depth = rng.uniform(2, 3.2), 1.6
    builder.box(np.stack([foot, [width, 0, 0], [0, depth * 0.7, 0]]), 0.9, textures[0], 0.0)
    for x in (0.0, width - 0.06):
        for y in (0.0, depth):
            builder.box(np.stack([foot + np.array([x, y, 0.0]), [0.06, 0, 0], [0, 0.06, 0]]), 2.1, textures[1], 0.0)
    ridge = foot + np.array([-0.2, depth / 2, 2.6])
    for y in (-0.3, depth + 0.3):
        eave = np.array([0, y - depth / 2, -0.5])
        builder.quad(np.stack([ridge, [width + 0.4, 0, 0], eave]), textures[1])
        skirt = np.stack([ridge + eave, [width + 0.4, 0, 0], -0.3 * UP])
        builder.quad(skirt, textures[1], (0, 0, 1, 0.3))


def painting(rng: np.random.Generator, noise: NoiseBank, size: tuple[int, int]) -> np.ndarray:
    """A framed picture of invented landscape and shapes: float32 [h, w, 3] of `size` (h, w)."""
    height, width = size
    sky = rng.uniform(0.3, 0.8) * (1 + rng.normal(0, 0.12, 3))
    land = rng.uniform(0.08, 0.5) * (1 + rng.normal(0, 0.15, 3))
    horizon = height * rng.uniform(0.35, 0.7) + 0.08 * height * noise.crop(rng, noise.coarse, (1, width))
    mix = (np.arange(height)[:, None] > horizon).astype(np.float32)[..., None]
    canvas = ((1 - mix) * sky + mix * land) * (1 + 0.25 * noise.crop(rng, noise.medium, size))[..., None]
    canvas = np.ascontiguousarray(canvas, dtype=np.float32)
    for _ in range(int(rng.integers(8, 30))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(2, max(3, width // 6))), int(rng.integers(2, max(3, height // 5))))
        colour = tuple(float(v) for v in rng.uniform(0.05, 0.8) * (1 + rng.normal(0, 0.15, 3)))
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    canvas *= (1 + 0.12 * noise.crop(rng, noise.fine, size))[..., None]
    border = max(3, min(size) // 12)
    tone = rng.uniform(0.15, 0.55)
    cv2.rectangle(canvas, (0, 0), (width - 1, height - 1), (tone, tone * 0.85, tone * 0.6), 2 * border)
    cv2.rectangle(canvas, (border, border), (width - 1 - border, height - 1 - border), (0.1, 0.08, 0.06), 1)
    return np.clip(canvas, 0, 1)


def shelf(rng: np.random.Generator, noise: NoiseBank, size: tuple[int, int]) -> np.ndarray:
    """A full bookshelf: float32 [h, w, 3] of `size` (h, w)."""
    height, width = size
    canvas = np.full((height, width, 3), 0.05, np.float32)
    pitch = height // int(rng.integers(4, 7))
    palette = rng.uniform(0.08, 0.5, (7, 1)) * (1 + rng.normal(0, 0.09, (7, 3)))
    for top in range(0, height - pitch + 1, pitch):
        x = 3
        while x < width - 8:
            w, h = int(rng.integers(4, 12)), int(pitch * rng.uniform(0.6, 0.88))
            spine = canvas[top + pitch - 4 - h : top + pitch - 4, x : x + w]
            spine[:] = palette[int(rng.integers(7))] * rng.uniform(0.7, 1.3)
            spine[h // 5 : h // 5 + 2] *= 1.7
            spine[int(h * 0.8) : int(h * 0.8) + 1] *= 1.5
            spine[:, :1] *= 0.5
            x += w + int(rng.random() < 0.1) * 6
        canvas[top + pitch - 4 : top + pitch] = (0.36, 0.27, 0.18)
    canvas[:, :4], canvas[:, -4:], canvas[:4] = (0.33, 0.25, 0.17), (0.33, 0.25, 0.17), (0.33, 0.25, 0.17)
    return np.clip(canvas * (1 + 0.08 * noise.crop(rng, noise.fine, size))[..., None], 0, 1).astype(np.float32)


def person(rng: np.random.Generator, noise: NoiseBank) -> tuple[np.ndarray, np.ndarray]:
    """A passer-by: albedo float32 [256, 96, 3] and alpha float32 [256, 96], 1.75 m high."""
    shape = (256, 96)
    body = np.zeros(shape, np.uint8)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    coat = rng.uniform(0.04, 0.5) * (1 + rng.normal(0, 0.1, 3))
    legs = rng.uniform(0.04, 0.3) * np.array([0.9, 0.95, 1.1])
    skin = rng.uniform(0.25, 0.6) * np.array([1.15, 0.9, 0.75])
    hair = rng.uniform(0.6, 3) * np.array([0.12, 0.09, 0.07])
    stride, lean = int(rng.integers(2, 16)), int(rng.integers(-4, 5))

    def limb(points: list[tuple[int, int]], thickness: int, colour: np.ndarray) -> None:
        mask = np.zeros(shape, np.uint8)
        cv2.polylines(mask, [np.array(points)], False, 1, thickness, cv2.LINE_AA)
        parts.append((mask, colour))

    limb([(44, 140), (46 - stride, 195), (42 - stride, 246)], 15, legs)
    limb([(52, 140), (50 + stride, 195), (55 + stride, 246)], 15, legs * 0.8)
    limb([(48 + lean, 62), (48, 142)], 36, coat)
    limb([(32 + lean, 62), (25 - lean, 100), (29 + lean, 136)], 11, coat * 0.85)
    limb([(64 + lean, 62), (71 + lean, 100), (66, 136)], 11, coat * 0.9)
    limb([(48 + lean, 40), (48 + lean, 50)], 11, skin)
    limb([(48 + lean, 24), (48 + lean, 30)], 21, skin)
    limb([(46 + lean, 17), (50 + lean, 20)], 18, hair)
    if rng.random() < 0.5:
        limb([(68, 92), (70, 128)], 20, rng.uniform(0.05, 0.35) * (1 + rng.normal(0, 0.12, 3)))
    albedo = np.zeros((*shape, 3), np.float32)
    for mask, colour in parts:
        albedo[mask > 0] = colour
        body |= mask
    # Round volumes: bright towards the light, dark at the outline, with folds.
    depth = cv2.distanceTransform((body > 0).astype(np.uint8), cv2.DIST_L2, 3)
    relief = np.minimum(depth / 9, 1)
    folds = 0.22 * noise.crop(rng, noise.medium, shape) + 0.08 * noise.crop(rng, noise.fine, shape)
    side = rng.choice([-1, 1]) * cv2.Sobel(cv2.GaussianBlur(depth, (0, 0), 3), cv2.CV_32F, 1, 0) * 0.06
    albedo *= np.maximum(0.55 + 0.45 * relief + side + folds, 0.2)[..., None]
    return np.clip(albedo, 0, 1), (body > 0).astype(np.float32)
