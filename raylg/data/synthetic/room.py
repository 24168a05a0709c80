"""Rooms: walls with pictures and shelves, a floor, furniture, columns."""

from __future__ import annotations

import numpy as np

from raylg.data.synthetic.buildings import UP, Site, add_column, add_front, make_kit
from raylg.data.synthetic.materials import STONES, WALLS, Courses, masonry, paving, pick, plaster, weather, wood
from raylg.data.synthetic.mesh import MeshBuilder
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.props import painting, shelf
from raylg.data.synthetic.windows import sign_board


def build_room(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder) -> tuple[float, float, float]:
    """Build a room of x in [-half, half], y in [0, depth], z in [0, height]; returns half, depth, height."""
    half, depth, height = rng.uniform(3.5, 5.0), rng.uniform(8, 11), rng.uniform(3.2, 4.6)
    if rng.random() < 0.5:
        floor = builder.add_texture(paving(rng, noise, 5.0))
    else:
        floor = builder.add_texture(wood(rng, noise, (640, 640), 24))
    paper = builder.add_texture(_wallpaper(rng, noise))
    panels = Courses(height=102.4, width=102.4, joint=3, bond=0, bevel=0.2)
    ceiling = builder.add_texture(masonry(rng, noise, (512, 512), pick(rng, WALLS), panels))
    for texture, z in ((floor, 0.0), (ceiling, height)):
        for x in (-half, 0.0):
            for y in (depth, depth / 2):
                frame = np.array([[x, y, z], [half, 0, 0], [0, -depth / 2, 0]])
                builder.quad(frame, texture, (0, 0, half / 5.001, depth / 11.001))
    walls = (
        Site(np.array([-half, depth, 0.0]), np.array([1.0, 0, 0])),
        Site(np.array([-half, 0.0, 0.0]), np.array([0.0, 1.0, 0])),
        Site(np.array([half, depth, 0.0]), np.array([0.0, -1.0, 0])),
    )
    gallery = rng.random() < 0.35
    for index, (site, width) in enumerate(zip(walls, (2 * half, depth, depth), strict=True)):
        count = int(np.ceil(width / height))
        for k in range(count):
            side = width / count
            frame = np.stack([site.at(k * side, height), site.along * side, -UP * height])
            builder.quad(frame, paper, (0, 0, min(1.0, side / height), 1))
        if index or not gallery:
            _hang(rng, noise, builder, (site, width, height))
    if gallery:  # an arcade before the end wall
        kit = make_kit(rng, noise, builder, 1, (1, 1))
        facade = kit.facades[0]
        add_front(builder, kit, facade, Site(np.array([-facade.width / 2, depth - 0.8, 0.0]), walls[0].along), 0.4)
    _furnish(rng, noise, builder, (half, depth, height))
    return half, depth, height


def _wallpaper(rng: np.random.Generator, noise: NoiseBank) -> np.ndarray:
    """Plaster, bricks or a printed pattern above a dado, for the height of a room: float32 [512, 512, 3]."""
    shape, colour = (512, 512), pick(rng, WALLS)
    kind = rng.integers(3)
    if kind == 0:
        base = plaster(rng, noise, shape, colour)
    elif kind == 1:
        base = masonry(rng, noise, shape, pick(rng, STONES), Courses(height=32, width=64, joint=2))
    else:
        size = int(rng.choice([32, 64]))
        pattern = np.tile(noise.motif(rng, size), (512 // size, 512 // size))
        base = (1 + 0.25 * pattern + 0.03 * noise.crop(rng, noise.fine, shape))[..., None] * colour
    dado = wood(rng, noise, (512, 150), 24).transpose(1, 0, 2)
    base[-150:] = dado
    base[-158:-150] = colour * 0.5
    return weather(rng, noise, base.astype(np.float32), 0.7)


def _hang(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder, place: tuple[Site, float, float]) -> None:
    """Pictures and shelves on a wall, each a few centimetres in front of it or a box."""
    site, width, height = place
    x = rng.uniform(0.2, 0.6)
    repeated = builder.add_texture(shelf(rng, noise, (300, 200)))
    while x < width - 1.2:
        if rng.random() < 0.4:
            w = min(1.3, width - x)
            frame = np.stack([site.at(x, 0, 0.0), site.along * w, site.out * 0.35])
            builder.box(frame, min(2.1, height - 0.5), repeated, 0.0)
        else:
            w, h = rng.uniform(0.6, 1.5), rng.uniform(0.6, 1.3)
            w = min(w, width - x - 0.1)
            picture = builder.add_texture(painting(rng, noise, (int(h * 180), int(w * 180))))
            z = rng.uniform(1.6, 1.9) + h / 2
            builder.quad(np.stack([site.at(x, z, 0.04), site.along * w, -UP * h]), picture)
        x += w + rng.uniform(0.15, 0.9)


def _furnish(
    rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder, size: tuple[float, float, float]
) -> None:
    half, depth, height = size
    timber = builder.add_texture(wood(rng, noise, (256, 256), 30))
    courses = Courses(height=26, width=52, joint=1)
    stone = builder.add_texture(weather(rng, noise, masonry(rng, noise, (416, 416), pick(rng, STONES), courses), 1.0))
    rug = builder.add_texture(painting(rng, noise, (300, 420)))
    carton = builder.add_texture(weather(rng, noise, sign_board(rng, (128, 160)), 1.0))
    builder.quad(np.array([[-1.6, depth * 0.75, 0.012], [3.2, 0, 0], [0, -2.2, 0]]), rug)
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.uniform(-half + 0.6, half - 1.8), rng.uniform(depth * 0.5, depth - 1.4)
        w, d, h = rng.uniform(0.8, 1.6), rng.uniform(0.6, 0.9), rng.uniform(0.7, 0.85)
        builder.box(np.array([[x, y, h - 0.08], [w, 0, 0], [0, d, 0]]), 0.08, timber, 2.0)
        for dx in (0.0, w - 0.07):
            for dy in (0.0, d - 0.07):
                builder.box(np.array([[x + dx, y + dy, 0], [0.07, 0, 0], [0, 0.07, 0]]), h - 0.08, timber, 2.0)
        for _ in range(int(rng.integers(1, 4))):
            side = rng.uniform(0.12, 0.35)
            base = [x + rng.uniform(0, w - side), y + rng.uniform(0, d - side), h]
            builder.box(np.array([base, [side, 0, 0], [0, side, 0]]), side * rng.uniform(0.6, 1.6), carton)
    if rng.random() < 0.75:
        for x in (-half * 0.55, half * 0.55):
            for y in (depth * 0.6, depth * 0.85):
                add_column(builder, stone, np.array([x, y, 0.0]), rng.uniform(0.16, 0.26), height)
