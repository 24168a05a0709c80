"""Homographies between images, in the pixel convention of `raylg.geometry.camera`."""

from __future__ import annotations

from torch import Tensor


def warp_points(points: Tensor, H: Tensor) -> Tensor:
    """Pixels [..., N, 2] of points [..., N, 2] seen through homographies [..., 3, 3].

    Not a matrix multiplication, which TF32 would round to about half a pixel.
    """
    H = H[..., None, :, :]
    x, y = points[..., 0, None], points[..., 1, None]
    homogeneous = H[..., 0] * x + H[..., 1] * y + H[..., 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]
