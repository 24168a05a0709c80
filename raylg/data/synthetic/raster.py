"""Rasteriser: exact inverse depth per pixel centre, one warp per visible polygon.

For a pixel p = (x, y, 1) the plane coordinates of a polygon satisfy G (a, b, 1) = z p with G = K [u v origin] in the
camera frame, so G^-1 p = (a, b, 1) / z: all three rows are affine in the pixel, the last one is the inverse depth, and
the polygon's edges are half-planes of the image. The same holds for a parallel projection with w = 1 instead of 1/z.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raylg.data.synthetic.mesh import Mesh, Texture

NEAR = 0.15
"""Nearest depth that is drawn, in metres."""
_TRIANGLE_EDGE = np.array([[-1.0, -1.0, 1.0]])


@dataclass(frozen=True)
class Projection:
    """All polygons of a mesh as seen by one camera (or along one direction)."""

    inverse: np.ndarray
    """float64 [N, 3, 3]: pixel (x, y, 1) to (a, b, 1) * w."""
    key: np.ndarray
    """float64 [N, 3]: affine form of the nearness (inverse depth), larger is nearer."""
    usable: np.ndarray
    """bool [N]: not seen edge-on and not certainly outside."""
    edges: np.ndarray
    """float64 [N, E, 3]: affine forms that are positive inside."""
    order: np.ndarray
    """int [n]: the usable polygons, nearest first."""


@dataclass(frozen=True)
class Raster:
    """What a view sees."""

    colour: np.ndarray
    """uint8 [H, W, 4]; undefined where nothing is seen."""
    polygon: np.ndarray
    """int32 [H, W], -1 where nothing is seen."""
    nearness: np.ndarray
    """float32 [H, W]: inverse depth (perspective) or minus distance (parallel)."""


def project_perspective(mesh: Mesh, camera: np.ndarray, T_w2c: np.ndarray, size: tuple[int, int]) -> Projection:
    """Project through a pinhole camera [4] with pose [4, 4] onto an image of `size` (width, height)."""
    R, t = T_w2c[:3, :3], T_w2c[:3, 3]
    K = np.array([[camera[0], 0, camera[2]], [0, camera[1], camera[3]], [0, 0, 1]])
    G = np.stack([mesh.u @ R.T, mesh.v @ R.T, mesh.origin @ R.T + t], axis=2)
    G = K @ G
    corners = G @ np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=np.float64).T
    x, y, z = corners[:, 0], corners[:, 1], corners[:, 2]
    # A polygon is outside if all its corners are beyond one plane of the frustum.
    outside = (z < NEAR).all(1) | (x < 0).all(1) | (y < 0).all(1)
    outside |= (x > size[0] * z).all(1) | (y > size[1] * z).all(1)
    inverse, usable, determinant = _invert(G, ~outside)
    usable &= ~mesh.solid | (determinant > 0)
    near = np.array([0, 0, 1 / NEAR]) - inverse[:, 2]
    edges = np.concatenate([_edges(inverse, mesh.triangle), near[:, None], inverse[:, 2:3]], axis=1)
    return Projection(inverse, inverse[:, 2], usable, edges, _sorted(usable, -z.mean(1)))


def project_parallel(mesh: Mesh, axes: np.ndarray, offset: np.ndarray) -> Projection:
    """Project along a direction: with p = axes X + offset, p[:2] is the pixel and p[2] the distance."""
    G = np.stack([mesh.u @ axes.T, mesh.v @ axes.T, mesh.origin @ axes.T + offset], axis=2)
    distance = G[:, 2].copy()
    G[:, 2] = [0, 0, 1]
    inverse, usable, _ = _invert(G, np.ones(len(G), dtype=bool))
    key = -np.einsum("ni,nij->nj", distance, inverse)
    middle = distance @ np.array([0.5, 0.5, 1])
    return Projection(inverse, key, usable, _edges(inverse, mesh.triangle), _sorted(usable, -middle))


def rasterise(mesh: Mesh, projection: Projection, size: tuple[int, int], *, colour: bool = True) -> Raster:
    """Draw the mesh on an image of `size` (width, height); without colour only coverage and nearness are drawn."""
    width, height = size
    raster = Raster(
        np.zeros((height, width, 4), np.uint8),
        np.full((height, width), -1, np.int32),
        np.full((height, width), -np.inf, np.float32),
    )
    order = projection.order
    first, last = _intervals(projection.edges[order], size)
    for index, lo, hi in zip(order, first, last, strict=True):
        rows = np.flatnonzero(hi > lo)
        if len(rows):
            _draw(raster, mesh, projection, (int(index), lo, hi, rows), colour)
    return raster


def _invert(G: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    determinant = np.linalg.det(G)
    scale = np.prod(np.linalg.norm(G, axis=1), axis=1)
    usable = candidate & (np.abs(determinant) > 1e-7 * np.maximum(scale, 1e-12))
    return np.linalg.inv(np.where(usable[:, None, None], G, np.eye(3))), usable, determinant


def _edges(inverse: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    a, b, w = inverse[:, 0], inverse[:, 1], inverse[:, 2]
    return np.stack([a, b, np.where(triangle[:, None], w - a - b, w - a), w - b], axis=1)


def _sorted(usable: np.ndarray, nearness: np.ndarray) -> np.ndarray:
    index = np.flatnonzero(usable)
    return np.asarray(index[np.argsort(-nearness[index], kind="stable")])


def _intervals(edges: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last pixel column per polygon and row: int32 [n, H] each; pixel centres inside all edges."""
    width, height = size
    y = np.arange(height) + 0.5
    lo, hi = np.zeros((len(edges), height)), np.full((len(edges), height), float(width))
    for edge in edges.swapaxes(0, 1):
        slope, rest = edge[:, :1], edge[:, 1:2] * y + edge[:, 2:]
        rising, falling = slope > 1e-14, slope < -1e-14
        bound = rest / np.where(rising | falling, -slope, 1.0)
        np.maximum(lo, bound, out=lo, where=rising)
        np.minimum(hi, bound, out=hi, where=falling)
        hi[(rest < 0) & ~(rising | falling)] = -1
    first = np.ceil(np.clip(lo, 0, width) - 0.5).astype(np.int32)
    last = np.ceil(np.clip(hi, -1, width) - 0.5).astype(np.int32)
    return first, last


def _draw(
    raster: Raster,
    mesh: Mesh,
    projection: Projection,
    span: tuple[int, np.ndarray, np.ndarray, np.ndarray],
    colour: bool,
) -> None:
    """Draw one polygon; span = (index, first column per row, last column per row, rows covered)."""
    index, lo, hi, rows = span
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    x0, x1 = int(lo[rows].min()), int(hi[rows].max())
    key = projection.key[index]
    ys, xs = np.arange(y0, y1), np.arange(x0, x1)
    nearness = ((xs + 0.5) * key[0] + key[2]).astype(np.float32) + ((ys + 0.5) * key[1]).astype(np.float32)[:, None]
    mask = (nearness > raster.nearness[y0:y1, x0:x1]) & (xs >= lo[y0:y1, None]) & (xs < hi[y0:y1, None])
    covered = np.flatnonzero(mask.any(1))
    if not len(covered):
        return
    # Only the part that is not hidden is warped: drawing goes from near to far.
    columns = np.flatnonzero(mask.any(0))
    inner = np.s_[covered[0] : covered[-1] + 1, columns[0] : columns[-1] + 1]
    mask, nearness = mask[inner], nearness[inner]
    y0, x0 = y0 + int(covered[0]), x0 + int(columns[0])
    target = np.s_[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
    texture = mesh.textures[mesh.texture[index]]
    if colour or not texture.opaque:
        patch = _sample(texture, mesh.window[index], projection.inverse[index], (x0, y0, mask.shape[1], mask.shape[0]))
        if not texture.opaque:
            mask = mask & (patch[..., 3] > 127)
        np.copyto(raster.colour[target], patch, where=mask[..., None])
    np.copyto(raster.nearness[target], nearness, where=mask)
    raster.polygon[target][mask] = index


def _sample(texture: Texture, window: np.ndarray, inverse: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Warp the texture into pixels x0, y0, width, height: uint8 [height, width, 4]."""
    x0, y0, width, height = box
    height0, width0 = texture.levels[0].shape[:2]
    to_texture = np.array([[window[2] - window[0], 0, window[0]], [0, window[3] - window[1], window[1]], [0, 0, 1]])
    pixel_to_texture = to_texture @ inverse
    number = _level(pixel_to_texture, (x0 + width / 2, y0 + height / 2), (width0, height0))
    level = texture.levels[min(number, len(texture.levels) - 1)]
    # Texel and pixel indices are centres minus one half.
    scale = np.array([[level.shape[1], 0, -0.5], [0, level.shape[0], -0.5], [0, 0, 1]])
    shift = np.array([[1, 0, x0 + 0.5], [0, 1, y0 + 0.5], [0, 0, 1]])
    matrix = scale @ pixel_to_texture @ shift
    return cv2.warpPerspective(
        level, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def _level(matrix: np.ndarray, centre: tuple[float, float], size: tuple[int, int]) -> int:
    """Mip level at which one texel is about one pixel (geometric mean of both directions, a little sharper)."""
    s, t, w = matrix @ np.array([centre[0], centre[1], 1.0])
    jacobian = (matrix[:2, :2] * w - np.outer([s, t], matrix[2, :2])) / (w * w) * np.array(size)[:, None]
    area = abs(float(np.linalg.det(jacobian)))
    return max(0, round(0.5 * float(np.log2(max(area, 1e-9))) + 0.1))
