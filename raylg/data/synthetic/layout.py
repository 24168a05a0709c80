"""Layouts: what a scene consists of and where its photographers may stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylg.data.synthetic.buildings import STONE, Kit, Site, add_building, add_column, make_kit
from raylg.data.synthetic.materials import cloth, paving
from raylg.data.synthetic.mesh import Mesh, MeshBuilder
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.props import add_lamp, add_monument, add_stall, add_tree, nature, painting
from raylg.data.synthetic.room import build_room
from raylg.data.synthetic.terrain import build_terrain

KINDS = ("square", "street", "room", "terrain")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A scene before it is photographed. World: x right, y away from the photographers, z up, metres."""

    mesh: Mesh
    target: np.ndarray
    """float64 [3], what most photographers aim at."""
    spread: np.ndarray
    """float64 [3], standard deviation of the other things aimed at."""
    distance: float
    """Typical distance from the target."""
    area: tuple[float, float, float, float]
    """Where photographers stand: x0, x1, y0, y1."""
    eye: tuple[float, float]
    """Lowest and highest eye level."""
    indoor: bool = False


def build_layout(rng: np.random.Generator, noise: NoiseBank, kind: str) -> Layout:
    """Build a scene of one of KINDS."""
    assert kind in KINDS, f"kind {kind!r} of scene; expected one of {KINDS}"
    if kind == "room":
        builder = MeshBuilder()
        half, depth, height = build_room(rng, noise, builder)
        return Layout(
            mesh=builder.build(),
            target=np.array([rng.uniform(-0.8, 0.8), depth - 0.6, height * rng.uniform(0.36, 0.45)]),
            spread=np.array([1.2, 0.8, 0.4]),
            distance=depth * 0.6,
            area=(-half + 0.8, half - 0.8, 0.5, depth - 2.2),
            eye=(1.2, 1.8),
            indoor=True,
        )
    if kind == "terrain":
        builder = MeshBuilder()
        ground = build_terrain(rng, noise, builder)
        return Layout(
            mesh=builder.build(),
            target=np.array([rng.uniform(-2, 2), 4.0, ground + 1.9]),
            spread=np.array([4.0, 3.0, 1.0]),
            distance=13.0,
            area=(-12.0, 12.0, -14.0, -1.0),
            eye=(ground + 1.2, ground + 3.0),
        )
    return _square(rng, noise) if kind == "square" else _street(rng, noise)


def _ground(builder: MeshBuilder, texture: int, area: tuple[float, float, float, float], metres: float) -> None:
    """Pave x0, x1, y0, y1 with a tileable texture of `metres`; half a texture per polygon."""
    side = metres / 2
    x0, y1 = area[0], area[3]
    for i in range(int(np.ceil((area[1] - x0) / side))):
        for j in range(int(np.ceil((y1 - area[2]) / side))):
            s0, t0 = (i % 2) / 2, (j % 2) / 2
            frame = np.array([[x0 + i * side, y1 - j * side, 0.0], [side, 0, 0], [0, -side, 0]])
            builder.quad(frame, texture, (s0, t0, s0 + 0.5, t0 + 0.5))


def _row(rng: np.random.Generator, builder: MeshBuilder, kit: Kit, site: Site, length: float) -> None:
    """A row of buildings along the site, up to about `length` metres."""
    x = 0.0
    # Neighbours differ, though designs come back along the row.
    design = int(rng.integers(len(kit.facades)))
    while x < length:
        design = (design + int(rng.integers(1, len(kit.facades)))) % len(kit.facades)
        facade = kit.facades[design]
        add_building(rng, builder, kit, facade, Site(site.at(x, 0, float(rng.uniform(-0.4, 0.4))), site.along))
        x += facade.width + 0.02


def _square(rng: np.random.Generator, noise: NoiseBank) -> Layout:
    builder = MeshBuilder()
    kit = make_kit(rng, noise, builder, 4)
    paved = builder.add_texture(paving(rng, noise, 10.0))
    _ground(builder, paved, (-30.0, 30.0, -26.0, 4.0), 10.0)
    _row(rng, builder, kit, Site(np.array([rng.uniform(-24, -17), 0, 0]), np.array([1.0, 0, 0])), 40)
    turn = rng.uniform(-0.15, 0.15)
    for side in (-1.0, 1.0):
        along = np.array([np.sin(turn), -side * np.cos(turn), 0.0])
        start = np.array([side * rng.uniform(15, 21), -1.0 if side > 0 else -22.0, 0])
        if rng.random() < 0.8:
            _row(rng, builder, kit, Site(start, along), 16)
    target = np.array([rng.uniform(-4, 4), -0.5, rng.uniform(3.5, 5.5)])
    trees = nature(rng, noise, builder)
    goods = builder.add_texture(painting(rng, noise, (128, 256)))
    canvas = builder.add_texture(cloth(rng, noise))
    for _ in range(int(rng.integers(3, 7))):
        foot = np.array([rng.uniform(-14, 14), rng.uniform(-9, -2.5), 0])
        chance = rng.random()
        if chance < 0.35:
            add_tree(rng, builder, trees, foot)
        elif chance < 0.55:
            add_lamp(builder, kit.stone, foot)
        elif chance < 0.75:
            add_stall(rng, builder, (goods, canvas), foot)
        else:
            add_column(builder, kit.stone, foot, rng.uniform(0.2, 0.4), rng.uniform(2.5, 5))
    if rng.random() < 0.6:
        add_monument(rng, builder, kit.stone, np.array([target[0] + rng.uniform(-3, 3), rng.uniform(-6, -4), 0]))
    return Layout(mesh=builder.build(), target=target, spread=np.array([6.0, 1.0, 1.5]), distance=15.0,
                  area=(-15.0, 15.0, -25.0, -8.0), eye=(1.5, 2.4))  # fmt: skip


def _street(rng: np.random.Generator, noise: NoiseBank) -> Layout:
    builder = MeshBuilder()
    kit = make_kit(rng, noise, builder, 4)
    half = rng.uniform(4.0, 6.5)
    road = builder.add_texture(paving(rng, noise, 8.0))
    _ground(builder, road, (-half - 0.5, half + 0.5, -24.0, 28.0), 8.0)
    along = np.array([0.0, 1.0, 0.0])
    _row(rng, builder, kit, Site(np.array([half, 26.0, 0]), -along), 42)
    _row(rng, builder, kit, Site(np.array([-half, -14.0, 0]), along), 40)
    _row(rng, builder, kit, Site(np.array([-half - 8, 27.0, 0]), np.array([1.0, 0, 0])), 2 * half + 8)
    trees = nature(rng, noise, builder)
    for side in (-1, 1):
        kerb = np.array([[side * (half - 1.4) - 0.1, -24.0, 0], [0.2, 0, 0], [0, 50.0, 0]])
        builder.box(kerb, 0.13, kit.stone, STONE)
        for y in rng.uniform(-8, 22, int(rng.integers(1, 5))):
            foot = np.array([side * (half - rng.uniform(0.8, 1.6)), y, 0])
            if rng.random() < 0.45:
                add_tree(rng, builder, trees, foot)
            else:
                add_lamp(builder, kit.stone, foot)
    aimed = 1.0 if rng.random() < 0.5 else -1.0
    target = np.array([aimed * half * rng.uniform(0.5, 0.9), rng.uniform(4, 10), rng.uniform(2.8, 4.5)])
    return Layout(mesh=builder.build(), target=target, spread=np.array([3.0, 4.0, 1.0]), distance=13.0,
                  area=(-half + 1.8, half - 1.8, -14.0, 4.0), eye=(1.5, 2.2))  # fmt: skip
