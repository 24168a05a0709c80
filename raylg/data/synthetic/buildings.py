"""Buildings: facades set up in space with recesses, roofs, balconies, columns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raylg.data.synthetic.facade import Facade, make_facade
from raylg.data.synthetic.materials import STONES, WALLS, Courses, cloth, masonry, pick, roof, weather
from raylg.data.synthetic.mesh import SOLID, WHOLE, MeshBuilder, Surface
from raylg.data.synthetic.noise import NoiseBank

UP = np.array([0.0, 0.0, 1.0])
STRIP = (0.0, 0.0, 0.06, 1.0)
"""Texture window of a reveal."""
STONE = 6.0
"""Metres covered by the ashlar texture."""
NARROW = Surface(solid=True, max_side=np.inf)


@dataclass(frozen=True)
class Kit:
    """Textures that the buildings of one scene share."""

    facades: tuple[Facade, ...]
    stone: int
    """Ashlar, STONE metres wide and high, for columns, cornices and reveals."""
    roof: int
    """6 m wide and high."""
    railing: int
    """One metre of iron or stone balustrade, with holes."""
    cloth: int
    """Awnings."""


@dataclass(frozen=True)
class Site:
    """Where a facade stands: seen from outside, `along` points to the right and `out` towards the viewer."""

    corner: np.ndarray
    """Lower left corner, float64 [3]."""
    along: np.ndarray
    """Unit vector, horizontal."""

    @property
    def out(self) -> np.ndarray:
        """Outward unit normal."""
        return np.asarray(np.cross(self.along, UP))

    def at(self, x: float, z: float, out: float = 0.0) -> np.ndarray:
        """Point `x` metres along, `z` up and `out` in front of the wall."""
        return np.asarray(self.corner + x * self.along + z * UP + out * self.out)


def make_kit(
    rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder, num_facades: int, floors: tuple[int, int] = (3, 5)
) -> Kit:
    """Paint the textures of a scene; facades have between floors[0] and floors[1] floors."""
    facades = [
        make_facade(rng, noise, builder, int(rng.integers(4, 8)), int(rng.integers(floors[0], floors[1] + 1)))
        for _ in range(num_facades)
    ]
    courses = Courses(height=26, width=52, joint=1.2, variation=0.08)
    stone = weather(rng, noise, masonry(rng, noise, (416, 416), pick(rng, STONES + WALLS), courses), 1.3)
    return Kit(
        tuple(facades),
        builder.add_texture(stone),
        builder.add_texture(roof(rng, noise, (300, 300), 50)),
        builder.add_texture(*_railing(rng)),
        builder.add_texture(cloth(rng, noise)),
    )


def add_building(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, facade: Facade, site: Site) -> None:
    """A building of 6-12 m depth behind the facade, with roof and the extras that chance gives it."""
    depth, recess = rng.uniform(6, 12), rng.uniform(0.15, 0.45)
    add_front(builder, kit, facade, site, recess)
    up, width, height = UP * facade.height, facade.width, facade.height
    for x, sign in ((0.0, -1.0), (width, 1.0)):
        start = site.at(x, height) if sign > 0 else site.at(x, height, -depth)
        share = min(1.0, depth / width)
        builder.quad(np.stack([start, -sign * depth * site.out, -up]), facade.plain, (0, 0, share, 1), SOLID)
    _roof(rng, builder, kit, (facade, site, depth))
    cornice = rng.uniform(0.25, 0.6)
    ledge = np.stack([site.at(-0.1, height - 0.05), site.along * (width + 0.2), site.out * cornice])
    builder.box(ledge, 0.35, kit.stone, STONE)
    chance = rng.random()
    if chance < 0.4:
        _balconies(rng, builder, kit, facade, site)
    elif chance < 0.65:
        _pilasters(rng, builder, kit, facade, site)
    elif chance < 0.85:
        _awnings(rng, builder, kit, facade, site)


def add_front(builder: MeshBuilder, kit: Kit, facade: Facade, site: Site, recess: float) -> None:
    """The wall with its holes, the panes `recess` metres behind it and the reveals in between."""
    height = facade.height
    up, right = UP * height, site.along * facade.width
    whole = (0.0, 0.0, 1.0, 1.0)
    builder.quad(np.stack([site.at(0, facade.height), right, -up]), facade.wall, whole, SOLID)
    builder.quad(np.stack([site.at(0, facade.height, -recess), right, -up]), facade.panes, whole, SOLID)
    inwards = -site.out * recess
    for row in facade.rows:
        # Sills and lintels run over the whole width behind the wall: they show in the holes only.
        for y in (row.top, row.bottom):
            frame = np.stack([site.at(0, height - y), right, inwards])
            builder.quad(frame, kit.stone, (0, 0, 1, 0.06), WHOLE)
    for columns, top, bottom in _shafts(facade):
        for left, end in columns:
            drop = UP * (top - bottom)
            builder.quad(np.stack([site.at(left, height - top, -recess), -inwards, drop]), kit.stone, STRIP, NARROW)
            builder.quad(np.stack([site.at(end, height - top), inwards, drop]), kit.stone, STRIP, NARROW)


def _shafts(facade: Facade) -> list[tuple[tuple[tuple[float, float], ...], float, float]]:
    """Columns of openings with top and bottom; floors with equal openings are taken together."""
    shafts: list[tuple[tuple[tuple[float, float], ...], float, float]] = []
    for row in facade.rows:
        if shafts and shafts[-1][0] == row.columns:
            shafts[-1] = (row.columns, shafts[-1][1], row.bottom)
        else:
            shafts.append((row.columns, row.top, row.bottom))
    return shafts


def add_column(builder: MeshBuilder, texture: int, foot: np.ndarray, radius: float, height: float) -> None:
    """An eight-sided column standing on `foot`, with plinth and capital."""
    angles = np.arange(8) * np.pi / 4
    ring = radius * np.stack([np.cos(angles), np.sin(angles), np.zeros(8)], axis=1)
    for index in range(8):
        start, end = ring[index], ring[(index + 1) % 8]
        s0, count = 0.11 * index, int(np.ceil(height / STONE))
        for k in range(count):
            part = height / count
            frame = np.stack([foot + start + UP * (height - k * part), end - start, -UP * part])
            builder.quad(frame, texture, (s0, 0, s0 + 0.06, part / STONE), SOLID)
    side = 2.6 * radius
    for z, thick in ((0.0, 0.3), (height - 0.25, 0.25)):
        base = foot + np.array([-side / 2, -side / 2, z])
        builder.box(np.stack([base, [side, 0, 0], [0, side, 0]]), thick, texture, STONE)


def _roof(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, place: tuple[Facade, Site, float]) -> None:
    facade, site, depth = place
    rise = rng.uniform(1.5, 4)
    slope = UP * -rise + site.out * depth / 2
    span = float(np.linalg.norm(slope))
    ridge = site.at(0, facade.height + 0.3 + rise, -depth / 2)
    step = facade.width / max(1, round(facade.width / 5))
    for k in range(round(facade.width / step)):
        frame = np.stack([ridge + k * step * site.along, step * site.along, slope])
        builder.quad(frame, kit.roof, (0, 0, min(1.0, step / 6), min(1.0, span / 6)), SOLID)
    for x in rng.uniform(1, facade.width - 1, int(rng.integers(1, 4))):
        foot = site.at(float(x), facade.height + 0.3 + rise * 0.3, -depth * 0.35)
        builder.box(np.stack([foot, site.along * 0.9, -site.out * 0.7]), rise, kit.stone, STONE)


def _balconies(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, facade: Facade, site: Site) -> None:
    reach = rng.uniform(0.6, 1.1)
    every = int(rng.integers(1, 3))
    for row in facade.rows[:-1][-2:]:
        for left, end in row.columns[::every]:
            width, z = end - left + 0.5, facade.height - row.bottom - 0.12
            floor = np.stack([site.at(left - 0.25, z), site.along * width, site.out * reach])
            builder.box(floor, 0.12, kit.stone, STONE)
            rail = np.stack([site.at(left - 0.25, z + 1.0, reach), site.along * width, -UP * 0.9])
            builder.quad(rail, kit.railing, (0, 0, 1, 1))
            for x in (left - 0.25, left - 0.25 + width):
                side = np.stack([site.at(x, z + 1.0), site.out * reach, -UP * 0.9])
                builder.quad(side, kit.railing, (0, 0, 0.5, 1))


def _pilasters(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, facade: Facade, site: Site) -> None:
    width, reach = rng.uniform(0.3, 0.5), rng.uniform(0.15, 0.4)
    columns = facade.rows[0].columns
    edges = [0.0, *((a[1] + b[0]) / 2 for a, b in pairwise(columns)), facade.width]
    for x in edges:
        base = np.stack([site.at(x - width / 2, 0), site.along * width, site.out * reach])
        builder.box(base, facade.height, kit.stone, STONE)


def _awnings(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, facade: Facade, site: Site) -> None:
    z, drop, reach = facade.height - facade.rows[-1].top, 0.6, rng.uniform(0.9, 1.6)
    for left, end in facade.rows[-1].columns[:: int(rng.integers(1, 3))]:
        width = end - left + 0.6
        frame = np.stack([site.at(left - 0.3, z + 0.2), site.along * width, site.out * reach - UP * drop])
        builder.quad(frame, kit.cloth)
        skirt = np.stack([site.at(left - 0.3, z + 0.2 - drop, reach), site.along * width, -UP * 0.25])
        builder.quad(skirt, kit.cloth, (0, 0, 1, 0.2))


def _railing(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Albedo float32 [128, 256, 3] and alpha float32 [128, 256] of a balustrade."""
    size = 128
    alpha = np.zeros((size, 2 * size), np.float32)
    pitch = int(rng.choice([16, 20, 32]))
    for x in range(0, 2 * size, pitch):
        alpha[:, x : x + pitch // 3] = 1
        if pitch > 16:
            alpha[size // 3 : 2 * size // 3, x : x + pitch // 2] = 1
    alpha[:14], alpha[-12:], alpha[size // 2 : size // 2 + 5] = 1, 1, 1
    tone = rng.choice([0.12, 0.5, 0.6]) * (1 + 0.15 * rng.standard_normal((size, 2 * size, 1), dtype=np.float32))
    return np.repeat(tone, 3, axis=2).astype(np.float32), alpha
