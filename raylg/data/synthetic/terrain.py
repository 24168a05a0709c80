"""Terrain: hilly ground with rocks, trees, a row of columns and a half-buried building."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylg.data.synthetic.buildings import STONE, UP, Kit, Site, add_building, add_column, make_kit
from raylg.data.synthetic.materials import soil, weather
from raylg.data.synthetic.mesh import MeshBuilder
from raylg.data.synthetic.noise import SIZE, NoiseBank
from raylg.data.synthetic.props import add_tree, nature

COUNT = 13
"""Cells of the ground along each side."""
SIDE = 3.4
"""Side of a cell in metres."""
NEAREST = -16.0
"""y of the nearest row of nodes."""


@dataclass(frozen=True)
class _Ground:
    heights: np.ndarray
    """float32 [COUNT + 1, COUNT + 1], row along y."""

    def node(self, i: int, j: int) -> np.ndarray:
        return np.array([(i - COUNT / 2) * SIDE, NEAREST + j * SIDE, self.heights[j, i]])

    def at(self, x: float, y: float) -> np.ndarray:
        """A point of the ground, at the height of the nearest node."""
        i, j = round(x / SIDE + COUNT / 2), round((y - NEAREST) / SIDE)
        return np.array([x, y, self.heights[int(np.clip(j, 0, COUNT)), int(np.clip(i, 0, COUNT))]])


def build_terrain(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder) -> float:
    """Build the scene around y = 5; returns the highest ground among the photographers."""
    kit = make_kit(rng, noise, builder, 1, (1, 3))
    step = SIZE // (2 * COUNT)
    relief = noise.crop(rng, noise.coarse, (SIZE, SIZE))[::step, ::step][: COUNT + 1, : COUNT + 1]
    rise = np.maximum(np.linspace(-0.5, 1, COUNT + 1), 0)[:, None] ** 2
    ground = _Ground(0.7 * relief + rng.uniform(2, 5) * rise)
    texture = builder.add_texture(soil(rng, noise, (SIZE, SIZE)))
    for i in range(COUNT):
        for j in range(COUNT):
            a, b, c, d = ground.node(i, j), ground.node(i + 1, j), ground.node(i, j + 1), ground.node(i + 1, j + 1)
            # Four cells share the tileable texture in each direction.
            s, t = (i % 4) / 4, (j % 4) / 4
            builder.triangle(np.stack([a, b - a, c - a]), texture, (s, t, s + 0.25, t + 0.25))
            builder.triangle(np.stack([d, c - d, b - d]), texture, (s + 0.25, t + 0.25, s, t))
    _scatter(rng, noise, builder, ground)
    _ruins(rng, builder, kit, ground)
    return float(ground.heights[:6].max())


def _scatter(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder, ground: _Ground) -> None:
    trees = nature(rng, noise, builder)
    rock = builder.add_texture(weather(rng, noise, soil(rng, noise, (320, 320)), 1.5))
    for _ in range(int(rng.integers(9, 15))):
        foot = ground.at(float(rng.uniform(-11, 11)), float(rng.uniform(-3, 12)))
        if rng.random() < 0.25:
            add_tree(rng, builder, trees, foot)
        else:
            _rock(rng, builder, rock, foot)


def _ruins(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, ground: _Ground) -> None:
    angle = rng.uniform(-0.35, 0.35)
    along = np.array([np.cos(angle), np.sin(angle), 0.0])
    start = ground.at(float(rng.uniform(-10, -5)), float(rng.uniform(8, 12))) - 1.2 * UP
    add_building(rng, builder, kit, kit.facades[0], Site(start, along))
    # A colonnade in front, some of it fallen.
    first = ground.at(float(rng.uniform(-6, -2)), float(rng.uniform(3, 6)))
    pitch, radius, height = rng.uniform(1.6, 2.4), rng.uniform(0.22, 0.38), rng.uniform(2.6, 4.2)
    count = int(rng.integers(4, 8))
    for k in range(count):
        foot = first + k * pitch * along - 0.2 * UP
        foot[2] = first[2] - 0.2
        add_column(builder, kit.stone, foot, radius, height * (1.0 if rng.random() < 0.75 else rng.uniform(0.2, 0.7)))
    beam = np.stack([first + (height - 0.2) * UP - 0.3 * along, (count // 2 * pitch) * along, [0.0, 0.5, 0.0]])
    builder.box(beam, 0.45, kit.stone, STONE)


def _rock(rng: np.random.Generator, builder: MeshBuilder, texture: int, foot: np.ndarray) -> None:
    """An irregular boulder of 18 triangles."""
    size, corners = rng.uniform(0.4, 1.6), 6
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(corners)], axis=1)
    low = foot + size * circle * rng.uniform(0.8, 1.1, (corners, 1)) - 0.3 * UP
    high = foot + size * circle * rng.uniform(0.4, 0.8, (corners, 1)) + size * rng.uniform(0.3, 0.8, (corners, 1)) * UP
    top = foot + size * rng.uniform(0.7, 1.0) * UP
    for k in range(corners):
        n, s = (k + 1) % corners, 0.14 * k
        window = (s, 0.1, s + 0.25, 0.5)
        builder.triangle(np.stack([low[k], low[n] - low[k], high[k] - low[k]]), texture, window)
        builder.triangle(np.stack([high[n], high[k] - high[n], low[n] - high[n]]), texture, window)
        builder.triangle(np.stack([top, high[k] - top, high[n] - top]), texture, (s, 0.5, s + 0.25, 0.8))
