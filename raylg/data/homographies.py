"""Homographies that turn a photograph into views: drawing them, and applying them without aliasing.

The recipe is glue-factory's: the corners of a frame move inwards at random, the frame is turned and shifted within the
photograph, and what it shows becomes the view. Changed on purpose:

* coordinates are those of `raylg.geometry.camera`, so the warp, keypoints and labels agree exactly (glue-factory warps
  between pixel centres and labels between pixel corners, which is off by up to several pixels);
* the frame starts as the largest one with the shape of the view, not as the whole photograph, so a portrait is not
  stretched into a landscape; both views of a pair start from the same one, whose place in the photograph is drawn;
* angles are drawn from the whole range, not from nine values of it;
* attempts are bounded.

Quads are float64 [4, 2]: top left, top right, bottom right, bottom left as the view shows them, in photograph pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raylg.data.config import ImagesConfig

ATTEMPTS = 32
"""Draws of corners, and of angles, before the fall-back: corners that did not move, no rotation."""
MIN_CONVEXITY = 0.05
"""Smallest cross product of successive edges of a quad, 1 for the whole frame (glue-factory: 0.05)."""
UNIT_SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
OVERLAP_GRID = 64
"""Points per axis at which the overlap is counted; it is good to about 0.5 %."""
SUPERSAMPLING = 2
"""Samples per axis whose mean is a pixel of a view that shrinks the photograph."""
SPAN_GRID = 9
"""Points per axis at which it is looked up how much a view shrinks the photograph."""


@dataclass(frozen=True, kw_only=True)
class HomographyPair:
    """Two views of one photograph."""

    H0: np.ndarray
    """float64 [3, 3], pixels of the photograph to pixels of view 0."""
    H1: np.ndarray
    """float64 [3, 3], likewise for view 1."""
    H_0to1: np.ndarray
    """float64 [3, 3], pixels of view 0 to pixels of view 1; unit Frobenius norm."""
    overlap: float
    """Share of view 0 that is seen in view 1."""


def sample_pair(rng: np.random.Generator, image_size: tuple[int, int], options: ImagesConfig) -> HomographyPair:
    """Draw the two views of a pair; a pure function of the state of `rng`.

    Args:
        rng: the only source of randomness.
        image_size: (width, height) of the photograph.
        options: size of the views, `difficulty`, `max_angle`.
    """
    view_size = np.array([options.width, options.height], dtype=np.float64)
    size = np.array(image_size, dtype=np.float64)
    frame = view_size * (size / view_size).min()
    origin = rng.random(2) * (size - frame)
    H0, H1 = (homography_of_quad(origin + sample_quad(rng, frame, options), view_size) for _ in range(2))
    H_0to1 = H1 @ np.linalg.inv(H0)
    return HomographyPair(H0=H0, H1=H1, H_0to1=H_0to1 / np.linalg.norm(H_0to1), overlap=seen_share(H_0to1, view_size))


def sample_quad(rng: np.random.Generator, frame: np.ndarray, options: ImagesConfig) -> np.ndarray:
    """Draw what a view shows: a convex quad within [0, frame], float64 [4, 2].

    Each corner moves by up to `difficulty` of the way to the centre per axis; the first convex one of `ATTEMPTS` draws
    is taken, else the whole frame. It is turned by the first one of as many angles at which it fits the frame, else not
    at all, and shifted by up to `difficulty` of the room that is left.
    """
    inwards = rng.random((ATTEMPTS, 4, 2)) * options.difficulty * (0.5 - UNIT_SQUARE)
    quads = UNIT_SQUARE + inwards
    convex = np.flatnonzero(convexity(quads) >= MIN_CONVEXITY)
    quad = frame * (quads[convex[0]] if len(convex) else UNIT_SQUARE)

    angles = np.radians(rng.uniform(-1, 1, ATTEMPTS) * options.max_angle * options.difficulty)
    angles = np.append(angles, 0.0)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = quad @ np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)  # [ATTEMPTS + 1, 4, 2]
    low, high = turned.min(axis=1), turned.max(axis=1)
    # The last one always fits; the tolerance lets it when it is the whole frame.
    chosen = np.flatnonzero((high - low <= frame * (1 + 1e-9)).all(axis=1))[0]
    room = np.maximum(frame - (high - low)[chosen], 0)
    start = room * (0.5 + rng.uniform(-0.5, 0.5, 2) * options.difficulty)
    placed: np.ndarray = turned[chosen] - low[chosen] + start
    return placed


def convexity(quads: np.ndarray) -> np.ndarray:
    """Smallest cross product of successive edges of quads [..., 4, 2] in the order of the module; 1 for the square."""
    edges = np.roll(quads, -1, axis=-2) - quads
    following = np.roll(edges, -1, axis=-2)
    smallest: np.ndarray = (edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]).min(axis=-1)
    return smallest


def homography_of_quad(quad: np.ndarray, view_size: np.ndarray) -> np.ndarray:
    """The homography [3, 3] that maps a convex quad to the corners of a view, positive in the third coordinate within.

    Source: Heckbert, Fundamentals of Texture Mapping and Image Warping (1989), section 2.2.3, for the inverse.

    Args:
        quad: float64 [4, 2].
        view_size: (width, height).
    """
    a, b, c, d = quad
    g, h = np.linalg.solve(np.stack([b - c, d - c], axis=1), a - b + c - d)
    from_square = np.eye(3)
    from_square[:2, 0], from_square[:2, 1], from_square[:2, 2] = b - a + g * b, d - a + h * d, a
    from_square[2, :2] = g, h
    to_view = np.diag([*view_size, 1.0]) @ np.linalg.inv(from_square)
    normalised: np.ndarray = to_view / np.linalg.norm(to_view)
    return normalised


def seen_share(H_0to1: np.ndarray, view_size: np.ndarray) -> float:
    """Share of view 0 that is inside view 1, both of `view_size` (width, height)."""
    points = grid_points(OVERLAP_GRID) * view_size
    # The third coordinate is positive wherever view 1 is: a homography is one to one.
    homogeneous = points @ H_0to1[:, :2].T + H_0to1[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = homogeneous[:, :2] / homogeneous[:, 2:]
    return float(((seen >= 0) & (seen <= view_size)).all(axis=1).mean())


def grid_points(count: int) -> np.ndarray:
    """Centres of count x count equal cells of the unit square, float64 [count^2, 2]."""
    ticks = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)


@torch.no_grad()
def warp_views(image: Tensor, homographies: Sequence[np.ndarray], view_size: tuple[int, int]) -> list[Tensor]:
    """Views of a photograph; exact to a small fraction of a pixel, and computed where the photograph is.

    Where a view shrinks the photograph, a pixel is the mean of 2 x 2 bilinear samples, which is a box filter for up to
    half the size; what shrinks more is sampled between the levels of a pyramid of exact halves (Williams, Pyramidal
    Parametrics, SIGGRAPH 1983). A view that only magnifies takes one sample.

    Args:
        image: uint8 [H, W, 3], on any device.
        homographies: float64 [3, 3] each, pixels of the photograph to pixels of the view.
        view_size: (width, height) of each view.

    Returns:
        float32 [3, height, width] each, 0 to 255.
    """
    levels = [image.permute(2, 0, 1)[None].float().contiguous()]
    views = []
    for H in homographies:
        to_image = np.linalg.inv(H)
        to_image /= to_image[2, 2]  # the corner at the origin, which the photograph holds
        smallest, largest = spans(to_image, view_size)
        samples = SUPERSAMPLING if largest > 1 else 1
        low, high = (max(0.0, float(np.log2(span / samples))) for span in (smallest, largest))
        while len(levels) <= np.ceil(high) and max(levels[-1].shape[2:]) > 1:
            levels.append(_halved(levels[-1]))
        used = range(int(low), min(int(np.ceil(high)), len(levels) - 1) + 1)
        views.append(_sample(levels, used, to_image, view_size, samples))
    return views


def spans(to_image: np.ndarray, view_size: tuple[int, int]) -> tuple[float, float]:
    """How many photograph pixels a step of one pixel in a view spans, at least and at most."""
    ticks = np.linspace(0, 1, SPAN_GRID)
    x, y = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).T * np.array(view_size)[:, None]
    span = _span(torch.from_numpy(to_image), torch.from_numpy(x), torch.from_numpy(y))
    return float(span.min()), float(span.max())


def _sample(
    levels: list[Tensor], used: range, to_image: np.ndarray, view_size: tuple[int, int], samples: int
) -> Tensor:
    """A view, float32 [3, H, W]: the mean of samples x samples places per pixel, blended between the levels `used`."""
    device = levels[0].device
    x = torch.arange(view_size[0], device=device, dtype=torch.float32)[None] + 0.5
    y = torch.arange(view_size[1], device=device, dtype=torch.float32)[:, None] + 0.5
    weights: list[Tensor | float] = [1.0]
    if len(used) > 1:
        level = torch.log2(_span(torch.from_numpy(to_image).float().to(device), x, y) / samples)
        level = level.clamp(used[0], used[-1])
        weights = [(1 - (level - index).abs()).clamp(min=0) for index in used]
    view = levels[0].new_zeros(3, view_size[1], view_size[0])
    offsets = ((np.arange(samples) + 0.5) / samples - 0.5).tolist()
    for dx, dy in itertools.product(offsets, offsets):
        for index, weight in zip(used, weights, strict=True):
            grid = _normalised_grid(to_image, levels[index].shape[2:], 2**index, x + dx, y + dy)
            sampled = F.grid_sample(levels[index], grid, mode="bilinear", padding_mode="border", align_corners=False)
            view += sampled[0] * weight
    return view / samples**2 if samples > 1 else view


def _normalised_grid(to_image: np.ndarray, shape: torch.Size, stride: int, x: Tensor, y: Tensor) -> Tensor:
    """Where the view pixels x [1, W], y [H, 1] are in a level of the pyramid, as `grid_sample` counts: -1 to 1.

    Args:
        to_image: float64 [3, 3], view to photograph.
        shape: (height, width) of the level.
        stride: photograph pixels per pixel of the level.
        x: px.
        y: px.

    Returns:
        float32 [1, H, W, 2].
    """
    height, width = shape
    normalise = np.array([[2 / (width * stride), 0, -1], [0, 2 / (height * stride), -1], [0, 0, 1]])
    (a, b, c), (d, e, f), (g, h, i) = (normalise @ to_image).tolist()
    grid = x.new_empty(1, y.shape[0], x.shape[1], 2)
    torch.add(a * x, b * y + c, out=grid[0, ..., 0])
    torch.add(d * x, e * y + f, out=grid[0, ..., 1])
    return grid.div_((g * x + (h * y + i))[None, ..., None])


def _span(to_image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Length of the derivative of photograph pixels by x or by y, the longer one; x and y are broadcast."""
    w = to_image[2, 0] * x + to_image[2, 1] * y + to_image[2, 2]
    image_x = (to_image[0, 0] * x + to_image[0, 1] * y + to_image[0, 2]) / w
    image_y = (to_image[1, 0] * x + to_image[1, 1] * y + to_image[1, 2]) / w
    squares = [
        (to_image[0, axis] - image_x * to_image[2, axis]) ** 2 + (to_image[1, axis] - image_y * to_image[2, axis]) ** 2
        for axis in (0, 1)
    ]
    return torch.maximum(squares[0], squares[1]).sqrt() / w.abs()


def _halved(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of [1, 3, H, W]; at an odd end of those that are there, so that x maps to x / 2 exactly."""
    return F.avg_pool2d(image, 2, ceil_mode=True)
