"""Bays of a facade: the surround of an opening, the opening itself and the pane behind it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raylg.data.synthetic.materials import WALLS, WOODS, pick, wood
from raylg.data.synthetic.noise import NoiseBank


@dataclass(frozen=True)
class Bay:
    """One cell of the window grid, painted over the wall; all arrays [h, w] of the cell."""

    paint: np.ndarray
    """float32 [h, w, 3]."""
    cover: np.ndarray
    """float32 [h, w]: share of `paint` over the wall."""
    shade: np.ndarray
    """float32 [h, w]: factor on the result (shadows of sills and lintels)."""
    hole: np.ndarray
    """bool [h, w]."""
    opening: tuple[int, int, int, int]
    """Bounding box of the hole: x0, y0, x1, y1 in texels."""


def window_bay(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], ppm: float) -> Bay:
    """A window with frame, sill, lintel and, by chance, shutters, pediment, ornament panel."""
    height, width = shape
    share = rng.uniform(0.34, 0.5)
    x0, x1 = round(width * (0.5 - share / 2)), round(width * (0.5 + share / 2))
    y0, y1 = round(height * rng.uniform(0.2, 0.28)), round(height * rng.uniform(0.74, 0.86))
    bay = _blank(shape, (x0, y0, x1, y1))
    arched = rng.random() < 0.35
    _cut(bay.hole, bay.opening, (x1 - x0) // 2 if arched else 0)
    stone = pick(rng, WALLS) * np.float32(rng.uniform(0.95, 1.2))
    border = max(2, round(ppm * rng.uniform(0.1, 0.2)))
    ring = cv2.dilate(bay.hole.astype(np.uint8), np.ones((2 * border + 1, 2 * border + 1), np.uint8)).astype(bool)
    _fill(bay, ring, stone)
    inner = cv2.dilate(bay.hole.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    bay.shade[ring & ~inner & (np.arange(width)[None] % max(4, border * 3) < 1)] *= 0.8
    bay.shade[inner] *= 0.65
    _ledge(bay, (x0 - 2 * border, y1, x1 + 2 * border, y1 + border), stone)
    if not arched:
        _lintel(rng, bay, stone, border)
    if rng.random() < 0.35:
        _shutters(rng, noise, bay, (x1 - x0) // 2)
    if rng.random() < 0.45:
        _panel(rng, noise, bay, stone)
    return bay


def door_bay(rng: np.random.Generator, noise: NoiseBank, shape: tuple[int, int], ppm: float) -> Bay:
    """A tall opening down to the ground: door, shop window or arch."""
    height, width = shape
    share = rng.uniform(0.45, 0.68)
    x0, x1 = round(width * (0.5 - share / 2)), round(width * (0.5 + share / 2))
    y0 = round(height * rng.uniform(0.2, 0.32))
    bay = _blank(shape, (x0, y0, x1, height))
    _cut(bay.hole, bay.opening, (x1 - x0) // 2 if rng.random() < 0.5 else 0)
    stone = pick(rng, WALLS)
    border = max(3, round(0.22 * ppm))
    ring = cv2.dilate(bay.hole.astype(np.uint8), np.ones((2 * border + 1, 2 * border + 1), np.uint8)).astype(bool)
    _fill(bay, ring, stone)
    # Voussoirs: the joints of the arch point to its centre.
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = np.arctan2(y - y0 - (x1 - x0) / 2, x - width / 2)
    bay.shade[ring & (np.mod(angle * 14 / np.pi, 1) < 0.12)] *= 0.62
    if rng.random() < 0.6:
        _sign(rng, bay, (x0 - border, max(1, y0 - border - height // 7), x1 + border, y0 - border // 2))
    return bay


def panes(rng: np.random.Generator, noise: NoiseBank, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Glass with reflection, curtains and glazing bars: float32 [h, w, 3] of `size` (h, w)."""
    height, width = size
    ramp = np.linspace(1.2, 0.5, height, dtype=np.float32)[:, None]
    cloud = noise.crop(rng, noise.coarse, (height, width))
    glass = (0.10 + 0.05 * rng.random()) * ramp + 0.05 * np.maximum(cloud, 0) ** 2
    pane = np.clip(glass, 0.02, 0.8)[..., None] * np.array([0.9, 1.0, 1.1], dtype=np.float32)
    if rng.random() < 0.55:
        folds = 0.5 + 0.08 * np.sin(np.arange(width) * rng.uniform(0.5, 1.1)) + 0.04 * rng.standard_normal(width)
        drop = int(height * rng.choice([0.35, 0.6, 1.0]))
        tone = (folds.astype(np.float32)[None, :, None] * rng.uniform(0.6, 1.2)) * pick(rng, WALLS)
        left, right = (0, width) if rng.random() < 0.4 else (int(width * 0.28), int(width * 0.72))
        pane[:drop, : left or right] = tone[:, : left or right]
        pane[:drop, right:] = tone[:, right:]
    bar = max(1, width // 22)
    colour = pick(rng, WALLS if grid[0] % 2 else WOODS)
    for i in range(grid[0] + 1):
        x = round(i * (width - bar) / grid[0])
        pane[:, x : x + bar] = colour
        pane[:, x + bar : x + bar + 1] *= 0.6
    for j in range(grid[1] + 1):
        y = round(j * (height - bar) / grid[1])
        pane[y : y + bar] = colour
        pane[y + bar : y + bar + 1] *= 0.6
    return np.asarray(pane * (1 + 0.05 * noise.crop(rng, noise.fine, (height, width)))[..., None], dtype=np.float32)


def sign_board(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A board with a painted word: float32 [h, w, 3] of `size` (h, w)."""
    height, width = size
    ground = rng.uniform(0.05, 0.7) * (1 + rng.normal(0, 0.09, 3))
    board = np.tile(np.clip(ground * 255, 0, 255).astype(np.uint8), (height, width, 1))
    ink = 235 if ground.mean() < 0.35 else 25
    word = "".join(rng.choice(list("AEIOULNRSTBCDMPGKHV"), int(rng.integers(3, 9))))
    font = int(rng.choice([cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX]))
    (text_width, text_height), _ = cv2.getTextSize(word, font, 1.0, 1)
    scale = min(0.85 * width / text_width, 0.6 * height / text_height)
    at = (int((width - scale * text_width) / 2), int((height + scale * text_height) / 2))
    thickness = max(1, round(scale * 1.6))
    cv2.putText(board, word, at, font, scale, (ink, ink, ink), thickness, cv2.LINE_AA)
    cv2.rectangle(board, (1, 1), (width - 2, height - 2), (ink, ink, ink), max(1, height // 30))
    return board.astype(np.float32) / 255


def _blank(shape: tuple[int, int], opening: tuple[int, int, int, int]) -> Bay:
    return Bay(
        np.zeros((*shape, 3), np.float32),
        np.zeros(shape, np.float32),
        np.ones(shape, np.float32),
        np.zeros(shape, bool),
        opening,
    )


def _cut(hole: np.ndarray, box: tuple[int, int, int, int], radius: int) -> None:
    """Cut the box, with a round top of `radius` (0: square)."""
    x0, y0, x1, y1 = box
    hole[y0 + radius : y1, x0:x1] = True
    if radius:
        disc = np.zeros(hole.shape, np.uint8)
        cv2.ellipse(disc, ((x0 + x1) // 2, y0 + radius), (radius, radius), 0, 180, 360, 1, -1)
        disc[:, :x0], disc[:, x1:] = 0, 0
        hole |= disc.astype(bool)


def _fill(bay: Bay, mask: np.ndarray, colour: np.ndarray) -> None:
    bay.paint[mask] = colour
    bay.cover[mask] = 0.9


def _ledge(bay: Bay, box: tuple[int, int, int, int], colour: np.ndarray) -> None:
    """A projecting bar: lit above, its shadow below."""
    height, width = bay.cover.shape
    x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    bay.paint[y0:y1, x0:x1], bay.cover[y0:y1, x0:x1] = colour, 0.95
    bay.shade[y0 : y0 + max(1, (y1 - y0) // 4), x0:x1] *= 1.2
    drop = max(2, y1 - y0)
    fade = np.linspace(0.45, 1, drop, dtype=np.float32)[:, None]
    below = bay.shade[y1 : y1 + drop, x0:x1]
    below *= fade[: len(below)]


def _lintel(rng: np.random.Generator, bay: Bay, stone: np.ndarray, border: int) -> None:
    x0, y0, x1, _ = bay.opening
    kind = rng.integers(4)
    if kind == 0:
        _ledge(bay, (x0 - 2 * border, y0 - 2 * border, x1 + 2 * border, y0 - border), stone)
    elif kind == 1:
        peak = max(1, y0 - 4 * border)
        triangle = np.array([[x0 - 2 * border, y0 - border], [x1 + 2 * border, y0 - border], [(x0 + x1) // 2, peak]])
        mask = np.zeros(bay.cover.shape, np.uint8)
        cv2.fillConvexPoly(mask, triangle, 1)
        _fill(bay, mask.astype(bool), stone)
        cv2.polylines(bay.shade, [triangle], True, 0.55, max(1, border // 3))
    elif kind == 2:
        middle = (x0 + x1) // 2
        keystone = np.array([[middle - border, y0 - 3 * border], [middle + border, y0 - 3 * border],
                             [middle + border // 2, y0], [middle - border // 2, y0]])  # fmt: skip
        mask = np.zeros(bay.cover.shape, np.uint8)
        cv2.fillConvexPoly(mask, keystone, 1)
        _fill(bay, mask.astype(bool) & ~bay.hole, stone * np.float32(1.1))
        cv2.polylines(bay.shade, [keystone], True, 0.6, 1)


def _shutters(rng: np.random.Generator, noise: NoiseBank, bay: Bay, leaf: int) -> None:
    x0, y0, x1, y1 = bay.opening
    slats = wood(rng, noise, (y1 - y0, leaf), max(3.0, leaf / 5))
    tint = np.array([0.9, 1.05, 0.95]) if rng.random() < 0.5 else np.ones(3)
    slats = (slats * tint).astype(np.float32)
    for start in (x0 - leaf - 2, x1 + 2):
        first, last = max(0, start), min(bay.cover.shape[1], start + leaf)
        if last > first:
            bay.paint[y0:y1, first:last] = slats[:, : last - first]
            bay.cover[y0:y1, first:last] = 1
            bay.shade[y0:y1, [first, last - 1]] *= 0.5


def _panel(rng: np.random.Generator, noise: NoiseBank, bay: Bay, stone: np.ndarray) -> None:
    """An ornament under the window."""
    x0, _, x1, y1 = bay.opening
    size = min(bay.cover.shape[0] - y1 - 6, x1 - x0)
    if size < 10:
        return
    left, top = (x0 + x1 - size) // 2, bay.cover.shape[0] - size - 2
    part = np.s_[top : top + size, left : left + size]
    bay.paint[part], bay.cover[part] = stone, 0.8
    bay.shade[part] *= 1 + 0.4 * noise.motif(rng, size)


def _sign(rng: np.random.Generator, bay: Bay, box: tuple[int, int, int, int]) -> None:
    height, width = bay.cover.shape
    x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if y1 - y0 >= 8 and x1 - x0 >= 16:
        bay.paint[y0:y1, x0:x1] = sign_board(rng, (y1 - y0, x1 - x0))
        bay.cover[y0:y1, x0:x1] = 1
