"""Facades: a wall with a grid of openings, as a texture with holes, a texture of panes and the lines of the reveals."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raylg.data.synthetic.materials import WALLS, pick, wall, weather
from raylg.data.synthetic.mesh import MeshBuilder
from raylg.data.synthetic.noise import NoiseBank
from raylg.data.synthetic.windows import Bay, door_bay, panes, sign_board, window_bay

PPM = 52.0
"""Texels per metre of facade textures."""


@dataclass(frozen=True)
class Row:
    """The openings of one floor, in metres from the top left of the facade."""

    top: float
    bottom: float
    columns: tuple[tuple[float, float], ...]
    """Left and right of each opening."""


@dataclass(frozen=True)
class Facade:
    """A facade design whose textures stand in a mesh builder; lengths in metres, y down from the top edge."""

    width: float
    height: float
    wall: int
    """Texture with holes."""
    panes: int
    plain: int
    """Texture of the same wall without openings."""
    rows: tuple[Row, ...]
    """Openings, from the top floor to the ground."""


@dataclass
class _Canvas:
    """Textures under construction, all of the facade's size in texels."""

    albedo: np.ndarray
    alpha: np.ndarray
    glass: np.ndarray


def make_facade(rng: np.random.Generator, noise: NoiseBank, builder: MeshBuilder, bays: int, floors: int) -> Facade:
    """Paint a facade of `bays` x `floors` openings, the ground floor with doors or shops."""
    bay_width, floor_height = rng.uniform(1.9, 3.0), rng.uniform(2.9, 3.6)
    cell = (round(floor_height * PPM), round(bay_width * PPM))
    margin = round(rng.uniform(0.3, 0.8) * PPM)
    parapet = round(0.7 * PPM)
    shape = (floors * cell[0] + parapet, bays * cell[1] + 2 * margin)
    base = weather(rng, noise, wall(rng, noise, shape, PPM), 1.0)
    canvas = _Canvas(base.copy(), np.ones(shape, np.float32), np.full((*shape, 3), 0.06, np.float32))
    styles = [window_bay(rng, noise, cell, PPM) for _ in range(2)]
    grid = (int(rng.integers(1, 4)), int(rng.integers(2, 5)))
    rows = []
    for floor in range(floors):
        top = parapet + floor * cell[0]
        bay = door_bay(rng, noise, cell, PPM) if floor == floors - 1 else styles[int(floor == 0)]
        for column in range(bays):
            _paint_bay(rng, noise, canvas, bay, (top, margin + column * cell[1], *grid))
        x0, y0, x1, y1 = bay.opening
        starts = [margin + column * cell[1] for column in range(bays)]
        columns = tuple(((start + x0) / PPM, (start + x1) / PPM) for start in starts)
        rows.append(Row((top + y0) / PPM, (top + y1) / PPM, columns))
    _bands(rng, noise, canvas, [parapet + floor * cell[0] for floor in range(floors)])
    _clutter(rng, canvas)
    dirty = weather(rng, noise, canvas.albedo, 1.2)
    return Facade(
        shape[1] / PPM,
        shape[0] / PPM,
        builder.add_texture(dirty, canvas.alpha),
        builder.add_texture(canvas.glass),
        builder.add_texture(base),
        tuple(rows),
    )


def _paint_bay(
    rng: np.random.Generator, noise: NoiseBank, canvas: _Canvas, bay: Bay, place: tuple[int, int, int, int]
) -> None:
    """Paint one bay at place = (top, left, glazing columns, glazing rows)."""
    top, left, *grid = place
    height, width = bay.cover.shape
    part = np.s_[top : top + height, left : left + width]
    cover = bay.cover[..., None]
    worn = 1 + 0.06 * noise.crop(rng, noise.medium, (height, width))[..., None]
    canvas.albedo[part] = canvas.albedo[part] * (1 - cover) + bay.paint * cover * worn
    canvas.albedo[part] *= bay.shade[..., None]
    # Rain carries dirt down from the ends of the sill.
    x0, y0, x1, y1 = bay.opening
    for x in (x0 - 3, x1 + 3):
        stain = canvas.albedo[top + y1 : top + y1 + int(height * rng.uniform(0.1, 0.6)), left + x - 2 : left + x + 2]
        stain *= rng.uniform(0.7, 1.0)
    if rng.random() < 0.08:  # walled up or closed: no recess
        canvas.albedo[part][bay.hole] = pick(rng, WALLS) * (0.8 + 0.2 * worn[bay.hole])
        return
    canvas.alpha[part][bay.hole] = 0
    pad = 2
    glass = panes(rng, noise, (y1 - y0 + 2 * pad, x1 - x0 + 2 * pad), (grid[0], grid[1]))
    target = canvas.glass[top + y0 - pad : top + y1 + pad, left + x0 - pad : left + x1 + pad]
    target[:] = glass[: target.shape[0], : target.shape[1]]


def _bands(rng: np.random.Generator, noise: NoiseBank, canvas: _Canvas, tops: list[int]) -> None:
    """String courses with a repeated ornament at the floor lines, a cornice on top, quoins at the corners."""
    height, width = canvas.alpha.shape
    stone = pick(rng, WALLS)
    size = max(6, round(rng.uniform(0.16, 0.32) * PPM))
    strip = np.tile(1 + 0.45 * noise.motif(rng, size), (1, width // size + 1))[:, :width]
    if rng.random() < 0.4:
        strip = np.tile(np.where(np.arange(width) % size < size // 2, 1.1, 0.6), (size, 1))
    band = strip[..., None] * stone
    for top in tops[: 1 if rng.random() < 0.3 else len(tops)]:
        start = max(0, top - size // 2)
        canvas.albedo[start : start + size] = band * (0.9 + 0.1 * canvas.albedo[start : start + size])
        canvas.albedo[start + size : start + size + 5] *= np.linspace(0.5, 1, 5, dtype=np.float32)[:, None, None]
    canvas.albedo[:size] = band
    if rng.random() < 0.6:
        step, block = round(0.36 * PPM), round(0.5 * PPM)
        for index, y in enumerate(range(size, height - step, step)):
            reach = block if index % 2 else round(block * 0.6)
            tone = stone * np.float32(rng.uniform(0.85, 1.1))
            for part in (np.s_[y : y + step - 2, :reach], np.s_[y : y + step - 2, width - reach :]):
                canvas.albedo[part] = canvas.albedo[part] * 0.3 + 0.7 * tone


def _clutter(rng: np.random.Generator, canvas: _Canvas) -> None:
    """What is fixed to walls later: pipes, cables, plates, graffiti. Not drawn over openings."""
    height, width = canvas.alpha.shape
    layer = canvas.albedo.copy()
    for _ in range(int(rng.integers(0, 3))):
        x = int(rng.integers(4, width - 6))
        cv2.line(layer, (x, 0), (x, height), [float(v) for v in rng.uniform(0.15, 0.35, 1).repeat(3)], 4)
        cv2.line(layer, (x + 3, 0), (x + 3, height), (0.1, 0.1, 0.1), 2)
    for _ in range(int(rng.integers(2, 7))):
        w, h = int(rng.integers(14, 70)), int(rng.integers(12, 50))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(height // 2, height - h))
        layer[y : y + h, x : x + w] = sign_board(rng, (h, w))
    for _ in range(int(rng.integers(0, 4))):
        start = np.array([rng.integers(0, width), rng.integers(int(height * 0.7), height)])
        steps = np.cumsum(rng.normal(0, 14, (12, 2)), axis=0)
        ink = tuple(float(v) for v in rng.uniform(0.05, 0.5, 3))
        cv2.polylines(layer, [(start + steps).astype(np.int32)], False, ink, int(rng.integers(1, 5)), cv2.LINE_AA)
    solid = canvas.alpha > 0.5
    canvas.albedo[solid] = layer[solid]
